// Texts of a small artificial language, where short-range attention pays (arXiv 2410.13835): each token draws the next from a chain of its
// own, but after a trigger comes the token that stood before it. No token follows itself.
#pragma once

#include <array>
#include <cstdint>

#include "compress/evaluate.h"

namespace lapidary {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // About normal, variance 1: a sum of twelve.
  float normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(next() >> 11) * 0x1p-53;
    return static_cast<float>(sum);
  }

 private:
  uint64_t state_;
};

class Backcopy {
 public:
  static constexpr int32_t kFirst = 4, kTokens = 64, kTriggers = 4, kVocab = kFirst + kTokens;  // below kFirst: pad, end, BOS, unknown

  explicit Backcopy(uint64_t seed) {
    Random random(seed);
    for (size_t from = 0; from < next_.size(); ++from)
      for (int32_t& id : next_[from]) {
        const auto step = static_cast<size_t>(1 + random.below(kTokens - 1));
        id = kFirst + static_cast<int32_t>((from + step) % kTokens);
      }
  }

  TextIds text(Random& random, int64_t tokens) const {
    TextIds ids = {kFirst + static_cast<int32_t>(random.below(kTokens))};
    while (static_cast<int64_t>(ids.size()) < tokens) {
      const size_t n = ids.size();
      const bool copies = ids[n - 1] < kFirst + kTriggers && n >= 2;
      ids.push_back(copies ? ids[n - 2] : next_[static_cast<size_t>(ids[n - 1] - kFirst)][static_cast<size_t>(likely(random))]);
    }
    return ids;
  }

 private:
  static constexpr int64_t kFollowers = 8;
  // Of the followers, half the time the first, a quarter the second, and so on.
  static int64_t likely(Random& random) {
    int64_t i = 0;
    while (i + 1 < kFollowers && (random.next() >> 63) != 0) ++i;
    return i;
  }

  std::array<std::array<int32_t, kFollowers>, kTokens> next_{};
};

}  // namespace lapidary
