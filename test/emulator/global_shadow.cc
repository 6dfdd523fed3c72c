#include "emulator/global_shadow.h"

#include <algorithm>

namespace lapidary::emulator {
namespace {

// f(word's place, mask of its bytes) for every word of [p, p + bytes).
template <class F>
void each_word(const void* p, size_t bytes, F f) {
  const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
  for (uintptr_t place = begin / 4; place * 4 < end; ++place) {
    const uintptr_t first = std::max(begin, place * 4) - place * 4, last = std::min(end, place * 4 + 4) - place * 4;
    f(place, (1u << last) - (1u << first));
  }
}

}  // namespace

const GlobalShadow::Word* GlobalShadow::find(uintptr_t place) const {
  if (words_.empty()) return nullptr;
  for (size_t i = hash(place);; ++i) {
    const Word& w = words_[i & (words_.size() - 1)];
    if (w.place == place) return &w;
    if (!w.place) return nullptr;
  }
}

GlobalShadow::Word& GlobalShadow::insert(uintptr_t place) {
  if (2 * (used_ + 1) > words_.size()) grow();
  for (size_t i = hash(place);; ++i) {
    Word& w = words_[i & (words_.size() - 1)];
    if (w.place == place) return w;
    if (!w.place) {
      w.place = place;
      ++used_;
      return w;
    }
  }
}

void GlobalShadow::grow() {
  std::vector<Word> old(std::max<size_t>(1024, words_.size() * 2));
  old.swap(words_);
  used_ = 0;
  for (const Word& w : old) {
    if (w.place) insert(w.place) = w;
  }
}

int64_t GlobalShadow::search(const void* p, size_t bytes, int64_t cluster) const {
  int64_t other = kNone;
  each_word(p, bytes, [&](uintptr_t place, uint32_t mask) {
    const Word* w = find(place);
    if (w && w->cluster != kSeveral && w->cluster != static_cast<uint32_t>(cluster) && (w->mask & mask)) other = w->cluster;
  });
  return other;
}

void GlobalShadow::note_write(const void* p, size_t bytes, int64_t cluster) {
  pages_[page_of(p)] = true;
  pages_[page_of(static_cast<const char*>(p) + bytes - 1)] = true;
  each_word(p, bytes, [&](uintptr_t place, uint32_t mask) {
    Word& w = insert(place);
    w.cluster = w.mask && (w.mask & ~mask) && w.cluster != static_cast<uint32_t>(cluster) ? kSeveral : static_cast<uint32_t>(cluster);
    w.mask |= mask;
  });
}

}  // namespace lapidary::emulator
