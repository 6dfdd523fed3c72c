// Tiled f32 products on the plain cores, weights f32, bf16 or f16: every output element is summed in one order (F32Product), whatever the
// tile, the split of k or the rows beside it.
//
// A block owns a tile.m x tile.n output tile, a thread thread_m x thread_n neighbouring elements of it. 16 k's at a time, transposed to
// [k][row] in shared memory so that a thread reads its rows in one load: global -> registers while the step before is multiplied -> the
// other buffer. Any m, n, k; rows that do not start on 16 bytes (weights: 8 or 16) are read element by element.
#pragma once

#include "cuda/kernels/epilogues.cuh"
#include "cuda/kernels/gemm_schedule.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

struct GemmF32KernelParams {
  F32Product product;
  GemmSchedule schedule;
};

template <WeightType kType>
struct WeightElement;
template <>
struct WeightElement<WeightType::f32> {
  using Type = float;
  static LAPIDARY_DEVICE float widen(float v) { return v; }
};
template <>
struct WeightElement<WeightType::bf16> {
  using Type = BFloat16;
  static LAPIDARY_DEVICE float widen(BFloat16 v) { return to_f32(v); }
};
template <>
struct WeightElement<WeightType::f16> {
  using Type = Half;
  static LAPIDARY_DEVICE float widen(Half v) { return to_f32(v); }
};

template <WeightType kType, F32Tile kTile>
struct GemmF32Kernel {
  using Params = GemmF32KernelParams;
  static constexpr const char* kName = "gemm_f32";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kTile.threads(), kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr size_t kSmemBytes = kTile.smem_bytes();

  static constexpr int kStep = F32Tile::kStep;
  static constexpr int kM = kTile.thread_m, kN = kTile.thread_n, kRegisters = kM * kN;
  static constexpr int kThreadsN = kTile.n / kN;
  static constexpr int kXRow = kTile.m + 4, kWRow = kTile.n + 4;  // floats; padded so that transposing stores meet fewer bank conflicts
  static constexpr int kBuffer = kStep * (kXRow + kWRow);         // floats
  static constexpr int kXLoads = ceil_div(kTile.m * kStep / 4, kThreads), kWLoads = ceil_div(kTile.n * kStep / 4, kThreads);
  static_assert(kBf16SliceK % kStep == 0 && kThreadsN % kWarp * kN % 16 == 0 && kRegisters % 4 == 0);

  // Four neighbouring k's of a matrix' rows; `whole`: every row starts on four elements.
  template <int kRows, int kLoads, class Element>
  struct Loader {
    using Type = typename Element::Type;
    const Type* base;  // of the tile's first row
    int64_t stride;    // elements
    int rows, k;       // rows left from the tile's first on
    bool whole;
    float v[kLoads][4];

