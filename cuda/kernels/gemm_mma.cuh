// Tiled products with mma.sync: int8 (exact int32 sums) and bf16 (f32 sums by slices of k), for sm_80 and later.
//
// A block owns an output tile (tile.m x tile.n), a warp warp_m x warp_n of it, a thread the fragments of mma.cuh. Rows of x and w stream
// through shared memory in steps of k_bytes: cp.async into `stages` buffers -> ldmatrix into one of two register sets -> mma from the
// other.
//
//   shared memory, one stage: rows of x (tile.m), then rows of w (tile.n), k_bytes each, swizzled (swizzle.cuh): the eight rows of an
//   ldmatrix fall into different banks.
//
// Rows past m or n and bytes past k are zeros in shared memory. Refuses k that is not a multiple of 16 bytes. Registers on sm_80, int8: 102
// to 116 for 16 x 32 and 32 x 32 warps, 236 for 64 x 64; bf16: 118 to 148, 218 for 64 x 32. Bytes in flight: all stages but one, 48 to 72
// KB.
#pragma once

#include "cuda/kernels/epilogues.cuh"
#include "cuda/kernels/gemm_schedule.cuh"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/swizzle.cuh"

namespace lapidary::cuda {

template <class Problem>
struct GemmParams {
  Problem product;
  GemmSchedule schedule;
};

struct Int8Element {
  using Product = Int8Product;
  using Sum = int;
  static constexpr const char* kName = "gemm_int8_mma";
  static constexpr int kBytes = 1;
  static constexpr bool kSliced = false;
  static LAPIDARY_DEVICE void multiply(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_s8(d, a, b); }
};
struct Bf16Element {
  using Product = Bf16Product;
  using Sum = float;
  static constexpr const char* kName = "gemm_bf16_mma";
  static constexpr int kBytes = 2;
  static constexpr bool kSliced = true;
  static LAPIDARY_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bf16(d, a, b); }
};

template <class Element, MmaTile kTile>
struct GemmMmaKernel {
  using Params = GemmParams<typename Element::Product>;
  using Sum = typename Element::Sum;
  static constexpr const char* kName = Element::kName;
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kTile.threads(), kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr size_t kSmemBytes = kTile.smem_bytes();

  static constexpr int kStageBytes = (kTile.m + kTile.n) * kTile.k_bytes;
  static constexpr int kChunks = kTile.k_bytes / 16;   // of a row in shared memory
  static constexpr int kRowStep = kThreads / kChunks;  // rows that the block copies at once
  static constexpr int kSteps = kTile.k_bytes / 32;    // tensor-core steps of a stage
  static constexpr int kStrips = kTile.warp_m / 16, kGroups = kTile.warp_n / 8;
  static constexpr int kRegisters = kStrips * kGroups * 4;
  static constexpr int kStagesPerUnit = Element::kSliced ? kBf16SliceK * Element::kBytes / kTile.k_bytes : 1;
  static_assert(kTile.k_bytes == 64 || kTile.k_bytes == 128);
  static_assert(kTile.m % kRowStep == 0 && kTile.n % kRowStep == 0 && kRowStep * kTile.k_bytes % 1024 == 0,
                "copies keep their swizzle from pass to pass");
  static_assert(kSteps % 2 == 0 && kTile.stages >= 3 && kGroups % 4 == 0);

  // Copies stages of one tile: this thread takes chunk `thread % kChunks` of every kRowStep-th row.
  struct Copier {
    const std::byte *x, *w;  // this thread's first chunk of its first row
    int x_step, w_step;      // bytes between its rows
    int x_rows, w_rows;      // rows from its first to the end of the matrix
    int k_bytes_left;        // from its chunk to the end of a row
    int to;

    LAPIDARY_DEVICE Copier(const typename Element::Product& p, const TilePlace& tile, int first_stage) {
      const int k_at = first_stage * kTile.k_bytes;
      const int row = thread_index() / kChunks, chunk = thread_index() % kChunks;
      const int x_row = tile.m * kTile.m + row, w_row = tile.n * kTile.n + row;
      x = reinterpret_cast<const std::byte*>(p.x) + x_row * p.x_stride + k_at + chunk * 16;
      w = reinterpret_cast<const std::byte*>(p.w) + w_row * p.w_stride + k_at + chunk * 16;
      x_step = kRowStep * static_cast<int>(p.x_stride);
      w_step = kRowStep * static_cast<int>(p.w_stride);
      x_rows = p.m - x_row;
      w_rows = p.n - w_row;
      k_bytes_left = p.k * Element::kBytes - k_at - chunk * 16;
      to = swizzled_chunk<kTile.k_bytes>(row, chunk);
    }
    // The next stage.
    LAPIDARY_DEVICE void copy(std::byte* stage) {
      const bool inside = k_bytes_left > 0;
      LAPIDARY_UNROLL
      for (int i = 0; i < kTile.m / kRowStep; ++i) {
        copy_async_16(stage + to + i * kRowStep * kTile.k_bytes, x + static_cast<int64_t>(i) * x_step, inside && i * kRowStep < x_rows);
      }
      std::byte* w_stage = stage + kTile.m * kTile.k_bytes;
      LAPIDARY_UNROLL
      for (int i = 0; i < kTile.n / kRowStep; ++i) {
        copy_async_16(w_stage + to + i * kRowStep * kTile.k_bytes, w + static_cast<int64_t>(i) * w_step, inside && i * kRowStep < w_rows);
      }
      x += kTile.k_bytes;
      w += kTile.k_bytes;
      k_bytes_left -= kTile.k_bytes;
    }
  };

