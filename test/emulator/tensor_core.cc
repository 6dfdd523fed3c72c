// mma, ldmatrix and stmatrix of a warp: fragments gathered from the lanes' registers into plain matrices, multiplied, and given back.
#include "emulator/tensor_core.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "emulator/core.h"

namespace lapidary::emulator {

namespace {

// --- arithmetic -------------------------------------------------------------------------------------------------------------------------
// In the compiler's vector type of kBytes, eight columns at once, and as many rows as make eight registers of sums, so that chains of
// additions overlap.

void add_sum(float& d, double sum) { d = static_cast<float>(static_cast<double>(d) + sum); }
void add_sum(int32_t& d, float sum) {
  d = static_cast<int32_t>(static_cast<uint32_t>(d) + static_cast<uint32_t>(static_cast<int32_t>(sum)));
}

template <int kBytes, typename D, typename T>
[[gnu::always_inline]] inline void multiply(D* d, const T* a, const T* b, int m, int n, int k) {
  typedef T V __attribute__((vector_size(kBytes), aligned(alignof(T))));
  constexpr int kLanes = kBytes / sizeof(T), kVectors = 8 / kLanes, kRows = 8 / kVectors;
  for (int column = 0; column < n; column += 8) {
    for (int row = 0; row < m; row += kRows) {
      const T* from_a = a + row * k;
      const T* from_b = b + column * k;
      V sums[kRows][kVectors] = {};
      for (int i = 0; i < k; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sums[r][v] += *reinterpret_cast<const V*>(from_b + i * 8 + v * kLanes) * from_a[r * k + i];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) add_sum(d[(row + r) * n + column + c], sums[r][c / kLanes][c % kLanes]);
      }
    }
  }
}

constexpr int kUsualBytes = 16;

#if defined(__x86_64__)
// The same with wider registers where the machine has them; no fused multiply-add, so the bits are the same.
[[gnu::target("avx2")]] void multiply_bf16_wide(float* d, const double* a, const double* b, int m, int n, int k) {
  multiply<32>(d, a, b, m, n, k);
}
[[gnu::target("avx2")]] void multiply_s8_wide(int32_t* d, const float* a, const float* b, int m, int n, int k) {
  multiply<32>(d, a, b, m, n, k);
}
bool wide() {
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}
#endif

}  // namespace

void multiply_bf16(float* d, const double* a, const double* b, int m, int n, int k) {
#if defined(__x86_64__)
  if (wide()) return multiply_bf16_wide(d, a, b, m, n, k);
#endif
  multiply<kUsualBytes>(d, a, b, m, n, k);
}

void multiply_s8(int32_t* d, const float* a, const float* b, int m, int n, int k) {
#if defined(__x86_64__)
  if (wide()) return multiply_s8_wide(d, a, b, m, n, k);
#endif
  multiply<kUsualBytes>(d, a, b, m, n, k);
}

