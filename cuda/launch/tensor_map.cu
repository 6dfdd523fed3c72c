// Tensor maps: checks of the spec, and the encoding by the driver (found at run time: libcuda is never linked) or, emulated, by the
// emulator.
#include "cuda/launch/tensor_map.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/tensor_map.h"
#else
#include <cuda.h>
#include <cuda_runtime.h>
#endif

namespace lapidary::cuda {

const char* tensor_map_problem(const TensorMapSpec& s) {
  if (s.rank < 2 || s.rank > 4) return "tensor map: rank must be 2, 3 or 4";
  if (s.base == nullptr || reinterpret_cast<uintptr_t>(s.base) % 16 != 0) return "tensor map: the base address must be 16-byte aligned";
  const int64_t inner = s.box[0] * element_bytes(s.type);
  for (int i = 0; i < s.rank; ++i) {
    if (s.sizes[i] < 1 || s.sizes[i] > 0x7fffffff) return "tensor map: sizes must be 1 .. 2^31 - 1";
    if (s.box[i] < 1 || s.box[i] > 256) return "tensor map: box sizes must be 1 .. 256";
  }
  for (int i = 0; i < s.rank - 1; ++i) {
    if (s.strides[i] <= 0 || s.strides[i] % 16 != 0 || s.strides[i] >= int64_t{1} << 40) {
      return "tensor map: strides must be positive multiples of 16 bytes below 2^40";
    }
  }
  if (s.sizes[1] > 1 && s.strides[0] < s.sizes[0] * element_bytes(s.type)) return "tensor map: rows must not overlap";
  if (inner % 16 != 0) return "tensor map: a box's row must be a multiple of 16 bytes";
  if (s.swizzle != Swizzle::none && inner != swizzle_span(s.swizzle)) {
    return "tensor map: a swizzled box's row must have the swizzle's span";
  }
  return nullptr;
}

#ifdef LAPIDARY_EMULATED

Status make_tensor_map(TensorMap* map, const TensorMapSpec& s) {
  if (const char* problem = tensor_map_problem(s)) return Status::refused("tensor map", problem);
  emulator::TensorMapDescription d;
  d.base = static_cast<const std::byte*>(s.base);
  d.element_bytes = static_cast<int32_t>(element_bytes(s.type));
  d.rank = s.rank;
  d.swizzle = s.swizzle;
  for (int i = 0; i < s.rank; ++i) {
    d.sizes[i] = static_cast<int32_t>(s.sizes[i]);
    d.box[i] = static_cast<int16_t>(s.box[i]);
    if (i > 0) d.strides[i - 1] = s.strides[i - 1];
  }
  emulator::encode_tensor_map(map, d);
  return {};
}

#else

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Null when the driver is older than tensor maps (12.0).
Encode find_encode() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (e != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(entry);
}

CUtensorMapDataType driver_type(TensorMapSpec::Type type) {
  switch (type) {
    case TensorMapSpec::Type::u8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case TensorMapSpec::Type::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case TensorMapSpec::Type::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

CUtensorMapSwizzle driver_swizzle(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::none:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::bytes32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::bytes64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::bytes128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

Status make_tensor_map(TensorMap* map, const TensorMapSpec& s) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= 64);
  if (const char* problem = tensor_map_problem(s)) return Status::refused("tensor map", problem);
  static const Encode encode = find_encode();
  if (encode == nullptr) {
    return Status::cuda(cudaErrorNotSupported, "cuTensorMapEncodeTiled", "the driver has no tensor maps (needs CUDA 12.0)");
  }
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4];
  constexpr cuuint32_t kEveryElement[4] = {1, 1, 1, 1};
  for (int i = 0; i < s.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(s.sizes[i]);
    box[i] = static_cast<cuuint32_t>(s.box[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(s.strides[i - 1]);
  }
  // Promotion to 128 bytes: a swizzled row is a whole L2 line or shares it with its neighbour box.
  const CUresult r = encode(reinterpret_cast<CUtensorMap*>(map), driver_type(s.type), static_cast<cuuint32_t>(s.rank),
                            const_cast<void*>(s.base), sizes, strides, box, kEveryElement, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            driver_swizzle(s.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r != CUDA_SUCCESS) return Status::cuda(static_cast<int>(r), "cuTensorMapEncodeTiled", "the driver refused the tensor map");
  return {};
}

#endif

}  // namespace lapidary::cuda
