// The fuzzer's own generator: the same seed gives the same files everywhere.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <string>

namespace lapidary::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {  // SplitMix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }

  template <typename T>
  const T& pick(std::initializer_list<T> choices) {
    return choices.begin()[below(choices.size())];
  }
  template <typename List>
  auto& pick_from(List& list) {
    return *std::next(std::begin(list), static_cast<std::ptrdiff_t>(below(std::size(list))));
  }

  std::string bytes(size_t count) {
    std::string text(count, '\0');
    for (char& c : text) c = static_cast<char>(next());
    return text;
  }

 private:
  uint64_t state_;
};

}  // namespace lapidary::fuzz
