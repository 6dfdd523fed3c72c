// The cache against the history of tokens that it stands for, through random operations.
#include "runtime/kv_cache.h"

#include <cstring>
#include <random>

#include "check.h"

using namespace lapidary;

namespace {

constexpr int64_t kHeads = 2, kDim = 4;

ModelConfig config_with(std::vector<int64_t> windows) {
  ModelConfig c;
  c.num_layers = static_cast<int64_t>(windows.size());
  c.num_kv_heads = kHeads;
  c.head_dim = kDim;
  for (int64_t w : windows) c.layers.push_back({w, 0});
  return c;
}

// What the test writes for a token at a position: different for every history, so that a page shared by mistake shows.
float mark(int32_t token, int64_t layer, int64_t position) { return static_cast<float>(token * 1000000 + layer * 100000 + position); }

float* row(const KvView& view, int64_t position, int64_t head) {
  auto* page = static_cast<float*>(view.pages[position / kPageTokens % view.num_pages]);
  return page + (head * kPageTokens + position % kPageTokens) * kDim;
}

// Writes the next tokens as the attention does: keys, then values half a page later.
void append(KvCache& cache, std::vector<int32_t>& tokens, const std::vector<int32_t>& more) {
  const int64_t first = cache.length();
  REQUIRE(first == static_cast<int64_t>(tokens.size()));
  cache.reserve(static_cast<int64_t>(more.size()));
  tokens.insert(tokens.end(), more.begin(), more.end());
  for (size_t l = 0; l < cache.views().size(); ++l) {
    for (int64_t p = first; p < first + static_cast<int64_t>(more.size()); ++p) {
      for (int64_t h = 0; h < kHeads; ++h) {
        float* k = row(cache.views()[l], p, h);
        for (int64_t d = 0; d < kDim; ++d) {
          k[d] = mark(tokens[static_cast<size_t>(p)], static_cast<int64_t>(l), p);
          k[d + kHeads * kPageTokens * kDim] = -k[d];
        }
      }
    }
  }
  cache.advance(static_cast<int64_t>(more.size()));
}

// Every position that the next query may see holds what was written for this history.
bool intact(const ModelConfig& config, const KvCache& cache, const std::vector<int32_t>& tokens) {
  if (cache.length() != static_cast<int64_t>(tokens.size())) return false;
  for (size_t l = 0; l < cache.views().size(); ++l) {
    const int64_t window = config.layers[l].window;
    const int64_t first = window == kNoWindow ? 0 : std::max<int64_t>(0, cache.length() - window + 1);
    for (int64_t p = first; p < cache.length(); ++p) {
      for (int64_t h = 0; h < kHeads; ++h) {
        const float want = mark(tokens[static_cast<size_t>(p)], static_cast<int64_t>(l), p);
        const float* k = row(cache.views()[l], p, h);
        for (int64_t d = 0; d < kDim; ++d)
          if (k[d] != want || k[d + kHeads * kPageTokens * kDim] != -want) return false;
      }
    }
  }
  return true;
}

std::vector<int32_t> repeat(int64_t n, int32_t token) { return std::vector<int32_t>(static_cast<size_t>(n), token); }

}  // namespace

TEST("kv cache: a ring has room for window - 1 keys and a chunk wherever they start") {
  for (int64_t window : {1, 2, 63, 64, 65, 512}) {
    for (int64_t chunk : {1, 2, 63, 64, 65, 256}) {
      int64_t most = 0;
      const int64_t n = window - 1 + chunk;
      for (int64_t start = 0; start < kPageTokens; ++start) most = std::max(most, (start + n - 1) / kPageTokens + 1);
      CHECK_MSG(ring_pages(window, chunk) == most,
                "window " << window << " chunk " << chunk << ": " << ring_pages(window, chunk) << ", needs " << most);
    }
  }
}

TEST("kv cache: what a query may see survives any chunks, rewinds and forks") {
  const ModelConfig config = config_with({20, kNoWindow, 1, 100});
  std::mt19937 random(1);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const std::unique_ptr<Backend> backend = make_reference_backend();
  for (const int64_t chunk : {1, 7, 64, 90}) {
    PagePool pool(*backend, config, DType::f32, 0);
    struct Held {
      std::unique_ptr<KvCache> cache;
      std::vector<int32_t> tokens;
    };
    std::vector<Held> held;
    held.push_back({std::make_unique<KvCache>(pool, config, chunk), {}});
    int32_t token = 1;
    for (int i = 0; i < 1500; ++i) {
      const size_t at = static_cast<size_t>(below(static_cast<int64_t>(held.size())));
      KvCache& cache = *held[at].cache;
      switch (below(12)) {
        case 0:
          if (held.size() < 5) held.push_back({cache.fork(), held[at].tokens});
          break;
        case 1: {
          const int64_t limit = cache.rewind_limit(), length = limit + below(cache.length() - limit + 1);
          cache.rewind(length);
          held[at].tokens.resize(static_cast<size_t>(length));
          break;
        }
        case 2:
          if (held.size() > 1 && below(3) == 0) held.erase(held.begin() + static_cast<ptrdiff_t>(at));
          break;
        case 3:
          cache.reserve(1 + below(chunk));
          break;  // a step that came to nothing
        default:
          append(cache, held[at].tokens, repeat(1 + below(chunk), token = token % 9 + 1));
      }
      if (i % 10 == 0)
        for (const Held& h : held) CHECK_MSG(intact(config, *h.cache, h.tokens), "chunk " << chunk << " operation " << i);
    }
    held.clear();
    CHECK(pool.used_bytes() == 0);
    pool.trim();
    CHECK(pool.free_bytes() == 0);
  }
}