  struct Fragments {
    uint32_t x[kStrips][4];
    uint32_t w[kGroups][2];
  };
  // Offsets of this lane's ldmatrix rows in a stage, and their chunk at step 0: chunk 2 * step is xored in, for it has no bits in common.
  struct Reader {
    int x_line, x_chunk, w_line, w_chunk;
    LAPIDARY_DEVICE Reader(int warp_m, int warp_n) {
      const int x_at = swizzled_chunk<kTile.k_bytes>(warp_m * kTile.warp_m + lane() % 16, lane() / 16);
      const int w_at = swizzled_chunk<kTile.k_bytes>(warp_n * kTile.warp_n + lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);
      x_line = x_at & ~127;
      x_chunk = x_at & 127;
      w_line = (w_at & ~127) + kTile.m * kTile.k_bytes;
      w_chunk = w_at & 127;
    }
    LAPIDARY_DEVICE void read(Fragments& f, const std::byte* stage, int step) const {
      LAPIDARY_UNROLL
      for (int i = 0; i < kStrips; ++i) load_matrix_x4(f.x[i], stage + x_line + i * 16 * kTile.k_bytes + (x_chunk ^ step * 32));
      LAPIDARY_UNROLL
      for (int j = 0; j < kGroups; j += 2) {
        uint32_t r[4];
        load_matrix_x4(r, stage + w_line + j * 8 * kTile.k_bytes + (w_chunk ^ step * 32));
        f.w[j][0] = r[0], f.w[j][1] = r[1], f.w[j + 1][0] = r[2], f.w[j + 1][1] = r[3];
      }
    }
  };

  static LAPIDARY_DEVICE void multiply(Sum (&acc)[kStrips][kGroups][4], const Fragments& f) {
    LAPIDARY_UNROLL
    for (int i = 0; i < kStrips; ++i) {
      LAPIDARY_UNROLL
      for (int j = 0; j < kGroups; ++j) Element::multiply(acc[i][j], f.x[i], f.w[j]);
    }
  }
  static LAPIDARY_DEVICE void clear(Sum (&acc)[kStrips][kGroups][4]) {
    LAPIDARY_UNROLL
    for (int i = 0; i < kRegisters; ++i) acc[i / (kGroups * 4)][i / 4 % kGroups][i % 4] = 0;
  }
  static LAPIDARY_DEVICE void flatten(Sum (&flat)[kRegisters], const Sum (&acc)[kStrips][kGroups][4]) {
    LAPIDARY_UNROLL
    for (int i = 0; i < kRegisters; ++i) flat[i] = acc[i / (kGroups * 4)][i / 4 % kGroups][i % 4];
  }

