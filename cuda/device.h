// One device of the backend: checked calls, its stream, memory that frees itself, and a way to hand small host arrays to kernels.
// No CUDA types: everything goes through the table of api/api.h.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "cuda/api/api.h"
#include "tensor/tensor.h"

namespace lapidary::cuda {

// Of KV pages, bytes: a multiple of a bf16 row of every head size that a tensor map reads (256 elements).
inline constexpr uintptr_t kPageAlignment = 512;

// Outlives the backend: memory handed out keeps it. Thread-safe; work goes to one stream in the order of the calls.
class DeviceState : public std::enable_shared_from_this<DeviceState> {
 public:
  // Error(cuda) with the reason when the device cannot be used.
  DeviceState(const Api& api, int ordinal);
  ~DeviceState();
  DeviceState(const DeviceState&) = delete;
  DeviceState& operator=(const DeviceState&) = delete;

  const Api& api() const { return api_; }
  const DeviceFacts& facts() const { return facts_; }
  const LaunchContext& context() const { return context_; }
  // For kernels that wait for the previous grid themselves and have something to load before: they may start while it still runs. What they
  // load before (weights) must not be that grid's work.
  const LaunchContext& chained() const { return chained_; }
  Stream stream() const { return context_.stream; }

  // Makes this device the calling thread's. Error(cuda) once the context is lost.
  void enter();
  // Throws what a status says: out of memory, refused (internal: the backend asked for what a launcher refuses), or a CUDA failure. One
  // that poisons the context marks the device dead, and every later call says so.
  void check(const Status& status);

  // 256-byte aligned, uninitialised; freed on the stream when the last owner lets go. Error(out_of_memory) names sizes.
  Buffer allocate(size_t bytes);
  void upload(void* to, const void* host, size_t bytes);      // returns when host memory may be reused
  void download(void* host, const void* from, size_t bytes);  // waits for the work before it
  void synchronize();

 private:
  const Api& api_;
  DeviceFacts facts_;
  LaunchContext context_, chained_;
  std::mutex mutex_;
  std::string lost_;  // the reason, once the context is gone
};

// Page-locked host memory that is copied to the device on the stream: what a step tells its kernels (ids, positions, page tables, sampling
// settings). What is put between two calls of begin() stays where it is until the stream has done all that was given to it before the
// second one.
class Staging {
 public:
  // Memory is used again once more than half of `chunk_bytes` have been handed out; a call that needs more gets chunks of its own.
  Staging(std::shared_ptr<DeviceState> device, size_t chunk_bytes) : device_(std::move(device)), chunk_bytes_(chunk_bytes) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Before the first put of an operation. May wait for the stream.
  void begin();
  // Device memory with a copy of `host`, 64-byte aligned.
  template <typename T>
  const T* put(std::span<const T> host) {
    return static_cast<const T*>(put_bytes(host.data(), host.size_bytes()));
  }
  const void* put_bytes(const void* host, size_t bytes);

 private:
  struct Chunk {
    Buffer memory;
    std::byte* pinned = nullptr;
  };
  void add_chunk(size_t bytes);

  std::shared_ptr<DeviceState> device_;
  size_t chunk_bytes_, current_ = 0, at_ = 0, used_ = 0;  // the next byte is at_ of chunk current_; used_ since the stream was waited for
  std::vector<Chunk> chunks_;
};

// Device memory that grows to what is asked and is kept: scratch between two kernels of one call.
class Scratch {
 public:
  // counters: zero when it grows; kernels that count in it leave zeros. data: any contents.
  enum class Holds { data, counters };
  explicit Scratch(std::shared_ptr<DeviceState> device, Holds holds = Holds::data) : device_(std::move(device)), holds_(holds) {}
  void* at_least(size_t bytes);

 private:
  std::shared_ptr<DeviceState> device_;
  Holds holds_;
  Buffer memory_;
};

}  // namespace lapidary::cuda
