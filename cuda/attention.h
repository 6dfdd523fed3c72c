// Attention of the backend: page tables on the device, which sequences go to which kernel, and their scratch memory.
#pragma once

#include <unordered_map>

#include "cuda/api/attention_decode.h"
#include "cuda/api/attention_prefill.h"
#include "cuda/device.h"
#include "ops/ops.h"

namespace lapidary::cuda {

// Projections of a step's tokens before QK-norm and RoPE, f32, and the tables that rotate them.
struct QkvInput {
  QkvRows rows = {};
  int64_t tokens = 0;
};

// Where attention writes: [tokens, num_heads * head_dim].
struct AttendedOutput {
  void* data = nullptr;
  ActType type = ActType::f32;
  float inverse_scale = 0;  // int8
};

class Attention {
 public:
  Attention(std::shared_ptr<DeviceState> device, Staging& staging)
      : device_(std::move(device)),
        staging_(staging),
        q_(device_),
        q_prefix_(device_),
        partials_(device_),
        counters_(device_, Scratch::Holds::counters),
        prefix_k_(device_),
        prefix_v_(device_) {}

  // Stores k, v f32 [tokens, num_kv_heads, head_dim] as they are.
  void append(const float* k, const float* v, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape);
  // Queries that are ready, f32 [tokens, num_heads, head_dim].
  void attend(const float* q, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape, const AttendedOutput& out);
  // From the projections: QK-norm, RoPE, append, attention.
  void attend_projections(const QkvInput& input, std::span<const AttentionSpan> spans, const AttentionShape& shape,
                          const AttendedOutput& out);

 private:
  // The page pointers of one sequence and layer, as they are on the device.
  struct Table {
    std::vector<const void*> host;
    Buffer memory;
  };
  // The rows of a call, by the kernel that takes them.
  struct Parts {
    std::vector<AttentionSequence> decode, prefill;
    int32_t most_rows = 0, most_keys = 0;  // of decode
  };

  const void* const* table_of(const KvView& kv);
  void forget_tables();
  std::vector<AttentionSequence> sequences_of(std::span<const AttentionSpan> spans);
  const cuda::ImageBlock* put_images(const AttentionShape& shape, int64_t tokens);  // null: none
  Parts split(std::span<const AttentionSpan> spans, const AttentionShape& shape);
  AttentionCommon common(std::span<const AttentionSequence> sequences, const AttentionShape& shape, KvType type);
  void set_prefix(const AttentionExtras* extras, AttentionCommon& common);  // for the kernels over a bf16 or int8 cache
  void decode(AttentionDecodeParams params, const Parts& parts, const AttentionShape& shape, KvType type, const AttendedOutput& out);
  void prefill(const uint16_t* q, const uint16_t* q_prefix, int64_t tokens, const Parts& parts, std::span<const AttentionSpan> spans,
               const AttentionShape& shape, KvType type, const AttendedOutput& out);
  void f32(const float* q, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape, const AttendedOutput& out);
  const uint16_t* rounded(const float* x, int64_t rows, int64_t dim, Scratch& memory);

  std::shared_ptr<DeviceState> device_;
  Staging& staging_;
  Scratch q_, q_prefix_, partials_, counters_, prefix_k_, prefix_v_;
  std::unordered_map<const void*, Table> tables_;  // by the host's array of pages
};

}  // namespace lapidary::cuda
