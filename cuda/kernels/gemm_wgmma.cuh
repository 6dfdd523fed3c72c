// Tiled products with TMA and wgmma: int8 and bf16, persistent and warp-specialised, for sm_90a.
//
// A block has one producer warpgroup (one thread of it works: it starts TMA loads) and tile.m / 64 consumer warpgroups; a consumer owns 64
// rows and all tile.n columns of the output tile, a thread the wgmma fragment. The grid is as large as the device; a block walks the
// schedule's segments.
//
//   producer: wait empty[s] -> expect bytes on full[s] -> TMA x box, TMA w box -> next stage, straight on into the next tile
//   consumer: wait full[s] -> four wgmma steps of 32 bytes of k -> with the next stage's in flight, wait for these -> arrive on empty[s]
//
//   shared memory: stages x (x: tile.m rows of 128 bytes | w: tile.n rows of 128 bytes), 128-byte swizzle; full[stages], empty[stages]; a
//   flag
//
// In a cluster of two, the blocks own tiles that are neighbours along m: each loads its x, and half of w for both (multicast), so w crosses
// L2 once. A stage is then empty when the consumers of both blocks have read it.
//
// Rows past m or n and bytes past k come as zeros from TMA. Bytes in flight: all stages (up to 224 KB).
#pragma once

#include "cuda/kernels/epilogues.cuh"
#include "cuda/kernels/gemm_schedule.cuh"
#include "cuda/primitives/bulk_copy.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/primitives/wgmma.cuh"

namespace lapidary::cuda {

template <class Problem>
struct GemmTmaParams {
  TensorMap x, w;  // bytes: boxes of 128 x tile.m and 128 x (tile.n / blocks of a cluster)
  Problem product;
  GemmSchedule schedule;  // a tile is a cluster's: as many tiles along m as it has blocks
};

struct Int8WgmmaElement {
  using Product = Int8Product;
  using Sum = int;
  static constexpr const char* kName = "gemm_int8_wgmma";
  static constexpr int kBytes = 1;
  static constexpr bool kSliced = false;
  template <int N>
  static LAPIDARY_DEVICE void multiply(int (&d)[N / 2], uint64_t x, uint64_t w, bool accumulate) {
    wgmma_s8<N>(d, x, w, accumulate);
  }
};
struct Bf16WgmmaElement {
  using Product = Bf16Product;
  using Sum = float;
  static constexpr const char* kName = "gemm_bf16_wgmma";
  static constexpr int kBytes = 2;
  static constexpr bool kSliced = true;
  template <int N>
  static LAPIDARY_DEVICE void multiply(float (&d)[N / 2], uint64_t x, uint64_t w, bool accumulate) {
    wgmma_bf16<N>(d, x, w, accumulate);
  }
};

template <class Element, WgmmaTile kTile>
struct GemmWgmmaKernel {
  using Product = typename Element::Product;
  using Params = GemmTmaParams<Product>;
  using Sum = typename Element::Sum;
  static constexpr const char* kName = Element::kName;
  static constexpr Needs kNeeds = Needs::sm90a;
  static constexpr int kThreads = kTile.threads(), kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr size_t kSmemBytes = kTile.smem_bytes();

  static constexpr int kConsumers = kTile.m / 64, kConsumerThreads = kConsumers * 128;
  static constexpr int kN = kTile.n, kGroups = kN / 8, kRegisters = kN / 2;
  static constexpr int kStages = kTile.stages, kStageBytes = static_cast<int>(kTile.stage_bytes());
  static constexpr int kStepBytes = 32;  // of k, a wgmma
  static constexpr int kStagesPerUnit = Element::kSliced ? kBf16SliceK * Element::kBytes / 128 : 1;
  static constexpr int kConsumerBarrier = 1;  // 0 is the block's
  static_assert(kTile.m == 64 || kTile.m == 128);
  static_assert(kN % 32 == 0 && kN / 2 % 8 == 0 && kStageBytes % 1024 == 0 && kSmemBytes <= 227 * 1024);

  // Position in the ring of stages; the parity flips with every turn.
  struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    LAPIDARY_DEVICE void advance() {
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  };
  static LAPIDARY_DEVICE Barrier* full_barriers(std::byte* smem) { return reinterpret_cast<Barrier*>(smem + kStages * kStageBytes); }
  static LAPIDARY_DEVICE Barrier* empty_barriers(std::byte* smem) { return full_barriers(smem) + kStages; }
  static LAPIDARY_DEVICE int* flag(std::byte* smem) { return reinterpret_cast<int*>(full_barriers(smem) + 2 * kStages); }

