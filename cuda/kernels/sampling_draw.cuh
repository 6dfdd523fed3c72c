// The sampler's second and third launch: weights of the tokens, the candidates that top-k, top-p and the likeliest tokens are chosen from,
// the draw.
#pragma once

#include "cuda/kernels/sampling_scan.cuh"

namespace lapidary::cuda {

struct alignas(16) DrawSmem {
  SelectSmem select;
  U32x2 held[kHeldCandidates];
  uint32_t top_key[kSampleMaxTop];
  int32_t top_id[kSampleMaxTop];
  uint32_t last, count;
};

// Block (x, y) owns chunk x of row y, a thread four neighbouring logits. By the row's plan the chunk gives
//   plain:   its units (after min-p);      the last block finds the chunk and the token of the draw
//   top-k:   its tokens from the k-th's coarse bin up, into the list; the last block filters the list and draws
//   nucleus: its units by coarse bins;     the last block finds the bin where top-p ends, for the third launch
// and of the raw logits those from the coarse bin of the last wanted likeliest token up; the last block orders them.
struct SampleWeighKernel {
  using Params = SampleKernelParams;
  static constexpr const char* kName = "sample_weigh";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kSampleThreads, kBlocksPerSm = 1;
  static constexpr size_t kSmemBytes = sizeof(DrawSmem);

  static LAPIDARY_DEVICE void run(const Params& k, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    DrawSmem* s = reinterpret_cast<DrawSmem*>(smem);
    const RowView v(k);
    SampleState state = load_state(v);
    const DrawKind kind = draw_kind(v.settings, k.p.vocab);
    if (!state.drawing || (kind == DrawKind::greedy && v.settings.top_logprobs <= 0)) return;
    const int id = block_x() * kSampleChunk + thread_index() * 4;
    const int unit_bits = sampling::unit_bits(k.p.vocab);

    if (kind == DrawKind::plain) weigh_plain(v, state, id, unit_bits, s);
    if (kind == DrawKind::top_k) list_top_k(v, state, id, s);
    if (kind == DrawKind::nucleus) weigh_nucleus(v, state, id, unit_bits, s);
    if (v.settings.top_logprobs > 0) list_top(v, state, id, s);
    if (!last_block(v.counter(kWeighDone), k.chunks, &s->last)) return;

    if (kind == DrawKind::plain) draw_plain(v, state, unit_bits, s);
    if (kind == DrawKind::top_k) {
      const Candidates tokens = take_candidates(v.logits(), k.p.vocab, v.list(), v.counter(kListed), k.room, s->held);
      finish_draw(v, state, tokens, 0, &s->select);
    }
    if (kind == DrawKind::nucleus) find_nucleus(v, state, s);
    if (v.settings.top_logprobs > 0) write_top(v, state, s);
  }

  static LAPIDARY_DEVICE F32x4 logits_of(const float* row, int id, int vocab) {
    return SampleScanKernel::load_logits(row, id, vocab, reinterpret_cast<uintptr_t>(row) % 16 == 0 && vocab % 4 == 0);
  }

 private:
  static LAPIDARY_DEVICE uint64_t units(const RowView& v, const SampleState& state, float logit, float min_p, int unit_bits) {
    const float weight = sampling::weight_of(sampling::scaled_logit(logit, state.top, v.settings.temperature));
    return weight < min_p ? 0 : sampling::units_of(weight, unit_bits);
  }