TEST("kv cache: rewinding goes back as far as the rings remember, and to nothing") {
  const ModelConfig config = config_with({100, kNoWindow});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  PagePool pool(*backend, config, DType::f32, 0);
  KvCache cache(pool, config, 64);
  std::vector<int32_t> tokens;
  const int64_t capacity = ring_pages(100, 64) * kPageTokens;  // 256
  for (int64_t n = 0; n < capacity; n += 64) append(cache, tokens, repeat(64, 1));
  CHECK(cache.rewind_limit() == 0);
  append(cache, tokens, repeat(10, 2));
  CHECK(cache.rewind_limit() == 10 + 99);  // position 10 is the first not overwritten
  CHECK_THROWS(cache.rewind(108), ErrorCode::invalid_argument, "no further back than 109");
  CHECK(cache.length() == capacity + 10);
  cache.rewind(109);
  tokens.resize(109);
  CHECK(intact(config, cache, tokens));
  append(cache, tokens, repeat(5, 3));
  CHECK(intact(config, cache, tokens) && cache.rewind_limit() == 109);
  cache.rewind(0);
  CHECK(cache.length() == 0 && cache.bytes() == 0 && pool.used_bytes() == 0);
  CHECK_THROWS(cache.rewind(1), ErrorCode::invalid_argument, "rewind to 1");
}

TEST("kv cache: the limit is kept, and a reservation that fails changes nothing") {
  const ModelConfig config = config_with({100, kNoWindow});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  const int64_t page = 2 * kPageTokens * kHeads * kDim * 4;
  PagePool pool(*backend, config, DType::f32, 5 * page);
  CHECK(pool.page_bytes() == page);
  KvCache a(pool, config, 200), b(pool, config, 200);
  std::vector<int32_t> tokens;
  append(a, tokens, repeat(60, 1));
  CHECK(pool.used_bytes() == 2 * page && a.bytes() == 2 * page);
  CHECK_THROWS(b.reserve(128), ErrorCode::out_of_memory, "limit");
  CHECK(b.length() == 0 && b.bytes() == 0 && pool.used_bytes() == 2 * page);
  CHECK_THROWS(a.reserve(200), ErrorCode::out_of_memory, "limit");
  CHECK(intact(config, a, tokens) && pool.used_bytes() == 2 * page);
  append(a, tokens, repeat(60, 2));
  CHECK(intact(config, a, tokens) && pool.used_bytes() == 4 * page);
}

TEST("kv cache: estimates are what is allocated") {
  const ModelConfig config = config_with({20, kNoWindow, 100, 1});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t chunk : {1, 50, 64}) {
      PagePool pool(*backend, config, dtype, 0);
      KvCache cache(pool, config, chunk);
      for (int64_t n = chunk; n <= 700; n += chunk) {
        cache.reserve(chunk);
        cache.advance(chunk);
        const int64_t estimate = KvCache::estimate_bytes(config, dtype, n, chunk);
        CHECK_MSG(cache.bytes() == estimate && pool.used_bytes() == estimate,
                  n << " tokens: " << cache.bytes() << ", estimated " << estimate);
      }
    }
  }
}

TEST("kv cache: forks share pages until one writes") {
  const ModelConfig config = config_with({kNoWindow});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  PagePool pool(*backend, config, DType::f32, 0);
  KvCache cache(pool, config, 200);
  std::vector<int32_t> tokens;
  append(cache, tokens, repeat(130, 1));
  const std::unique_ptr<KvCache> fork = cache.fork();
  std::vector<int32_t> fork_tokens = tokens;
  CHECK(pool.used_bytes() == 3 * pool.page_bytes());
  append(*fork, fork_tokens, repeat(2, 7));
  CHECK(pool.used_bytes() == 4 * pool.page_bytes());  // only the page written to
  append(cache, tokens, repeat(2, 8));
  CHECK(pool.used_bytes() == 4 * pool.page_bytes());
  CHECK(intact(config, cache, tokens) && intact(config, *fork, fork_tokens));
}

