// For tests of CUDA kernels: the library under test (emulated, or the real one on a GPU) and device arrays. The same test sources run both
// ways.
#pragma once

#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "check.h"
#include "cuda/api/api.h"

namespace lapidary::test {

// The table under test. Defined by main_emulated.cc, or by main_gpu.cc from the shared object.
const cuda::Api& api();
// A stream of the device under test and its facts.
const cuda::LaunchContext& context();
// Fails the case with the status' text unless ok.
void require_ok(const cuda::Status& status);

// Runs `body` on each of these devices, with context() as theirs. A real GPU is what it is and runs it once.
enum class Capability { sm80, sm86, sm89, sm90, sm120 };
void each_device(std::initializer_list<Capability> devices, const std::function<void()>& body);
// Runs `body` with asynchronous operations done as early and as late as they may be, and with several orders of blocks and threads. Once on
// a real GPU, which has an order of its own.
void each_mode(const std::function<void()>& body);
// Runs `body` with range, alignment and lifetime checked alone, three times as fast: for whole models, whose kernels have tests of their
// own.
void with_range_checks(const std::function<void()>& body);

// An array on the device. Copies wait, so a test reads like host code.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    void* p = nullptr;
    require_ok(api().device.allocate(&p, count * sizeof(T), context().stream));
    memory_ = std::shared_ptr<T>(static_cast<T*>(p), [](T* q) { (void)api().device.release(q, context().stream); });
  }
  explicit DeviceArray(std::span<const T> host) : DeviceArray(host.size()) { upload(host); }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(std::span<const T>(host)) {}
  void upload(std::span<const T> host) {
    require_ok(api().device.copy_to_device(memory_.get(), host.data(), host.size() * sizeof(T), context().stream));
    require_ok(api().device.stream_synchronize(context().stream));
  }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    require_ok(api().device.copy_to_host(host.data(), memory_.get(), count_ * sizeof(T), context().stream));
    require_ok(api().device.stream_synchronize(context().stream));
    return host;
  }
  T* get() const { return memory_.get(); }
  size_t size() const { return count_; }

 private:
  size_t count_;
  std::shared_ptr<T> memory_;
};

}  // namespace lapidary::test
