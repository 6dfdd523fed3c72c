// Prefill and decode attention over a paged cache at Gemma's shapes.
#include <algorithm>
#include <string>

#include "checks.h"
#include "cuda/api/attention_decode.h"
#include "cuda/api/attention_prefill.h"
#include "families.h"

namespace lapidary::bench {

namespace {

struct Heads {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
  int32_t window;  // of the local layers
};
constexpr Heads kHeads[] = {{"1B", 4, 1, 256, 512}, {"4B", 8, 4, 256, 1024}, {"27B", 32, 16, 128, 1024}};
constexpr Heads kTinyHeads[] = {{"tiny", 4, 2, 64, 48}};

// A cache of one sequence, pages one after another, every element from a pattern. Several sets, so that each call finds its own cold.
class Cache {
 public:
  Cache(const Session& session, const Heads& heads, cuda::KvType type, int64_t tokens, int sets)
      : heads_(heads), type_(type), page_bytes_(cuda::attention_page_bytes(type, heads.num_kv_heads, heads.head_dim)) {
    pages_ = (tokens + cuda::kPageTokens - 1) / cuda::kPageTokens;
    for (int s = 0; s < sets; ++s) {
      memory_.push_back(type == cuda::KvType::bf16 ? session.filled(bf16_, pages_ * page_bytes_ / 2)
                                                   : session.filled(int8_, pages_ * page_bytes_));
      std::vector<void*> table;
      for (int64_t p = 0; p < pages_; ++p) table.push_back(memory_.back().as<char>() + p * page_bytes_);
      tables_.push_back(session.upload(table));
      if (type != cuda::KvType::int8) continue;
      const int64_t count = 2 * heads.num_kv_heads * cuda::kPageTokens;
      for (int64_t p = 0; p < pages_; ++p) {
        Session::require(session.api().device.copy_to_device(static_cast<char*>(table[static_cast<size_t>(p)]) + 2 * plane(),
                                                             scales_.host.data(), static_cast<size_t>(count) * 4,
                                                             session.context().stream));
      }
      session.synchronize();
    }
  }
  cuda::AttentionSequence sequence(int set, int32_t rows, int32_t first_pos) const {
    return {0, rows, first_pos, static_cast<int32_t>(pages_), tables_[static_cast<size_t>(set)].as<const void*>()};
  }
  const void* pool(int set) const { return memory_[static_cast<size_t>(set)].get(); }
  int64_t pool_bytes() const { return pages_ * page_bytes_; }
  double key(int64_t head, int64_t position, int d) const { return at(0, head, position, d); }
  double value(int64_t head, int64_t position, int d) const { return at(1, head, position, d); }
  double token_bytes() const { return static_cast<double>(page_bytes_) / cuda::kPageTokens; }

 private:
  int64_t plane() const {
    return static_cast<int64_t>(heads_.num_kv_heads) * cuda::kPageTokens * heads_.head_dim;
  }  // elements of a page's keys
  double at(int which, int64_t head, int64_t position, int d) const {
    const int64_t row = head * cuda::kPageTokens + position % cuda::kPageTokens, page = position / cuda::kPageTokens;
    const int64_t element = which * plane() + row * heads_.head_dim + d;
    if (type_ == cuda::KvType::bf16) return from_bf16(bf16_.at(page * page_bytes_ / 2 + element));
    const int64_t scale = static_cast<int64_t>(which) * heads_.num_kv_heads * cuda::kPageTokens + row;
    return static_cast<double>(int8_.at(page * page_bytes_ + element)) * scales_.at(scale);
  }

