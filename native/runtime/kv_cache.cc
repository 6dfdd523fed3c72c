// Pages and tables: taking, sharing, copying on write, going back, and moving contents to and from host memory.
#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace lapidary {

namespace {

int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

int64_t bytes_of_page(const ModelConfig& config, DType dtype) { return kv_page_bytes(dtype, config.num_kv_heads, config.head_dim); }

Tensor page_tensor(const Buffer& buffer, int64_t bytes) { return buffer.tensor(DType::u8, {bytes}); }

}  // namespace

// --- PagePool ---------------------------------------------------------------------------------------------------------

PagePool::PagePool(Backend& backend, const ModelConfig& config, DType kv_dtype, int64_t limit_bytes)
    : backend_(backend), dtype_(kv_dtype), page_bytes_(bytes_of_page(config, kv_dtype)), limit_bytes_(limit_bytes) {}

PagePool::~PagePool() = default;

PagePool::Page* PagePool::take() {
  expect(limit_bytes_ == 0 || used_bytes() + page_bytes_ <= limit_bytes_, ErrorCode::out_of_memory, "the KV cache holds ", used_bytes(),
         " of its limit of ", limit_bytes_, " bytes and needs ", page_bytes_, " more: raise the limit, or end other sequences");
  if (free_.empty()) {
    auto page = std::make_unique<Page>();
    page->buffer = backend_.allocate_page(static_cast<size_t>(page_bytes_));
    free_.reserve(pages_.size() + 1);  // release() must not fail
    pages_.push_back(std::move(page));
    free_.push_back(pages_.back().get());
  }
  Page* page = free_.back();
  // Vector code may load rows that no query sees; zeros keep what it multiplies by a zero weight from being NaN.
  backend_.zero(page_tensor(page->buffer, page_bytes_));
  free_.pop_back();
  page->users = 1;
  ++used_pages_;
  return page;
}

void PagePool::release(Page* page) {
  if (--page->users > 0) return;
  free_.push_back(page);
  --used_pages_;
}

void PagePool::copy(const Page& from, Page& to) {
  backend_.copy(page_tensor(to.buffer, page_bytes_), page_tensor(from.buffer, page_bytes_));
}

void PagePool::trim() {
  free_.clear();
  std::erase_if(pages_, [](const std::unique_ptr<Page>& page) { return page->users == 0; });
}

// --- KvCache ----------------------------------------------------------------------------------------------------------

// n consecutive positions touch at most (n + 62) / 64 + 1 pages.
int64_t ring_pages(int64_t window, int64_t chunk) { return (window - 1 + chunk + kPageTokens - 2) / kPageTokens + 1; }

KvCache::KvCache(PagePool& pool, const ModelConfig& config, int64_t chunk) : pool_(pool), config_(config), chunk_(chunk) {
  layers_.resize(config.layers.size());
  for (size_t l = 0; l < layers_.size(); ++l) {
    layers_[l].ring = config.layers[l].is_local();
    if (!layers_[l].ring) continue;
    const size_t pages = static_cast<size_t>(ring_pages(config.layers[l].window, chunk));
    layers_[l].pages.assign(pages, nullptr);
    layers_[l].data.assign(pages, nullptr);
  }
  rebuild_views();
}

KvCache::~KvCache() { release_all(); }

void KvCache::release_all() {
  for (Layer& layer : layers_) {
    for (PagePool::Page*& page : layer.pages) {
      if (page) pool_.release(page);
      page = nullptr;
    }
    if (!layer.ring) layer.pages.clear();
  }
  rebuild_views();
}

void KvCache::rebuild_views() {
  views_.resize(layers_.size());
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    layer.data.resize(layer.pages.size());
    for (size_t i = 0; i < layer.pages.size(); ++i) layer.data[i] = layer.pages[i] ? layer.pages[i]->buffer.memory.get() : nullptr;
    views_[l] = {pool_.dtype(), layer.data.data(), static_cast<int64_t>(layer.data.size())};
  }
}

int64_t KvCache::capacity(size_t layer) const { return static_cast<int64_t>(layers_[layer].pages.size()) * kPageTokens; }

