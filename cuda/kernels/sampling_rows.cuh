// What the sampler's kernels share: the plan of a row, its state between launches, and the end of a draw, which one block does.
#pragma once

#include <limits>

#include "cuda/kernels/sampling_select.cuh"
#include "cuda/primitives/cluster.cuh"
#include "ops/sampling_math.h"

namespace lapidary::cuda {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kExcluded = -kInfinity;  // the logit of a token that cannot be drawn

// What a row still knows after the scan.
struct alignas(16) SampleState {
  float top;                    // the largest adjusted logit
  float raw_top;                // the largest raw one
  double log_sum;               // of exp(raw - raw_top); where log-probabilities are wanted
  uint32_t top_k_bin, top_bin;  // coarse bins of the top_k-th adjusted and the top_logprobs-th raw logit
  uint32_t nucleus_bin;         // coarse bin where top_p is reached
  uint32_t drawing;             // 0: the row has its answer or an error
  uint64_t total;               // units of all tokens (nucleus)
};
static_assert(sizeof(SampleState) <= 64);

struct SampleKernelParams {
  SampleParams p;
  uint32_t* counters;  // [max_rows, kSampleCounters], zero between calls
  uint32_t* bins;      // [max_rows, 4, kSampleBins], zero between calls
  SampleState* state;  // [max_rows], 64 bytes apart
  uint64_t* best;      // [rows, chunks]: likelihood key << 32 | id of the chunk's likeliest token
  U32x2* bad;          // [rows, chunks]: first bad raw logit or ~0; whether an adjusted one is bad
  F32x2* stats;        // [rows, chunks]: largest raw logit m, sum of exp(raw - m)
  uint64_t* mass;      // [rows, chunks]: units
  U32x2* list;         // [rows, room]: id and bits of the logit, candidates of the draw
  U32x2* top_list;     // [rows, room]: the same of the likeliest raw logits
  float* adjusted;     // [rows, vocab rounded up to 4]
  int32_t chunks, room;
};

// Counters of a row.
enum : int { kScanDone, kWeighDone, kNucleusDone, kListed, kTopListed };
// Coarse histograms of a row.
enum : int { kTopKBins, kTopBins, kMassLow, kMassHigh };

enum class DrawKind { greedy, plain, top_k, nucleus };
LAPIDARY_DEVICE DrawKind draw_kind(const SampleRow& row, int vocab) {
  if (row.temperature == 0) return DrawKind::greedy;
  if (row.top_k > 0 && row.top_k < vocab) return DrawKind::top_k;
  return row.top_p < 1 ? DrawKind::nucleus : DrawKind::plain;
}
LAPIDARY_DEVICE bool has_penalties(const SampleRow& row) {
  return row.history_tokens > 0 && (row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0);
}
LAPIDARY_DEVICE bool is_adjusted(const SampleRow& row) { return row.num_bias > 0 || row.mask || has_penalties(row); }

inline constexpr int kCoarseShift = 21;  // of a likelihood key: sign, exponent and two bits of mantissa are left, kSampleBins values
inline constexpr float kMassRange = 32;  // tokens of e^-32 of the likeliest's weight and less share the last coarse bin of mass
// Rises as the scaled logit z falls.
LAPIDARY_DEVICE uint32_t mass_bin(float z) {
  if (z <= -kMassRange) return kSampleBins - 1;
  const int bin = static_cast<int>(z * (-kSampleBins / kMassRange));
  return bin < kSampleBins - 1 ? bin : kSampleBins - 1;
}

// The row a block works on.
struct RowView {
  const SampleKernelParams& k;
  int row;
  SampleRow settings;

  LAPIDARY_DEVICE explicit RowView(const SampleKernelParams& params) : k(params), row(block_y()) {
    settings = load_row(k.p.settings + row);
  }
  LAPIDARY_DEVICE const float* raw() const { return k.p.logits + row * k.p.stride; }
  LAPIDARY_DEVICE float* adjusted() const { return k.adjusted + static_cast<int64_t>(row) * round_up(k.p.vocab, 4); }
  // The logits that the draw sees.
  LAPIDARY_DEVICE const float* logits() const { return is_adjusted(settings) ? adjusted() : raw(); }
  LAPIDARY_DEVICE uint32_t* counter(int which) const { return k.counters + row * kSampleCounters + which; }
  LAPIDARY_DEVICE uint32_t* bins(int which) const { return k.bins + (static_cast<int64_t>(row) * 4 + which) * kSampleBins; }
  LAPIDARY_DEVICE SampleState* state() const { return reinterpret_cast<SampleState*>(reinterpret_cast<std::byte*>(k.state) + row * 64); }
  LAPIDARY_DEVICE int64_t chunk_at(int chunk) const { return static_cast<int64_t>(row) * k.chunks + chunk; }
  LAPIDARY_DEVICE U32x2* list() const { return k.list + static_cast<int64_t>(row) * k.room; }
  LAPIDARY_DEVICE U32x2* top_list() const { return k.top_list + static_cast<int64_t>(row) * k.room; }

