// Tiles of the matrix products and the choice among them: pure functions of the problem and the device, the same for the launchers, the
// backend (which asks how much workspace a product wants), the tests and the benches.
#pragma once

#include <algorithm>

#include "cuda/api/gemm.h"

namespace lapidary::cuda {

// --- how a kernel walks its tiles -----------------------------------------------------------------------------------------

struct GemmSchedule {
  int32_t tiles_m = 0, tiles_n = 0;
  int32_t group_m = 8;          // rows of tiles that are walked together
  int32_t units = 1;            // parts that a tile's k can be cut into
  int32_t split = 0;            // 1: blocks own equal ranges of units, not whole tiles
  int32_t* counters = nullptr;  // int32 [tiles], zero between launches; with `split`
  void* parts = nullptr;        // int32 or f32 sums; with `split`
};

inline int64_t gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- mma.sync tiles (sm_80 and later) -------------------------------------------------------------------------------------

// Bytes of k, so that int8 and bf16 share the table's meaning: a step of the tensor cores takes 32 bytes of either.
struct MmaTile {
  int m, n, k_bytes;
  int warp_m, warp_n;  // of one warp
  int stages;          // k steps in flight in shared memory
  int blocks_per_sm;   // that registers allow
  int rate;            // of the tensor-core peak, in percent, once all SMs are full: an estimate until measured on the device
  bool may_split;      // k over blocks; not where its registers do not fit

  constexpr int threads() const { return (m / warp_m) * (n / warp_n) * 32; }
  constexpr int64_t smem_bytes() const { return static_cast<int64_t>(stages) * (m + n) * k_bytes + 16; }
  static constexpr int kWgmma = 0;
  constexpr bool splits() const { return may_split; }
  constexpr int64_t unit_bytes() const { return k_bytes; }  // that a split of int8 sums may cut k at
  constexpr bool may_pair() const { return false; }
  constexpr int64_t whole_tile_blocks(int64_t tiles, int) const { return tiles; }
};

// bf16 keeps two sets of accumulators (a slice's, and the sum of the slices before), hence no 64 x 64 warps.
inline constexpr MmaTile kInt8MmaTiles[] = {
    {32, 64, 128, 16, 32, 5, 3, 35, true},    // M <= 32, or a handful of tiles
    {64, 64, 128, 32, 32, 5, 2, 50, true},    // small N
    {64, 128, 128, 32, 32, 4, 2, 60, true},   // M <= 64
    {128, 128, 64, 64, 64, 4, 2, 72, false},  // two blocks on an SM hide each other's prologue and epilogue
    {128, 256, 64, 64, 64, 3, 1, 78, false},  // large M: the most math for a byte of shared memory
};
inline constexpr MmaTile kBf16MmaTiles[] = {
    {32, 64, 128, 16, 32, 5, 3, 40, true},
    {64, 64, 128, 32, 32, 4, 2, 55, true},
    {64, 128, 128, 32, 32, 4, 1, 68, true},
    {128, 128, 64, 64, 32, 4, 1, 80, true},
};
inline constexpr int kInt8MmaTileCount = sizeof kInt8MmaTiles / sizeof kInt8MmaTiles[0];
inline constexpr int kBf16MmaTileCount = sizeof kBf16MmaTiles / sizeof kBf16MmaTiles[0];

// --- wgmma tiles (sm_90a) -------------------------------------------------------------------------------------------------

// A stage of shared memory is 128 bytes of k of the tile's m rows of x and n rows of w. 64 rows to a consumer warpgroup.
struct WgmmaTile {
  int m, n;
  int stages;
  int blocks_per_sm;
  int rate;  // as MmaTile's

  constexpr int threads() const { return (m / 64 + 1) * 128; }
  constexpr int64_t stage_bytes() const { return static_cast<int64_t>(m + n) * 128; }
  constexpr int64_t smem_bytes() const { return stages * (stage_bytes() + 16) + 16; }

