// Skinny products, 1 to 16 rows of x: a stream of weights past a few rows held in shared memory.
//
//   units   row block 0: [u0 u1 u2 ..] row block 1: [u0 u1 u2 ..] ...    a row block: 16 weight rows; a unit: one or more stages of k
//           |---- block 0 ----|---- block 1 ----|---- block 2 ---- ...   equal ranges of the row-major list of units
//           |w0|w1|w2| ...                                               and equal ranges of those for the warps
//
// A block owns a range of units, a warp a range of the block's, a thread the sums of fragment elements (gemv_formats.cuh).
// Pipeline of a warp: its own ring of stages in shared memory, copies (cp.async or bulk) ring - 1 stages ahead, wait, ldmatrix, mma; no
// barrier among warps until all weights are read. In flight per block: warps * (ring - 1) stages = 48 KiB (int8; both by bulk copies), 56
// KiB (bf16), 63 KiB (Q8_0 and Q4_0), where 24 KiB per SM fill the memory of an H200; half rings, where x takes the room, keep 16 to 27
// KiB. Weights start before the wait for previous grids (PDL); x and the prologue come after it.
//
// A row block that one warp covers is written from registers. Otherwise the warp that holds its first unit collects the rest ("carries")
// after the block's one barrier; across blocks the last to arrive does. int8 sums are exact: one carry per warp, int32 atomics across
// blocks. The other formats carry one sum per slice of kBf16SliceK elements and add them in rising order: the bits of a result never depend
// on the spread.
#pragma once

#include "cuda/kernels/epilogues.cuh"
#include "cuda/kernels/gemv_formats.cuh"
#include "cuda/kernels/gemv_prologue.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

struct GemvArguments {
  GemvWeight w;
  GemvInput in;
  GemvPrologue prologue;
  ProductOutput output;
  uint32_t* counters;  // [kGemvMaxBlocks], zero, left zero: of the row block whose first unit block b holds and which ends in a later one
  int* sums;           // int32 [kGemvMaxBlocks, Groups, 32, 4], zero, left zero: the same row blocks' sums
  float* slots;        // f32 [blocks, warps * slots + 1, Groups, 32, 4]: carries; last the sum of the block's last row block so far
  int32_t stages, units, slots_per_warp, x_pitch;
  int32_t ring;          // stages of a warp: kFacts.ring or half of it
  int32_t share, extra;  // units (whole_row_blocks: row blocks) of a block; the first `extra` blocks have one more
  bool whole_row_blocks, shared_slots;
};

LAPIDARY_HOST_DEVICE constexpr const char* gemv_name(GemvFormat f, bool bulk) {
  if (bulk) return f == GemvFormat::int8 ? "gemv_int8_bulk" : "gemv_bf16_bulk";
  return f == GemvFormat::int8 ? "gemv_int8" : f == GemvFormat::bf16 ? "gemv_bf16" : f == GemvFormat::q8_0 ? "gemv_q8_0" : "gemv_q4_0";
}

template <class Format, int Groups>
struct GemvKernel {
  using Params = GemvArguments;
  using Sum = typename Format::Sum;
  using Sums = Sum[Groups][4];
  static constexpr GemvFormatFacts kFacts = gemv_format_facts(Format::kFormat, Format::kBulk);
  static constexpr const char* kName = gemv_name(Format::kFormat, Format::kBulk);
  static constexpr Needs kNeeds = Format::kBulk ? Needs::sm90 : Needs::sm80;
  static constexpr int kWarps = kFacts.warps, kThreads = kWarps * kWarp, kBlocksPerSm = 2;
  static constexpr bool kInt8 = Format::kFormat == GemvFormat::int8;
  static constexpr int kSlotSums = Groups * kWarp * 4;
  static_assert(kFacts.stage_bytes % 128 == 0, "a stage starts on 128 bytes");
  static_assert(kWarps * kFacts.ring * sizeof(Barrier) <= 128 || !Format::kBulk, "room for the barriers, kGemvSmallBytes");

  // Where a warp stands: stage `stage` of a row block.
  struct Place {
    int row_block, stage;
    LAPIDARY_DEVICE bool operator!=(const Place& o) const { return row_block != o.row_block || stage != o.stage; }
    LAPIDARY_DEVICE void advance(int stages) {
      if (++stage == stages) {
        stage = 0;
        ++row_block;
      }
    }
  };
  struct Range {
    int first, last;  // units
  };

