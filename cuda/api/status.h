// What every launcher takes and gives: the device's facts and the stream in, a status out. Plain data, no CUDA types: included by the
// backend (compiled without nvcc), by the launchers (with it) and by the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lapidary::cuda {

using Stream = void*;  // a cudaStream_t

struct Status {
  enum class Kind : int32_t { ok, refused, cuda };  // refused: the launcher does not take this problem; nothing was started
  Kind kind = Kind::ok;
  int32_t code = 0;             // the cudaError_t
  const char* where = nullptr;  // the kernel or call, a literal
  const char* what = nullptr;   // the reason, static memory

  bool ok() const { return kind == Kind::ok; }
  static Status refused(const char* where, const char* what) { return {Kind::refused, 0, where, what}; }
  static Status cuda(int code, const char* where, const char* what) { return {Kind::cuda, code, where, what}; }
};

struct DeviceFacts {
  char name[256] = {};
  int32_t ordinal = 0, major = 0, minor = 0;  // compute capability
  // Architecture of the code that runs on this device: 80, 90 (sm_90a) or 120. A newer device, for which the library holds no machine code,
  // runs the PTX of 8.0, in which clusters, bulk copies and dependent launches do not exist.
  int32_t code = 80;
  int32_t sm_count = 0;
  int32_t driver_version = 0, runtime_version = 0;  // 13000 = 13.0
  int32_t clock_khz = 0, memory_clock_khz = 0, memory_bus_bits = 0;
  int64_t memory_bytes = 0, l2_bytes = 0;
  int64_t smem_per_block = 0;  // opt-in maximum, bytes
  int64_t smem_per_sm = 0;

  bool has_clusters() const { return code >= 90; }
  bool has_wgmma() const { return code == 90; }
};

struct LaunchContext {
  Stream stream = nullptr;
  const DeviceFacts* device = nullptr;
  bool dependent = false;  // may start before the previous grid of the stream has ended (PDL); the kernel waits itself
};

}  // namespace lapidary::cuda