  static constexpr int kWgmma = 1;
  constexpr bool splits() const { return true; }
  constexpr int64_t unit_bytes() const { return 128; }
  constexpr bool may_pair() const { return m == 128; }
  constexpr int64_t whole_tile_blocks(int64_t tiles, int sm_count) const {
    return std::min<int64_t>(tiles, int64_t{sm_count} * blocks_per_sm);
  }
};

// An m64 step of n columns reads (64 + n) * 32 bytes of shared memory for n / 2 cycles of int8 math: below n = 128 the reads bound it.
inline constexpr WgmmaTile kInt8WgmmaTiles[] = {
    {64, 64, 6, 2, 62},   {128, 64, 9, 1, 75},  {128, 96, 8, 1, 86},  {128, 128, 7, 1, 95},
    {128, 160, 6, 1, 95}, {128, 192, 5, 1, 95}, {128, 224, 5, 1, 95}, {128, 256, 4, 1, 95},
};
// Two sets of accumulators: up to 160 columns in 232 registers.
inline constexpr WgmmaTile kBf16WgmmaTiles[] = {
    {64, 64, 6, 2, 75}, {128, 64, 9, 1, 85}, {128, 96, 8, 1, 90}, {128, 128, 7, 1, 95}, {128, 160, 6, 1, 95},
};
inline constexpr int kInt8WgmmaTileCount = sizeof kInt8WgmmaTiles / sizeof kInt8WgmmaTiles[0];
inline constexpr int kBf16WgmmaTileCount = sizeof kBf16WgmmaTiles / sizeof kBf16WgmmaTiles[0];

// --- f32 tiles (all devices) ------------------------------------------------------------------------------------------------

struct F32Tile {
  int m, n;
  int thread_m, thread_n;  // of one thread
  int blocks_per_sm;
  int rate;  // of the f32 peak, as MmaTile's

  static constexpr int kStep = 16;  // of k, in shared memory at a time
  constexpr int threads() const { return (m / thread_m) * (n / thread_n); }
  constexpr int64_t smem_bytes() const { return int64_t{2} * kStep * (m + n + 8) * 4 + 16; }

