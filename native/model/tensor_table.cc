// The table, and names and shapes read off it.
#include "model/tensor_table.h"

#include <charconv>
#include <optional>

namespace lapidary {

namespace {

// The two axes of a weight as sizes of the model; a norm has one.
enum class Axis : uint8_t { none, vocab, hidden, ffn, q_width, kv_width, head_dim };

struct TableRow {
  TensorRole role;
  bool per_layer;
  std::string_view safetensors;  // after "model." or "model.layers.N."; the head has no "model."
  std::string_view gguf;         // whole, or after "blk.N."
  Axis rows, columns;
};

// `post_attention_layernorm` is the norm of the attention's output here; other families use the name for the norm before the MLP.
constexpr TableRow kTable[] = {
    {TensorRole::embedding, false, "embed_tokens.weight", "token_embd.weight", Axis::vocab, Axis::hidden},
    {TensorRole::head, false, "lm_head.weight", "output.weight", Axis::vocab, Axis::hidden},
    {TensorRole::final_norm, false, "norm.weight", "output_norm.weight", Axis::hidden, Axis::none},
    {TensorRole::input_norm, true, "input_layernorm.weight", "attn_norm.weight", Axis::hidden, Axis::none},
    {TensorRole::q, true, "self_attn.q_proj.weight", "attn_q.weight", Axis::q_width, Axis::hidden},
    {TensorRole::k, true, "self_attn.k_proj.weight", "attn_k.weight", Axis::kv_width, Axis::hidden},
    {TensorRole::v, true, "self_attn.v_proj.weight", "attn_v.weight", Axis::kv_width, Axis::hidden},
    {TensorRole::q_norm, true, "self_attn.q_norm.weight", "attn_q_norm.weight", Axis::head_dim, Axis::none},
    {TensorRole::k_norm, true, "self_attn.k_norm.weight", "attn_k_norm.weight", Axis::head_dim, Axis::none},
    {TensorRole::o, true, "self_attn.o_proj.weight", "attn_output.weight", Axis::hidden, Axis::q_width},
    {TensorRole::post_attention_norm, true, "post_attention_layernorm.weight", "post_attention_norm.weight", Axis::hidden, Axis::none},
    {TensorRole::pre_ffn_norm, true, "pre_feedforward_layernorm.weight", "ffn_norm.weight", Axis::hidden, Axis::none},
    {TensorRole::gate, true, "mlp.gate_proj.weight", "ffn_gate.weight", Axis::ffn, Axis::hidden},
    {TensorRole::up, true, "mlp.up_proj.weight", "ffn_up.weight", Axis::ffn, Axis::hidden},
    {TensorRole::down, true, "mlp.down_proj.weight", "ffn_down.weight", Axis::hidden, Axis::ffn},
    {TensorRole::post_ffn_norm, true, "post_feedforward_layernorm.weight", "post_ffw_norm.weight", Axis::hidden, Axis::none},
};

const TableRow& row_of(TensorRole role) {
  for (const TableRow& row : kTable) {
    if (row.role == role) return row;
  }
  return kTable[0];  // every role has a row
}

std::string_view row_name(const TableRow& row, NameStyle style) { return style == NameStyle::gguf ? row.gguf : row.safetensors; }

bool strip(std::string_view& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  return true;
}

// "17.rest" -> 17, name = "rest". Only the spelling that a writer gives a number: no sign, no leading zero.
std::optional<int64_t> strip_number(std::string_view& name) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const size_t digits = static_cast<size_t>(end - name.data());
  if (error != std::errc() || digits == 0 || number < 0 || (digits > 1 && name[0] == '0') || digits >= name.size() || name[digits] != '.')
    return {};
  name.remove_prefix(digits + 1);
  return number;
}

NameMatch match_row(NameStyle style, std::string_view name, bool per_layer, int64_t layer) {
  for (const TableRow& row : kTable) {
    if (row.per_layer == per_layer && row_name(row, style) == name) return {NameMatch::Kind::weight, {row.role, layer}};
  }
  return {};
}

NameMatch match_gguf(std::string_view name) {
  if (name.starts_with("v.") || name.starts_with("mm.")) return {NameMatch::Kind::vision, {}};
  if (name == "rope_freqs.weight") return {NameMatch::Kind::rope_freqs, {}};
  if (!strip(name, "blk.")) return match_row(NameStyle::gguf, name, false, -1);
  const std::optional<int64_t> layer = strip_number(name);
  return layer ? match_row(NameStyle::gguf, name, true, *layer) : NameMatch{};
}

struct PartSuffix {
  std::string_view text;
  TensorPart part;
};
constexpr PartSuffix kParts[] = {
    {".weight_packed", TensorPart::weight_packed},       {".weight_scale", TensorPart::weight_scale},
    {".input_scale", TensorPart::input_scale},           {".weight_zero_point", TensorPart::weight_zero_point},
    {".input_zero_point", TensorPart::input_zero_point}, {".weight_shape", TensorPart::weight_shape},
};

// "self_attn.q_proj.weight_scale": a part of "self_attn.q_proj.weight". Norms have none.
NameMatch match_part(std::string_view name, bool per_layer, int64_t layer) {
  for (const PartSuffix& suffix : kParts) {
    if (!name.ends_with(suffix.text)) continue;
    const std::string weight = std::string(name.substr(0, name.size() - suffix.text.size())) + ".weight";
    NameMatch match = match_row(NameStyle::safetensors, weight, per_layer, layer);
    match.part = suffix.part;
    return match.kind == NameMatch::Kind::weight && is_norm(match.slot.role) ? NameMatch{} : match;
  }
  const bool kv_scale = per_layer && (name == "self_attn.q_scale" || name == "self_attn.k_scale" || name == "self_attn.v_scale" ||
                                      name == "self_attn.k_proj.output_scale" || name == "self_attn.v_proj.output_scale");
  return kv_scale ? NameMatch{NameMatch::Kind::kv_scale, {}} : match_row(NameStyle::safetensors, name, per_layer, layer);
}

// model. | language_model.model. | model.language_model. | language_model. | nothing: at most one of each word is taken off.
NameMatch match_safetensors(std::string_view name) {
  strip(name, "model.");
  strip(name, "language_model.");
  strip(name, "model.");
  for (const char* tower : {"vision_tower.", "vision_model.", "multi_modal_projector.", "multimodal_projector."}) {
    if (name.starts_with(tower)) return {NameMatch::Kind::vision, {}};
  }
  if (name.ends_with("rotary_emb.inv_freq")) return {NameMatch::Kind::buffer, {}};  // recomputed from the config
  if (!strip(name, "layers.")) return match_part(name, false, -1);
  const std::optional<int64_t> layer = strip_number(name);
  return layer ? match_part(name, true, *layer) : NameMatch{};
}

int64_t axis_size(Axis axis, const ModelConfig& config) {
  switch (axis) {
    case Axis::none:
      return 0;
    case Axis::vocab:
      return config.vocab;
    case Axis::hidden:
      return config.hidden;
    case Axis::ffn:
      return config.ffn;
    case Axis::q_width:
      return config.q_width();
    case Axis::kv_width:
      return config.kv_width();
    case Axis::head_dim:
      return config.head_dim;
  }
  return 0;
}

}  // namespace

