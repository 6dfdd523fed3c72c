// The loops of products over panels of int8 weights, for any form of sums. Part of kernels/impl.h.
//
// A form F says what a vector of sums is and how a group, the sixteen rows' next four weights (64 bytes), is multiplied with a token's next
// four inputs. Every sum takes the groups in rising order, whatever the tiles. Three bodies:
// - few tokens: a panel streams from memory once and meets all tokens;
// - up to twice a tile's tokens, where a form wants it: short pieces of a unit's panels stream from memory once and are read again from the
//   first-level cache for the second half of the tokens, so that an input once loaded meets several panels;
// - many tokens: slice by slice of k, so that a slice of a unit's weights stays in the first-level cache while all tokens pass by; the sums
//   wait in memory between slices. A form may have its weights turned into operands first, once per slice. Units whose inputs would not
//   stay in the second-level cache are joined: all of them pass by a slice of the inputs before the next.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/joined_units.h"
#include "cpu/packed_layout.h"
#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kGroupBytes = 64;
constexpr int64_t kSliceBytes = 24 * 1024;  // of operands, so that the inputs of a tile have room beside them
// How far before its use a streaming panel is asked for: from memory, into the next page, where the hardware does not look; and from the
// second-level cache, whose delay many tokens' products would not hide.
constexpr int64_t kAheadBytes = 6144, kNearBytes = 2048;

template <class F>
constexpr int kJoinedRows = 16 * F::kJoined / F::kVectors;
template <class F>
constexpr int kUnitVectors = F::kUnitPanels * F::kVectors;
template <class F>
constexpr int64_t kMostStreamed = F::kPieceTokens > F::kFewTokens ? F::kPieceTokens : F::kFewTokens;  // tokens
template <class F>
constexpr int64_t kOperandBytes = F::kWidens ? F::kVectors * int64_t{sizeof(typename F::Sum)} : kGroupBytes;  // of a group of a panel

int64_t panel_groups(int64_t k) { return packed_int8_columns(k) / kInt8Group; }
const int8_t* numbers_of(const PackedTask& task, int64_t p) { return reinterpret_cast<const int8_t*>(task.panels + p * task.panel_bytes); }

template <class F>
LAPIDARY_INLINE const typename F::Number* input_numbers(const PackedTask& task, int64_t t, int64_t group) {
  return reinterpret_cast<const typename F::Number*>(task.input + t * F::input_bytes(task.k) + 64) + group * kInt8Group;
}

// The results of token t and F::kJoined vectors of sums, whose first row is `row` of panel p.
template <class F>
LAPIDARY_INLINE void store_results(const PackedTask& task, const typename F::Sum* sums, int64_t t, int64_t p, int64_t row) {
  const int64_t n = p * kPackedRows + row, left = task.n - n;
  if (left <= 0) return;
  const std::byte* input = task.input + t * F::input_bytes(task.k);
  const int32_t* row_sums = reinterpret_cast<const int32_t*>(numbers_of(task, p) + panel_groups(task.k) * kGroupBytes) + row;
  float* out = task.out + t * task.out_stride + n - task.out_first;
  if (left >= kJoinedRows<F>) return F::store_rows(out, sums, row_sums, input, task.w_scales + n);
  float scales[kJoinedRows<F>] = {}, results[kJoinedRows<F>];
  std::memcpy(scales, task.w_scales + n, static_cast<size_t>(left) * 4);
  F::store_rows(results, sums, row_sums, input, scales);
  std::memcpy(out, results, static_cast<size_t>(left) * 4);
}

// --- few tokens -----------------------------------------------------------------------------------------------------------