  static constexpr int kWgmma = 0;
  constexpr bool splits() const { return true; }
  constexpr int64_t unit_bytes() const { return 2 * kBf16SliceK; }
  constexpr bool may_pair() const { return false; }
  constexpr int64_t whole_tile_blocks(int64_t tiles, int) const { return tiles; }
};
inline constexpr F32Tile kF32Tiles[] = {{16, 64, 2, 2, 4, 22}, {64, 64, 4, 4, 2, 50}};
inline constexpr int kF32TileCount = sizeof kF32Tiles / sizeof kF32Tiles[0];

// --- workspace ------------------------------------------------------------------------------------------------------------

// Counters stand first and in a place of fixed size, so that products of different shapes may use one workspace after another.
inline constexpr int64_t kMaxSplitTiles = 1024;
inline constexpr int64_t kCounterBytes = kMaxSplitTiles * 4;

// Units that a tile's k is cut into by a split, given the bytes of k that an int8 tile takes at a time.
inline int32_t int8_units(int32_t k, int32_t step_bytes) { return static_cast<int32_t>(gemm_ceil_div(k, step_bytes)); }
inline int32_t slice_units(int32_t k) { return static_cast<int32_t>(gemm_ceil_div(k, kBf16SliceK)); }

// int8: two parts for each block. bf16: one for each slice of each tile, since sums of slices may not be added before their turn.
inline int64_t int8_split_bytes(int64_t tile_elements, int64_t blocks) { return kCounterBytes + 2 * blocks * tile_elements * 4; }
inline int64_t sliced_split_bytes(int64_t tile_elements, int64_t tiles, int64_t units) {
  return kCounterBytes + tiles * units * tile_elements * 4;
}

// --- the choice -----------------------------------------------------------------------------------------------------------

inline constexpr int kFillBytes = 384;      // of k: what filling and draining a tile's pipeline costs, in bytes of k streamed
inline constexpr int kFixupBytes = 512;     // the same for writing a part of a tile, waiting and adding it
inline constexpr int kMinSplitBytes = 512;  // of k that a split leaves to a block at least

inline constexpr int64_t kMaxPartBytes = 16 << 20;  // of a split's workspace: more would leave L2

struct PlanWords {
  const char *whole, *split, *pairs;
};

// The tile with the least estimated time: tiles on the busiest SM, times a tile's area, over its rate, times the bytes of k (and of fill).
// Equal estimates: the first of the table. `sliced`: parts are bf16's slices of k.
template <class Tile>
GemmPlan plan_tiles(const Tile* tiles, int count, int64_t m, int64_t n, int64_t k_bytes, bool sliced, const DeviceFacts& device,
                    bool workspace, const PlanWords& words) {
  GemmPlan best;
  double best_cost = 0;
  for (int i = 0; i < count; ++i) {
    const Tile& t = tiles[i];
    if (t.smem_bytes() > device.smem_per_block) continue;
    const int64_t total = gemm_ceil_div(m, t.m) * gemm_ceil_div(n, t.n);
    const double area = static_cast<double>(t.m) * t.n / t.rate;
    const auto consider = [&](double cost, int64_t blocks, int cluster, int split, const char* why) {
      if (best.tile >= 0 && cost >= best_cost * 0.9999) return;
      best_cost = cost;
      best.tile = i;
      best.blocks = static_cast<int32_t>(blocks);
      best.cluster = cluster;
      best.split = split;
      best.wgmma = Tile::kWgmma;
      best.why = why;
    };
    // Pairs of tiles along m share their weights where that makes no wave more.
    const int64_t waves = gemm_ceil_div(total, device.sm_count);
    const int64_t pairs = gemm_ceil_div(m, int64_t{2} * t.m) * gemm_ceil_div(n, t.n);
    const bool pair = t.may_pair() && m > t.m && device.sm_count >= 2 && gemm_ceil_div(pairs, device.sm_count / 2) <= waves;
    const int64_t whole_blocks = pair ? 2 * std::min<int64_t>(pairs, device.sm_count / 2) : t.whole_tile_blocks(total, device.sm_count);
    consider(static_cast<double>(waves) * area * static_cast<double>(k_bytes + kFillBytes), whole_blocks, pair ? 2 : 1, 0,
             pair ? words.pairs : words.whole);
    const int64_t unit = sliced ? 2 * kBf16SliceK : t.unit_bytes();
    const int64_t units = gemm_ceil_div(k_bytes, unit);
    const int64_t smallest = std::max<int64_t>(1, kMinSplitBytes / unit);  // units of a block
    const int64_t blocks = std::min<int64_t>(device.sm_count, total * units / smallest);
    if (!workspace || !t.splits() || units < 2 || blocks <= total || total > kMaxSplitTiles)
      continue;  // a full wave without it, or nothing to cut
    if (sliced && sliced_split_bytes(static_cast<int64_t>(t.m) * t.n, total, units) > kMaxPartBytes) continue;
    const double share = static_cast<double>(gemm_ceil_div(total * units, blocks)) * static_cast<double>(unit);
    consider((share + kFillBytes + kFixupBytes) * area, blocks, 1, 1, words.split);
  }
  return best;
}

inline constexpr PlanWords kMmaWords = {"mma.sync, whole tiles: the fullest waves", "mma.sync, k split over blocks: fewer tiles than SMs",
                                        ""};
inline constexpr PlanWords kWgmmaWords = {"wgmma, whole tiles: the fullest waves", "wgmma, k split over blocks: fewer tiles than SMs",
                                          "wgmma, whole tiles: the fullest waves, weights shared by pairs of blocks"};

// By path; `workspace`: a split may be chosen.
inline GemmPlan plan_int8_mma(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace) {
  return plan_tiles(kInt8MmaTiles, kInt8MmaTileCount, m, n, k, false, device, workspace, kMmaWords);
}
inline GemmPlan plan_bf16_mma(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace) {
  return plan_tiles(kBf16MmaTiles, kBf16MmaTileCount, m, n, 2 * k, true, device, workspace, kMmaWords);
}
inline GemmPlan plan_int8_wgmma(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace) {
  return plan_tiles(kInt8WgmmaTiles, kInt8WgmmaTileCount, m, n, k, false, device, workspace, kWgmmaWords);
}
inline GemmPlan plan_bf16_wgmma(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace) {
  return plan_tiles(kBf16WgmmaTiles, kBf16WgmmaTileCount, m, n, 2 * k, true, device, workspace, kWgmmaWords);
}
// k counts as two bytes an element here, as the slices do.
inline GemmPlan gemm_f32_tile(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace = true) {
  constexpr PlanWords kWords = {"f32, whole tiles: the fullest waves", "f32, slices of k over blocks: fewer tiles than SMs", ""};
  return plan_tiles(kF32Tiles, kF32TileCount, m, n, 2 * k, true, device, workspace, kWords);
}
// Of the best path for the device.
inline GemmPlan gemm_int8_tile(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace = true) {
  return device.has_wgmma() ? plan_int8_wgmma(m, n, k, device, workspace) : plan_int8_mma(m, n, k, device, workspace);
}
inline GemmPlan gemm_bf16_tile(int64_t m, int64_t n, int64_t k, const DeviceFacts& device, bool workspace = true) {
  return device.has_wgmma() ? plan_bf16_wgmma(m, n, k, device, workspace) : plan_bf16_mma(m, n, k, device, workspace);
}

// --- what is refused ------------------------------------------------------------------------------------------------------

// The reason why a product's output cannot be written as asked; null: it can.
inline const char* refuse_output(const ProductOutput& o, int64_t n, bool int8_product) {
  const auto size = [](OutType t) { return t == OutType::f32 || t == OutType::int32 ? 4 : t == OutType::bf16 ? 2 : 1; };
  if (o.out == nullptr) return "no output";
  if (reinterpret_cast<uintptr_t>(o.out) % static_cast<uintptr_t>(size(o.out_type)) != 0) return "the output is not aligned to its element";
  if (o.stride < (o.epilogue == Epilogue::geglu ? n / 2 : n)) return "output rows overlap";
  switch (o.epilogue) {
    case Epilogue::store:
      return o.out_type == OutType::int32 ? "int32 output is for raw sums" : nullptr;
    case Epilogue::add:
      if (o.out_type != OutType::f32) return "a residual is added in f32";
      return o.residual == nullptr || o.residual_stride < n ? "no residual, or its rows overlap" : nullptr;
    case Epilogue::geglu:
      if (n % (2 * kGegluBlock) != 0) return "interleaved gate and up come in blocks of 8 rows each";
      return o.out_type == OutType::int32 ? "int32 output is for raw sums" : nullptr;
    case Epilogue::raw:
      return int8_product && o.out_type == OutType::int32 ? nullptr : "raw sums are int32 sums of an int8 product";
  }
  return "unknown epilogue";
}
inline const char* refuse_operands(const void* x, const void* w, int64_t x_stride, int64_t w_stride, int64_t m, int64_t n,
                                   int64_t k_bytes) {
  if (m < 0 || n < 0 || k_bytes <= 0) return "negative sizes, or no k";
  if (k_bytes % 16 != 0) return "rows are not whole 16-byte chunks";
  if (x == nullptr || w == nullptr) return "no operand";
  if (((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w)) & 15) != 0) return "operands are not aligned to 16 bytes";
  if (((x_stride | w_stride) & 15) != 0 || x_stride < k_bytes || w_stride < k_bytes)
    return "row strides are not multiples of 16 bytes, or rows overlap";
  if (x_stride >= (int64_t{1} << 24) || w_stride >= (int64_t{1} << 24))
    return "rows of 16 MiB or more";  // a kernel steps over 64 of them in 32 bits
  return nullptr;
}
inline constexpr int32_t kMaxInt8K = 0x7fffffff / (128 * 128);  // int32 sums stay exact for any int8 values
inline const char* refuse_int8_product(const Int8Product& p) {
  if (const char* why = refuse_operands(p.x, p.w, p.x_stride, p.w_stride, p.m, p.n, p.k)) return why;
  if (p.k > kMaxInt8K) return "int32 sums could overflow";
  if (p.output.epilogue != Epilogue::raw && (p.w_scales == nullptr || reinterpret_cast<uintptr_t>(p.w_scales) % 8 != 0)) {
    return "weight scales are missing or not aligned to 8 bytes";
  }
  return refuse_output(p.output, p.n, true);
}
inline const char* refuse_bf16_product(const Bf16Product& p) {
  if (const char* why = refuse_operands(p.x, p.w, p.x_stride, p.w_stride, p.m, p.n, 2 * static_cast<int64_t>(p.k))) return why;
  return refuse_output(p.output, p.n, false);
}
inline int64_t weight_bytes(WeightType t) { return t == WeightType::f32 ? 4 : 2; }
inline const char* refuse_f32_product(const F32Product& p) {
  if (p.m < 0 || p.n < 0 || p.k <= 0) return "negative sizes, or no k";
  if (p.x == nullptr || p.w == nullptr) return "no operand";
  const int64_t w_bytes = weight_bytes(p.w_type);
  if (reinterpret_cast<uintptr_t>(p.x) % 4 != 0 || reinterpret_cast<uintptr_t>(p.w) % static_cast<uintptr_t>(w_bytes) != 0)
    return "operands are not aligned to their elements";
  if (p.x_stride % 4 != 0 || p.w_stride % w_bytes != 0 || p.x_stride < 4 * int64_t{p.k} || p.w_stride < w_bytes * p.k)
    return "row strides are not whole elements, or rows overlap";
  return refuse_output(p.output, p.n, false);
}

