#include "tensor/tensor.h"

#include <cstdlib>

#include "base/error.h"

namespace lapidary {

std::string Tensor::shape_text() const {
  std::string s = "[";
  for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

Buffer allocate_host(size_t bytes) {
  constexpr size_t kAlignment = 64;
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* p = padded < bytes ? nullptr : std::aligned_alloc(kAlignment, padded == 0 ? kAlignment : padded);
  expect(p != nullptr, ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes of host memory");
  Buffer b;
  b.memory = std::shared_ptr<std::byte>(static_cast<std::byte*>(p), [](std::byte* q) { std::free(q); });
  b.bytes = bytes;
  return b;
}

}  // namespace lapidary
