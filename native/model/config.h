// What a Gemma model is, as data. Differences between models and layers are fields here, computed once; nothing else in the
// library asks for a model's name. Read from Hugging Face config.json (every variant of the family) or GGUF metadata.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/json.h"
#include "ops/ops.h"

namespace lapidary {

struct QuantConfig;  // model/quantized.h

struct LayerConfig {
  int64_t window = kNoWindow;  // keys visible to a query, itself included
  int rope = 0;                // index into ModelConfig::ropes
  bool is_local() const { return window != kNoWindow; }
};

struct RopeConfig {
  double base = 10000;
  double factor = 1;  // linear scaling: inv_freq / factor
};

struct ModelConfig {
  std::string family;  // "gemma2" or "gemma3": for people, chat format and file writing; never tested by the math
  int64_t num_layers = 0, hidden = 0, ffn = 0, vocab = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;
  double query_scale = 0;                           // attention scale, query_pre_attn_scalar^-0.5
  double attention_softcap = 0, final_softcap = 0;  // 0: none
  bool qk_norm = false;
  double norm_eps = 1e-6;
  float norm_offset = 1;  // see ops Norm
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;
  bool tied_head = true;  // false: the file must hold a head of its own; a tied one may still, see weights.h
  int32_t bos_id = 2, pad_id = 0;
  std::vector<int32_t> eos_ids;                       // config and generation_config together
  std::shared_ptr<const QuantConfig> quantization{};  // of an int8 checkpoint; null: the weights are what the file holds
  std::string cushion_fingerprint;  // of the cushion that static scales were calibrated with (model/cushion.h); empty: none
  bool has_vision = false;          // a vision tower is in the checkpoint, not loaded
  std::vector<std::string> notes;   // what a user should know, one sentence each ("vision tower present, not loaded")

  // generation_config.json's sampling defaults; negative or 0 where absent.
  bool default_do_sample = false;
  double default_temperature = -1, default_top_p = -1;
  int64_t default_top_k = -1;

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  int64_t parameters() const;  // exact, text model, tied embedding counted once
};

// Sizes positive, consistent and small enough that no product of two overflows; one LayerConfig per layer. Error(bad_file) naming `path`.
void check_config(const ModelConfig& config, const std::string& path);

// `generation` may be null. Error(bad_file) names the key; Error(unsupported) names what is not a Gemma 2 or 3 text model.
ModelConfig config_from_json(const JsonValue& config, const JsonValue* generation, const std::string& path);
ModelConfig config_from_gguf(const GgufFile& file);

}  // namespace lapidary