NameMatch match_tensor_name(NameStyle style, std::string_view name) {
  return style == NameStyle::gguf ? match_gguf(name) : match_safetensors(name);
}

std::vector<TensorSlot> expected_slots(const ModelConfig& config) {
  std::vector<TensorSlot> slots = {{TensorRole::embedding, -1}};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const TableRow& row : kTable) {
      const bool absent = !config.qk_norm && (row.role == TensorRole::q_norm || row.role == TensorRole::k_norm);
      if (row.per_layer && !absent) slots.push_back({row.role, layer});
    }
  }
  slots.push_back({TensorRole::final_norm, -1});
  if (!config.tied_head) slots.push_back({TensorRole::head, -1});
  return slots;
}

std::vector<int64_t> slot_shape(const TensorSlot& slot, const ModelConfig& config) {
  const TableRow& row = row_of(slot.role);
  std::vector<int64_t> shape = {axis_size(row.rows, config)};
  if (row.columns != Axis::none) shape.push_back(axis_size(row.columns, config));
  return shape;
}

bool is_norm(TensorRole role) { return row_of(role).columns == Axis::none; }

std::string slot_name(NameStyle style, const TensorSlot& slot) {
  const TableRow& row = row_of(slot.role);
  const std::string name(row_name(row, style)), layer = std::to_string(slot.layer);
  if (style == NameStyle::gguf) return row.per_layer ? "blk." + layer + "." + name : name;
  if (slot.role == TensorRole::head) return name;
  return row.per_layer ? "model.layers." + layer + "." + name : "model." + name;
}

}  // namespace lapidary
