// Making tensor maps (TMA descriptors) on the host, for kernels of sm_90. A map holds addresses and shapes only: making one touches no
// device memory, costs about a microsecond and needs no stream. Pass it to the kernel by value inside its params.
#pragma once

#include "cuda/api/status.h"
#include "cuda/primitives/bulk_copy.cuh"

namespace lapidary::cuda {

struct TensorMapSpec {
  enum class Type : int32_t { u8, bf16, f32 };  // u8 also for int8: bytes are moved as they are

  const void* base = nullptr;  // device memory, 16-byte aligned
  Type type = Type::u8;
  int rank = 2;                   // 2..4
  int64_t sizes[4] = {};          // elements of each dimension, x (contiguous) first; 1 .. 2^31 - 1 (coordinates are int)
  int64_t strides[3] = {};        // bytes from one y (z, w) to the next: multiples of 16, below 2^40
  int32_t box[4] = {1, 1, 1, 1};  // elements of a box, 1..256 each; its inner bytes a multiple of 16, with a swizzle exactly its span
  Swizzle swizzle = Swizzle::none;
};

inline int64_t element_bytes(TensorMapSpec::Type type) {
  return type == TensorMapSpec::Type::u8 ? 1 : type == TensorMapSpec::Type::bf16 ? 2 : 4;
}

// Bytes of one box, as a load completes them on its barrier.
inline int64_t box_bytes(const TensorMapSpec& s) {
  int64_t bytes = element_bytes(s.type);
  for (int i = 0; i < s.rank && i < 4; ++i) bytes *= s.box[i];
  return bytes;
}

// A row-major matrix [rows][columns], rows `stride_bytes` apart, read in boxes of box_rows x box_columns: coordinates (x = column, y =
// row).
inline TensorMapSpec matrix_map(const void* base, TensorMapSpec::Type type, int64_t rows, int64_t columns, int64_t stride_bytes,
                                int box_rows, int box_columns, Swizzle swizzle) {
  TensorMapSpec s;
  s.base = base;
  s.type = type;
  s.sizes[0] = columns, s.sizes[1] = rows;
  s.strides[0] = stride_bytes;
  s.box[0] = box_columns, s.box[1] = box_rows;
  s.swizzle = swizzle;
  return s;
}

// Why the hardware (or this library) does not take the spec; null if it does.
const char* tensor_map_problem(const TensorMapSpec& spec);

// Refused with that reason; or a CUDA status if the driver has no tensor maps.
Status make_tensor_map(TensorMap* map, const TensorMapSpec& spec);

}  // namespace lapidary::cuda