void KvCache::make_writable(std::span<const int64_t> first, int64_t end) {
  struct Change {
    size_t layer, slot;
    PagePool::Page* page;
  };
  std::vector<Change> changes;
  try {
    for (size_t l = 0; l < layers_.size(); ++l) {
      const size_t slots = layers_[l].ring ? layers_[l].pages.size() : static_cast<size_t>(std::max<int64_t>(pages_for(end), 1));
      layers_[l].pages.reserve(slots);
      layers_[l].data.reserve(slots);
      for (int64_t p = first[l] / kPageTokens; p * kPageTokens < end; ++p) {
        const size_t slot = static_cast<size_t>(p) % slots;
        const PagePool::Page* old = slot < layers_[l].pages.size() ? layers_[l].pages[slot] : nullptr;
        if (old && old->users == 1) continue;
        changes.push_back({l, slot, nullptr});
        changes.back().page = pool_.take();
        if (old) pool_.copy(*old, *changes.back().page);
      }
    }
  } catch (...) {
    for (const Change& c : changes)
      if (c.page) pool_.release(c.page);
    rebuild_views();  // growing the tables' room may have moved them
    throw;
  }
  for (const Change& c : changes) {
    std::vector<PagePool::Page*>& pages = layers_[c.layer].pages;
    if (c.slot >= pages.size()) pages.resize(c.slot + 1, nullptr);
    if (pages[c.slot]) pool_.release(pages[c.slot]);
    pages[c.slot] = c.page;
  }
  rebuild_views();
}

void KvCache::reserve(int64_t tokens) {
  expect(tokens >= 0 && tokens <= chunk_, ErrorCode::internal, "reserve of ", tokens, " tokens, the cache was made for chunks of ", chunk_);
  if (tokens == 0) return;
  const std::vector<int64_t> first(layers_.size(), length_);
  make_writable(first, length_ + tokens);
  high_water_ = std::max(high_water_, length_ + tokens);
}

// A ring still holds the positions from high_water - capacity on; going back to `length` needs those from length - window + 1 on.
int64_t KvCache::rewind_limit() const {
  int64_t limit = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (!layers_[l].ring || high_water_ <= capacity(l)) continue;
    limit = std::max(limit, high_water_ - capacity(l) + config_.layers[l].window - 1);
  }
  return std::min(limit, length_);
}

void KvCache::rewind(int64_t length) {
  expect(length >= 0 && length <= length_, ErrorCode::invalid_argument, "rewind to ", length, " of a cache of ", length_, " tokens");
  if (length == 0) {
    length_ = high_water_ = 0;
    return release_all();
  }
  expect(length >= rewind_limit(), ErrorCode::invalid_argument, "rewind to ", length, ", but local layers remember no further back than ",
         rewind_limit());
  length_ = length;
  const size_t kept = static_cast<size_t>(pages_for(length));
  bool wrapped = false;
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    if (layer.ring && high_water_ > capacity(l)) {
      wrapped = true;
      continue;
    }
    for (size_t i = kept; i < layer.pages.size(); ++i) {
      if (layer.pages[i]) pool_.release(layer.pages[i]);
      layer.pages[i] = nullptr;
    }
    if (!layer.ring) layer.pages.resize(std::min(kept, layer.pages.size()));
  }
  if (!wrapped) high_water_ = length;
  rebuild_views();
}

std::unique_ptr<KvCache> KvCache::fork() const {
  auto copy = std::make_unique<KvCache>(pool_, config_, chunk_);
  for (size_t l = 0; l < layers_.size(); ++l) {
    copy->layers_[l].data.reserve(layers_[l].pages.size());
    copy->layers_[l].pages.assign(layers_[l].pages.begin(), layers_[l].pages.end());
    for (PagePool::Page* page : layers_[l].pages)
      if (page) pool_.share(page);
  }
  copy->length_ = length_;
  copy->high_water_ = high_water_;
  copy->rebuild_views();
  return copy;
}

int64_t KvCache::bytes() const {
  int64_t pages = 0;
  for (const Layer& layer : layers_)
    pages += static_cast<int64_t>(layer.pages.size()) - std::count(layer.pages.begin(), layer.pages.end(), nullptr);
  return pages * pool_.page_bytes();
}

int64_t KvCache::estimate_bytes(const ModelConfig& config, DType kv_dtype, int64_t tokens, int64_t chunk) {
  int64_t pages = 0;
  for (const LayerConfig& layer : config.layers) {
    const int64_t all = pages_for(tokens);
    pages += layer.is_local() ? std::min(all, ring_pages(layer.window, chunk)) : all;
  }
  return pages * bytes_of_page(config, kv_dtype);
}

