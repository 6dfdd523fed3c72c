// What every GPU microbenchmark stands on: the device, cold buffers, timing with events, results as lines of JSON.
//
// Timing: the calls of one sample are recorded into a graph (so the host's launch cost is not measured), each call works on other buffers
// than the ones before it (together more than twice the L2), and the median of the samples counts. Every case states its bytes and
// operations, and checks what it computed before it is timed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/api/api.h"

namespace lapidary::bench {

struct Options {
  std::string json;       // appended to: one line per result
  std::string filter;     // only cases whose name contains it
  bool tiny = false;      // sizes for the emulator: shows that everything runs, measures nothing
  double seconds = 0.25;  // of timing per case
  // Measured by the first families and handed to the others; 0: not known.
  double read_gbps = 0, copy_gbps = 0, int8_tops = 0, bf16_tflops = 0;
};

// What bounds a case.
enum class Bound { none, read, copy, int8, bf16 };

struct Case {
  std::string name;
  double bytes = 0;       // that must cross DRAM at least once
  double operations = 0;  // multiplications and additions
  Bound bound = Bound::none;
  // The problem's sizes by name ("m", "n", "k"): peers.py runs the same ones from the JSON.
  std::vector<std::pair<std::string, int64_t>> sizes = {};
  std::string note = {};  // the launcher's own words on its choice, say
};

struct Timing {
  double median_us = 0, low_us = 0, high_us = 0;  // tenth and ninetieth percentile
  int samples = 0, calls_per_sample = 0;
};

// Device memory for the length of a scope.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const cuda::Api& api, cuda::Stream stream, size_t bytes);
  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }
  void* get() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<void> memory_;
  size_t bytes_ = 0;
};

// Random elements without end: element i is host[i % host.size()]. Large tensors are filled from one block on the device, and any element
// is known on the host.
template <typename T>
struct Pattern {
  std::vector<T> host;
  const T& at(int64_t i) const { return host[static_cast<size_t>(i % static_cast<int64_t>(host.size()))]; }
};
Pattern<int8_t> random_int8(uint64_t seed);
Pattern<uint16_t> random_bf16(uint64_t seed, float magnitude);  // uniform in -magnitude .. magnitude
Pattern<float> random_f32(uint64_t seed, float low, float high);
float from_bf16(uint16_t bits);

class Session {
 public:
  explicit Session(Options options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const cuda::Api& api() const { return *api_; }
  const cuda::DeviceFacts& facts() const { return facts_; }
  const cuda::LaunchContext& context() const { return context_; }
  const Options& options() const { return options_; }
  bool tiny() const { return options_.tiny; }

  DeviceMemory memory(size_t bytes) const { return DeviceMemory(api(), context_.stream, bytes); }
  DeviceMemory zeros(size_t bytes) const;
  // `count` elements of the pattern from its element `from` on.
  template <typename T>
  DeviceMemory filled(const Pattern<T>& pattern, int64_t count, int64_t from = 0) const {
    return filled_bytes(pattern.host.data(), pattern.host.size(), sizeof(T), count, from);
  }
  template <typename T>
  DeviceMemory upload(const std::vector<T>& host) const {
    return upload_bytes(host.data(), host.size() * sizeof(T));
  }
  template <typename T>
  std::vector<T> download(const void* from, size_t count) const {
    std::vector<T> host(count);
    download_bytes(host.data(), from, count * sizeof(T));
    return host;
  }
  void synchronize() const { require(api().device.stream_synchronize(context_.stream)); }

  // How many sets of buffers of `bytes` each a case goes through so that none is in the L2 when its turn comes again.
  int rotation(double bytes) const;
  // Whether the case is wanted (the filter).
  bool wants(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }
  // The family that the coming results belong to.
  void enter(const std::string& family) { family_ = family; }
  // Throws what the status says unless ok.
  static void require(const cuda::Status& status);

  // Times work(i), i = 0, 1, ... going round `rotation`, and reports. `check` runs after the first call of work(0) and gives "" or what is
  // wrong with the result; then the case is reported as wrong and not timed.
  void run(const Case& c, int rotation, const std::function<cuda::Status(int)>& work, const std::function<std::string()>& check);
  // A case that this device or this build refuses.
  void skip(const std::string& name, const std::string& reason);
  // A figure that is not a time, into the JSON.
  void figure(const std::string& name, double value, const std::string& unit);
  Timing measure(int rotation, const std::function<cuda::Status(int)>& work);
  // Of the last run() in GB/s and in 10^12 operations a second, for the families that others measure against.
  double last_gbps() const { return last_gbps_; }
  double last_tops() const { return last_tops_; }
  int wrong() const { return wrong_; }

 private:
  DeviceMemory filled_bytes(const void* host, size_t period, size_t element, int64_t count, int64_t from) const;
  DeviceMemory upload_bytes(const void* host, size_t bytes) const;
  void download_bytes(void* host, const void* from, size_t bytes) const;
  double roofline_us(const Case& c) const;
  void write_line(const std::string& json) const;

  Options options_;
  std::string family_;
  const cuda::Api* api_ = nullptr;
  cuda::DeviceFacts facts_;
  cuda::LaunchContext context_;
  cuda::Event begin_ = nullptr, end_ = nullptr;
  double last_gbps_ = 0, last_tops_ = 0;
  int wrong_ = 0;
};

// A group of cases under one name of the command line. Each file adds its own to families() in main.cc.
struct Family {
  const char* name;
  const char* about;
  void (*run)(Session& session);
};
const std::vector<Family>& families();

}  // namespace lapidary::bench