  // The block's segments: blocks of a cluster walk together.
  struct Walk {
    int next;
    LAPIDARY_DEVICE explicit Walk(const GemmSchedule& s)
        : next(Segments::begin(s, block_x() / cluster_size(), grid_x() / cluster_size())) {}
    LAPIDARY_DEVICE bool advance(const GemmSchedule& s, Segment& segment) {
      return Segments::at(s, block_x() / cluster_size(), grid_x() / cluster_size(), next, segment, next);
    }
  };
  static LAPIDARY_DEVICE TilePlace place_of(const GemmSchedule& s, const Segment& segment) {
    const TilePlace pair = tile_place(s, segment.tile);
    return {pair.m * cluster_size() + cluster_rank(), pair.n};
  }

  static LAPIDARY_DEVICE int stage_count(const Product& p) { return ceil_div(p.k * Element::kBytes, 128); }
  static LAPIDARY_DEVICE int last_stage(const Product& p, const Segment& s) {
    const int end = s.end * kStagesPerUnit;
    return end < stage_count(p) ? end : stage_count(p);
  }

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    run_roles(params, smem,
              [&](const TilePlace& tile, int group, const Sum(&sums)[kRegisters]) { write_tile(params.product, tile, group, sums); });
  }

  // Producer and consumers; `write(tile, group, sums)` finishes a tile's 64 rows of consumer `group`.
  template <class Write>
  static LAPIDARY_DEVICE void run_roles(const Params& params, std::byte* smem, const Write& write) {
    Barrier *full = full_barriers(smem), *empty = empty_barriers(smem);
    if (thread_index() == 0) {
      prefetch_tensor_map(&params.x);
      prefetch_tensor_map(&params.w);
      for (int s = 0; s < kStages; ++s) {
        barrier_init(full + s, 1);
        barrier_init(empty + s, 4 * kConsumers * cluster_size());  // one lane of each consumer warp
      }
      fence_barrier_init();
    }
    const bool clustered = cluster_size() > 1;
    clustered ? cluster_sync() : sync_threads();
    wait_for_previous_grids();
    allow_next_grid();
    // Consumers first, so that their fragments' rows are thread_index() / 128 * 64 on; the producer is the last warpgroup.
    if (thread_index() >= kConsumerThreads) {
      if constexpr (kConsumers == 2) fewer_registers<40>();
      if (thread_index() == kConsumerThreads) produce(params, smem);
    } else {
      if constexpr (kConsumers == 2) more_registers<232>();
      consume(params, smem, write);
    }
    if (clustered) {
      sync_warp();
      cluster_sync();  // the other block may still arrive on this one's barriers
    }
  }

  static LAPIDARY_DEVICE void produce(const Params& params, std::byte* smem) {
    const GemmSchedule& schedule = params.schedule;
    // Weights that no later row of tiles reads again leave L2 first; activations are read by every column of tiles.
    const bool weights_once = schedule.tiles_m <= schedule.group_m, clustered = cluster_size() > 1;
    Ring ring;
    Walk walk(schedule);
    for (Segment s; walk.advance(schedule, s);) {
      const TilePlace tile = place_of(schedule, s);
      const int end = last_stage(params.product, s);
      for (int k = s.first * kStagesPerUnit; k < end; ++k) {
        Barrier* full = full_barriers(smem) + ring.stage;
        barrier_wait(empty_barriers(smem) + ring.stage, ring.parity ^ 1);
        barrier_arrive_expect(full, kStageBytes);
        std::byte* to = smem + ring.stage * kStageBytes;
        tensor_load<L2::evict_last>(to, &params.x, full, k * 128, tile.m * kTile.m);
        std::byte* w = to + kTile.m * 128;
        if (clustered) {
          const int half = cluster_rank() * (kN / 2);
          if (weights_once) {
            tensor_load_multicast<L2::evict_first>(w + half * 128, &params.w, full, k * 128, tile.n * kN + half, 3);
          } else {
            tensor_load_multicast(w + half * 128, &params.w, full, k * 128, tile.n * kN + half, 3);
          }
        } else if (weights_once) {
          tensor_load<L2::evict_first>(w, &params.w, full, k * 128, tile.n * kN);
        } else {
          tensor_load(w, &params.w, full, k * 128, tile.n * kN);
        }
        ring.advance();
      }
    }
  }

