// One row at a time: widened to f32, then rounded or quantised. Rows are independent, so threads share them.
#include "model/convert.h"

#include <algorithm>
#include <vector>

#include "base/float16.h"
#include "base/thread_pool.h"
#include "ops/int8.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

// fn(row, values f32 [in]) for every row of the weight.
template <typename Fn>
void for_each_row(const Linear& host, int threads, const Fn& fn) {
  const int64_t in = host.in(), grain = 1 + (int64_t{1} << 16) / in;
  ThreadPool::shared(threads)->parallel_for(host.out(), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(in));
    for (int64_t row = begin; row < end; ++row) {
      dequantize_row(host.weight.dtype, host.weight.rows(row, 1).data, in, values.data());
      fn(row, values.data());
    }
  });
}

// One allocation for numbers and scales: `bytes` of the former, padded.
struct Memory {
  Buffer buffer;
  int64_t scales_at;

  Memory(int64_t bytes, int64_t scales)
      : buffer(allocate_host(static_cast<size_t>((bytes + 63) / 64 * 64 + scales * 4))), scales_at((bytes + 63) / 64 * 64) {}
  Tensor scales(int64_t n) const { return Tensor(buffer.memory.get() + scales_at, DType::f32, {n}); }
};

}  // namespace

int64_t converted_bytes(int64_t out, int64_t in, int64_t bytes, WeightsKind kind) {
  if (kind == WeightsKind::bf16) return 2 * out * in;
  return kind == WeightsKind::int8 ? out * in + 4 * out : bytes;
}

Linear convert_linear(const Linear& host, WeightsKind kind, int threads) {
  const DType from = host.weight.dtype;
  const int64_t out = host.out(), in = host.in();
  if (kind == WeightsKind::as_is || from == DType::i8 || (kind == WeightsKind::bf16 && from == DType::bf16)) return host;
  if (kind == WeightsKind::bf16) {
    const Memory memory(out * in * 2, 0);
    const Tensor weight(memory.buffer.memory.get(), DType::bf16, {out, in});
    for_each_row(host, threads, [&](int64_t row, const float* values) {
      bf16* to = weight.as<bf16>() + row * in;
      for (int64_t i = 0; i < in; ++i) to[i] = to_bf16(values[i]);
    });
    return {weight, memory.buffer.memory};
  }
  return int8_linear(host, true, threads);
}

Linear int8_linear(const Linear& host, bool per_channel, int threads) {
  if (host.weight.dtype == DType::i8) return host;
  const int64_t out = host.out(), in = host.in();
  const Memory memory(out * in, out);
  Linear result = {Tensor(memory.buffer.memory.get(), DType::i8, {out, in}), memory.buffer.memory, memory.scales(out), ActScheme::token};
  float* scales = result.scale.as<float>();
  if (!per_channel) {
    for_each_row(host, threads, [&](int64_t row, const float* values) { scales[row] = absolute_max(values, in); });
    std::fill_n(scales, out, int8_scale(absolute_max(scales, out)));
  }
  for_each_row(host, threads, [&](int64_t row, const float* values) {
    if (per_channel) scales[row] = int8_scale(absolute_max(values, in));
    quantize_int8(values, in, scales[row], result.weight.as<int8_t>() + row * in);
  });
  return result;
}

}  // namespace lapidary