namespace {

double low_half(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
double high_half(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
float byte_of(uint32_t word, int i) { return static_cast<float>(static_cast<int8_t>(word >> (8 * i))); }

// --- mma --------------------------------------------------------------------------------------------------------------------------------

template <typename D, int kB>
struct MmaLane {
  D (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[kB];
  uint32_t metadata;
  Where where;
};

template <typename Lane, typename D>
void gather_d(D (&d)[16 * 8], void* const (&lanes)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto& r = *static_cast<const Lane*>(lanes[lane])->d;
    d[g * 8 + 2 * t] = r[0], d[g * 8 + 2 * t + 1] = r[1];
    d[(g + 8) * 8 + 2 * t] = r[2], d[(g + 8) * 8 + 2 * t + 1] = r[3];
  }
}
template <typename Lane, typename D>
void scatter_d(const D (&d)[16 * 8], void* const (&lanes)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    auto& r = *static_cast<const Lane*>(lanes[lane])->d;
    r[0] = d[g * 8 + 2 * t], r[1] = d[g * 8 + 2 * t + 1];
    r[2] = d[(g + 8) * 8 + 2 * t], r[3] = d[(g + 8) * 8 + 2 * t + 1];
  }
}

void mma_bf16_warp(void* const (&lanes)[32]) {
  using Lane = MmaLane<float, 2>;
  double a[16 * 16], b[16 * 8];
  float d[16 * 8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Lane& l = *static_cast<const Lane*>(lanes[lane]);
    for (int j = 0; j < 4; ++j) {
      double* p = a + (g + 8 * (j & 1)) * 16 + 2 * t + 8 * (j >> 1);
      p[0] = low_half((*l.a)[j]), p[1] = high_half((*l.a)[j]);
    }
    for (int j = 0; j < 2; ++j) {
      double* p = b + (2 * t + 8 * j) * 8 + g;
      p[0] = low_half((*l.b)[j]), p[8] = high_half((*l.b)[j]);
    }
  }
  gather_d<Lane>(d, lanes);
  multiply_bf16(d, a, b, 16, 8, 16);
  scatter_d<Lane>(d, lanes);
  ++statistics().mma_instructions;
}

void mma_s8_warp(void* const (&lanes)[32]) {
  using Lane = MmaLane<int, 2>;
  float a[16 * 32], b[32 * 8];
  int d[16 * 8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Lane& l = *static_cast<const Lane*>(lanes[lane]);
    for (int j = 0; j < 4; ++j) {
      float* p = a + (g + 8 * (j & 1)) * 32 + 4 * t + 16 * (j >> 1);
      for (int i = 0; i < 4; ++i) p[i] = byte_of((*l.a)[j], i);
    }
    for (int j = 0; j < 2; ++j) {
      float* p = b + (4 * t + 16 * j) * 8 + g;
      for (int i = 0; i < 4; ++i) p[8 * i] = byte_of((*l.b)[j], i);
    }
  }
  gather_d<Lane>(d, lanes);
  multiply_s8(d, a, b, 16, 8, 32);
  scatter_d<Lane>(d, lanes);
  ++statistics().mma_instructions;
}

void mma_sparse_s8_warp(void* const (&lanes)[32]) {
  using Lane = MmaLane<int, 4>;
  float a[16 * 64] = {}, b[64 * 8];
  int d[16 * 8];
  uint32_t metadata[16][2];  // of each row: k 0..31, k 32..63
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t m = static_cast<const Lane*>(lanes[lane])->metadata;
    metadata[lane / 4 + 8 * (lane & 1)][(lane >> 1) & 1] = m;
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint32_t first = (m >> (4 * chunk)) & 3, second = (m >> (4 * chunk + 2)) & 3;
      if (first >= second) {
        fail(static_cast<const Lane*>(lanes[lane])->where, "mma_sparse_s8: the metadata of lane " + std::to_string(lane) + ", chunk " +
                                                               std::to_string(chunk) + " has the indices " + std::to_string(first) + ", " +
                                                               std::to_string(second) + "; they must rise");
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Lane& l = *static_cast<const Lane*>(lanes[lane]);
    for (int j = 0; j < 4; ++j) {
      const int row = g + 8 * (j & 1);
      for (int i = 0; i < 4; ++i) {
        const int stored = 4 * t + 16 * (j >> 1) + i;
        const uint32_t index = (metadata[row][stored / 16] >> (2 * (stored % 16))) & 3;
        a[row * 64 + 4 * (stored / 2) + index] = byte_of((*l.a)[j], i);
      }
    }
    for (int j = 0; j < 4; ++j) {
      float* p = b + (4 * t + 16 * j) * 8 + g;
      for (int i = 0; i < 4; ++i) p[8 * i] = byte_of((*l.b)[j], i);
    }
  }
  gather_d<Lane>(d, lanes);
  multiply_s8(d, a, b, 16, 8, 64);
  scatter_d<Lane>(d, lanes);
  ++statistics().mma_instructions;
}

// --- ldmatrix, stmatrix -----------------------------------------------------------------------------------------------------------------

struct MatrixLane {
  uint32_t* to;          // ldmatrix
  const uint32_t* from;  // stmatrix
  const void* row;
  int count;
  bool transposed;
  Where where;
};

// The 128-byte passes over the banks that the eight rows of a matrix take: as many as different rows share a group of four banks.
void count_wavefronts(void* const (&lanes)[32], int matrix, Where where) {
  uint32_t rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = shared_offset(static_cast<const MatrixLane*>(lanes[8 * matrix + i])->row, where);
  int sharing[8] = {};
  for (int i = 0; i < 8; ++i) {
    bool repeated = false;
    for (int j = 0; j < i; ++j) repeated |= rows[i] == rows[j];
    sharing[rows[i] % 128 / 16] += !repeated;
  }
  statistics().matrix_wavefronts += *std::max_element(sharing, sharing + 8);
  ++statistics().matrix_wavefronts_ideal;
}

void ldmatrix_warp(void* const (&lanes)[32]) {
  const MatrixLane& any = *static_cast<const MatrixLane*>(lanes[0]);
  for (int matrix = 0; matrix < any.count; ++matrix) {
    uint16_t values[8][8];
    for (int i = 0; i < 8; ++i) {
      const MatrixLane& l = *static_cast<const MatrixLane*>(lanes[8 * matrix + i]);
      check_shared(warp_peer(8 * matrix + i), Access::read, l.row, 16, 16, l.where);
      std::memcpy(values[i], l.row, 16);
    }
    count_wavefronts(lanes, matrix, any.where);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = any.transposed ? values[2 * t][g] : values[g][2 * t];
      const uint32_t high = any.transposed ? values[2 * t + 1][g] : values[g][2 * t + 1];
      static_cast<const MatrixLane*>(lanes[lane])->to[matrix] = low | high << 16;
    }
  }
}

void stmatrix_warp(void* const (&lanes)[32]) {
  const MatrixLane& any = *static_cast<const MatrixLane*>(lanes[0]);
  for (int matrix = 0; matrix < any.count; ++matrix) {
    uint16_t values[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t r = static_cast<const MatrixLane*>(lanes[lane])->from[matrix];
      (any.transposed ? values[2 * t][g] : values[g][2 * t]) = static_cast<uint16_t>(r);
      (any.transposed ? values[2 * t + 1][g] : values[g][2 * t + 1]) = static_cast<uint16_t>(r >> 16);
    }
    for (int i = 0; i < 8; ++i) {
      const MatrixLane& l = *static_cast<const MatrixLane*>(lanes[8 * matrix + i]);
      check_shared(warp_peer(8 * matrix + i), Access::write, l.row, 16, 16, l.where);
      std::memcpy(const_cast<void*>(l.row), values[i], 16);
    }
    count_wavefronts(lanes, matrix, any.where);
  }
}

}  // namespace

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  MmaLane<float, 2> lane = {&d, &a, &b, 0, where};
  warp_collective("mma_bf16", where, &lane, mma_bf16_warp);
}

void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  MmaLane<int, 2> lane = {&d, &a, &b, 0, where};
  warp_collective("mma_s8", where, &lane, mma_s8_warp);
}

void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata, Where where) {
  MmaLane<int, 4> lane = {&d, &a, &b, metadata, where};
  warp_collective("mma_sparse_s8", where, &lane, mma_sparse_s8_warp);
}

void ldmatrix(uint32_t* r, int count, const void* shared_row, bool transposed, Where where) {
  MatrixLane lane = {r, nullptr, shared_row, count, transposed, where};
  warp_collective(count == 4 ? (transposed ? "load_matrix_x4_transposed" : "load_matrix_x4")
                             : (transposed ? "load_matrix_x2_transposed" : "load_matrix_x2"),
                  where, &lane, ldmatrix_warp);
}

void stmatrix(void* shared_row, const uint32_t* r, int count, bool transposed, Where where) {
  MatrixLane lane = {nullptr, r, shared_row, count, transposed, where};
  warp_collective(count == 2   ? "store_matrix_x2"
                  : transposed ? "store_matrix_x4_transposed"
                               : "store_matrix_x4",
                  where, &lane, stmatrix_warp);
}

}  // namespace lapidary::emulator
