// The sampler's passes over a vocabulary on the pool, with the kernels of the instruction set in use.
#pragma once

#include <algorithm>
#include <atomic>
#include <span>
#include <vector>

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

  void units(std::span<const float> x, float low, float top, float temperature, int unit_bits, std::span<uint64_t> blocks) const override {
    for_parts(x, [&](const float* part, int64_t n, int64_t block) {
      kernels_.block_units(part, n, kBlock, low, top, temperature, unit_of(unit_bits), blocks.data() + block);
    });
  }

  void bucket_units(std::span<const float> x, float top, float temperature, int unit_bits, std::span<uint64_t> sums) const override {
    for_parts(x, [&](const float* part, int64_t n, int64_t block) {
      uint64_t* to = sums.data() + block / (kPart / kBlock) * sampling::kBuckets;
      kernels_.bucket_units(part, n, top, temperature, unit_of(unit_bits), to);
    });
  }

  void find(std::span<const float> x, float low, float high, std::vector<int32_t>& indices) const override {
    constexpr size_t kPiece = 4096;
    int32_t found[kPiece];
    indices.clear();
    for (size_t first = 0; first < x.size(); first += kPiece) {
      const int64_t n = static_cast<int64_t>(std::min(kPiece, x.size() - first));
      const int64_t count = kernels_.find_between(x.data() + first, n, low, high, found);
      for (int64_t i = 0; i < count; ++i) indices.push_back(static_cast<int32_t>(first) + found[i]);
    }
  }

 private:
  static float unit_of(int unit_bits) { return sampling::float_of(static_cast<uint32_t>(unit_bits + 127) << 23); }

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