  // The products of stages [first, end) of the tile's k. `slice_done(stage)` is called with the sums in `acc` where a slice of k ends.
  template <class SliceDone>
  static LAPIDARY_DEVICE void main_loop(Copier& copier, const Reader& reader, std::byte* smem, int first, int end,
                                        Sum (&acc)[kStrips][kGroups][4], SliceDone slice_done) {
    constexpr int kStages = kTile.stages;
    LAPIDARY_UNROLL
    for (int s = 0; s < kStages - 1; ++s) {
      if (first + s < end) copier.copy(smem + s * kStageBytes);
      copy_async_commit();
    }
    clear(acc);
    copy_async_wait<kStages - 2>();
    sync_threads();
    Fragments f[2];
    reader.read(f[0], smem, 0);
    int now = 0, next_copy = kStages - 1;  // buffers
    for (int stage = first; stage < end; ++stage) {
      LAPIDARY_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        if (step == kSteps - 1) {
          // The next stage has landed and nobody reads this one's buffer any more.
          copy_async_wait<kStages - 2>();
          sync_threads();
          now = now + 1 == kStages ? 0 : now + 1;
        }
        if (step < kSteps - 1 || stage + 1 < end) reader.read(f[(step + 1) % 2], smem + now * kStageBytes, (step + 1) % kSteps);
        if (step == 0) {
          if (stage + kStages - 1 < end) copier.copy(smem + next_copy * kStageBytes);
          copy_async_commit();
          next_copy = next_copy + 1 == kStages ? 0 : next_copy + 1;
        }
        multiply(acc, f[step % 2]);
      }
      if constexpr (Element::kSliced) {
        if ((stage + 1) % kStagesPerUnit == 0 || stage + 1 == end) slice_done(stage);
      }
    }
    copy_async_wait<0>();
  }

  static LAPIDARY_DEVICE void write_tile(const typename Element::Product& p, const TilePlace& tile, int warp_m, int warp_n,
                                         const Sum (&acc)[kStrips][kGroups][4]) {
    const int column0 = tile.n * kTile.n + warp_n * kTile.warp_n;
    LAPIDARY_UNROLL
    for (int i = 0; i < kStrips; ++i) {
      const int row0 = tile.m * kTile.m + warp_m * kTile.warp_m + i * 16;
      const auto sum = [&](int j, int e) { return acc[i][j][e]; };
      if constexpr (Element::kSliced) {
        write_strip<kGroups>(p.output, p.m, p.n, row0, column0, NoScaling{}, sum);
      } else if (p.output.epilogue == Epilogue::raw) {
        write_raw_strip<kGroups>(p.output, p.m, p.n, row0, column0, sum);
      } else {
        write_strip<kGroups>(p.output, p.m, p.n, row0, column0, Int8Scaling(p, row0), sum);
      }
    }
  }

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    const auto& p = params.product;
    const GemmSchedule& schedule = params.schedule;
    constexpr int kWarpsM = kTile.m / kTile.warp_m;
    const int warp_m = warp() % kWarpsM, warp_n = warp() / kWarpsM;
    const Reader reader(warp_m, warp_n);
    int* flag = reinterpret_cast<int*>(smem + kTile.stages * kStageBytes);
    int* place_smem = flag + 1;

    wait_for_previous_grids();
    allow_next_grid();
    int place = Segments::begin(schedule, block_x(), grid_x());
    while (true) {
      Segment s;
      int next;
      if (!Segments::at(schedule, block_x(), grid_x(), place, s, next)) break;
      sync_threads();  // nobody reads the previous tile's last stage any more
      if (thread_index() == 0) store_shared(place_smem, place);
      Sum acc[kStrips][kGroups][4];
      compute(p, schedule, s, reader, smem, acc);
      place = load_shared(place_smem);  // after the main loop's barriers; keeps the segment out of registers until here
      Segments::at(schedule, block_x(), grid_x(), place, s, next);
      if (s.end - s.first == schedule.units || complete(schedule, s, flag, acc))
        write_tile(p, tile_place(schedule, s.tile), warp_m, warp_n, acc);
      place = next;
    }
  }

  // The segment's sums; a bf16 segment that is not a whole tile leaves its slices in the workspace instead.
  static LAPIDARY_DEVICE void compute(const typename Element::Product& p, const GemmSchedule& schedule, const Segment& s,
                                      const Reader& reader, std::byte* smem, Sum (&acc)[kStrips][kGroups][4]) {
    const int stages = ceil_div(p.k * Element::kBytes, kTile.k_bytes);
    const int first = s.first * kStagesPerUnit, end = s.end * kStagesPerUnit < stages ? s.end * kStagesPerUnit : stages;
    Copier copier(p, tile_place(schedule, s.tile), first);
    if constexpr (Element::kSliced) {
      Sum slice[kStrips][kGroups][4];
      clear(acc);
      const bool whole = s.end - s.first == schedule.units;
      const int first_slot = s.tile * schedule.units;
      main_loop(copier, reader, smem, first, end, slice, [&](int stage) {
        if (whole) {
          LAPIDARY_UNROLL
          for (int i = 0; i < kRegisters; ++i)
            acc[i / (kGroups * 4)][i / 4 % kGroups][i % 4] += slice[i / (kGroups * 4)][i / 4 % kGroups][i % 4];
        } else {
          Sum flat[kRegisters];
          flatten(flat, slice);
          store_part<kRegisters, kThreads>(schedule, first_slot + stage / kStagesPerUnit, thread_index(), flat);
        }
        clear(slice);
      });
    } else {
      warm_scales<kTile.n, kThreads>(p, tile_place(schedule, s.tile).n * kTile.n, thread_index());
      main_loop(copier, reader, smem, first, end, acc, [](int) {});
    }
  }

  // For a part of a tile: true in the block that completes it, whose acc then holds the tile's sums.
  static LAPIDARY_DEVICE bool complete(const GemmSchedule& schedule, const Segment& s, int* flag, Sum (&acc)[kStrips][kGroups][4]) {
    if constexpr (!kTile.may_split) return true;
    const auto sync = [] { sync_threads(); };
    Sum flat[kRegisters];
    if constexpr (Element::kSliced) {
      if (!completes_tile(schedule, s, thread_index(), flag, sync)) return false;
      LAPIDARY_UNROLL
      for (int i = 0; i < kRegisters; ++i) flat[i] = 0;
      for (int unit = 0; unit < schedule.units; ++unit) {
        add_part<kRegisters, kThreads>(schedule, s.tile * schedule.units + unit, thread_index(), flat);
      }
    } else {
      flatten(flat, acc);
      store_part<kRegisters, kThreads>(schedule, s.slot, thread_index(), flat);
      if (!completes_tile(schedule, s, thread_index(), flag, sync)) return false;
      add_other_parts<kRegisters, kThreads>(schedule, s, thread_index(), grid_x(), flat);
    }
    LAPIDARY_UNROLL
    for (int i = 0; i < kRegisters; ++i) acc[i / (kGroups * 4)][i / 4 % kGroups][i % 4] = flat[i];
    return true;
  }
};

}  // namespace lapidary::cuda
