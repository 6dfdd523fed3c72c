#include "tensor/tensor.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <mutex>
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

#if defined(__linux__)
constexpr size_t kLargePage = size_t{2} << 20;
// Of a mapping that small buffers share.
constexpr size_t kSharedBytes = size_t{32} << 20;

size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Whole large pages, at an address that is a multiple of their size.
std::shared_ptr<std::byte> map_large_pages(size_t bytes) {
  void* const mapped = ::mmap(nullptr, bytes + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapped), first = rounded_up(start, kLargePage);
  if (first > start) ::munmap(mapped, first - start);
  if (start + kLargePage > first) ::munmap(reinterpret_cast<void*>(first + bytes), start + kLargePage - first);
  std::byte* const p = reinterpret_cast<std::byte*>(first);
  ::madvise(p, bytes, MADV_HUGEPAGE);  // a wish
  return {p, [bytes](std::byte* q) { ::munmap(q, bytes); }};
}

// The mapping at hand, which the next buffers are cut from; kept alive by those already cut.
struct SharedMapping {
  std::mutex mutex;
  std::weak_ptr<std::byte> memory;
  size_t used = 0;
};
#endif

}  // namespace

Buffer allocate_streamed(size_t bytes) {
#if defined(__linux__)
  static SharedMapping& shared = *new SharedMapping;  // never destroyed: models may still load while the process ends
  const size_t padded = rounded_up(bytes, 4096);
  Buffer b{.memory = nullptr, .bytes = bytes};
  if (padded >= kSharedBytes) {
    b.memory = map_large_pages(rounded_up(padded, kLargePage));
  } else {
    const std::lock_guard lock(shared.mutex);
    std::shared_ptr<std::byte> mapping = shared.memory.lock();
    if (!mapping || shared.used + padded > kSharedBytes) {
      shared.memory = mapping = map_large_pages(kSharedBytes);
      shared.used = 0;
    }
    if (mapping) b.memory = {mapping, mapping.get() + shared.used};
    shared.used += padded;
  }
  if (b.memory) return b;
#endif
  return allocate_host(bytes);
}

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