template <class F, int T>
LAPIDARY_NOINLINE void stream_panel(const PackedTask& task, int64_t p, int64_t t) {
  constexpr int R = F::kVectors, kChains = T * R;
  // Groups at a time with sums of their own, so that an addition need not wait for the one before.
  constexpr int U = !F::kAnyOrder || kChains >= 8 ? 1 : kChains >= 4 ? 2 : 4;
  typename F::Sum sums[U][T][R];
  LAPIDARY_UNROLL for (int u = 0; u < U; ++u) {
    LAPIDARY_UNROLL for (int i = 0; i < T; ++i) { LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[u][i][r] = F::zero(); }
  }
  const int64_t stride = F::input_bytes(task.k) / static_cast<int64_t>(sizeof(typename F::Number));
  const typename F::Number* x = input_numbers<F>(task, t, 0);
  const int8_t* w = numbers_of(task, p);
  for (const int8_t* end = w + panel_groups(task.k) * kGroupBytes; w < end; w += U * kGroupBytes, x += U * kInt8Group) {
    LAPIDARY_UNROLL for (int u = 0; u < U; ++u) {
      LAPIDARY_PREFETCH(w + u * kGroupBytes + kAheadBytes);
      LAPIDARY_PREFETCH_NEAR(w + u * kGroupBytes + kNearBytes);
      typename F::Sum weights[R];
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) weights[r] = F::weights(w + u * kGroupBytes, r);
      LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
        const auto input = F::input(x + i * stride + u * kInt8Group);
        LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[u][i][r] = F::multiply_add(sums[u][i][r], weights[r], input);
      }
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      LAPIDARY_UNROLL for (int u = 1; u < U; ++u) sums[0][i][r] = F::add(sums[0][i][r], sums[u][i][r]);
    }
    LAPIDARY_UNROLL for (int r = 0; r < R; r += F::kJoined) store_results<F>(task, sums[0][i] + r, t + i, p, r * kPackedRows / R);
  }
}

template <class F, int T = F::kFewTokens>
void stream_panels(const PackedTask& task, int64_t p0, int64_t p1) {
  if constexpr (T > 0) {
    if (task.tokens < T) return stream_panels<F, T - 1>(task, p0, p1);
    for (int64_t p = p0; p < p1; ++p) stream_panel<F, T>(task, p, 0);
  }
}

// --- two passes -----------------------------------------------------------------------------------------------------------

constexpr int64_t kPieceGroups = 32, kAheadPieces = 4;

// Groups [group, group + groups) of panels from p on, groups even.
struct PanelPiece {
  int64_t p, group, groups;
  bool is_first, is_last;  // of the panels' pieces
  // What a pass asks for, a group of each panel for two groups multiplied: from memory, and from the second-level cache.
  const int8_t *ahead, *soon;
};

// Tokens [t, t + T), R panels. `waiting`: their sums, [T][R].
template <class F, int T, int R>
LAPIDARY_NOINLINE void piece_tile(const PackedTask& task, const PanelPiece& piece, int64_t t, typename F::Sum* waiting) {
  typename F::Sum sums[T][R];
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = piece.is_first ? F::zero() : F::load(waiting + i * R + r);
  }
  const int64_t stride = F::input_bytes(task.k) / static_cast<int64_t>(sizeof(typename F::Number)), panel_bytes = task.panel_bytes;
  const typename F::Number* x = input_numbers<F>(task, t, piece.group);
  const int8_t *w = numbers_of(task, piece.p) + piece.group * kGroupBytes, *ahead = piece.ahead, *soon = piece.soon;
  for (int64_t g = 0; g < piece.groups; g += 2, ahead += kGroupBytes, soon += kGroupBytes) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      LAPIDARY_PREFETCH(ahead + r * panel_bytes);
      LAPIDARY_PREFETCH_NEAR(soon + r * panel_bytes);
    }
    LAPIDARY_UNROLL for (int u = 0; u < 2; ++u, x += kInt8Group, w += kGroupBytes) {
      typename F::Sum weights[R];
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) weights[r] = F::weights(w + r * panel_bytes, 0);
      LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
        const auto input = F::input(x + i * stride);
        LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = F::multiply_add(sums[i][r], weights[r], input);
      }
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      if (piece.is_last) {
        store_results<F>(task, sums[i] + r, t + i, piece.p + r, 0);
      } else {
        F::store(waiting + i * R + r, sums[i][r]);
      }
    }
  }
}

