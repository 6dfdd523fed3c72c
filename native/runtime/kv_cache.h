// The memory of conversations. One pool of equal pages per model; a sequence holds, per layer, a table of pages: a ring on local
// layers, growing on global ones. Pages are shared between forks and copied when a sharer writes.
// Not thread-safe: whoever shares a pool between threads guards it and its caches with one lock. The memory of pages that a
// cache has made writable belongs to that cache alone; shared pages are only read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/forward.h"
#include "ops/ops.h"

namespace lapidary {

// What a cache is kept in unless somebody chooses.
inline DType kv_dtype(Precision precision) { return precision == Precision::f32 ? DType::f32 : DType::bf16; }

class PagePool {
 public:
  // limit_bytes 0: no limit but the machine's.
  PagePool(Backend& backend, const ModelConfig& config, DType kv_dtype, int64_t limit_bytes);
  ~PagePool();

  struct Page {
    Buffer buffer;
    int32_t users = 0;
  };
  Page* take();  // zeroed, one user; Error(out_of_memory) when the limit is reached, with the numbers
  void share(Page* page) { ++page->users; }
  void release(Page* page);  // back to the free list with the last user
  void copy(const Page& from, Page& to);

  DType dtype() const { return dtype_; }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t used_bytes() const { return used_pages_ * page_bytes_; }
  int64_t limit_bytes() const { return limit_bytes_; }
  int64_t free_bytes() const { return static_cast<int64_t>(free_.size()) * page_bytes_; }
  void trim();  // frees the free list
  Backend& backend() { return backend_; }

 private:
  Backend& backend_;
  DType dtype_;
  int64_t page_bytes_ = 0, limit_bytes_ = 0, used_pages_ = 0;
  std::vector<std::unique_ptr<Page>> pages_;
  std::vector<Page*> free_;
};

// Pages of a local layer's ring: enough for window - 1 earlier keys and a chunk, wherever they start within a page.
int64_t ring_pages(int64_t window, int64_t chunk);

// Some positions of one layer in host memory: k and v [positions, num_kv_heads, head_dim] in the cache's dtype; where that is i8 also
// their scales, f32 [positions, num_kv_heads], else null.
struct KvRows {
  std::byte *k = nullptr, *v = nullptr;
  std::byte *k_scale = nullptr, *v_scale = nullptr;
};

class KvCache {
 public:
  // chunk: the most tokens one step appends to this sequence.
  KvCache(PagePool& pool, const ModelConfig& config, int64_t chunk);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  int64_t length() const { return length_; }
  // Makes positions [length, length + tokens) writable in every layer (own pages, copied if shared). Error(out_of_memory) leaves
  // the cache as it was. tokens <= chunk.
  void reserve(int64_t tokens);
  void advance(int64_t tokens) { length_ += tokens; }  // after the step that wrote them
  std::span<const KvView> views() const { return views_; }

  // The shortest length this cache can go back to: rings forget. Every length from here to length() is possible, and 0 always.
  int64_t rewind_limit() const;
  void rewind(int64_t length);            // Error(invalid_argument) below the limit
  std::unique_ptr<KvCache> fork() const;  // shares every page
  int64_t bytes() const;                  // of the pages held, shared ones included

  // Bytes of one sequence of `tokens` tokens, exact.
  static int64_t estimate_bytes(const ModelConfig& config, DType kv_dtype, int64_t tokens, int64_t chunk);

  // For save and restore: the positions of a layer that the next token needs, [first, length), copied to or from host memory. They
  // depend on window and length alone, so caches made for other chunks can exchange them.
  int64_t first_retained(int64_t layer) const;
  void export_layer(int64_t layer, const KvRows& to) const;
  void import_begin(int64_t length);                     // an empty cache; pages for the retained positions
  void import_layer(int64_t layer, const KvRows& from);  // reads it alone

 private:
  struct Layer {
    bool ring = false;
    std::vector<PagePool::Page*> pages;
    std::vector<void*> data;
  };
  void rebuild_views();
  void release_all();
  int64_t capacity(size_t layer) const;  // positions
  // Own pages under [first[layer], end) in every layer, or an exception and nothing changed.
  void make_writable(std::span<const int64_t> first, int64_t end);

  PagePool& pool_;
  const ModelConfig& config_;
  int64_t chunk_ = 0, length_ = 0;
  int64_t high_water_ = 0;  // end of all that was ever written: a ring holds [high_water - capacity, high_water)
  std::vector<Layer> layers_;
  std::vector<KvView> views_;
};

}  // namespace lapidary
