// A small random model made so that some tokens spike at down_in unless one certain token stands before them: what a cushion is for.
#pragma once

#include "compress/measured_model.h"
#include "model/tiny_checkpoint.h"

namespace lapidary::test {

inline constexpr int32_t kSink = 17;            // silences the spikes
inline constexpr int32_t kSpiking[] = {5, 23};  // spike; the sink and these share no text by themselves
inline constexpr int64_t kSpikingVocab = 64, kSpikingWindow = 16;

// Channels 0 to 3 of the stream are set apart in the embedding: a constant, the sink's mark, nothing, the spikes' mark. In layer 0 every
// query looks for the sink's mark in the slowest dimension of RoPE, and finds channel 2 set where the sink is seen. Neuron 0 is the
// constant's less channel 2's, times the spikes' mark; down reads nothing of it, so that it costs no likelihood, only resolution.
inline Measured open_spiking() {
  const TinySizes s{2, 32, 48, kSpikingVocab, 2, 1, 16, false};
  TinyTensors all = tiny_tensors(s);
  const auto row = [&](const std::string& name, int64_t r, std::vector<std::pair<int64_t, float>> entries) {
    TinyTensor& t = all.at(name);
    for (int64_t c = 0; c < t.shape[1]; ++c) t.values[static_cast<size_t>(r * t.shape[1] + c)] = 0;
    for (const auto& [c, value] : entries) t.values[static_cast<size_t>(r * t.shape[1] + c)] = value;
  };
  TinyTensor& embedding = all.at("model.embed_tokens.weight");
  for (int64_t id = 0; id < s.vocab; ++id) {
    float* channels = &embedding.values[static_cast<size_t>(id * s.hidden)];
    channels[0] = 0.5f;
    channels[1] = id == kSink ? 4.0f : 0.0f;
    channels[2] = 0;
    channels[3] = id == kSpiking[0] || id == kSpiking[1] ? 1.0f : 0.0f;
  }
  for (auto& [name, t] : all)
    if (name.find("norm") != std::string::npos) std::fill(t.values.begin(), t.values.end(), 0.0f);
  const std::string layer = "model.layers.0.";
  row(layer + "self_attn.k_proj.weight", 7, {{1, 4}});
  for (int64_t head = 0; head < s.heads; ++head) row(layer + "self_attn.q_proj.weight", head * s.head_dim + 7, {{0, 8}});
  row(layer + "self_attn.v_proj.weight", 0, {{1, 8}});
  for (int64_t channel = 0; channel < 4; ++channel) row(layer + "self_attn.o_proj.weight", channel, {});
  row(layer + "self_attn.o_proj.weight", 2, {{0, 4}, {s.head_dim, 4}});
  row(layer + "mlp.gate_proj.weight", 0, {{0, 16}, {2, -64}});
  row(layer + "mlp.up_proj.weight", 0, {{3, 32}});
  TinyTensor& down = all.at(layer + "mlp.down_proj.weight");
  for (int64_t r = 0; r < s.hidden; ++r) down.values[static_cast<size_t>(r * s.ffn)] = 0;

  const std::string folder = temporary_folder();
  write_folder(folder,
               R"({"model_type": "gemma2", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64,
  "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
  "max_position_embeddings": 128, "bos_token_id": 2, "eos_token_id": 1})",
               all);
  Measured m{make_cpu_backend(2), nullptr};
  m.weights = load_weights(folder, *m.backend);
  return m;
}

// Texts without the sink; every third has no token that spikes.
inline std::vector<TextIds> spiking_texts(int64_t count, int64_t tokens) {
  std::vector<TextIds> texts;
  for (int64_t i = 0; i < count; ++i) {
    TextIds& text = texts.emplace_back(some_text(kSpikingVocab - 30, tokens, static_cast<uint64_t>(i) + 1));
    for (int32_t& id : text) id += 28;  // none of the special ones
    if (i % 3 != 0) text[static_cast<size_t>(3 * i + 2) % text.size()] = kSpiking[i % 2];
  }
  return texts;
}

}  // namespace lapidary::test
