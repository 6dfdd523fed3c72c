// Products of int8 rows over I, int32 lanes. Part of kernels_impl.h; kernels_avx512vnni.cc includes it alone.
//
// Sums are exact modulo 2^32, whatever their order, so tiles may be cut in any way. Two bodies:
// - few tokens: weights stream from memory in the order in which they lie, lanes along k, each lane summed up at the end;
// - many tokens: kPanelRows weight rows at a time are turned into a panel, lanes along the rows, that stays in the first-level cache
//   while all tokens pass by: [groups][kPanelVectors][kIntLanes][kGroup]. An input group goes to all lanes.
#pragma once

#include LAPIDARY_SIMD_INT_HEADER

#include "cpu/kernels.h"

namespace lapidary::cpu {
namespace {

constexpr int kIntBytes = kIntLanes * 4;
constexpr int kIntStep = kIntLanes * kGroup;  // numbers in one operand
constexpr int kPanelRows = kPanelVectors * kIntLanes;

int64_t int8_padded(int64_t k) { return (k + kIntStep - 1) / kIntStep * kIntStep; }

// An odd number of cache lines: the rows of a tile lie in different sets of the cache.
int64_t int8_row_bytes(int64_t k) { return (int8_padded(k) * static_cast<int64_t>(sizeof(Operand)) + 63) / 64 / 2 * 128 + 64; }

int32_t int8_prepare(const int8_t* q, int64_t k, void* row) {
  Operand* to = static_cast<Operand*>(row);
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    to[i] = q[i];
    sum += q[i];
  }
  for (int64_t i = k; i < int8_padded(k); ++i) to[i] = 0;
  return kWeightOffset * sum;
}

// Row t of the input, from its element k on.
LAPIDARY_INLINE const Operand* input_row(const Int8Task& task, int64_t row_bytes, int64_t t, int64_t k) {
  return reinterpret_cast<const Operand*>(static_cast<const uint8_t*>(task.x) + t * row_bytes) + k;
}

// float(sum - offset) * (x_scale * w_scale); the difference wraps round like the sums.
LAPIDARY_INLINE float scaled(int32_t sum, int32_t offset, float x_scale, float w_scale) {
  return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sum) - static_cast<uint32_t>(offset))) * (x_scale * w_scale);
}

// --- few tokens -----------------------------------------------------------------------------------------------------------

constexpr int kDirectRows = 4;

// T tokens from t on, the weight rows from n on of which `rows` exist; the rows that follow are wanted next, from memory.
template <int T>
LAPIDARY_NOINLINE void int8_direct_tile(const Int8Task& task, int64_t row_bytes, int64_t t, int64_t n, int64_t rows) {
  constexpr int R = kDirectRows;
  const int8_t* w[R];
  LAPIDARY_UNROLL for (int r = 0; r < R; ++r) w[r] = task.weight + (n + (r < rows ? r : rows - 1)) * task.k;
  const Operand* x = input_row(task, row_bytes, t, 0);
  const int64_t stride = row_bytes / static_cast<int64_t>(sizeof(Operand)), ahead = R * task.k;
  I sums[T][R];
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) { LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = int_zero(); }
  int64_t k = 0;
  for (; k + kIntStep <= task.k; k += kIntStep) {
    I weights[R];
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      weights[r] = load_weights(w[r] + k);
      LAPIDARY_PREFETCH(w[r] + k + ahead);
    }
    LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
      const I input = int_load(x + i * stride + k);
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = multiply_add(sums[i][r], weights[r], input);
    }
  }
  if (k < task.k) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      const I weights = load_weights_part(w[r] + k, task.k - k);
      LAPIDARY_UNROLL for (int i = 0; i < T; ++i) sums[i][r] = multiply_add(sums[i][r], weights, int_load(x + i * stride + k));
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    int32_t totals[R];
    float* out = task.out + (t + i) * task.out_stride + n;
    int_reduce_add4(sums[i], totals);
    for (int64_t r = 0; r < rows; ++r) out[r] = scaled(totals[r], task.x_offsets[t + i], task.x_scales[t + i], task.w_scales[n + r]);
  }
}

