// Per-thread buffers that only grow.
#include "cpu/scratch.h"

#include "tensor/tensor.h"

namespace lapidary::cpu {

float* thread_scratch(ScratchUse use, size_t floats) {
  thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(use)];
  const size_t bytes = floats * sizeof(float);
  if (!buffer.memory || buffer.bytes < bytes) {
    buffer = {};
    buffer = allocate_host(bytes);
  }
  return reinterpret_cast<float*>(buffer.memory.get());
}

}  // namespace lapidary::cpu
