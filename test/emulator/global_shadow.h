// Which cluster of a launch wrote which bytes of global memory by plain stores: finds blocks that depend on each other's order.
#pragma once

#include <bitset>
#include <cstdint>
#include <vector>

namespace lapidary::emulator {

class GlobalShadow {
 public:
  static constexpr int64_t kNone = -1;

  // A cluster other than `cluster` that has written one of the bytes, or kNone.
  int64_t other_writer(const void* p, size_t bytes, int64_t cluster) const {
    if (!pages_[page_of(p)] && !pages_[page_of(static_cast<const char*>(p) + bytes - 1)]) return kNone;
    return search(p, bytes, cluster);
  }
  bool written(const void* p, size_t bytes) const { return other_writer(p, bytes, -2) != kNone; }
  void note_write(const void* p, size_t bytes, int64_t cluster);

 private:
  // Four aligned bytes; `mask` says which of them were written. Bytes of one word written by several clusters are not told apart: kSeveral.
  struct Word {
    uintptr_t place;  // address / 4, 0: unused
    uint32_t cluster;
    uint32_t mask;
  };
  static constexpr uint32_t kSeveral = 0xffffffff;

  static size_t page_of(const void* p) { return (reinterpret_cast<uintptr_t>(p) >> 14) % 4096; }
  static size_t hash(uintptr_t place) { return place * 0x9e3779b97f4a7c15ull >> 20; }
  int64_t search(const void* p, size_t bytes, int64_t cluster) const;
  const Word* find(uintptr_t place) const;
  Word& insert(uintptr_t place);
  void grow();

  std::vector<Word> words_;  // a power of two, open addressing
  size_t used_ = 0;
  std::bitset<4096> pages_;  // that may have been written, by a hash: most reads are of memory that the launch does not write
};

}  // namespace lapidary::emulator
