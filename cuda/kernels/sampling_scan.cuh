// The sampler's first launch: bias, penalties and mask, the likeliest token, what log-probabilities need, and coarse histograms for top-k.
// Greedy rows end here.
#pragma once

#include "cuda/kernels/accurate_math.cuh"
#include "cuda/kernels/sampling_rows.cuh"

namespace lapidary::cuda {

// Block (x, y) owns chunk x of row y, a thread four neighbouring logits. The last block of a row combines its chunks.
// load -> adjust (in shared memory where there is a bias list) -> reductions and histograms -> partials; last block: partials -> state or
// token. The counts of penalised tokens are made anew in every block from the whole history: of the 128 blocks of a 262,144-token row each
// reads it once from L2, 4 bytes a token, which needs no memory or clearing between calls.
struct SampleScanKernel {
  using Params = SampleKernelParams;
  static constexpr const char* kName = "sample_scan";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kSampleThreads, kBlocksPerSm = 2;
  static_assert(kSampleChunk == kThreads * 4);

  struct alignas(16) Smem {
    float z[kSampleChunk];
    union {
      struct {
        uint32_t seen[kSampleChunk], made[kSampleChunk];
      };  // times in the history, times generated
      struct {
        uint32_t top_k[kSampleBins], top[kSampleBins];
      };  // coarse histograms
    };
    uint64_t scratch[kThreads / kWarp];
    SelectSmem select;
  };
  static constexpr size_t kSmemBytes = sizeof(Smem);

  struct Min {
    LAPIDARY_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
  };

  static LAPIDARY_DEVICE void run(const Params& k, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    Smem* s = reinterpret_cast<Smem*>(smem);
    const RowView v(k);
    const int first = block_x() * kSampleChunk, id = first + thread_index() * 4;
    const bool vectorize = aligned_16_row(v.raw()) && k.p.vocab % 4 == 0;

    F32x4 raw = load_logits(v.raw(), id, k.p.vocab, vectorize);
    uint64_t bad_raw = kNone;
    LAPIDARY_UNROLL
    for (int e = 3; e >= 0; --e)
      if (id + e < k.p.vocab && !(raw[e] < kInfinity)) bad_raw = static_cast<uint64_t>(id + e);
    if (v.settings.top_logprobs >= 0) statistics(v, raw, s);

    const bool adjusted = is_adjusted(v.settings) && k.adjusted;
    F32x4 z = raw;
    if (adjusted) {
      z = adjust(v, raw, first, s);
      float* out = v.adjusted();
      if (id < k.p.vocab) store_global(reinterpret_cast<F32x4*>(out + id), z);  // rows of it have room for whole groups of four
    }
    uint64_t best = kNone;
    bool bad = false;
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (id + e >= k.p.vocab) continue;
      bad |= !(z[e] < kInfinity);
      best = Min{}(best, static_cast<uint64_t>(sampling::likelihood_key(z[e])) << 32 | static_cast<uint32_t>(id + e));
    }
    best = block_reduce<kThreads>(best, Min{}, kNone, s->scratch);
    // One reduction for both findings: the first bad raw logit, else whether an adjusted one is bad.
    const uint64_t worst = block_reduce<kThreads>(bad_raw != kNone ? bad_raw : bad ? kOnlyAdjusted : kNone, Min{}, kNone, s->scratch);
    histograms(v, raw, z, id, s);
    if (thread_index() == 0) {
      store_global(k.best + v.chunk_at(block_x()), best);
      store_global(k.bad + v.chunk_at(block_x()), U32x2{{static_cast<uint32_t>(worst), static_cast<uint32_t>(worst >> 32)}});
    }
    if (last_block(v.counter(kScanDone), k.chunks, &s->select.found)) combine(v, s);
  }

 private:
  static constexpr uint64_t kNone = ~uint64_t{0}, kOnlyAdjusted = uint64_t{1} << 40;  // above every id

  static LAPIDARY_DEVICE bool aligned_16_row(const float* row) { return reinterpret_cast<uintptr_t>(row) % 16 == 0; }