  static LAPIDARY_DEVICE void weigh_plain(const RowView& v, const SampleState& state, int id, int unit_bits, DrawSmem* s) {
    const F32x4 z = logits_of(v.logits(), id, v.k.p.vocab);
    uint64_t mine = 0, total;
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) mine += units(v, state, z[e], v.settings.min_p, unit_bits);
    block_scan(mine, s->select.warp_sums, total);
    if (thread_index() == 0) store_global(v.k.mass + v.chunk_at(block_x()), total);
  }
  static LAPIDARY_DEVICE void draw_plain(const RowView& v, const SampleState& state, int unit_bits, DrawSmem* s) {
    const int chunks = v.k.chunks;
    const auto mass = [&](int c) { return load_coherent(v.k.mass + v.chunk_at(c)); };
    const uint64_t target =
        sampling::draw_target(sampling::draw_bits(v.settings.seed, v.settings.counter), sum_items(chunks, mass, &s->select));
    // The chunk: rounds of four per thread; then the token within it.
    uint64_t before = 0;
    BinFound chunk = {0, 0, false};
    int first = 0;
    for (; first < chunks; first += kSampleBins) {
      uint64_t mine[kBinsPerThread], round;
      LAPIDARY_UNROLL
      for (int b = 0; b < kBinsPerThread; ++b) {
        const int c = first + thread_index() * kBinsPerThread + b;
        mine[b] = c < chunks ? mass(c) : 0;
      }
      chunk = find_bin(mine, target - before, &s->select);
      if (chunk.found) break;
      block_scan(mine[0] + mine[1] + mine[2] + mine[3], s->select.warp_sums, round);
      before += round;
    }
    before += chunk.before;
    const int from = (first + static_cast<int>(chunk.bin)) * kSampleChunk;
    const F32x4 z = logits_of(v.logits(), from + thread_index() * 4, v.k.p.vocab);
    uint64_t mine[kBinsPerThread];
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) mine[e] = units(v, state, z[e], v.settings.min_p, unit_bits);
    const BinFound token = find_bin(mine, target - before, &s->select);
    if (thread_index() == 0) write_token(v, state, from + static_cast<int>(token.bin));
  }

  static LAPIDARY_DEVICE void list_top_k(const RowView& v, const SampleState& state, int id, DrawSmem* s) {
    const F32x4 z = logits_of(v.logits(), id, v.k.p.vocab);
    U32x2 items[4];
    bool wanted[4];
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      items[e] = {{static_cast<uint32_t>(id + e), sampling::float_bits(z[e])}};
      wanted[e] = z[e] > kExcluded && sampling::likelihood_key(z[e]) >> kCoarseShift <= state.top_k_bin;
    }
    append_to_list(items, wanted, v.list(), v.counter(kListed), v.k.room, &s->select);
  }

  static LAPIDARY_DEVICE void weigh_nucleus(const RowView& v, const SampleState& state, int id, int unit_bits, DrawSmem* s) {
    const F32x4 z = logits_of(v.logits(), id, v.k.p.vocab);
    clear_bins(s->select.low);
    clear_bins(s->select.high);
    sync_threads();
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      const uint64_t mine = units(v, state, z[e], 0, unit_bits);
      if (mine == 0) continue;
      const int bin = static_cast<int>(mass_bin(sampling::scaled_logit(z[e], state.top, v.settings.temperature)));
      add_to_bin(s->select.low, s->select.high, bin, mine);
    }
    sync_threads();
    for (int b = thread_index(); b < kSampleBins; b += kThreads) {
      const uint32_t low = load_shared(s->select.low + b);
      uint32_t high = load_shared(s->select.high + b);
      if (low == 0 && high == 0) continue;
      const uint32_t old = atomic_add_global(v.bins(kMassLow) + b, low);
      if (old + low < low) ++high;
      if (high != 0) atomic_add_global(v.bins(kMassHigh) + b, high);
    }
    sync_threads();
  }
  static LAPIDARY_DEVICE void find_nucleus(const RowView& v, SampleState state, DrawSmem* s) {
    U32x4* low = reinterpret_cast<U32x4*>(v.bins(kMassLow)) + thread_index();
    U32x4* high = reinterpret_cast<U32x4*>(v.bins(kMassHigh)) + thread_index();
    const U32x4 l = load_coherent(low), h = load_coherent(high);
    store_global(low, U32x4{{0, 0, 0, 0}});
    store_global(high, U32x4{{0, 0, 0, 0}});
    uint64_t mine[kBinsPerThread];
    LAPIDARY_UNROLL
    for (int b = 0; b < kBinsPerThread; ++b) mine[b] = static_cast<uint64_t>(h[b]) << 32 | l[b];
    block_scan(mine[0] + mine[1] + mine[2] + mine[3], s->select.warp_sums, state.total);
    state.nucleus_bin = find_bin(mine, sampling::top_p_limit(v.settings.top_p, state.total) - 1, &s->select).bin;
    if (thread_index() == 0) store_state(v, state);
  }

  static LAPIDARY_DEVICE void list_top(const RowView& v, const SampleState& state, int id, DrawSmem* s) {
    const F32x4 raw = logits_of(v.raw(), id, v.k.p.vocab);
    U32x2 items[4];
    bool wanted[4];
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      items[e] = {{static_cast<uint32_t>(id + e), sampling::float_bits(raw[e])}};
      wanted[e] = id + e < v.k.p.vocab && sampling::likelihood_key(raw[e]) >> kCoarseShift <= state.top_bin;
    }
    append_to_list(items, wanted, v.top_list(), v.counter(kTopListed), v.k.room, &s->select);
  }
  // The likeliest raw logits in their order: the cut, then each survivor's place by counting those before it.
  static LAPIDARY_DEVICE void write_top(const RowView& v, const SampleState& state, DrawSmem* s) {
    const int vocab = v.k.p.vocab, count = v.settings.top_logprobs < vocab ? v.settings.top_logprobs : vocab;
    const Candidates tokens = take_candidates(v.raw(), vocab, v.top_list(), v.counter(kTopListed), v.k.room, s->held);
    const auto one = [&](int i) { return Measured{sampling::likelihood_key(tokens(i).logit), 1}; };
    const Selected last = select(tokens.n, one, 32, static_cast<uint64_t>(count) - 1, &s->select);
    const Cut cut = cut_among_equals(tokens, last.key, static_cast<uint64_t>(count) - last.before, IdOrder(vocab), &s->select);
    if (thread_index() == 0) store_shared(&s->count, 0u);
    sync_threads();
    for (int i = thread_index(); i < tokens.n; i += kThreads) {
      const Token t = tokens(i);
      const uint32_t key = sampling::likelihood_key(t.logit);
      if (!cut.keeps(key, t.id)) continue;
      const uint32_t at = atomic_add_shared(&s->count, 1u);
      store_shared(s->top_key + at, key);
      store_shared(s->top_id + at, t.id);
    }
    sync_threads();
    if (thread_index() >= count) return;
    const uint32_t key = load_shared(s->top_key + thread_index());
    const int32_t id = load_shared(s->top_id + thread_index());
    int place = 0;
    for (int i = 0; i < count; ++i) {
      const uint32_t other = load_shared(s->top_key + i);
      place += other < key || (other == key && load_shared(s->top_id + i) < id) ? 1 : 0;
    }
    const int64_t at = static_cast<int64_t>(v.row) * v.k.p.top_stride + place;
    store_global(v.k.p.top_ids + at, id);
    store_global(v.k.p.top_logprobs + at,
                 static_cast<float>(static_cast<double>(load_global(v.raw() + id)) - state.raw_top - state.log_sum));
  }
};

