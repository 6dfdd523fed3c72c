// Host memory: aligned, apart from each other, and there as long as somebody holds it.
#include <cstring>
#include <vector>

#include "check.h"
#include "tensor/tensor.h"

namespace lapidary {

TEST("memory: streamed buffers are apart from each other and outlive their neighbours") {
  std::vector<Buffer> buffers;
  // Of a shared mapping, of more than one, and with a mapping of its own.
  for (size_t bytes : {size_t{1}, size_t{4096}, size_t{1} << 20, size_t{31} << 20, size_t{5000}, size_t{33} << 20, size_t{64}}) {
    buffers.push_back(allocate_streamed(bytes));
    Buffer& b = buffers.back();
    CHECK(b.bytes == bytes);
    CHECK(reinterpret_cast<uintptr_t>(b.memory.get()) % 64 == 0);
    std::memset(b.memory.get(), static_cast<int>(buffers.size()), bytes);
  }
  const auto holds = [&](size_t i) {
    const Buffer& b = buffers[i];
    const std::byte value{static_cast<unsigned char>(i + 1)};
    return b.memory.get()[0] == value && b.memory.get()[b.bytes / 2] == value && b.memory.get()[b.bytes - 1] == value;
  };
  for (size_t i = 0; i < buffers.size(); ++i) CHECK(holds(i));
  for (size_t i = 0; i < buffers.size(); i += 2) buffers[i] = {};
  for (size_t i = 1; i < buffers.size(); i += 2) CHECK(holds(i));
}

}  // namespace lapidary