 public:
  // Logits id .. id + 3; minus infinity from `vocab` on.
  static LAPIDARY_DEVICE F32x4 load_logits(const float* row, int id, int vocab, bool vectorize) {
    if (vectorize && id < vocab) return load_global(reinterpret_cast<const F32x4*>(row + id));
    F32x4 r;
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) r[e] = id + e < vocab ? load_global(row + id + e) : kExcluded;
    return r;
  }

 private:
  // Largest raw logit m of the chunk and the sum of exp(raw - m).
  static LAPIDARY_DEVICE void statistics(const RowView& v, const F32x4& raw, Smem* s) {
    float* scratch = reinterpret_cast<float*>(s->scratch);
    const float mine = max_f32(max_f32(raw[0], raw[1]), max_f32(raw[2], raw[3]));
    const float m = block_reduce<kThreads>(mine, Max{}, kExcluded, scratch);
    float sum = 0;
    if (m > kExcluded) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) sum += exp_accurate(raw[e] - m);
    }
    sum = block_reduce<kThreads>(sum, Sum{}, 0.0f, scratch);
    if (thread_index() == 0) store_global(v.k.stats + v.chunk_at(block_x()), F32x2{{m, sum}});
  }

  // Bias, then penalties, then mask, as the reference applies them.
  static LAPIDARY_DEVICE F32x4 adjust(const RowView& v, F32x4 z, int first, Smem* s) {
    const SampleRow& row = v.settings;
    const int mine = thread_index() * 4;
    if (row.num_bias > 0) {
      store_shared(reinterpret_cast<F32x4*>(s->z + mine), z);
      sync_threads();
      add_bias(v, first, s);
      sync_threads();
      z = load_shared(reinterpret_cast<const F32x4*>(s->z + mine));
    }
    if (has_penalties(row)) {
      clear_bins(s->seen);
      clear_bins(s->made);
      sync_threads();
      const int from = row.repetition_penalty != 1 ? 0 : row.prompt_tokens;
      for (int i = from + thread_index(); i < row.history_tokens; i += kThreads) {
        const int at = load_global(row.history + i) - first;
        if (at < 0 || at >= kSampleChunk) continue;
        atomic_add_shared(s->seen + at, 1u);
        if (i >= row.prompt_tokens) atomic_add_shared(s->made + at, 1u);
      }
      sync_threads();
      const U32x4 seen = load_shared(reinterpret_cast<const U32x4*>(s->seen + mine)),
                  made = load_shared(reinterpret_cast<const U32x4*>(s->made + mine));
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (row.repetition_penalty != 1 && seen[e] > 0) z[e] = sampling::repeated(z[e], row.repetition_penalty);
        if ((row.presence_penalty != 0 || row.frequency_penalty != 0) && made[e] > 0)
          z[e] = sampling::generated(z[e], row.presence_penalty, row.frequency_penalty, static_cast<int32_t>(made[e]));
      }
      sync_threads();  // the histograms take the counts' place
    }
    if (row.mask && first + mine < v.k.p.vocab) {
      const uint32_t allowed = load_global(row.mask + (first + mine) / 32) >> ((first + mine) % 32);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e)
        if (!(allowed >> e & 1)) z[e] = kExcluded;
    }
    return z;
  }

  // The bias list is ascending by id. A thread that meets the first entry of an id adds all of that id, in their order.
  static LAPIDARY_DEVICE void add_bias(const RowView& v, int first, Smem* s) {
    const int32_t* ids = v.k.p.bias_ids + v.settings.first_bias;
    const float* values = v.k.p.bias_values + v.settings.first_bias;
    const int n = v.settings.num_bias;
    int begin = 0, count = n;  // begin: the first entry with an id of this chunk or a later one
    while (count > 0) {
      const int half = count / 2;
      if (load_global(ids + begin + half) < first) {
        begin += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    for (int i = begin + thread_index(); i < n; i += kThreads) {
      const int id = load_global(ids + i);
      if (id >= first + kSampleChunk) break;
      if (i > 0 && load_global(ids + i - 1) == id) continue;
      float z = load_shared(s->z + id - first);
      for (int j = i; j < n && load_global(ids + j) == id; ++j) z += load_global(values + j);
      store_shared(s->z + id - first, z);
    }
  }

  static LAPIDARY_DEVICE void histograms(const RowView& v, const F32x4& raw, const F32x4& z, int id, Smem* s) {
    const bool top_k = draw_kind(v.settings, v.k.p.vocab) == DrawKind::top_k, top = v.settings.top_logprobs > 0;
    if (!top_k && !top) return;
    clear_bins(s->top_k);
    clear_bins(s->top);
    sync_threads();
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (id + e >= v.k.p.vocab) continue;
      if (top_k) atomic_add_shared(s->top_k + (sampling::likelihood_key(z[e]) >> kCoarseShift), 1u);
      if (top) atomic_add_shared(s->top + (sampling::likelihood_key(raw[e]) >> kCoarseShift), 1u);
    }
    sync_threads();
    for (int b = thread_index(); b < kSampleBins; b += kThreads) {
      const uint32_t in_top_k = load_shared(s->top_k + b), in_top = load_shared(s->top + b);
      if (in_top_k) atomic_add_global(v.bins(kTopKBins) + b, in_top_k);
      if (in_top) atomic_add_global(v.bins(kTopBins) + b, in_top);
    }
  }

  // The coarse bin of the count-th token, and the histogram back to zero.
  static LAPIDARY_DEVICE uint32_t take_bin(uint32_t* bins, uint64_t count, Smem* s) {
    U32x4* place = reinterpret_cast<U32x4*>(bins) + thread_index();
    const U32x4 counts = load_coherent(place);
    store_global(place, U32x4{{0, 0, 0, 0}});
    const uint64_t mine[4] = {counts[0], counts[1], counts[2], counts[3]};
    return find_bin(mine, count - 1, &s->select).bin;
  }

  // The last block of a row.
  static LAPIDARY_DEVICE void combine(const RowView& v, Smem* s) {
    const SampleKernelParams& k = v.k;
    const SampleRow& row = v.settings;
    uint64_t best = kNone, worst = kNone;
    for (int c = thread_index(); c < k.chunks; c += kThreads) {
      best = Min{}(best, load_coherent(k.best + v.chunk_at(c)));
      const U32x2 bad = load_coherent(k.bad + v.chunk_at(c));
      worst = Min{}(worst, static_cast<uint64_t>(bad[1]) << 32 | bad[0]);
    }
    best = block_reduce<kThreads>(best, Min{}, kNone, s->scratch);
    worst = block_reduce<kThreads>(worst, Min{}, kNone, s->scratch);

    SampleState state = {};
    state.top = sampling::logit_of_key(static_cast<uint32_t>(best >> 32));
    if (row.top_logprobs >= 0) log_sum(v, state, s);
    const DrawKind kind = draw_kind(row, k.p.vocab);
    if (kind == DrawKind::top_k) state.top_k_bin = take_bin(v.bins(kTopKBins), static_cast<uint64_t>(row.top_k), s);
    const int top = row.top_logprobs < k.p.vocab ? row.top_logprobs : k.p.vocab;
    if (top > 0) state.top_bin = take_bin(v.bins(kTopBins), static_cast<uint64_t>(top), s);
    if (thread_index() != 0) return;

    const SampleNeeds& needs = k.p.needs;
    const bool planned = (kind == DrawKind::greedy || needs.draws) && (kind != DrawKind::nucleus || needs.nucleus) &&
                         (row.top_logprobs <= needs.most_top || row.top_logprobs <= 0) && (!is_adjusted(row) || needs.adjusts);
    if (worst < kOnlyAdjusted) {
      write_error(v, SampleError::bad_logit, static_cast<int>(worst));
    } else if (worst == kOnlyAdjusted) {
      write_error(v, SampleError::beyond_range, -1);
    } else if (state.top == kExcluded) {
      write_error(v, SampleError::no_token, -1);
    } else if (!planned) {
      write_error(v, SampleError::unplanned, -1);
    } else {
      state.drawing = 1;
      if (kind == DrawKind::greedy) write_token(v, state, static_cast<int>(best & 0xffffffffu));
    }
    store_state(v, state);
  }

  // raw_top and the logarithm of the sum of exp(raw - raw_top), from the chunks' statistics.
  static LAPIDARY_DEVICE void log_sum(const RowView& v, SampleState& state, Smem* s) {
    float top = kExcluded;
    for (int c = thread_index(); c < v.k.chunks; c += kThreads) top = max_f32(top, load_coherent(v.k.stats + v.chunk_at(c))[0]);
    top = block_reduce<kThreads>(top, Max{}, kExcluded, reinterpret_cast<float*>(s->scratch));
    double sum = 0;
    for (int c = thread_index(); c < v.k.chunks; c += kThreads) {
      const F32x2 part = load_coherent(v.k.stats + v.chunk_at(c));
      if (part[0] > kExcluded) sum += static_cast<double>(part[1]) * exp_accurate(part[0] - top);
    }
    sum = block_reduce<kThreads>(sum, Sum{}, 0.0, reinterpret_cast<double*>(s->scratch));
    state.raw_top = top;
    state.log_sum = log_accurate(sum);
  }
};

}  // namespace lapidary::cuda
