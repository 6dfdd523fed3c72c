// Finds strings that are kept elsewhere: an open-addressing table from text to id.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/prefetch.h"

namespace lapidary {

inline uint64_t hash_bytes(std::string_view text) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u, kOther = 0xd6e8feb86659fd93u;
  const char* p = text.data();
  size_t n = text.size();
  uint64_t h = n * kOdd;
  const auto take = [&](uint64_t word) {
    h = (h ^ word) * kOther;
    h ^= h >> 32;
  };
  const auto load8 = [](const char* at) {
    uint64_t v;
    std::memcpy(&v, at, 8);
    return v;
  };
  const auto load4 = [](const char* at) {
    uint32_t v;
    std::memcpy(&v, at, 4);
    return static_cast<uint64_t>(v);
  };
  for (; n > 8; n -= 8, p += 8) take(load8(p));
  if (n >= 4) {
    take(load4(p) | load4(p + n - 4) << 32);
  } else if (n > 0) {
    const auto byte = [&](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
    take(byte(0) | byte(n / 2) << 8 | byte(n - 1) << 16);
  }
  return h * kOdd;
}

// `text_of(id)` gives the text of an id that was inserted.
class StringIndex {
 public:
  explicit StringIndex(size_t expected = 0) { rehash(expected); }

  static uint32_t hash(std::string_view text) { return static_cast<uint32_t>(hash_bytes(text) >> 32); }
  // Look-ups of many texts wait for memory less when this is called for each a few texts ahead.
  void prefetch(uint32_t hash) const { lapidary::prefetch(&slots_[hash & mask_]); }
  // The id that a look-up with this hash compares first, or -1.
  int32_t candidate(uint32_t hash) const { return slots_[hash & mask_].id; }

  template <typename TextOf>
  int32_t find(std::string_view text, const TextOf& text_of) const {
    return find(text, hash(text), text_of);
  }

  template <typename TextOf>
  int32_t find(std::string_view text, uint32_t hash, const TextOf& text_of) const {
    for (size_t at = hash & mask_;; at = (at + 1) & mask_) {
      const Slot& slot = slots_[at];
      if (slot.id < 0 || (slot.hash == hash && text_of(slot.id) == text)) return slot.id;
    }
  }

  // Adds `id` unless an equal text is there already; returns the id that holds the text.
  template <typename TextOf>
  int32_t insert(std::string_view text, int32_t id, const TextOf& text_of) {
    return insert(text, hash(text), id, text_of);
  }

  template <typename TextOf>
  int32_t insert(std::string_view text, uint32_t hash, int32_t id, const TextOf& text_of) {
    if ((count_ + 1) * 2 > slots_.size()) rehash(count_ * 2 + 16);
    for (size_t at = hash & mask_;; at = (at + 1) & mask_) {
      Slot& slot = slots_[at];
      if (slot.id < 0) {
        slot = {hash, id};
        ++count_;
        return id;
      }
      if (slot.hash == hash && text_of(slot.id) == text) return slot.id;
    }
  }

 private:
  struct Slot {
    uint32_t hash;
    int32_t id;
  };

  // Room for `expected` texts at a load of at most one half.
  void rehash(size_t expected) {
    size_t size = 16;
    while (size < expected * 2) size *= 2;
    std::vector<Slot> old(size, Slot{0, -1});
    old.swap(slots_);
    mask_ = size - 1;
    for (const Slot& slot : old) {
      if (slot.id < 0) continue;
      size_t at = slot.hash & mask_;
      while (slots_[at].id >= 0) at = (at + 1) & mask_;
      slots_[at] = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0, count_ = 0;
};

}  // namespace lapidary
