// Views and owners. A Tensor points at memory somebody else owns; a Buffer owns it.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "tensor/dtype.h"

namespace lapidary {

enum class Device : uint8_t { host, cuda };

// A view of row-major, contiguous elements: the last dimension runs fastest and is a whole number of blocks.
// Copying a Tensor copies the view. Weights are views of read-only mappings: nobody may write through them.
struct Tensor {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::host;
  int rank = 0;
  int64_t shape[4] = {0, 0, 0, 0};

  Tensor() = default;
  Tensor(const void* memory, DType type, std::initializer_list<int64_t> dims, Device where = Device::host)
      : data(static_cast<std::byte*>(const_cast<void*>(memory))), dtype(type), device(where), rank(static_cast<int>(dims.size())) {
    assert(dims.size() <= 4);
    int i = 0;
    for (int64_t d : dims) shape[i++] = d;
  }

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const {
    int64_t n = rank == 0 ? 0 : 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  int64_t bytes() const { return dtype_bytes(dtype, elements()); }
  // Elements of one index of the first dimension.
  int64_t row_elements() const { return shape[0] == 0 ? 0 : elements() / shape[0]; }
  int64_t row_bytes() const { return dtype_bytes(dtype, row_elements()); }

  // The view of `count` indices of the first dimension, from `first`.
  Tensor rows(int64_t first, int64_t count) const {
    assert(first >= 0 && count >= 0 && first + count <= shape[0]);
    Tensor t = *this;
    t.data += first * row_bytes();
    t.shape[0] = count;
    return t;
  }

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  std::string shape_text() const;  // "[512, 128]"
};

// Owns memory on a device; freed with the last copy of the handle. Host buffers are 64-byte aligned.
struct Buffer {
  std::shared_ptr<std::byte> memory;
  size_t bytes = 0;
  Device device = Device::host;

  Tensor tensor(DType dtype, std::initializer_list<int64_t> dims) const {
    Tensor t(memory.get(), dtype, dims, device);
    assert(static_cast<size_t>(t.bytes()) <= bytes);
    return t;
  }
};

// Uninitialised host memory; throws Error(out_of_memory) naming the size.
Buffer allocate_host(size_t bytes);

// The same for memory that is read from end to end again and again: in large pages where the system gives them, which is worth 8 % of the
// read bandwidth. Buffers share mappings, so that no page is left half empty, and a mapping is returned with the last buffer in it.
Buffer allocate_streamed(size_t bytes);

// Gives what the heap keeps of freed memory back to the system, where that can be asked for: worth it when a model has closed.
void return_free_memory();

}  // namespace lapidary
