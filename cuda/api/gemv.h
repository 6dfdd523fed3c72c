// Skinny products y = x · wᵀ for 1 to 16 rows of x: what their launchers take, which problems they take, and how the work is spread. The
// kernel reads every weight byte once and never waits for a whole block while doing so (cuda/kernels/gemv_stream.cuh).
#pragma once

#include <algorithm>

#include "cuda/api/block_planes.h"
#include "cuda/api/gemm.h"

namespace lapidary::cuda {

inline constexpr int kGemvMaxRows = 16;  // of x: two n8 column groups of the tensor cores

// The normed input of a product, made by every block for itself while its first weights are on their way:
//   v = x + post_norm(branch), x_out = v, input = norm(v), then rounded to bf16 or quantised: the bits of the add_norm launcher.
struct GemvPrologue {
  const float* x = nullptr;            // f32 [m, k], the residual stream; null: no prologue, the product's own x is read
  const float* branch = nullptr;       // f32 [m, k]; null: v = x
  const float* post_weight = nullptr;  // f32 [k]; null: the branch is added as it is
  const float* next_weight = nullptr;  // f32 [k]
  float* x_out = nullptr;     // f32 [m, k], written by one block; null: not wanted. Never x or branch: other blocks still read them
  float offset = 0, eps = 0;  // of both norms
  float inverse_scale = 0;    // int8 input: 1 / the product's x_scale; 0: each row's own scale
};

enum class GemvFormat : int32_t { int8, bf16, q8_0, q4_0 };

// How weights come to shared memory: by cp.async of all lanes, or (sm_90, int8 and bf16, n a multiple of 16, weight rows of 64-byte
// multiples) by bulk copies of row pieces, which one instruction starts for 16 rows and an mbarrier counts.
enum class GemvPath : int32_t { any, async, bulk };

// Constants of a format that host and kernel share. A stage is 16 rows by 128 (bulk: 256) bytes of quants; each warp has a ring of stages
// in shared memory.
struct GemvFormatFacts {
  int stage_k;      // elements of k in a stage
  int unit_stages;  // stages that one warp does without a break: a slice of kBf16SliceK elements where the order of sums counts
  int stage_bytes;  // of shared memory: with 16 bytes of scales a row where there are any; bulk: rows 16 bytes further apart, against bank
                    // conflicts
  int warps, ring;  // of a block; stages of a warp's ring, or half of them where x takes the room: all but one are in flight
  int x_bytes;      // of an element of x
  int x_pad;        // added to rows of x in shared memory, so that the rows of one load stand in different banks
};
inline constexpr GemvFormatFacts gemv_format_facts(GemvFormat f, bool bulk) {
  if (bulk) return f == GemvFormat::int8 ? GemvFormatFacts{256, 1, 16 * 272, 4, 4, 1, 16} : GemvFormatFacts{128, 4, 16 * 272, 4, 4, 2, 16};
  switch (f) {
    case GemvFormat::int8:
      return {128, 1, 2048, 8, 4, 1, 16};
    case GemvFormat::bf16:
      return {64, 8, 2048, 4, 8, 2, 16};
    case GemvFormat::q8_0:
      return {128, 4, 2048 + 256, 4, 8, 2, 32};
    case GemvFormat::q4_0:
      return {256, 2, 2048 + 256, 4, 8, 2, 64};
  }
  return {};
}

// The workspace starts with counters and int32 sums, zero at first use and left zero; then come f32 partial sums (any content).
inline constexpr int kGemvMaxBlocks = 2048;
inline constexpr int64_t kGemvCounterBytes = kGemvMaxBlocks * 4;
inline constexpr int64_t kGemvZeroBytes = kGemvCounterBytes + int64_t{kGemvMaxBlocks} * 1024;  // to be zeroed once

inline constexpr int kGemvSmallBytes = 64 + 64 + 128;  // shared memory: scales of x, scratch of the norms, barriers of the rings
// How a product is spread: units (16 rows by one unit of k) in row-major order, an equal range of them per block and in it per warp.
struct GemvPlan {
  int32_t blocks = 0;
  bool bulk = false;                              // weights come by bulk copies
  bool whole_row_blocks = false;                  // a block owns whole rows of units: no sums cross blocks
  bool shared_slots = true;                       // partial sums inside a block meet in shared memory (else in the workspace)
  int32_t row_blocks = 0, stages = 0, units = 0;  // of 16 rows; stages and units of a row block
  int32_t rows = 0;        // of x in one launch: m, but fewer for block formats, which no tiled kernel follows, where m do not fit
  int32_t ring = 0;        // stages of a warp's ring
  int32_t slots = 0;       // partial sums that a warp may leave behind
  int32_t slot_bytes = 0;  // 32 lanes * 4 (8) sums
  int64_t x_stride = 0;    // bytes between rows of x in shared memory
  int64_t smem_bytes = 0, workspace_bytes = 0;
  int64_t in_flight_bytes = 0;  // of weights per block
  const char* why = "";
};

// Bytes that a block could stream in the time that sums need to meet across blocks (about a microsecond at a fair share of the memory of a
// large GPU): splitting row blocks between blocks must save more than that.
inline constexpr int64_t kGemvFixupBytes = 24 * 1024;

struct GemvProblem {
  GemvFormat format;
  int32_t m, n, k;
  bool prologue;
  GemvPath path = GemvPath::any;
};

inline bool supports_gemv_bulk(const GemvProblem& p, const DeviceFacts& device) {
  const bool natural = p.format == GemvFormat::int8 || p.format == GemvFormat::bf16;
  return device.has_clusters() && natural && p.n % 16 == 0 && (p.format == GemvFormat::int8 ? p.k : p.k * 2) % 64 == 0;
}

// Spreads the problem over the device. blocks > 0: exactly so many blocks (no more than units), cut anywhere. Null: planned; else why it
// cannot be.
inline const char* plan_gemv(const GemvProblem& p, const DeviceFacts& device, int32_t blocks, GemvPlan* plan) {
  if (p.path == GemvPath::bulk && !supports_gemv_bulk(p, device))
    return "bulk copies want sm_90, n a multiple of 16 and weight rows of 64-byte multiples";
  plan->bulk = p.path != GemvPath::async && supports_gemv_bulk(p, device);
  const GemvFormatFacts f = gemv_format_facts(p.format, plan->bulk);
  if (p.m < 1 || p.m > kGemvMaxRows) return "m must be 1 to 16";
  if (p.n < 1 || p.k < 1) return "n and k must be positive";
  if (p.format == GemvFormat::int8 && p.k % 16 != 0) return "k must be a multiple of 16 (pad x and w with zeros)";
  if (p.format == GemvFormat::bf16 && p.k % 8 != 0) return "k must be a multiple of 8 (pad x and w with zeros)";
  if ((p.format == GemvFormat::q8_0 || p.format == GemvFormat::q4_0) && p.k % kPlaneBlock != 0)
    return "k must be a multiple of 32: whole blocks";
  plan->row_blocks = (p.n + 15) / 16;
  plan->stages = (p.k + f.stage_k - 1) / f.stage_k;
  plan->units = (plan->stages + f.unit_stages - 1) / f.unit_stages;
  const int64_t units = int64_t{plan->row_blocks} * plan->units;
  if (units > 0x7fffffff) return "n * k is too large";

  plan->x_stride = int64_t{plan->stages} * f.stage_k * f.x_bytes + f.x_pad;
  // x, its scales, scratch of the norms, barriers, one f32 row that the prologue works on, and the rings of the warps.
  const int64_t row = p.prologue ? (int64_t{p.k} * 4 + 15) / 16 * 16 : 0;
  const bool blocks_of_32 = p.format == GemvFormat::q8_0 || p.format == GemvFormat::q4_0;
  int64_t smem = 0, least_slots = 0;
  const auto fits = [&](int32_t rows) {
    plan->slot_bytes = rows > 8 ? 1024 : 512;
    least_slots = int64_t{f.warps} * plan->slot_bytes;
    for (plan->ring = f.ring; plan->ring >= f.ring / 2; plan->ring /= 2) {
      smem = int64_t{f.warps} * plan->ring * f.stage_bytes + rows * plan->x_stride + kGemvSmallBytes + row;
      if (smem + least_slots <= device.smem_per_block) return true;
    }
    return false;
  };
  plan->rows = p.m;
  while (!fits(plan->rows)) {
    if (!blocks_of_32 || p.prologue) return "x does not fit in shared memory: use the tiled kernel";
    if (plan->rows == 1) return "a row of x does not fit in shared memory";
    plan->rows = plan->rows > 8 ? 8 : plan->rows / 2;
  }
  plan->in_flight_bytes = int64_t{f.warps} * (plan->ring - 1) * f.stage_bytes;

  // One block per SM holds all that may be in flight if its share is small; else two where they fit, so that one loads while the other
  // ends.
  const int64_t bytes_per_sm = units * f.unit_stages * f.stage_bytes / std::max(1, device.sm_count);
  const int per_sm = bytes_per_sm > 2 * plan->in_flight_bytes && 2 * (smem + least_slots + 1024) <= device.smem_per_sm ? 2 : 1;
  const int32_t places = static_cast<int32_t>(std::min<int64_t>(std::max(1, device.sm_count) * per_sm, kGemvMaxBlocks));
  if (blocks > 0) {
    plan->blocks = static_cast<int32_t>(std::min<int64_t>(std::min(blocks, kGemvMaxBlocks), units));
    plan->whole_row_blocks = false;
    plan->why = "as asked for";
  } else {
    const int64_t unit_bytes = int64_t{f.unit_stages} * f.stage_bytes;
    const int64_t whole = (plan->row_blocks + places - 1) / places * plan->units * unit_bytes;
    const int64_t cut = (units + places - 1) / places * unit_bytes + kGemvFixupBytes;
    plan->whole_row_blocks = whole <= cut;
    plan->blocks = static_cast<int32_t>(std::min<int64_t>(places, plan->whole_row_blocks ? plan->row_blocks : units));
    plan->why = plan->whole_row_blocks ? "whole row blocks per block" : "equal units per block, row blocks cut where it falls";
  }

  // A warp that starts inside a row block leaves its sums to the warp before it: int8 one sum, the others one per slice, in order.
  const int64_t most_units = plan->whole_row_blocks ? int64_t{(plan->row_blocks + plan->blocks - 1) / plan->blocks} * plan->units
                                                    : (units + plan->blocks - 1) / plan->blocks;
  const int64_t per_warp = (most_units + f.warps - 1) / f.warps;
  plan->slots = p.format == GemvFormat::int8 ? 1 : static_cast<int32_t>(std::min<int64_t>(std::max(1, plan->units - 1), per_warp));
  const int64_t slots_bytes = int64_t{f.warps} * plan->slots * plan->slot_bytes;
  plan->shared_slots = slots_bytes <= 16 * 1024 && smem + slots_bytes <= device.smem_per_block;
  plan->smem_bytes = smem + (plan->shared_slots ? slots_bytes : 0);
  plan->workspace_bytes = kGemvZeroBytes;
  if (p.format != GemvFormat::int8)
    plan->workspace_bytes += int64_t{plan->blocks} * (int64_t{f.warps} * plan->slots + 1) * plan->slot_bytes;
  return nullptr;
}

struct GemvInt8Params {
  Int8Product product;
  GemvPrologue prologue;
  void* workspace = nullptr;  // gemv_workspace_bytes() bytes, 256-byte aligned, the first kGemvZeroBytes zero at first use; left so
  int64_t workspace_bytes = 0;
  int32_t blocks = 0;  // 0: chosen
  GemvPath path = GemvPath::any;
};

struct GemvBf16Params {
  Bf16Product product;
  GemvPrologue prologue;
  void* workspace = nullptr;  // as above
  int64_t workspace_bytes = 0;
  int32_t blocks = 0;
  GemvPath path = GemvPath::any;
};

// y = x · dequantised wᵀ: within a block of 32 the quants times x in f32 from 0, times the block's scale, blocks added in rising order;
// slices of kBf16SliceK as in bf16 products.
struct PlanesProduct {
  const uint16_t* x = nullptr;   // bf16 [m, k], rows x_stride bytes apart
  const void* planes = nullptr;  // block_planes.h, 256-byte aligned
  PlaneKind kind = PlaneKind::q8_0;
  int64_t x_stride = 0;         // bytes, a multiple of 16
  int32_t m = 0, n = 0, k = 0;  // any m: 16 rows at a time, so that long prompts have the bits of single tokens; k a multiple of 32
  ProductOutput output;         // geglu: rows of w alternate in blocks of 8
};

struct GemvPlanesParams {
  PlanesProduct product;
  GemvPrologue prologue;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int32_t blocks = 0;
};

inline GemvProblem gemv_problem(const GemvInt8Params& p) {
  return {GemvFormat::int8, p.product.m, p.product.n, p.product.k, p.prologue.x != nullptr, p.path};
}
inline GemvProblem gemv_problem(const GemvBf16Params& p) {
  return {GemvFormat::bf16, p.product.m, p.product.n, p.product.k, p.prologue.x != nullptr, p.path};
}
inline GemvProblem gemv_problem(const GemvPlanesParams& p) {
  return {p.product.kind == PlaneKind::q8_0 ? GemvFormat::q8_0 : GemvFormat::q4_0, std::min(p.product.m, kGemvMaxRows), p.product.n,
          p.product.k, p.prologue.x != nullptr};
}

// Of the plan that the launcher would choose; 0 for a problem it refuses.
inline int64_t gemv_workspace_bytes(const GemvProblem& p, const DeviceFacts& device, int32_t blocks = 0) {
  GemvPlan plan;
  return plan_gemv(p, device, blocks, &plan) ? 0 : plan.workspace_bytes;
}

namespace detail {

inline const char* why_not_prologue(const GemvPrologue& p) {
  if (!p.x) return nullptr;
  if (!p.next_weight) return "the prologue needs next_weight";
  if (p.x_out && (p.x_out == p.x || p.x_out == p.branch)) return "x_out must not be x or branch: other blocks still read them";
  return nullptr;
}
inline bool multiple_of_16(int64_t v) { return v % 16 == 0; }
inline bool address_of_16(const void* p) { return multiple_of_16(reinterpret_cast<intptr_t>(p)); }

inline const char* why_not_output(const ProductOutput& o, int32_t n, bool int8_sums) {
  if (!o.out) return "out is null";
  switch (o.epilogue) {
    case Epilogue::store:
      return o.out_type == OutType::f32 || o.out_type == OutType::bf16 ? nullptr : "store writes f32 or bf16";
    case Epilogue::add:
      return o.out_type != OutType::f32 ? "add writes f32" : o.residual ? nullptr : "add needs a residual";
    case Epilogue::geglu:
      if (n % 16 != 0) return "geglu needs n a multiple of 16: gate and up alternate in blocks of 8 rows";
      if (o.out_type == OutType::int8 && !(o.inverse_scale > 0)) return "int8 output needs an inverse_scale above 0";
      return o.out_type == OutType::int32 ? "geglu writes f32, bf16 or int8" : nullptr;
    case Epilogue::raw:
      return !int8_sums ? "raw sums exist for int8 products alone" : o.out_type == OutType::int32 ? nullptr : "raw writes int32";
  }
  return "unknown epilogue";
}

template <class Params>
inline const char* why_not_common(const Params& p, const DeviceFacts& device, GemvPlan* plan, bool int8_sums) {
  if (const char* why = plan_gemv(gemv_problem(p), device, p.blocks, plan)) return why;
  if (const char* why = why_not_prologue(p.prologue)) return why;
  if (const char* why = why_not_output(p.product.output, p.product.n, int8_sums)) return why;
  if (!p.prologue.x && (!p.product.x || !address_of_16(p.product.x) || !multiple_of_16(p.product.x_stride)))
    return "rows of x must start on 16 bytes";
  if (!p.workspace || !address_of_16(p.workspace) || p.workspace_bytes < plan->workspace_bytes) return "the workspace is too small";
  return nullptr;
}

}  // namespace detail

// Null when the launcher takes these params, else why not. `plan` gets the plan.
inline const char* why_not_gemv_int8(const GemvInt8Params& p, const DeviceFacts& device, GemvPlan* plan) {
  if (const char* why = detail::why_not_common(p, device, plan, true)) return why;
  const Int8Product& x = p.product;
  if (!x.w || !detail::address_of_16(x.w) || !detail::multiple_of_16(x.w_stride)) return "rows of w must start on 16 bytes";
  if (!x.w_scales && x.output.epilogue != Epilogue::raw) return "w_scales is null";
  return nullptr;
}
inline const char* why_not_gemv_bf16(const GemvBf16Params& p, const DeviceFacts& device, GemvPlan* plan) {
  if (const char* why = detail::why_not_common(p, device, plan, false)) return why;
  if (!p.product.w || !detail::address_of_16(p.product.w) || !detail::multiple_of_16(p.product.w_stride))
    return "rows of w must start on 16 bytes";
  return nullptr;
}
inline const char* why_not_gemv_planes(const GemvPlanesParams& p, const DeviceFacts& device, GemvPlan* plan) {
  if (const char* why = detail::why_not_common(p, device, plan, false)) return why;
  if (p.prologue.x && p.product.m > kGemvMaxRows) return "the prologue makes up to 16 rows";
  return p.product.planes && detail::address_of_16(p.product.planes) ? nullptr : "planes must start on 16 bytes";
}

inline bool supports_gemv_int8(const GemvInt8Params& p, const DeviceFacts& device) {
  GemvPlan plan;
  return why_not_gemv_int8(p, device, &plan) == nullptr;
}
inline bool supports_gemv_bf16(const GemvBf16Params& p, const DeviceFacts& device) {
  GemvPlan plan;
  return why_not_gemv_bf16(p, device, &plan) == nullptr;
}
inline bool supports_gemv_planes(const GemvPlanesParams& p, const DeviceFacts& device) {
  GemvPlan plan;
  return why_not_gemv_planes(p, device, &plan) == nullptr;
}

}  // namespace lapidary::cuda