// `tokens` <= kDirectTile tokens.
template <int T = kDirectTile>
LAPIDARY_INLINE void int8_direct_tokens(const Int8Task& task, int64_t row_bytes, int64_t t, int64_t tokens, int64_t n, int64_t rows) {
  if constexpr (T > 0) {
    if (tokens == T) return int8_direct_tile<T>(task, row_bytes, t, n, rows);
    int8_direct_tokens<T - 1>(task, row_bytes, t, tokens, n, rows);
  }
}

void int8_direct(const Int8Task& task, int64_t n0, int64_t n1) {
  const int64_t row_bytes = int8_row_bytes(task.k), tiles = (task.tokens + kDirectTile - 1) / kDirectTile;
  const int64_t tile = (task.tokens + tiles - 1) / tiles;
  for (int64_t n = n0; n < n1; n += kDirectRows) {
    const int64_t rows = n1 - n < kDirectRows ? n1 - n : kDirectRows;
    for (int64_t t = 0; t < task.tokens; t += tile)
      int8_direct_tokens(task, row_bytes, t, task.tokens - t < tile ? task.tokens - t : tile, n, rows);
  }
}

// --- many tokens ----------------------------------------------------------------------------------------------------------

// Elements of k per panel, so that it takes about 24 KiB; the sums wait in memory between panels.
int64_t panel_columns(int64_t k) {
  constexpr int64_t kMost = 24 * 1024 / (kPanelRows * sizeof(Operand)) / kIntStep * kIntStep;
  const int64_t passes = (k + kMost - 1) / kMost;
  return int8_padded((k + passes - 1) / passes);
}

size_t int8_scratch_floats(int64_t tokens, int64_t k) {
  const int64_t columns = panel_columns(k), waiting = columns < k ? tokens * kPanelRows : 0;
  return static_cast<size_t>(kPanelRows * columns / kGroup + waiting);
}

// What one panel is: the columns [k0, k0 + columns) of `rows` <= kPanelRows weight rows from n on.
struct Panel {
  const uint8_t* memory;
  int64_t n, rows, k0, columns;
  bool is_first, is_last;
};

// Rows beyond panel.rows repeat the last one: their sums are not stored.
LAPIDARY_NOINLINE void fill_panel(const Int8Task& task, const Panel& panel, uint8_t* memory) {
  for (int v = 0; v < kPanelVectors; ++v) {
    const int8_t* rows[kIntLanes];
    for (int64_t r = 0; r < kIntLanes; ++r) {
      const int64_t row = v * kIntLanes + r;
      rows[r] = task.weight + (panel.n + (row < panel.rows ? row : panel.rows - 1)) * task.k + panel.k0;
    }
    uint8_t* to = memory + v * kIntBytes;
    for (int64_t i = 0; i < panel.columns; i += kIntStep, to += kIntLanes * kPanelVectors * kIntBytes) {
      I lines[kIntLanes];
      const int64_t left = panel.columns - i;
      LAPIDARY_UNROLL for (int r = 0; r < kIntLanes; ++r) {
        lines[r] = left >= kIntStep ? load_weights(rows[r] + i) : load_weights_part(rows[r] + i, left);
      }
      transpose(lines);
      LAPIDARY_UNROLL for (int g = 0; g < kIntLanes; ++g) int_store(to + g * kPanelVectors * kIntBytes, lines[g]);
    }
  }
}

// The first `rows` < kIntLanes sums of token t and the weight rows from n on.
LAPIDARY_NOINLINE void store_part_scaled(const Int8Task& task, I sums, int64_t t, int64_t n, int64_t rows) {
  int32_t lanes[kIntLanes];
  int_store(lanes, sums);
  for (int64_t r = 0; r < rows; ++r)
    task.out[t * task.out_stride + n + r] = scaled(lanes[r], task.x_offsets[t], task.x_scales[t], task.w_scales[n + r]);
}

