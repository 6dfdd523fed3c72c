// Texts cut to one length and drawn by chance, for work that must come out the same when it is done again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "compress/evaluate.h"

namespace lapidary {

// Pieces of `tokens` tokens; a shorter one only where a text has no other. Empty texts have none.
inline std::vector<TextIds> text_pieces(std::span<const TextIds> texts, int64_t tokens) {
  std::vector<TextIds> pieces;
  const auto length = static_cast<size_t>(tokens);
  for (const TextIds& text : texts) {
    if (text.empty()) continue;
    for (size_t first = 0; first == 0 || first + length <= text.size(); first += length)
      pieces.emplace_back(text.begin() + static_cast<int64_t>(first),
                          text.begin() + static_cast<int64_t>(std::min(first + length, text.size())));
  }
  return pieces;
}

// SplitMix64: what is drawn depends on the seed and the round alone, so that work goes on anywhere without a generator's state.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t round) : state_(seed * 0x9e3779b97f4a7c15u + round * 0xd1b54a32d192ed03u) {}
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[static_cast<size_t>(next() % i)]);
  }

 private:
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

// FNV-1a over what a piece of work depends on: whether a state file is of the same one.
class WorkIdentity {
 public:
  // Values without padding.
  template <typename T>
  WorkIdentity& add(const T& value) {
    return bytes(&value, sizeof value);
  }
  WorkIdentity& ids(std::span<const int32_t> values) { return add(values.size()).bytes(values.data(), values.size_bytes()); }
  WorkIdentity& texts(std::span<const TextIds> values) {
    add(values.size());
    for (const TextIds& text : values) ids(text);
    return *this;
  }
  WorkIdentity& text(const std::string& value) { return add(value.size()).bytes(value.data(), value.size()); }
  std::string done() const { return std::to_string(hash_); }

 private:
  WorkIdentity& bytes(const void* data, size_t count) {
    for (size_t i = 0; i < count; ++i) hash_ = (hash_ ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
    return *this;
  }
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace lapidary