  // The sums of stages [first, end) in d. Everything before is drained; on return d is complete and all stages are released.
  static LAPIDARY_DEVICE void multiply(std::byte* smem, Ring& ring, uint64_t x0, uint64_t w0, int first, int end, Sum (&d)[kRegisters]) {
    const auto issue = [&](bool accumulate) {
      barrier_wait(full_barriers(smem) + ring.stage, ring.parity);
      const uint64_t x = descriptor_advance(x0, ring.stage * kStageBytes), w = descriptor_advance(w0, ring.stage * kStageBytes);
      wgmma_fence();
      LAPIDARY_UNROLL
      for (int step = 0; step < 128 / kStepBytes; ++step) {
        Element::template multiply<kN>(d, descriptor_advance(x, step * kStepBytes), descriptor_advance(w, step * kStepBytes),
                                       accumulate || step > 0);
      }
      wgmma_commit();
    };
    const auto release = [&](int stage) {
      Barrier* empty = empty_barriers(smem) + stage;
      if (cluster_size() == 1) {
        if (lane() == 0) barrier_arrive(empty);
      } else if (lane() < 2) {
        barrier_arrive_remote(empty, lane());
      }
    };
    issue(false);
    int previous = ring.stage;
    ring.advance();
    for (int k = first + 1; k < end; ++k) {
      issue(true);
      wgmma_wait<1>();
      release(previous);
      previous = ring.stage;
      ring.advance();
    }
    wgmma_wait<0>();
    wgmma_keep(d);
    release(previous);
  }

  template <class Write>
  static LAPIDARY_DEVICE void consume(const Params& params, std::byte* smem, const Write& write) {
    const Product& p = params.product;
    const GemmSchedule& schedule = params.schedule;
    const int group = thread_index() / 128;
    const uint64_t x0 = smem_descriptor(smem + group * 64 * 128, 16, 1024, Swizzle::bytes128);
    const uint64_t w0 = smem_descriptor(smem + kTile.m * 128, 16, 1024, Swizzle::bytes128);
    Ring ring;
    Walk walk(schedule);
    for (Segment s; walk.advance(schedule, s);) {
      const bool whole = s.end - s.first == schedule.units;
      const int end = last_stage(p, s);
      Sum d[kRegisters];
      if constexpr (Element::kSliced) {
        Sum total[kRegisters];
        LAPIDARY_UNROLL
        for (int i = 0; i < kRegisters; ++i) total[i] = 0;
        for (int unit = s.first; unit < s.end; ++unit) {
          const int first = unit * kStagesPerUnit;
          multiply(smem, ring, x0, w0, first, end < first + kStagesPerUnit ? end : first + kStagesPerUnit, d);
          if (whole) {
            LAPIDARY_UNROLL
            for (int i = 0; i < kRegisters; ++i) total[i] += d[i];
          } else {
            store_part<kRegisters, kConsumerThreads>(schedule, static_cast<int64_t>(s.tile) * schedule.units + unit, thread_index(), d);
          }
        }
        if (whole || complete(schedule, s, smem, total)) write(place_of(schedule, s), group, total);
      } else {
        warm_scales<kN, kConsumerThreads>(p, place_of(schedule, s).n * kN, thread_index());
        multiply(smem, ring, x0, w0, s.first, end, d);
        if (whole || complete(schedule, s, smem, d)) write(place_of(schedule, s), group, d);
      }
    }
  }

  // For a part of a tile: true in the block that completes it, whose `sums` then are the tile's. bf16 slices are already in the workspace
  // and sums are zero.
  static LAPIDARY_DEVICE bool complete(const GemmSchedule& schedule, const Segment& s, std::byte* smem, Sum (&sums)[kRegisters]) {
    const auto sync = [] { named_barrier_sync(kConsumerBarrier, kConsumerThreads); };
    if constexpr (Element::kSliced) {
      if (!completes_tile(schedule, s, thread_index(), flag(smem), sync)) return false;
      for (int unit = 0; unit < schedule.units; ++unit) {
        add_part<kRegisters, kConsumerThreads>(schedule, static_cast<int64_t>(s.tile) * schedule.units + unit, thread_index(), sums);
      }
    } else {
      store_part<kRegisters, kConsumerThreads>(schedule, s.slot, thread_index(), sums);
      if (!completes_tile(schedule, s, thread_index(), flag(smem), sync)) return false;
      add_other_parts<kRegisters, kConsumerThreads>(schedule, s, thread_index(), grid_x(), sums);
    }
    return true;
  }

  static LAPIDARY_DEVICE void write_tile(const Product& p, const TilePlace& tile, int group, const Sum (&sums)[kRegisters]) {
    const int row0 = tile.m * kTile.m + group * 64 + warp() % 4 * 16, column0 = tile.n * kN;
    const auto sum = [&](int j, int e) { return sums[4 * j + e]; };
    if constexpr (Element::kSliced) {
      write_strip<kGroups>(p.output, p.m, p.n, row0, column0, NoScaling{}, sum);
    } else if (p.output.epilogue == Epilogue::raw) {
      write_raw_strip<kGroups>(p.output, p.m, p.n, row0, column0, sum);
    } else {
      write_strip<kGroups>(p.output, p.m, p.n, row0, column0, Int8Scaling(p, row0), sum);
    }
  }
};

}  // namespace lapidary::cuda