 private:
  static LAPIDARY_DEVICE SampleRow load_row(const SampleRow* from) {
    static_assert(sizeof(SampleRow) % 8 == 0 && alignof(SampleRow) == 8);
    SampleRow r;
    constexpr int kWords = sizeof(SampleRow) / 8;
    uint64_t words[kWords];
    LAPIDARY_UNROLL
    for (int i = 0; i < kWords; ++i) words[i] = load_global(reinterpret_cast<const uint64_t*>(from) + i);
    memcpy(&r, words, sizeof r);
    return r;
  }
};

LAPIDARY_DEVICE SampleState load_state(const RowView& v) {
  SampleState s;
  static_assert(sizeof(SampleState) % 16 == 0);
  U32x4 parts[sizeof(SampleState) / 16];
  LAPIDARY_UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(SampleState) / 16); ++i)
    parts[i] = load_coherent(reinterpret_cast<const U32x4*>(v.state()) + i);
  memcpy(&s, parts, sizeof s);
  return s;
}
// One thread.
LAPIDARY_DEVICE void store_state(const RowView& v, const SampleState& s) {
  U32x4 parts[sizeof(SampleState) / 16];
  memcpy(parts, &s, sizeof s);
  LAPIDARY_UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(SampleState) / 16); ++i) store_global(reinterpret_cast<U32x4*>(v.state()) + i, parts[i]);
}

// One thread writes the row's answer.
LAPIDARY_DEVICE void write_token(const RowView& v, const SampleState& s, int id) {
  float logprob = 0;
  if (v.settings.top_logprobs >= 0) logprob = static_cast<float>(static_cast<double>(load_global(v.raw() + id)) - s.raw_top - s.log_sum);
  SampledToken* out = v.k.p.out + v.row;
  store_global(&out->id, static_cast<int32_t>(id));
  store_global(&out->error, SampleError::none);
  store_global(&out->logprob, logprob);
}
LAPIDARY_DEVICE void write_error(const RowView& v, SampleError error, int id) {
  SampledToken* out = v.k.p.out + v.row;
  store_global(&out->id, static_cast<int32_t>(id));
  store_global(&out->error, error);
  store_global(&out->logprob, 0.0f);
}

// The candidates of a search: a list that the blocks of a launch have made, held in shared memory when short, or every token of the row
// when there were more than the list has room for.
inline constexpr int kHeldCandidates = 2048;
struct Token {
  int32_t id;
  float logit;
};
struct Candidates {
  const float* row;
  const U32x2* list;
  U32x2* held;  // shared [kHeldCandidates]
  int n;
  bool listed;

  LAPIDARY_DEVICE Token operator()(int i) const {
    if (!listed) return {i, load_global(row + i)};
    const U32x2 item = n <= kHeldCandidates ? load_shared(held + i) : load_coherent(list + i);
    return {static_cast<int32_t>(item[0]), sampling::float_of(item[1])};
  }
};
// All threads. Takes the list's counter back to zero.
LAPIDARY_DEVICE Candidates take_candidates(const float* row, int vocab, const U32x2* list, uint32_t* counter, int room, U32x2* held) {
  const uint32_t listed = load_coherent(counter);
  sync_threads();
  if (thread_index() == 0) store_global(counter, 0u);
  if (listed > static_cast<uint32_t>(room)) return {row, list, held, vocab, false};
  const int n = static_cast<int>(listed);
  if (n <= kHeldCandidates) {
    for (int i = thread_index(); i < n; i += kSampleThreads) store_shared(held + i, load_coherent(list + i));
    sync_threads();
  }
  return {row, list, held, n, true};
}

// Appends this thread's first `count` of `items` to a list with `room`; all threads of the block. What does not fit is only counted.
LAPIDARY_DEVICE void append_to_list(const U32x2 (&items)[4], const bool (&wanted)[4], U32x2* list, uint32_t* counter, int room,
                                    SelectSmem* s) {
  uint64_t mine = 0, total;
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) mine += wanted[e] ? 1 : 0;
  uint64_t place = block_scan(mine, s->warp_sums, total);
  if (total == 0) return;
  if (thread_index() == 0) store_shared(&s->found, atomic_add_global(counter, static_cast<uint32_t>(total)));
  sync_threads();
  place += load_shared(&s->found);
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (!wanted[e]) continue;
    if (place < static_cast<uint64_t>(room)) store_global(list + place, items[e]);
    ++place;
  }
  sync_threads();
}