template <class F, int R, int T = F::kTileTokens>
LAPIDARY_INLINE void piece_tokens(const PackedTask& task, const PanelPiece& piece, int64_t t, int64_t tokens, typename F::Sum* waiting) {
  if constexpr (T > 0) {
    if (tokens < T) return piece_tokens<F, R, T - 1>(task, piece, t, tokens, waiting);
    piece_tile<F, T, R>(task, piece, t, waiting);
  }
}

template <class F, int R = F::kUnitPanels>
void stream_pieces(const PackedTask& task, int64_t p0, int64_t p1) {
  static_assert(F::kVectors == 1 && F::kPieceTokens <= 2 * F::kTileTokens);
  typename F::Sum waiting[2][F::kTileTokens * R];
  const int64_t groups = panel_groups(task.k), pieces = groups > 0 ? (groups + kPieceGroups - 1) / kPieceGroups : 1;
  const int64_t tokens = (task.tokens + 1) / 2;  // of the first pass
  int64_t p = p0, ahead_p = p0, ahead_piece = kAheadPieces;
  for (; p + R <= p1; p += R) {
    for (int64_t i = 0; i < pieces; ++i, ++ahead_piece) {
      for (; ahead_piece >= pieces; ahead_piece -= pieces) ahead_p += R;
      const int64_t group = i * kPieceGroups;
      PanelPiece piece{p, group, groups - group < kPieceGroups ? groups - group : kPieceGroups, i == 0, i + 1 == pieces, nullptr, nullptr};
      piece.ahead = numbers_of(task, ahead_p) + ahead_piece * kPieceGroups * kGroupBytes;
      piece.soon = piece.is_last ? numbers_of(task, p + R) : numbers_of(task, p) + (group + kPieceGroups) * kGroupBytes;
      piece_tokens<F, R>(task, piece, 0, tokens, waiting[0]);
      piece.ahead += kPieceGroups / 2 * kGroupBytes, piece.soon += kPieceGroups / 2 * kGroupBytes;
      piece_tokens<F, R>(task, piece, tokens, task.tokens - tokens, waiting[1]);
    }
  }
  if constexpr (R > 1) stream_pieces<F, R - 1>(task, p, p1);
}

// --- many tokens ----------------------------------------------------------------------------------------------------------

// Groups [group, group + groups) of the panels of a unit.
struct PanelSlice {
  int64_t p, panels, group, groups;
  bool is_first, is_last;     // of the panels' slices
  const std::byte* operands;  // of the first panel, `stride` bytes from panel to panel
  int64_t stride;
  // Cache lines that the current tile of tokens asks for, its share of what comes next: `left` of them, then `groups` at a time with
  // `jump` bytes between.
  const int8_t* next;
  int64_t share, left, jump;
};

// The share of tile `tile` of `tiles` in the slice that comes after this one, at `numbers`, panel after panel, panel_bytes apart.
LAPIDARY_INLINE void share_slice(PanelSlice& slice, const int8_t* numbers, int64_t panel_bytes, int64_t tile, int64_t tiles) {
  if (slice.groups == 0) return;  // no columns: nothing comes
  const int64_t lines = slice.panels * slice.groups, first = tile * lines / tiles, line = first % slice.groups;
  slice.share = (tile + 1) * lines / tiles - first;
  slice.next = numbers + first / slice.groups * panel_bytes + line * kGroupBytes;
  slice.left = slice.groups - line, slice.jump = panel_bytes - slice.groups * kGroupBytes;
}
// Of the `bytes` that a call's caller reads next: that of part `part` of `parts`.
LAPIDARY_INLINE void share_bytes(PanelSlice& slice, const std::byte* ahead, int64_t bytes, int64_t part, int64_t parts) {
  const int64_t lines = (bytes + kGroupBytes - 1) / kGroupBytes;
  const int64_t first = lines * part / parts, last = lines * (part + 1) / parts;
  slice.share = slice.left = last - first;
  slice.next = reinterpret_cast<const int8_t*>(ahead) + first * kGroupBytes;
}

