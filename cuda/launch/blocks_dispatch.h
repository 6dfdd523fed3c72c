// From a weight's dtype at run time to one at compile time. Included by .cu files alone.
#pragma once

#include <type_traits>

#include "cuda/kernels/blocks.cuh"

namespace lapidary::cuda {

template <class Launch>
Status for_weight_type(const char* where, DType dtype, Launch launch) {
  switch (dtype) {
    case DType::f32:
      return launch(std::integral_constant<DType, DType::f32>());
    case DType::bf16:
      return launch(std::integral_constant<DType, DType::bf16>());
    case DType::f16:
      return launch(std::integral_constant<DType, DType::f16>());
    case DType::q8_0:
      return launch(std::integral_constant<DType, DType::q8_0>());
    case DType::q4_0:
      return launch(std::integral_constant<DType, DType::q4_0>());
    case DType::q4_1:
      return launch(std::integral_constant<DType, DType::q4_1>());
    case DType::q5_0:
      return launch(std::integral_constant<DType, DType::q5_0>());
    case DType::q5_1:
      return launch(std::integral_constant<DType, DType::q5_1>());
    case DType::q2_k:
      return launch(std::integral_constant<DType, DType::q2_k>());
    case DType::q3_k:
      return launch(std::integral_constant<DType, DType::q3_k>());
    case DType::q4_k:
      return launch(std::integral_constant<DType, DType::q4_k>());
    case DType::q5_k:
      return launch(std::integral_constant<DType, DType::q5_k>());
    case DType::q6_k:
      return launch(std::integral_constant<DType, DType::q6_k>());
    case DType::i8:
    case DType::i32:
    case DType::u8:
      break;
  }
  return Status::refused(where, "the dtype is no float or block type");
}

// The same with the kind of storage: int8 rows with scales, and planes, besides what stands as in the file.
template <class Launch>
Status for_table(const char* where, DType dtype, bool planes, Launch launch) {
  if (dtype == DType::i8) return launch(std::integral_constant<TableKind, TableKind::int8>(), std::integral_constant<DType, DType::i8>());
  if (planes && dtype == DType::q8_0)
    return launch(std::integral_constant<TableKind, TableKind::q8_plane>(), std::integral_constant<DType, DType::q8_0>());
  if (planes && dtype == DType::q4_0)
    return launch(std::integral_constant<TableKind, TableKind::q4_plane>(), std::integral_constant<DType, DType::q4_0>());
  return for_weight_type(where, dtype, [&](auto type) { return launch(std::integral_constant<TableKind, TableKind::raw>(), type); });
}

}  // namespace lapidary::cuda