// Ids as keys of a search: the bits that the vocabulary uses, at the top.
struct IdOrder {
  int bits;
  LAPIDARY_DEVICE explicit IdOrder(int vocab) : bits(1) {
    while (bits < 31 && (vocab - 1) >> bits) ++bits;
  }
  LAPIDARY_DEVICE uint32_t key(int id) const { return static_cast<uint32_t>(id) << (32 - bits); }
  LAPIDARY_DEVICE int id(uint32_t key) const { return static_cast<int>(key >> (32 - bits)); }
};

// The likeliest tokens up to and including one.
struct Cut {
  uint32_t key;
  int32_t id;
  LAPIDARY_DEVICE bool keeps(uint32_t k, int i) const { return k < key || (k == key && i <= id); }
};
inline constexpr int32_t kLastId = 0x7fffffff;

// The cut after the `count` likeliest of equal key.
LAPIDARY_DEVICE Cut cut_among_equals(const Candidates& tokens, uint32_t key, uint64_t count, const IdOrder& ids, SelectSmem* s) {
  const auto item = [&](int i) {
    const Token t = tokens(i);
    return Measured{ids.key(t.id), sampling::likelihood_key(t.logit) == key ? 1u : 0u};
  };
  const Selected last = select(tokens.n, item, ids.bits, count - 1, s);
  return {key, last.found ? ids.id(last.key) : kLastId};
}

// Top-k, top-p and min-p over candidates that hold every token the filters keep, and one draw. total: the units before top-p, 0 when that
// is the sum over the candidates after top-k. All threads; thread 0 writes.
LAPIDARY_DEVICE void finish_draw(const RowView& v, const SampleState& state, const Candidates& tokens, uint64_t total, SelectSmem* s) {
  const SampleRow& row = v.settings;
  const int unit_bits = sampling::unit_bits(v.k.p.vocab);
  const IdOrder ids(v.k.p.vocab);
  Cut cut = {0xffffffffu, kLastId};
  if (row.top_k > 0 && row.top_k < v.k.p.vocab) {
    const auto one = [&](int i) {
      const float logit = tokens(i).logit;
      return Measured{sampling::likelihood_key(logit), logit > kExcluded ? 1u : 0u};
    };
    const Selected kth = select(tokens.n, one, 32, static_cast<uint64_t>(row.top_k) - 1, s);
    if (kth.found) cut.key = kth.key;  // equals of the k-th are all kept
  }
  const auto units = [&](const Token& t, float least) {
    const uint32_t key = sampling::likelihood_key(t.logit);
    if (!cut.keeps(key, t.id)) return Measured{key, 0};
    const float weight = sampling::weight_of(sampling::scaled_logit(t.logit, state.top, row.temperature));
    return Measured{key, weight < least ? 0 : sampling::units_of(weight, unit_bits)};
  };
  if (row.top_p < 1) {
    if (total == 0) total = sum_items(tokens.n, [&](int i) { return units(tokens(i), 0).measure; }, s);
    const uint64_t limit = sampling::top_p_limit(row.top_p, total);
    const Selected last = select(tokens.n, [&](int i) { return units(tokens(i), 0); }, 32, limit - 1, s);
    // Of tokens equal to the last kept one, those stay that begin below the limit.
    const float equal = sampling::logit_of_key(last.key);
    const uint64_t each = sampling::units_of(sampling::weight_of(sampling::scaled_logit(equal, state.top, row.temperature)), unit_bits);
    cut = cut_among_equals(tokens, last.key, (limit - last.before + each - 1) / each, ids, s);
  }
  const uint64_t kept = sum_items(tokens.n, [&](int i) { return units(tokens(i), row.min_p).measure; }, s);
  const uint64_t target = sampling::draw_target(sampling::draw_bits(row.seed, row.counter), kept);
  const auto by_id = [&](int i) {
    const Token t = tokens(i);
    return Measured{ids.key(t.id), units(t, row.min_p).measure};
  };
  const Selected drawn = select(tokens.n, by_id, ids.bits, target, s);
  if (thread_index() == 0) write_token(v, state, ids.id(drawn.key));
}

}  // namespace lapidary::cuda
