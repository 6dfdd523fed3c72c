// Append and attention for one token at a time.
#include "ops/plain.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "ops/int8.h"

namespace lapidary {

namespace {

// One row of keys or values, readable and writable as f32.
struct KvRow {
  std::byte* data;
  float* scale;  // i8 only
  DType dtype;

  float load(int64_t i) const {
    if (dtype == DType::bf16) return to_f32(reinterpret_cast<const bf16*>(data)[i]);
    if (dtype == DType::i8) return static_cast<float>(reinterpret_cast<const int8_t*>(data)[i]) * *scale;
    return reinterpret_cast<const float*>(data)[i];
  }
  void store(const float* x, int64_t n) const {
    if (dtype == DType::i8) {
      *scale = int8_scale(absolute_max(x, n));
      quantize_int8(x, n, *scale, reinterpret_cast<int8_t*>(data));
    } else if (dtype == DType::bf16) {
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<bf16*>(data)[i] = to_bf16(x[i]);
    } else {
      std::memcpy(data, x, static_cast<size_t>(n) * sizeof(float));
    }
  }
};

enum class Side { keys, values };

KvRow kv_row(const KvView& kv, const AttentionShape& shape, Side side, int64_t pos, int64_t kv_head) {
  std::byte* page = static_cast<std::byte*>(kv.pages[(pos / kPageTokens) % kv.num_pages]);
  const int64_t rows = shape.num_kv_heads * kPageTokens;
  const int64_t row = (side == Side::values ? rows : 0) + kv_head * kPageTokens + pos % kPageTokens;
  float* scales = reinterpret_cast<float*>(page + dtype_bytes(kv.dtype, 2 * rows * shape.head_dim));
  return {page + dtype_bytes(kv.dtype, row * shape.head_dim), scales + row, kv.dtype};
}

// The prefix, [num_kv_heads, tokens, head_dim].
KvRow prefix_row(const Tensor& side, int64_t slot, int64_t kv_head) {
  const int64_t row = kv_head * side.shape[1] + slot;
  return {side.data + dtype_bytes(side.dtype, row * side.shape[2]), nullptr, side.dtype};
}

// The softmax-weighted sum of values, given every visible key once.
class Softmax {
 public:
  explicit Softmax(const AttentionShape& shape) : shape_(shape) {}

  void see(const float* query, const KvRow& key, const KvRow& value) {
    double score = 0;
    for (int64_t d = 0; d < shape_.head_dim; ++d) score += static_cast<double>(query[d]) * key.load(d);
    score *= shape_.scale;
    if (shape_.softcap != 0) score = shape_.softcap * std::tanh(score / shape_.softcap);
    scores_.push_back(score);
    values_.push_back(value);
  }

  void write(const Tensor& result, int64_t first) {
    const double highest = *std::max_element(scores_.begin(), scores_.end());
    std::vector<double> sum(static_cast<size_t>(shape_.head_dim));
    double total = 0;
    for (size_t i = 0; i < scores_.size(); ++i) {
      const double weight = std::exp(scores_[i] - highest);
      total += weight;
      for (int64_t d = 0; d < shape_.head_dim; ++d) sum[static_cast<size_t>(d)] += weight * values_[i].load(d);
    }
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      const float value = static_cast<float>(sum[static_cast<size_t>(d)] / total);
      if (result.dtype == DType::bf16) {
        result.as<bf16>()[first + d] = to_bf16(value);
      } else {
        result.as<float>()[first + d] = value;
      }
    }
  }

 private:
  const AttentionShape& shape_;
  std::vector<double> scores_;
  std::vector<KvRow> values_;
};

}  // namespace

void append_kv_plain(const float* k, const float* v, int64_t pos, const KvView& kv, const AttentionShape& shape) {
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    kv_row(kv, shape, Side::keys, pos, head).store(k + head * shape.head_dim, shape.head_dim);
    kv_row(kv, shape, Side::values, pos, head).store(v + head * shape.head_dim, shape.head_dim);
  }
}

void attend_plain(const Tensor& q, int64_t row, int64_t pos, int64_t head, const KvView& kv, const AttentionShape& shape,
                  const Tensor& result) {
  const int64_t at = (row * shape.num_heads + head) * shape.head_dim, kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const float* query = q.as<float>() + at;
  Softmax softmax(shape);
  ImageBlock block;
  if (const AttentionExtras* extras = shape.extras) {
    const float* prefix_query = extras->q_prefix ? extras->q_prefix.as<float>() + at : query;
    const int64_t slots = extras->prefix_k ? extras->prefix_k.shape[1] : 0;
    const bool leaves = extras->prefix_in_window && shape.window != kNoWindow;
    for (int64_t slot = leaves ? std::max<int64_t>(0, slots + pos - shape.window + 1) : 0; slot < slots; ++slot)
      softmax.see(prefix_query, prefix_row(extras->prefix_k, slot, kv_head), prefix_row(extras->prefix_v, slot, kv_head));
    if (!extras->image_blocks.empty()) block = extras->image_blocks[static_cast<size_t>(row)];
  }
  const int64_t first = shape.window > pos ? 0 : pos - shape.window + 1;
  const auto see = [&](int64_t begin, int64_t end) {
    assert(begin >= end || end - begin <= kv.num_pages * kPageTokens);
    for (int64_t p = begin; p < end; ++p)
      softmax.see(query, kv_row(kv, shape, Side::keys, p, kv_head), kv_row(kv, shape, Side::values, p, kv_head));
  };
  see(block.first, std::min<int64_t>(block.end, first));
  see(first, pos + 1);
  see(std::max<int64_t>(block.first, pos + 1), block.end);
  softmax.write(result, head * shape.head_dim);
}

}  // namespace lapidary
