// The roofline of this processor, measured: how fast memory can be read and how many operations of a kind all threads can do.
// The best of several samples counts, since whatever else runs can only take away.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace lapidary::cpu {

struct Peaks {
  double bandwidth = 0;  // bytes read a second, from a buffer of at least four times the last-level cache
  // Operations a second, a multiplication and an addition being two, with the instruction set in use.
  double f32 = 0;
  double int8 = 0;          // products of int8 summed in int32
  double bf16 = 0;          // products of bf16 summed in f32; 0: no such instruction
  int64_t cache_bytes = 0;  // of all last-level caches together; 0: the system does not say
};

struct ProbeOptions {
  int threads = 0;           // 0: one per physical core
  double seconds = 0.25;     // for each figure
  int64_t memory_bytes = 0;  // of the machine, of which the buffer takes an eighth at most; 0: as much as it wants
};

// Ones of a ProbeLoop's type, and the zeros behind them.
struct ProbeData {
  explicit ProbeData(DType dtype);
  alignas(64) std::byte bytes[2 * kProbeBytes];
};

// Runs on the pool that the CPU backend with this thread count has: both at once would show a part of either. Error(out_of_memory)
// where there is none for the buffer.
Peaks measure_peaks(const Kernels& kernels, const ProbeOptions& options = {});

}  // namespace lapidary::cpu
