// The sampler's passes over a vocabulary on the pool, with the kernels of the instruction set in use.
#pragma once

#include <atomic>
#include <span>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/sampling.h"
#include "ops/sampling_math.h"

namespace lapidary::cpu {

class PoolSamplingLoops final : public SamplingLoops {
 public:
  PoolSamplingLoops(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  bool maxima(std::span<const float> x, std::span<float> blocks) const override {
    std::atomic<bool> good = true;
    for_parts(x, [&](const float* part, int64_t n, int64_t block) {
      if (!kernels_.block_maxima(part, n, kBlock, blocks.data() + block)) good = false;
    });
    return good;
  }

  void units(std::span<const float> x, float top, float temperature, int unit_bits, std::span<uint64_t> blocks) const override {
    const float unit = sampling::float_of(static_cast<uint32_t>(unit_bits + 127) << 23);
    for_parts(x, [&](const float* part, int64_t n, int64_t block) {
      kernels_.block_units(part, n, kBlock, top, temperature, unit, blocks.data() + block);
    });
  }

 private:
  // Elements a thread takes at a time.
  static constexpr int64_t kPart = 256 * kBlock;

  // fn(first element, elements, first block).
  template <typename Fn>
  void for_parts(std::span<const float> x, const Fn& fn) const {
    pool_.parallel_for(static_cast<int64_t>(x.size()), kPart,
                       [&](int64_t begin, int64_t end) { fn(x.data() + begin, end - begin, begin / kBlock); });
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
};

}  // namespace lapidary::cpu
