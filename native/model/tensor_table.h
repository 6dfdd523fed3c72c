// Which tensor of a checkpoint is which weight: one table of roles with both spellings (safetensors, GGUF) and shapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace lapidary {

enum class TensorRole : uint8_t {
  // Once per model.
  embedding,
  head,
  final_norm,
  // Once per layer.
  input_norm,
  q,
  k,
  v,
  q_norm,
  k_norm,
  o,
  post_attention_norm,
  pre_ffn_norm,
  gate,
  up,
  down,
  post_ffn_norm,
};

enum class NameStyle : uint8_t { safetensors, gguf };

struct TensorSlot {
  TensorRole role{};
  int64_t layer = -1;  // -1: once per model
  auto operator<=>(const TensorSlot&) const = default;
};

// What a tensor is to its weight: the matrix itself, or what a quantised checkpoint stores beside it.
enum class TensorPart : uint8_t { weight, weight_packed, weight_scale, input_scale, weight_zero_point, input_zero_point, weight_shape };

struct NameMatch {
  enum class Kind : uint8_t {
    weight,      // `slot` says which, `part` what of it
    vision,      // of the vision tower or its projector
    buffer,      // a constant that some writers save and nobody needs
    rope_freqs,  // divisors of the RoPE frequencies: no Gemma 2 or 3 has other ones than 1
    kv_scale,    // of a quantised KV cache
    unknown,
  };
  Kind kind = Kind::unknown;
  TensorSlot slot;
  TensorPart part = TensorPart::weight;
};

// Accepts every prefix under which transformers has written the family's tensors. Layer numbers are only checked to be numbers.
NameMatch match_tensor_name(NameStyle style, std::string_view name);

// Every weight that a complete file holds, in the order of computation; the head only when it is not tied.
std::vector<TensorSlot> expected_slots(const ModelConfig& config);

std::vector<int64_t> slot_shape(const TensorSlot& slot, const ModelConfig& config);
bool is_norm(TensorRole role);

// The name that writers use most, for messages: "model.layers.3.self_attn.q_proj.weight", "blk.3.attn_q.weight".
std::string slot_name(NameStyle style, const TensorSlot& slot);

}  // namespace lapidary
