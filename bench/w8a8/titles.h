// Texts of another small artificial language, in which the beginning of a text is unlike the rest: the first word is any, likely or not,
// and the second follows from it without doubt. From there on a word is one of the former's followers, or, more often, any by Zipf's law.
#pragma once

#include <array>
#include <cstdint>

#include "backcopy.h"

namespace lapidary {

class Titles {
 public:
  static constexpr int32_t kFirst = 4, kWords = 256, kVocab = kFirst + kWords;  // below kFirst: pad, end, BOS, unknown

  explicit Titles(uint64_t seed) {
    Random random(seed);
    for (size_t from = 0; from < next_.size(); ++from)
      for (int32_t& word : next_[from]) word = static_cast<int32_t>((from + 1 + static_cast<size_t>(random.below(kWords - 1))) % kWords);
    for (int32_t word = 0; word < kWords; ++word) all_ += weight(word);
  }

  TextIds text(Random& random, int64_t tokens) const {
    int32_t word = static_cast<int32_t>(random.below(kWords));
    TextIds ids = {kFirst + word};
    while (static_cast<int64_t>(ids.size()) < tokens) {
      const std::array<int32_t, 1 + kFollowers>& next = next_[static_cast<size_t>(word)];
      word = ids.size() == 1 ? next[0] : random.below(10) < 4 ? next[static_cast<size_t>(1 + likely(random))] : any(random);
      ids.push_back(kFirst + word);
    }
    return ids;
  }

 private:
  static constexpr int64_t kFollowers = 6;
  static double weight(int32_t word) { return 1.0 / (word + 2); }
  // Of the followers, half the time the first, a quarter the second, and so on.
  static int64_t likely(Random& random) {
    int64_t i = 0;
    while (i + 1 < kFollowers && (random.next() >> 63) != 0) ++i;
    return i;
  }
  int32_t any(Random& random) const {
    double left = static_cast<double>(random.next() >> 11) * 0x1p-53 * all_;
    int32_t word = 0;
    while (word + 1 < kWords && (left -= weight(word)) > 0) ++word;
    return word;
  }

  std::array<std::array<int32_t, 1 + kFollowers>, kWords> next_{};  // the partner, then the followers
  double all_ = 0;
};

}  // namespace lapidary