// Block (x, y) lists of chunk x of row y the tokens from the bin up in which top-p ends; the last block of a row filters them and draws.
struct SampleNucleusKernel {
  using Params = SampleKernelParams;
  static constexpr const char* kName = "sample_nucleus";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kSampleThreads, kBlocksPerSm = 1;
  static constexpr size_t kSmemBytes = sizeof(DrawSmem);

  static LAPIDARY_DEVICE void run(const Params& k, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    DrawSmem* s = reinterpret_cast<DrawSmem*>(smem);
    const RowView v(k);
    const SampleState state = load_state(v);
    if (!state.drawing || draw_kind(v.settings, k.p.vocab) != DrawKind::nucleus) return;
    const int id = block_x() * kSampleChunk + thread_index() * 4;
    const F32x4 z = SampleWeighKernel::logits_of(v.logits(), id, k.p.vocab);
    U32x2 items[4];
    bool wanted[4];
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      items[e] = {{static_cast<uint32_t>(id + e), sampling::float_bits(z[e])}};
      wanted[e] = z[e] > kExcluded && mass_bin(sampling::scaled_logit(z[e], state.top, v.settings.temperature)) <= state.nucleus_bin;
    }
    append_to_list(items, wanted, v.list(), v.counter(kListed), k.room, &s->select);
    if (!last_block(v.counter(kNucleusDone), k.chunks, &s->last)) return;
    const Candidates tokens = take_candidates(v.logits(), k.p.vocab, v.list(), v.counter(kListed), k.room, s->held);
    finish_draw(v, state, tokens, state.total, &s->select);
  }
};

}  // namespace lapidary::cuda