// --- save and restore -------------------------------------------------------------------------------------------------

int64_t KvCache::first_retained(int64_t layer) const {
  const LayerConfig& config = config_.layers[static_cast<size_t>(layer)];
  return config.is_local() ? std::max<int64_t>(0, length_ - std::max<int64_t>(config.window - 1, 1)) : 0;
}

namespace {

// Where the parts of a position lie in a page (ops.h, KvView) and in exported rows.
struct PageWalk {
  int64_t heads, dim_bytes;
  bool scaled;

  PageWalk(const ModelConfig& config, DType dtype)
      : heads(config.num_kv_heads), dim_bytes(dtype_bytes(dtype, config.head_dim)), scaled(dtype == DType::i8) {}

  // move(offset in the page, offset in the rows, bytes, member of KvRows) for everything of a position.
  template <typename Move>
  void each(int64_t position, int64_t row, const Move& move) const {
    constexpr int64_t kScale = sizeof(float);
    const int64_t side = heads * kPageTokens, scales = 2 * side * dim_bytes;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t in_page = h * kPageTokens + position % kPageTokens, in_rows = row * heads + h;
      move(in_page * dim_bytes, in_rows * dim_bytes, dim_bytes, &KvRows::k);
      move((side + in_page) * dim_bytes, in_rows * dim_bytes, dim_bytes, &KvRows::v);
      if (!scaled) continue;
      move(scales + in_page * kScale, in_rows * kScale, kScale, &KvRows::k_scale);
      move(scales + (side + in_page) * kScale, in_rows * kScale, kScale, &KvRows::v_scale);
    }
  }
};

}  // namespace

void KvCache::export_layer(int64_t layer, const KvRows& to) const {
  const Layer& from = layers_[static_cast<size_t>(layer)];
  const PageWalk walk(config_, pool_.dtype());
  const int64_t first = first_retained(layer);
  std::vector<std::byte> page(static_cast<size_t>(pool_.page_bytes()));
  for (int64_t p = first; p < length_; ++p) {
    if (p == first || p % kPageTokens == 0) {
      const size_t slot = static_cast<size_t>(p / kPageTokens) % from.pages.size();
      pool_.backend().download(page.data(), page_tensor(from.pages[slot]->buffer, pool_.page_bytes()));
    }
    walk.each(p, p - first, [&](int64_t in_page, int64_t in_rows, int64_t bytes, std::byte* KvRows::* part) {
      std::memcpy(to.*part + in_rows, page.data() + in_page, static_cast<size_t>(bytes));
    });
  }
}

void KvCache::import_begin(int64_t length) {
  expect(length_ == 0 && high_water_ == 0, ErrorCode::internal, "import into a cache that holds ", length_, " tokens");
  if (length == 0) return;
  length_ = length;
  std::vector<int64_t> first(layers_.size());
  for (size_t l = 0; l < layers_.size(); ++l) first[l] = first_retained(static_cast<int64_t>(l));
  try {
    make_writable(first, length);
  } catch (...) {
    length_ = 0;
    throw;
  }
  // Rings hold what the next token needs and no more: high_water is where rewind_limit() then becomes `length`.
  high_water_ = length;
  for (size_t l = 0; l < layers_.size(); ++l)
    if (first[l] > 0) high_water_ = std::max(high_water_, first[l] + capacity(l));
}

void KvCache::import_layer(int64_t layer, const KvRows& from) {
  const Layer& to = layers_[static_cast<size_t>(layer)];
  const PageWalk walk(config_, pool_.dtype());
  const int64_t first = first_retained(layer);
  std::vector<std::byte> page(static_cast<size_t>(pool_.page_bytes()), std::byte{0});
  for (int64_t p = first; p < length_; ++p) {
    walk.each(p, p - first, [&](int64_t in_page, int64_t in_rows, int64_t bytes, std::byte* KvRows::* part) {
      std::memcpy(page.data() + in_page, from.*part + in_rows, static_cast<size_t>(bytes));
    });
    if (p + 1 < length_ && (p + 1) % kPageTokens != 0) continue;
    const size_t slot = static_cast<size_t>(p / kPageTokens) % to.pages.size();
    pool_.backend().upload(page_tensor(to.pages[slot]->buffer, pool_.page_bytes()), page.data());
    std::fill(page.begin(), page.end(), std::byte{0});
  }
}

}  // namespace lapidary
