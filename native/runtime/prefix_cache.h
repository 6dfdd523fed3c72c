// Finished sequences kept for later prompts that begin alike, the least recently used leaving first. Internal to runtime/; used
// with the memory lock held.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "runtime/kv_cache.h"

namespace lapidary {

class PrefixCache {
 public:
  explicit PrefixCache(int64_t capacity) : capacity_(capacity) {}

  // A cache holding as much as possible of the prompt's beginning, but not its last token, whose logits are wanted; null
  // when nothing fits. The kept sequence stays; pages are shared.
  std::unique_ptr<KvCache> find(std::span<const int32_t> prompt);

  // tokens: those in `cache`. Kept sequences that the new one can replace in full leave.
  void insert(std::vector<int32_t> tokens, std::unique_ptr<KvCache> cache);

  bool drop_oldest();  // false: none is left
  void clear() { entries_.clear(); }
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    std::vector<int32_t> tokens;
    std::unique_ptr<KvCache> cache;
  };
  int64_t capacity_;
  std::list<Entry> entries_;  // most recently used first
};

}  // namespace lapidary
