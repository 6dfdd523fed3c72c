// The kept sequences, by comparing tokens.
#include "runtime/prefix_cache.h"

#include <algorithm>

namespace lapidary {

namespace {

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

std::unique_ptr<KvCache> PrefixCache::find(std::span<const int32_t> prompt) {
  auto best = entries_.end();
  int64_t longest = 0;
  for (auto e = entries_.begin(); e != entries_.end(); ++e) {
    const int64_t usable = std::min(common_prefix(e->tokens, prompt), static_cast<int64_t>(prompt.size()) - 1);
    if (usable <= longest || usable < e->cache->rewind_limit()) continue;
    longest = usable;
    best = e;
  }
  if (best == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, best);
  std::unique_ptr<KvCache> cache = best->cache->fork();
  cache->rewind(longest);
  return cache;
}

void PrefixCache::insert(std::vector<int32_t> tokens, std::unique_ptr<KvCache> cache) {
  if (capacity_ == 0 || tokens.empty()) return;
  std::erase_if(entries_, [&](const Entry& e) {
    const int64_t length = static_cast<int64_t>(e.tokens.size());
    return common_prefix(e.tokens, tokens) == length && cache->rewind_limit() <= e.cache->rewind_limit();
  });
  entries_.push_front({std::move(tokens), std::move(cache)});
  while (size() > capacity_) entries_.pop_back();
}

bool PrefixCache::drop_oldest() {
  if (entries_.empty()) return false;
  entries_.pop_back();
  return true;
}

}  // namespace lapidary