// T tokens from t on. `waiting`: their sums, [T][kPanelVectors][kIntLanes].
template <int T>
LAPIDARY_NOINLINE void panel_product(const Int8Task& task, const Panel& panel, int64_t row_bytes, int64_t t, int32_t* waiting) {
  constexpr int R = kPanelVectors;
  I sums[T][R];
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = panel.is_first ? int_zero() : int_load(waiting + (i * R + r) * kIntLanes);
  }
  const Operand* x = input_row(task, row_bytes, t, panel.k0);
  const uint8_t* p = panel.memory;
  const int64_t stride = row_bytes / static_cast<int64_t>(sizeof(Operand)), groups = (panel.columns + kGroup - 1) / kGroup;
  // While the first R tiles of tokens pass, each fetches its share of the same columns of the next rows: they are wanted soon, from memory.
  const int64_t share = t / kPanelTokens;
  const int8_t* next = task.weight + (panel.n + kPanelRows + share) * task.k + panel.k0;
  for (int64_t g = 0; g < groups; ++g, x += kGroup, p += R * kIntBytes) {
    if (share < R) LAPIDARY_PREFETCH(next + g / kIntLanes * kIntStep + g % kIntLanes * R * task.k);
    I weights[R];
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) weights[r] = int_load(p + r * kIntBytes);
    LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
      const I group = broadcast_group(x + i * stride);
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = multiply_add(sums[i][r], weights[r], group);
    }
  }
  if (!panel.is_last) {
    LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) int_store(waiting + (i * R + r) * kIntLanes, sums[i][r]);
    }
    return;
  }
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    float* out = task.out + (t + i) * task.out_stride + panel.n;
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      const int64_t first = r * kIntLanes;
      if (first + kIntLanes <= panel.rows) {
        store_scaled(out + first, sums[i][r], task.x_offsets[t + i], task.x_scales[t + i], task.w_scales + panel.n + first);
      } else if (first < panel.rows) {
        store_part_scaled(task, sums[i][r], t + i, panel.n + first, panel.rows - first);
      }
    }
  }
}

// The last tokens, fewer than a tile.
template <int T = kPanelTokens - 1>
void panel_rest(const Int8Task& task, const Panel& panel, int64_t row_bytes, int64_t t, int32_t* waiting) {
  if constexpr (T > 0) {
    if (task.tokens - t == T) return panel_product<T>(task, panel, row_bytes, t, waiting);
    panel_rest<T - 1>(task, panel, row_bytes, t, waiting);
  }
}

void int8_panels(const Int8Task& task, int64_t n0, int64_t n1, float* scratch) {
  const int64_t columns = panel_columns(task.k), row_bytes = int8_row_bytes(task.k);
  uint8_t* memory = reinterpret_cast<uint8_t*>(scratch);
  int32_t* waiting = reinterpret_cast<int32_t*>(scratch + kPanelRows * columns / kGroup);
  for (int64_t n = n0; n < n1; n += kPanelRows) {
    for (int64_t k0 = 0; k0 < task.k; k0 += columns) {
      const int64_t rows = n1 - n < kPanelRows ? n1 - n : kPanelRows, rest = task.k - k0;
      const Panel panel{memory, n, rows, k0, rest < columns ? rest : columns, k0 == 0, rest <= columns};
      fill_panel(task, panel, memory);
      int64_t t = 0;
      for (; t + kPanelTokens <= task.tokens; t += kPanelTokens)
        panel_product<kPanelTokens>(task, panel, row_bytes, t, waiting + t * kPanelRows);
      panel_rest(task, panel, row_bytes, t, waiting + t * kPanelRows);
    }
  }
}

void int8_multiply(const Int8Task& task, int64_t n0, int64_t n1, float* scratch) {
  if (task.tokens <= kInt8DirectTokens) return int8_direct(task, n0, n1);
  int8_panels(task, n0, n1, scratch);
}

constexpr Int8Kernels kInt8Kernels{int8_row_bytes, int8_prepare, kInt8DirectTokens, kPanelRows, int8_multiply, int8_scratch_floats};

}  // namespace
}  // namespace lapidary::cpu