// Tokens [t, t + T), vectors [v, v + R) of the unit. `waiting`: their sums, [T][kUnitVectors].
template <class F, int T, int R>
LAPIDARY_NOINLINE void slice_tile(const PackedTask& task, const PanelSlice& slice, int64_t t, int v, typename F::Sum* waiting) {
  constexpr int kVectors = F::kVectors, kWaiting = kUnitVectors<F>;
  typename F::Sum sums[T][R];
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = slice.is_first ? F::zero() : F::load(waiting + i * kWaiting + v + r);
  }
  const int64_t stride = F::input_bytes(task.k) / static_cast<int64_t>(sizeof(typename F::Number));
  const typename F::Number* x = input_numbers<F>(task, t, slice.group);
  const std::byte* w = slice.operands + v / kVectors * slice.stride;
  const int8_t* next = slice.next;
  int64_t share = v > 0 ? 0 : slice.share, left = slice.left;
  const int64_t at_once = slice.groups > 0 ? (share + slice.groups - 1) / slice.groups : 0;
  for (int64_t g = 0; g < slice.groups; ++g, x += kInt8Group, w += kOperandBytes<F>) {
    for (int64_t i = 0; i < at_once && share > 0; ++i, --share, next += kGroupBytes) {
      LAPIDARY_PREFETCH(next);
      if (--left == 0) left = slice.groups, next += slice.jump;
    }
    typename F::Sum weights[R];
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      const std::byte* panel = w + r / kVectors * slice.stride;
      const int sub = (v + r) % kVectors;
      if constexpr (F::kWidens) {
        weights[r] = F::load(panel + sub * sizeof(typename F::Sum));
      } else {
        weights[r] = F::weights(reinterpret_cast<const int8_t*>(panel), sub);
      }
    }
    LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
      const auto input = F::input(x + i * stride);
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[i][r] = F::multiply_add(sums[i][r], weights[r], input);
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < T; ++i) {
    if (!slice.is_last) {
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) F::store(waiting + i * kWaiting + v + r, sums[i][r]);
    } else {
      LAPIDARY_UNROLL for (int r = 0; r < R; r += F::kJoined)
          store_results<F>(task, sums[i] + r, t + i, slice.p + (v + r) / kVectors, (v + r) % kVectors * kPackedRows / kVectors);
    }
  }
}

template <class F, int R, int T = F::kTileTokens>
LAPIDARY_INLINE void slice_tokens(const PackedTask& task, const PanelSlice& slice, int64_t t, int64_t tokens, int v,
                                  typename F::Sum* waiting) {
  if constexpr (T > 0) {
    if (tokens < T) return slice_tokens<F, R, T - 1>(task, slice, t, tokens, v, waiting);
    slice_tile<F, T, R>(task, slice, t, v, waiting);
  }
}

// All vectors of the unit's panels.
template <class F, int R = F::kTileVectors>
LAPIDARY_INLINE void slice_vectors(const PackedTask& task, const PanelSlice& slice, int64_t t, int64_t tokens, typename F::Sum* waiting) {
  const int vectors = static_cast<int>(slice.panels) * F::kVectors;
  if constexpr (R > F::kVectors) {
    if (vectors < R) return slice_vectors<F, R - F::kVectors>(task, slice, t, tokens, waiting);
  }
  for (int v = 0; v < vectors; v += R) slice_tokens<F, R>(task, slice, t, tokens, v, waiting);
}

template <class F>
int64_t slice_groups(int64_t k) {
  constexpr int64_t kMost = kSliceBytes / (F::kUnitPanels * kOperandBytes<F>);
  const int64_t groups = panel_groups(k), slices = (groups + kMost - 1) / kMost;
  return slices == 0 ? 1 : (groups + slices - 1) / slices;
}

template <class F>
constexpr int64_t kTokenSumBytes = kUnitVectors<F> * int64_t{sizeof(typename F::Sum)};  // of a unit's panels

