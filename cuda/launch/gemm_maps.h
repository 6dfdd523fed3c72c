// Tensor maps of a product's operands, for the wgmma kernels.
#pragma once

#include "cuda/api/gemm_plan.h"
#include "cuda/launch/tensor_map.h"

namespace lapidary::cuda {

// As bytes, in boxes of 128 bytes of k and a tile's rows (of w: a block's share of them).
template <class Product>
Status make_operand_maps(const Product& p, int64_t k_bytes, const WgmmaTile& tile, int cluster, TensorMap* x, TensorMap* w) {
  const Status s = make_tensor_map(x, matrix_map(p.x, TensorMapSpec::Type::u8, p.m, k_bytes, p.x_stride, tile.m, 128, Swizzle::bytes128));
  return s.ok() ? make_tensor_map(
                      w, matrix_map(p.w, TensorMapSpec::Type::u8, p.n, k_bytes, p.w_stride, tile.n / cluster, 128, Swizzle::bytes128))
                : s;
}

}  // namespace lapidary::cuda