  Heads heads_;
  cuda::KvType type_;
  int64_t page_bytes_ = 0, pages_ = 0;
  Pattern<uint16_t> bf16_ = random_bf16(11, 1);
  Pattern<int8_t> int8_ = random_int8(12);
  Pattern<float> scales_ = random_f32(13, 0.004f, 0.008f);
  std::vector<DeviceMemory> memory_, tables_;
};

cuda::AttentionCommon common_of(const Heads& heads, cuda::KvType type, int32_t window) {
  cuda::AttentionCommon c = {};
  c.num_heads = heads.num_heads;
  c.num_kv_heads = heads.num_kv_heads;
  c.head_dim = heads.head_dim;
  c.scale = 2.0f / static_cast<float>(heads.head_dim) * 4;  // scores of a few units: neither flat nor one key alone
  c.window = window;
  c.kv_type = type;
  c.num_sequences = 1;
  return c;
}

// Rows of the output that are compared, each with one head.
std::string check_rows(const Session& session, const Heads& heads, const Cache& cache, const cuda::AttentionCommon& c,
                       const Pattern<uint16_t>& q, const DeviceMemory& out, int64_t rows, int64_t first_pos) {
  for (const int64_t row : {int64_t{0}, rows / 3, rows - 1}) {
    const int64_t head = (row * 5 + 1) % heads.num_heads, kv_head = head / (heads.num_heads / heads.num_kv_heads),
                  position = first_pos + row;
    const int64_t at = (row * heads.num_heads + head) * heads.head_dim;
    const int64_t first_key = c.window == cuda::kNoWindow ? 0 : std::max<int64_t>(0, position - c.window + 1);
    const auto score = [&](int64_t key) {
      double sum = 0;
      for (int d = 0; d < heads.head_dim; ++d) sum += from_bf16(q.at(at + d)) * cache.key(kv_head, key, d);
      return sum * c.scale;
    };
    const auto want =
        naive_attention(first_key, position + 1, heads.head_dim, score, [&](int64_t key, int d) { return cache.value(kv_head, key, d); });
    const auto got = session.download<uint16_t>(out.as<uint16_t>() + at, static_cast<size_t>(heads.head_dim));
    const std::string where = "row " + std::to_string(row) + ", head " + std::to_string(head);
    if (std::string wrong = compare_rows(got, want, where); !wrong.empty()) return wrong;
  }
  return "";
}

double visible_keys(int64_t rows, int64_t first_pos, int32_t window) {
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += static_cast<double>(std::min<int64_t>(first_pos + r + 1, window));
  return sum;
}

std::string kind_name(const Heads& heads, cuda::KvType type, int32_t window, int64_t keys) {
  return std::string(heads.name) + " hd" + std::to_string(heads.head_dim) + (type == cuda::KvType::int8 ? " int8" : " bf16") +
         (window == cuda::kNoWindow ? " causal" : " window " + std::to_string(window)) + " S=" + std::to_string(keys);
}

std::vector<Heads> heads_of(const Session& session) {
  return session.tiny() ? std::vector<Heads>(std::begin(kTinyHeads), std::end(kTinyHeads))
                        : std::vector<Heads>(std::begin(kHeads), std::end(kHeads));
}

}  // namespace

void run_attention_prefill(Session& session) {
  const Pattern<uint16_t> q_values = random_bf16(21, 1);
  for (const Heads& heads : heads_of(session)) {
    for (const cuda::KvType type : {cuda::KvType::bf16, cuda::KvType::int8}) {
      for (const int64_t tokens : session.tiny() ? std::vector<int64_t>{100} : std::vector<int64_t>{2048, 8192, 32768}) {
        for (const int32_t window : {cuda::kNoWindow, heads.window}) {
          const std::string name = kind_name(heads, type, window, tokens);
          if (!session.wants(name) || (type == cuda::KvType::int8 && tokens == 32768)) continue;
          cuda::AttentionPrefillParams p = {};
          p.common = common_of(heads, type, window);
          const int64_t width = static_cast<int64_t>(heads.num_heads) * heads.head_dim;
          const int rotation = 2;  // bound by arithmetic; alternating keeps it honest
          const Cache cache(session, heads, type, tokens, rotation);
          const DeviceMemory q = session.filled(q_values, tokens * width), out = session.memory(static_cast<size_t>(tokens * width) * 2);
          p.shape = cuda::attention_tile(heads.head_dim, type, session.facts(), true);
          const std::vector<cuda::AttentionSequence> host = {cache.sequence(0, static_cast<int32_t>(tokens), 0)};
          const auto list = cuda::plan_attention_tiles(host, heads.num_heads / heads.num_kv_heads, window, p.shape);
          const DeviceMemory tiles = session.upload(list);
          std::vector<DeviceMemory> sequences;
          for (int i = 0; i < rotation; ++i)
            sequences.push_back(session.upload(std::vector{cache.sequence(i, static_cast<int32_t>(tokens), 0)}));
          p.q = q.as<uint16_t>();
          p.tiles = tiles.as<cuda::AttentionTile>();
          p.num_tiles = static_cast<int32_t>(list.size());
          p.out = out.get();
          p.out_type = cuda::ActType::bf16;
          p.pool_bytes = cache.pool_bytes();
          const auto work = [&, p](int i) {
            cuda::AttentionPrefillParams r = p;
            r.common.sequences = sequences[static_cast<size_t>(i)].as<cuda::AttentionSequence>();
            r.pool = cache.pool(i);
            return session.api().attention_prefill(r, session.context());
          };
          const auto check = [&] { return check_rows(session, heads, cache, p.common, q_values, out, tokens, 0); };
          Case c = {name, 4.0 * static_cast<double>(tokens * width) + static_cast<double>(tokens) * cache.token_bytes(),
                    4.0 * static_cast<double>(width) * visible_keys(tokens, 0, window), Bound::bf16};
          c.sizes = {{"tokens", tokens},
                     {"heads", heads.num_heads},
                     {"kv_heads", heads.num_kv_heads},
                     {"head_dim", heads.head_dim},
                     {"window", window == cuda::kNoWindow ? 0 : window},
                     {"int8", type == cuda::KvType::int8}};
          c.note = p.shape.wgmma ? "wgmma" : "mma.sync";
          session.run(c, rotation, work, check);
        }
      }
    }
  }
}

void run_attention_decode(Session& session) {
  const Pattern<uint16_t> q_values = random_bf16(22, 1);
  for (const Heads& heads : heads_of(session)) {
    for (const cuda::KvType type : {cuda::KvType::bf16, cuda::KvType::int8}) {
      for (const int64_t keys : session.tiny() ? std::vector<int64_t>{200} : std::vector<int64_t>{1024, 8192, 32768, 131072}) {
        for (const int32_t window : {cuda::kNoWindow, heads.window}) {
          const std::string name = kind_name(heads, type, window, keys);
          if (!session.wants(name) || (window != cuda::kNoWindow && keys == 131072)) continue;
          const double seen = static_cast<double>(std::min<int64_t>(keys, window));
          const double token_bytes =
              static_cast<double>(cuda::attention_page_bytes(type, heads.num_kv_heads, heads.head_dim)) / cuda::kPageTokens;
          const int rotation = std::min(session.rotation(seen * token_bytes), 64);
          const Cache cache(session, heads, type, keys, rotation);
          const int64_t width = static_cast<int64_t>(heads.num_heads) * heads.head_dim;
          const DeviceMemory q = session.filled(q_values, width), out = session.memory(static_cast<size_t>(width) * 2);
          std::vector<DeviceMemory> sequences;
          for (int i = 0; i < rotation; ++i)
            sequences.push_back(session.upload(std::vector{cache.sequence(i, 1, static_cast<int32_t>(keys - 1))}));
          cuda::AttentionDecodeParams p = {};
          p.common = common_of(heads, type, window);
          p.q = q.as<uint16_t>();
          p.out = out.get();
          p.out_type = cuda::ActType::bf16;
          p.max_rows = 1;
          p.max_keys = static_cast<int32_t>(keys);
          p.merge = cuda::DecodeMerge::automatic;
          const DeviceMemory partials = session.memory(static_cast<size_t>(cuda::attention_decode_workspace_bytes(p, session.facts())));
          const DeviceMemory counters = session.zeros(static_cast<size_t>(cuda::attention_decode_counters(p, session.facts())) * 4);
          p.partials = partials.as<float>();
          p.counters = counters.as<int32_t>();
          const auto work = [&, p](int i) {
            cuda::AttentionDecodeParams r = p;
            r.common.sequences = sequences[static_cast<size_t>(i)].as<cuda::AttentionSequence>();
            return session.api().attention_decode(r, session.context());
          };
          const auto check = [&] { return check_rows(session, heads, cache, p.common, q_values, out, 1, keys - 1); };
          Case c = {name, seen * token_bytes + 4.0 * static_cast<double>(width), 4.0 * static_cast<double>(width) * seen, Bound::copy};
          c.sizes = {{"keys", keys},
                     {"heads", heads.num_heads},
                     {"kv_heads", heads.num_kv_heads},
                     {"head_dim", heads.head_dim},
                     {"window", window == cuda::kNoWindow ? 0 : window},
                     {"int8", type == cuda::KvType::int8}};
          const cuda::AttentionDecodePlan plan = cuda::attention_decode_plan(p, session.facts());
          c.note = std::to_string(plan.splits) + " splits" + (plan.cluster ? ", one cluster" : "");
          session.run(c, rotation, work, check);
        }
      }
    }
  }
}

}  // namespace lapidary::bench