// --- what the launchers ask ------------------------------------------------------------------------------------------------

inline const char* refuse_gemm_device(const DeviceFacts& device) {
  return device.major < 8 ? "tensor cores of compute capability 8.0 or later" : nullptr;
}

inline bool supports_gemm_int8(const Int8Product& p, const DeviceFacts& device) {
  return refuse_gemm_device(device) == nullptr && refuse_int8_product(p) == nullptr;
}
inline bool supports_gemm_bf16(const Bf16Product& p, const DeviceFacts& device) {
  return refuse_gemm_device(device) == nullptr && refuse_bf16_product(p) == nullptr;
}

inline bool supports_gemm_f32(const F32Product& p, const DeviceFacts&) { return refuse_f32_product(p) == nullptr; }

// The plan that gemm_int8 / gemm_bf16 take when params.plan.tile is -1, with its reason. `workspace`: whether one is given.
inline GemmPlan plan_gemm_int8(const Int8Product& p, const DeviceFacts& device, bool workspace) {
  return gemm_int8_tile(p.m, p.n, p.k, device, workspace);
}
inline GemmPlan plan_gemm_bf16(const Bf16Product& p, const DeviceFacts& device, bool workspace) {
  return gemm_bf16_tile(p.m, p.n, p.k, device, workspace);
}

