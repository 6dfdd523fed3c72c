#include "tensor/tensor.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "base/error.h"

namespace lapidary {

std::string Tensor::shape_text() const {
  std::string s = "[";
  for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

namespace {

// Buffers from this size on are mapped by themselves and unmapped when freed: a closed model's memory goes back to the system at
// once, where the heap would keep it in whichever thread's arena it came from.
constexpr size_t kMappedBytes = size_t{256} << 10;

std::shared_ptr<std::byte> map_memory(size_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  return {static_cast<std::byte*>(p), [bytes](std::byte* q) { ::munmap(q, bytes); }};
#else
  return nullptr;
#endif
}

std::shared_ptr<std::byte> heap_memory(size_t bytes) {
  constexpr size_t kAlignment = 64;
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* p = padded < bytes ? nullptr : std::aligned_alloc(kAlignment, padded == 0 ? kAlignment : padded);
  if (!p) return nullptr;
  return {static_cast<std::byte*>(p), [](std::byte* q) { std::free(q); }};
}

}  // namespace

Buffer allocate_host(size_t bytes) {
  Buffer b;
  if (bytes >= kMappedBytes) b.memory = map_memory(bytes);
  if (!b.memory) b.memory = heap_memory(bytes);
  expect(b.memory != nullptr, ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes of host memory");
  b.bytes = bytes;
  return b;
}

void return_free_memory() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

}  // namespace lapidary