  // --- who has which units ------------------------------------------------------------------------------------------------
  static LAPIDARY_DEVICE int block_first(const Params& p, int block) {
    const int first = block * p.share + (block < p.extra ? block : p.extra);
    return p.whole_row_blocks ? first * p.units : first;
  }
  static LAPIDARY_DEVICE Range block_range(const Params& p, int block) { return {block_first(p, block), block_first(p, block + 1)}; }
  static LAPIDARY_DEVICE Range warp_range(const Range& block, int warp) {
    const int count = block.last - block.first, each = count / kWarps, more = count % kWarps;
    const auto first = [&](int w) { return block.first + w * each + (w < more ? w : more); };
    return {first(warp), first(warp + 1)};
  }
  // Blocks cut anywhere: the one that holds a unit.
  static LAPIDARY_DEVICE int block_of(const Params& p, int unit) {
    const int longer = p.extra * (p.share + 1);
    return unit < longer ? unit / (p.share + 1) : p.extra + (unit - longer) / p.share;
  }
  static LAPIDARY_DEVICE Place place_of(const Params& p, int unit) {
    const int row_block = unit / p.units;
    return {row_block, (unit - row_block * p.units) * kFacts.unit_stages};
  }
  static LAPIDARY_DEVICE Range row_block_range(const Params& p, int row_block) { return {row_block * p.units, (row_block + 1) * p.units}; }
  static LAPIDARY_DEVICE bool inside(const Range& part, const Range& whole) { return part.first >= whole.first && part.last <= whole.last; }