// A slice's weights as operands, panel after panel.
template <class F>
void widen_slice(const int8_t* numbers, int64_t panel_bytes, int64_t panels, int64_t groups, std::byte* to) {
  for (int64_t i = 0; i < panels; ++i, numbers += panel_bytes) {
    for (int64_t g = 0; g < groups; ++g) {
      LAPIDARY_UNROLL for (int v = 0; v < F::kVectors; ++v, to += sizeof(typename F::Sum))
          F::store(to, F::weights(numbers + g * kGroupBytes, v));
    }
  }
}

template <class F>
void multiply_panels(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  if (task.tokens <= F::kFewTokens) return stream_panels<F>(task, p0, p1);
  if constexpr (F::kPieceTokens > 0) {
    if (task.tokens <= F::kPieceTokens) return stream_pieces<F>(task, p0, p1);
  }
  const int64_t groups = panel_groups(task.k), most = slice_groups<F>(task.k);
  const int64_t tiles = (task.tokens + F::kTileTokens - 1) / F::kTileTokens, least = task.tokens / tiles, larger = task.tokens % tiles;
  const int64_t units = (p1 - p0 + F::kUnitPanels - 1) / F::kUnitPanels, slices = groups > 0 ? (groups + most - 1) / most : 1;
  const int64_t joined = joined_units(units, task.tokens, F::input_bytes(task.k), kTokenSumBytes<F>);
  typename F::Sum* waiting = reinterpret_cast<typename F::Sum*>(scratch);
  std::byte* widened = reinterpret_cast<std::byte*>(waiting + joined * task.tokens * kUnitVectors<F>);
  int64_t part = 0;  // of all tiles of the call
  for (int64_t first = p0; first < p1; first += joined * F::kUnitPanels) {
    const int64_t end = p1 - first < joined * F::kUnitPanels ? p1 : first + joined * F::kUnitPanels;
    for (int64_t s = 0; s < slices; ++s) {
      const int64_t group = s * most, count = groups - group < most ? groups - group : most;
      typename F::Sum* sums = waiting;
      for (int64_t p = first; p < end; p += F::kUnitPanels, sums += task.tokens * kUnitVectors<F>) {
        const int64_t panels = end - p < F::kUnitPanels ? end - p : F::kUnitPanels;
        PanelSlice slice{p, panels, group, count, s == 0, s + 1 == slices, nullptr, task.panel_bytes, nullptr, 0, 0, 0};
        const int8_t* numbers = numbers_of(task, p) + group * kGroupBytes;
        const int8_t* following = p + panels < end ? numbers_of(task, p + panels) + group * kGroupBytes
                                  : slice.is_last  ? numbers_of(task, end)
                                                   : numbers_of(task, first) + (group + count) * kGroupBytes;
        slice.operands = reinterpret_cast<const std::byte*>(numbers);
        if constexpr (F::kWidens) {
          widen_slice<F>(numbers, task.panel_bytes, panels, count, widened);
          slice.operands = widened, slice.stride = count * kOperandBytes<F>;
        }
        for (int64_t tile = 0, t = 0; tile < tiles; ++tile) {
          const int64_t tokens = least + (tile < larger);
          if (task.ahead) {
            share_bytes(slice, task.ahead, task.ahead_bytes, part++, units * slices * tiles);
          } else {
            share_slice(slice, following, task.panel_bytes, tile, tiles);
          }
          slice_vectors<F>(task, slice, t, tokens, sums + t * kUnitVectors<F>);
          t += tokens;
        }
      }
    }
  }
}

template <class F>
size_t panels_scratch_floats(int64_t tokens, int64_t k) {
  if (tokens <= kMostStreamed<F>) return 0;
  const int64_t bytes = waiting_bytes(tokens, F::input_bytes(k), kTokenSumBytes<F>) +
                        (F::kWidens ? F::kUnitPanels * slice_groups<F>(k) * kOperandBytes<F> : 0);
  return static_cast<size_t>(bytes + 3) / 4;
}

}  // namespace
}  // namespace lapidary::cpu