TEST("kv cache: export and import carry what the next token needs, between caches of other chunks") {
  const ModelConfig config = config_with({20, kNoWindow, 1, 100});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  PagePool pool(*backend, config, DType::f32, 0);
  for (const int64_t length : {1, 19, 20, 21, 64, 65, 300, 517}) {
    KvCache from(pool, config, 64), to(pool, config, 7);
    std::vector<int32_t> tokens;
    while (from.length() < length)
      append(from, tokens, repeat(std::min<int64_t>(33, length - from.length()), static_cast<int32_t>(1 + from.length() % 9)));
    to.import_begin(length);
    for (int64_t l = 0; l < config.num_layers; ++l) {
      const size_t bytes = static_cast<size_t>((length - from.first_retained(l)) * kHeads * kDim * 4);
      std::vector<std::byte> k(bytes), v(bytes);
      from.export_layer(l, {k.data(), v.data()});
      CHECK(to.first_retained(l) == from.first_retained(l));
      to.import_layer(l, {k.data(), v.data()});
    }
    CHECK_MSG(intact(config, to, tokens), "length " << length);
    CHECK(to.rewind_limit() == (length > 19 ? length : to.rewind_limit()));
    append(to, tokens, repeat(7, 5));
    append(to, tokens, repeat(7, 6));
    CHECK_MSG(intact(config, to, tokens), "length " << length << " and 14 more");
  }
}

TEST("kv cache: export and import of int8 carry numbers and scales") {
  const ModelConfig config = config_with({20, kNoWindow});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  PagePool pool(*backend, config, DType::i8, 0);
  CHECK(pool.page_bytes() == 2 * kHeads * kPageTokens * (kDim + 4));
  // Part 0 is keys, 1 values: the numbers' place in a page, and the scales' behind all numbers.
  const auto each = [&](const KvCache& cache, int64_t first, const auto& visit) {
    for (size_t l = 0; l < cache.views().size(); ++l) {
      const KvView& view = cache.views()[l];
      for (int64_t p = std::max(first, cache.first_retained(static_cast<int64_t>(l))); p < cache.length(); ++p) {
        auto* page = static_cast<std::byte*>(view.pages[p / kPageTokens % view.num_pages]);
        for (int64_t part = 0; part < 2; ++part) {
          for (int64_t h = 0; h < kHeads; ++h) {
            const int64_t row = (part * kHeads + h) * kPageTokens + p % kPageTokens,
                          what = ((part * 7 + h) * 5 + p) * 3 + static_cast<int64_t>(l);
            visit(reinterpret_cast<int8_t*>(page) + row * kDim, reinterpret_cast<float*>(page + 2 * kHeads * kPageTokens * kDim) + row,
                  what);
          }
        }
      }
    }
  };
  for (const int64_t length : {1, 20, 64, 65, 300}) {
    KvCache from(pool, config, 64), to(pool, config, 7);
    while (from.length() < length) {
      const int64_t first = from.length(), more = std::min<int64_t>(33, length - first);
      from.reserve(more);
      from.advance(more);
      each(from, first, [](int8_t* numbers, float* scale, int64_t what) {
        for (int64_t d = 0; d < kDim; ++d) numbers[d] = static_cast<int8_t>(what * 13 + d);
        *scale = static_cast<float>(what);
      });
    }
    to.import_begin(length);
    for (int64_t l = 0; l < config.num_layers; ++l) {
      const size_t rows = static_cast<size_t>((length - from.first_retained(l)) * kHeads);
      std::vector<std::byte> k(rows * kDim), v(rows * kDim), k_scale(rows * 4), v_scale(rows * 4);
      from.export_layer(l, {k.data(), v.data(), k_scale.data(), v_scale.data()});
      to.import_layer(l, {k.data(), v.data(), k_scale.data(), v_scale.data()});
    }
    int64_t wrong = 0, seen = 0;
    each(to, 0, [&](const int8_t* numbers, const float* scale, int64_t what) {
      for (int64_t d = 0; d < kDim; ++d) wrong += numbers[d] != static_cast<int8_t>(what * 13 + d);
      wrong += *scale != static_cast<float>(what);
      ++seen;
    });
    CHECK_MSG(wrong == 0 && seen > 0, "length " << length << ": " << wrong << " wrong of " << seen);
  }
}

TEST("kv cache: new pages hold zeros, also those used before") {
  const ModelConfig config = config_with({kNoWindow});
  const std::unique_ptr<Backend> backend = make_reference_backend();
  PagePool pool(*backend, config, DType::f32, 0);
  {
    KvCache cache(pool, config, 64);
    std::vector<int32_t> tokens;
    append(cache, tokens, repeat(64, 1));
  }
  KvCache cache(pool, config, 64);
  cache.reserve(1);
  const auto* page = static_cast<const float*>(cache.views()[0].pages[0]);
  for (int64_t i = 0; i < 2 * kPageTokens * kHeads * kDim; ++i) CHECK(page[i] == 0);
}