    static LAPIDARY_DEVICE int index(int i) { return i * kThreads + thread_index(); }
    static LAPIDARY_DEVICE bool mine(int i) { return kRows * kStep / 4 % kThreads == 0 || index(i) < kRows * kStep / 4; }
    LAPIDARY_DEVICE Loader(const void* matrix, int64_t stride_bytes, int first_row, int all_rows, int all_k)
        : stride(stride_bytes / static_cast<int64_t>(sizeof(Type))), rows(all_rows - first_row), k(all_k) {
      base = static_cast<const Type*>(matrix) + first_row * stride;
      whole = (reinterpret_cast<uintptr_t>(matrix) | static_cast<uintptr_t>(stride_bytes)) % (4 * sizeof(Type)) == 0;
    }
    LAPIDARY_DEVICE void load(int first_k) {
      LAPIDARY_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        const int row = index(i) / (kStep / 4), at = first_k + index(i) % (kStep / 4) * 4;
        const bool inside = mine(i) && row < rows;
        const Type* from = base + row * stride + at;
        if (inside && whole && at + 4 <= k) {
          const Vec<Type, 4> four = load_readonly(reinterpret_cast<const Vec<Type, 4>*>(from));
          LAPIDARY_UNROLL
          for (int e = 0; e < 4; ++e) v[i][e] = Element::widen(four[e]);
        } else {
          LAPIDARY_UNROLL
          for (int e = 0; e < 4; ++e) v[i][e] = inside && at + e < k ? Element::widen(load_readonly(from + e)) : 0.0f;
        }
      }
    }
    template <int kRowFloats>
    LAPIDARY_DEVICE void store(float* smem) const {
      LAPIDARY_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        if (!mine(i)) continue;
        const int row = index(i) / (kStep / 4), at = index(i) % (kStep / 4) * 4;
        LAPIDARY_UNROLL
        for (int e = 0; e < 4; ++e) store_shared(smem + (at + e) * kRowFloats + row, v[i][e]);
      }
    }
  };
  using XLoader = Loader<kTile.m, kXLoads, WeightElement<WeightType::f32>>;
  using WLoader = Loader<kTile.n, kWLoads, WeightElement<kType>>;

  // One slice of k: [first, end). Both buffers are free on entry and on return after the caller's next barrier.
  static LAPIDARY_DEVICE void multiply(XLoader& x, WLoader& w, float* smem, int first, int end, float (&acc)[kRegisters]) {
    const int m0 = thread_index() / kThreadsN * kM, n0 = thread_index() % kThreadsN * kN;
    LAPIDARY_UNROLL
    for (int i = 0; i < kRegisters; ++i) acc[i] = 0;
    x.load(first);
    w.load(first);
    float* buffer = smem;
    for (int k = first; k < end; k += kStep) {
      x.template store<kXRow>(buffer);
      w.template store<kWRow>(buffer + kStep * kXRow);
      sync_threads();  // also: everyone has left the other buffer's step before last
      if (k + kStep < end) {
        x.load(k + kStep);
        w.load(k + kStep);
      }
      LAPIDARY_UNROLL
      for (int step = 0; step < kStep; ++step) {
        const Vec<float, kM> a = load_shared(reinterpret_cast<const Vec<float, kM>*>(buffer + step * kXRow + m0));
        const Vec<float, kN> b = load_shared(reinterpret_cast<const Vec<float, kN>*>(buffer + kStep * kXRow + step * kWRow + n0));
        LAPIDARY_UNROLL
        for (int i = 0; i < kRegisters; ++i) acc[i] = fma(a[i / kN], b[i % kN], acc[i]);
      }
      buffer = buffer == smem ? smem + kBuffer : smem;
    }
  }

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem_bytes) {
    const F32Product& p = params.product;
    const GemmSchedule& schedule = params.schedule;
    float* smem = reinterpret_cast<float*>(smem_bytes);
    int* flag = reinterpret_cast<int*>(smem + 2 * kBuffer);
    const auto sync = [] { sync_threads(); };
    wait_for_previous_grids();
    allow_next_grid();
    Segment s;
    int next;
    for (int place = Segments::begin(schedule, block_x(), grid_x()); Segments::at(schedule, block_x(), grid_x(), place, s, next);
         place = next) {
      const TilePlace tile = tile_place(schedule, s.tile);
      const bool whole = s.end - s.first == schedule.units;
      XLoader x(p.x, p.x_stride, tile.m * kTile.m, p.m, p.k);
      WLoader w(p.w, p.w_stride, tile.n * kTile.n, p.n, p.k);
      float total[kRegisters] = {};
      for (int unit = s.first; unit < s.end; ++unit) {
        const int end = (unit + 1) * kBf16SliceK;
        float slice[kRegisters];
        multiply(x, w, smem, unit * kBf16SliceK, end < p.k ? end : p.k, slice);
        sync_threads();
        if (whole) {
          LAPIDARY_UNROLL
          for (int i = 0; i < kRegisters; ++i) total[i] += slice[i];
        } else {
          store_part<kRegisters, kThreads>(schedule, static_cast<int64_t>(s.tile) * schedule.units + unit, thread_index(), slice);
        }
      }
      if (!whole) {
        if (!completes_tile(schedule, s, thread_index(), flag, sync)) continue;
        for (int unit = 0; unit < schedule.units; ++unit) {
          add_part<kRegisters, kThreads>(schedule, static_cast<int64_t>(s.tile) * schedule.units + unit, thread_index(), total);
        }
      }
      write_tile(p, tile, total);
    }
  }

  static LAPIDARY_DEVICE void write_tile(const F32Product& p, const TilePlace& tile, const float (&y)[kRegisters]) {
    const int row0 = tile.m * kTile.m + thread_index() / kThreadsN * kM, column0 = tile.n * kTile.n + thread_index() % kThreadsN * kN;
    if (p.output.epilogue != Epilogue::geglu) {
      LAPIDARY_UNROLL
      for (int i = 0; i < kRegisters; ++i) {
        const int row = row0 + i / kN, column = column0 + i % kN;
        if (row < p.m && column < p.n) write_element(p.output, row, column, y[i]);
      }
      return;
    }
    // A thread with gate channels gets their up values from the lane eight columns on; the others' values go unused.
    const bool gate = column0 % (2 * kGegluBlock) < kGegluBlock;
    const int channel0 = column0 / (2 * kGegluBlock) * kGegluBlock + column0 % kGegluBlock;
    LAPIDARY_UNROLL
    for (int i = 0; i < kRegisters; ++i) {
      const float up = shuffle_down(y[i], kGegluBlock / kN);
      const int row = row0 + i / kN;
      if (gate && row < p.m && column0 < p.n) write_geglu(p.output, row, channel0 + i % kN, y[i], up);
    }
  }
};

}  // namespace lapidary::cuda