  // --- sums ---------------------------------------------------------------------------------------------------------------
  static LAPIDARY_DEVICE void clear(Sums& sums) {
    LAPIDARY_UNROLL
    for (int i = 0; i < Groups * 4; ++i) sums[i / 4][i % 4] = 0;
  }
  static LAPIDARY_DEVICE void add(Sums& to, const Sums& from) {
    LAPIDARY_UNROLL
    for (int i = 0; i < Groups * 4; ++i) to[i / 4][i % 4] += from[i / 4][i % 4];
  }
  using Quad = Vec<Sum, 4>;
  template <bool Shared>
  static LAPIDARY_DEVICE void store_slot(Sum* slot, const Sums& sums) {
    LAPIDARY_UNROLL
    for (int j = 0; j < Groups; ++j) {
      Quad* to = reinterpret_cast<Quad*>(slot) + j * kWarp + lane();
      const Quad v = {{sums[j][0], sums[j][1], sums[j][2], sums[j][3]}};
      if constexpr (Shared) {
        store_shared(to, v);
      } else {
        store_global(to, v);
      }
    }
  }
  template <bool Shared>
  static LAPIDARY_DEVICE void add_slot(Sums& sums, const Sum* slot) {
    LAPIDARY_UNROLL
    for (int j = 0; j < Groups; ++j) {
      const Quad* from = reinterpret_cast<const Quad*>(slot) + j * kWarp + lane();
      const Quad v = Shared ? load_shared(from) : load_coherent(from);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) sums[j][e] += v[e];
    }
  }
  static LAPIDARY_DEVICE Sum* shared_slot(const Params& p, std::byte* slots, int warp, int index) {
    return reinterpret_cast<Sum*>(slots) + (warp * p.slots_per_warp + index) * kSlotSums;
  }
  // Of f32 sums. index == slots_per_warp of the last warp: the block's last row block.
  static LAPIDARY_DEVICE Sum* global_slot(const Params& p, int block, int warp, int index) {
    return reinterpret_cast<Sum*>(p.slots) +
           (static_cast<int64_t>(block) * (kWarps * p.slots_per_warp + 1) + warp * p.slots_per_warp + index) * kSlotSums;
  }
  static LAPIDARY_DEVICE void add_global_sums(const Params& p, int block, const Sums& sums) {
    LAPIDARY_UNROLL
    for (int i = 0; i < Groups * 4; ++i)
      atomic_add_global(p.sums + (block * Groups * kWarp + i / 4 * kWarp + lane()) * 4 + i % 4, static_cast<int>(sums[i / 4][i % 4]));
  }
  // What warps of `block` that start inside the row block left behind, in the order of k.
  template <bool Shared>
  static LAPIDARY_DEVICE void add_carries(const Params& p, Sums& total, const Range& row_block, int block, std::byte* slots) {
    const Range all = block_range(p, block);
    for (int w = 0; w < kWarps; ++w) {
      const Range own = warp_range(all, w);
      if (own.first <= row_block.first || own.first >= row_block.last || own.first == own.last) continue;
      const int count = kInt8 ? 1 : (own.last < row_block.last ? own.last : row_block.last) - own.first;
      for (int i = 0; i < count; ++i) add_slot<Shared>(total, Shared ? shared_slot(p, slots, w, i) : global_slot(p, block, w, i));
    }
  }

  // --- results ------------------------------------------------------------------------------------------------------------
  struct WeightScales {
    float row[2];  // of rows g and g + 8
  };
  static LAPIDARY_DEVICE WeightScales weight_scales(const Params& p, int row_block) {
    WeightScales s = {{1.0f, 1.0f}};
    if constexpr (kInt8) {
      LAPIDARY_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int n = row_block * kGemvRows + lane() / 4 + 8 * half;
        if (p.output.epilogue != Epilogue::raw && n < p.w.n) s.row[half] = load_readonly(reinterpret_cast<const float*>(p.w.scales) + n);
      }
    }
    return s;
  }
  static LAPIDARY_DEVICE void write_out(const Params& p, int row_block, const Sums& sums, const WeightScales& w, const float* x_scales) {
    const int g = lane() / 4, t = lane() % 4, n = row_block * kGemvRows + g;
    LAPIDARY_UNROLL
    for (int i = 0; i < Groups * 2; ++i) {
      const int row = i / 2 * 8 + 2 * t + i % 2;
      if (row >= p.in.m) continue;
      const Sum top = sums[i / 2][i % 2], bottom = sums[i / 2][i % 2 + 2];
      if constexpr (kInt8) {
        if (p.output.epilogue == Epilogue::raw) {
          int* out = static_cast<int*>(p.output.out) + row * p.output.stride;
          if (n < p.w.n) store_global(out + n, top);
          if (n + 8 < p.w.n) store_global(out + n + 8, bottom);
          continue;
        }
      }
      float y0 = static_cast<float>(top), y1 = static_cast<float>(bottom);
      if constexpr (kInt8) {
        const float x_scale = load_shared(x_scales + row);
        y0 = scale_sum(top, x_scale, w.row[0]);
        y1 = scale_sum(bottom, x_scale, w.row[1]);
      }
      if (p.output.epilogue == Epilogue::geglu) {
        write_geglu(p.output, row, row_block * 8 + g, y0, y1);
      } else {
        if (n < p.w.n) write_element(p.output, row, n, y0);
        if (n + 8 < p.w.n) write_element(p.output, row, n + 8, y1);
      }
    }
  }

  // One block's part of a row block that several share is complete. The last one writes the result.
  static LAPIDARY_DEVICE void arrive(const Params& p, int row_block, const float* x_scales) {
    const Range units = row_block_range(p, row_block);
    const int head = block_of(p, units.first), last = block_of(p, units.last - 1);
    fence_device();
    sync_warp();
    uint32_t before = 0;
    if (lane() == 0) before = atomic_add_global(p.counters + head, 1u);
    before = shuffle(before, 0);
    if (static_cast<int>(before) != last - head) return;
    fence_device();
    if (lane() == 0) store_global(p.counters + head, 0u);
    Sums total;
    clear(total);
    if constexpr (kInt8) {
      int* slot = p.sums + head * kSlotSums;
      add_slot<false>(total, slot);
      Sums zero;
      clear(zero);
      store_slot<false>(slot, zero);
    } else {
      add_slot<false>(total, global_slot(p, head, kWarps - 1, p.slots_per_warp));
      for (int block = head; block <= last; ++block) add_carries<false>(p, total, units, block, nullptr);
    }
    write_out(p, row_block, total, weight_scales(p, row_block), x_scales);
  }

  // --- the ring of a warp -------------------------------------------------------------------------------------------------
  struct Ring {
    std::byte* stages;
    Barrier* full;  // one per stage, bulk copies only
    int count, read = 0, write = 0;
    uint32_t parity = 0;  // of the phase that `read` waits for

    LAPIDARY_DEVICE std::byte* stage(int i) const { return stages + i * kFacts.stage_bytes; }
    LAPIDARY_DEVICE int after(int i) const { return i + 1 == count ? 0 : i + 1; }
    LAPIDARY_DEVICE void start() {
      if constexpr (Format::kBulk) {
        if (lane() < count) barrier_init(full + lane(), 1);
        fence_barrier_init();
        sync_warp();
      }
    }
    // Starts the copy of the stage `next` of the units, if there is one, into the place that was read longest ago.
    LAPIDARY_DEVICE void fill(const Params& p, Place& next, const Place& end) {
      if (next != end) {
        if constexpr (Format::kBulk) {
          load_quants_bulk(p.w, stage(write), full + write, next.row_block, next.stage);
        } else {
          Format::load_stage(p.w, stage(write), next.row_block, next.stage);
        }
        next.advance(p.stages);
      }
      if constexpr (!Format::kBulk) copy_async_commit();
      write = after(write);
    }
    // After it, all lanes see the stage to be read, and have read the one before, whose place may be filled.
    LAPIDARY_DEVICE void wait() {
      if constexpr (Format::kBulk) {
        barrier_wait(full + read, parity);
        fence_proxy_async();  // reads of the stage before come before the copy that overwrites it
      } else if (count == kFacts.ring) {
        copy_async_wait<kFacts.ring - 2>();
      } else {
        copy_async_wait<kFacts.ring / 2 - 2>();
      }
      sync_warp();
    }
    LAPIDARY_DEVICE void advance() {
      read = after(read);
      if (Format::kBulk && read == 0) parity ^= 1;
    }
  };

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    const int block = block_x();
    const Range block_units = block_range(p, block), units = warp_range(block_units, warp());
    const Place end = place_of(p, units.last);
    Place at = place_of(p, units.first), next = at;

    std::byte* x = smem + kWarps * p.ring * kFacts.stage_bytes;
    float* x_scales = reinterpret_cast<float*>(x + p.in.m * p.x_pitch);
    float* scratch = x_scales + kGemvMaxRows;
    auto* barriers = reinterpret_cast<Barrier*>(scratch + kRowSlots);
    const GemvSharedX to = {x,         x_scales,
                            scratch,   reinterpret_cast<float*>(reinterpret_cast<std::byte*>(x_scales) + kGemvSmallBytes),
                            p.x_pitch, p.x_pitch - kFacts.x_pad};

    // Weights first: they depend on no earlier grid.
    Ring ring = {smem + warp() * p.ring * kFacts.stage_bytes, barriers + warp() * p.ring, p.ring};
    ring.start();
    for (int i = 0; i < p.ring - 1; ++i) ring.fill(p, next, end);
    wait_for_previous_grids();
    allow_next_grid();

    std::byte* slots = reinterpret_cast<std::byte*>(to.row);
    if (p.prologue.x != nullptr) {
      norm_x<kThreads, kInt8>(p.in, p.prologue, to, block == 0 && p.prologue.x_out != nullptr);
      slots += round_up(p.in.k * 4, 16);
    } else {
      copy_x<kThreads>(p.in, to);
    }
    sync_threads();
    const GemvX<Groups> x_rows = Format::template x_rows<Groups>(x, p.x_pitch, p.in.m);

    // A warp that starts inside a row block carries its sums to the warp, or block, that holds the first unit.
    bool carried = at.stage > 0;
    const bool carry_crosses = carried && !inside(row_block_range(p, at.row_block), block_units);
    int carries = 0;
    const auto carry = [&](const Sums& sums) {
      if (kInt8 && carry_crosses) return add_global_sums(p, block_of(p, at.row_block * p.units), sums);
      if (carry_crosses || !p.shared_slots) return store_slot<false>(global_slot(p, block, warp(), carries++), sums);
      store_slot<true>(shared_slot(p, slots, warp(), carries++), sums);
    };

    Sums sum, total;  // of the slice (int8: of the row block so far); of whole slices
    clear(sum);
    clear(total);
    WeightScales scales = {};
    while (at != end) {
      ring.wait();
      ring.fill(p, next, end);
      if (at.stage == 0) scales = weight_scales(p, at.row_block);
      Format::template multiply<Groups>(sum, ring.stage(ring.read), x_rows, at.stage, p.w.row_bytes);
      ring.advance();

      const bool row_block_ends = at.stage + 1 == p.stages;
      const bool unit_ends = row_block_ends || (at.stage + 1) % kFacts.unit_stages == 0;
      if (Format::kOrdered && unit_ends) {
        if (carried) {
          carry(sum);
        } else {
          add(total, sum);
        }
        clear(sum);
      }
      if (row_block_ends) {
        if (!carried) {
          write_out(p, at.row_block, Format::kOrdered ? total : sum, scales, x_scales);
        } else if (!Format::kOrdered) {
          carry(sum);
        }
        carried = false;
        clear(sum);
        clear(total);
      }
      at.advance(p.stages);
    }
    const bool head_is_open = !carried && at.stage > 0;  // this warp holds the first units of a row block, others the rest
    if (!Format::kOrdered) {
      if (carried) carry(sum);
      add(total, sum);
    }
    sync_threads();

    if (head_is_open && units.first < units.last) {
      const Range row_block = row_block_range(p, at.row_block);
      if (inside(row_block, block_units)) {
        if (p.shared_slots) {
          add_carries<true>(p, total, row_block, block, slots);
        } else {
          add_carries<false>(p, total, row_block, block, slots);
        }
        write_out(p, at.row_block, total, scales, x_scales);
      } else {
        if constexpr (kInt8) {
          add_global_sums(p, block, total);
        } else {
          store_slot<false>(global_slot(p, block, kWarps - 1, p.slots_per_warp), total);
        }
        arrive(p, at.row_block, x_scales);
      }
    }
    const int first_row_block = block_units.first / p.units;
    if (warp() == 0 && block_units.first > first_row_block * p.units) arrive(p, first_row_block, x_scales);
  }
};

}  // namespace lapidary::cuda