// Of a plan that splits; otherwise 0.
inline int64_t gemm_int8_workspace_bytes(const GemmPlan& plan, const Int8Product&) {
  if (plan.split == 0) return 0;
  const auto bytes = [&](const auto& tile) { return int8_split_bytes(static_cast<int64_t>(tile.m) * tile.n, plan.blocks); };
  return plan.wgmma != 0 ? bytes(kInt8WgmmaTiles[plan.tile]) : bytes(kInt8MmaTiles[plan.tile]);
}
inline int64_t gemm_bf16_workspace_bytes(const GemmPlan& plan, const Bf16Product& p) {
  if (plan.split == 0) return 0;
  const auto bytes = [&](const auto& tile) {
    return sliced_split_bytes(static_cast<int64_t>(tile.m) * tile.n, gemm_ceil_div(p.m, tile.m) * gemm_ceil_div(p.n, tile.n),
                              slice_units(p.k));
  };
  return plan.wgmma != 0 ? bytes(kBf16WgmmaTiles[plan.tile]) : bytes(kBf16MmaTiles[plan.tile]);
}
inline int64_t gemm_int8_workspace_bytes(const Int8Product& p, const DeviceFacts& device) {
  return gemm_int8_workspace_bytes(plan_gemm_int8(p, device, true), p);
}
inline int64_t gemm_bf16_workspace_bytes(const Bf16Product& p, const DeviceFacts& device) {
  return gemm_bf16_workspace_bytes(plan_gemm_bf16(p, device, true), p);
}

inline int64_t gemm_f32_workspace_bytes(const GemmPlan& plan, const F32Product& p) {
  if (plan.split == 0) return 0;
  const F32Tile& t = kF32Tiles[plan.tile];
  return sliced_split_bytes(static_cast<int64_t>(t.m) * t.n, gemm_ceil_div(p.m, t.m) * gemm_ceil_div(p.n, t.n), slice_units(p.k));
}
inline GemmPlan plan_gemm_f32(const F32Product& p, const DeviceFacts& device, bool workspace) {
  return gemm_f32_tile(p.m, p.n, p.k, device, workspace);
}
inline int64_t gemm_f32_workspace_bytes(const F32Product& p, const DeviceFacts& device) {
  return gemm_f32_workspace_bytes(plan_gemm_f32(p, device, true), p);
}

}  // namespace lapidary::cuda
