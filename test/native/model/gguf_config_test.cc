// GGUF metadata -> ModelConfig: the keys, their defaults, and what is refused.
#include <cmath>

#include "check.h"
#include "model/config.h"
#include "model/tiny_checkpoint.h"

namespace lapidary::test {
namespace {

struct Shape {
  uint32_t layers = 18, hidden = 640, ffn = 2048, heads = 4, kv_heads = 1, head_dim = 256;
};

// The keys that every writer sets.
GgufWriter basic(const std::string& arch, const Shape& s = {}) {
  GgufWriter w;
  w.text("general.architecture", arch)
      .u32(arch + ".context_length", 32768)
      .u32(arch + ".embedding_length", s.hidden)
      .u32(arch + ".block_count", s.layers);
  w.u32(arch + ".feed_forward_length", s.ffn)
      .u32(arch + ".attention.head_count", s.heads)
      .u32(arch + ".attention.head_count_kv", s.kv_heads);
  w.u32(arch + ".attention.key_length", s.head_dim)
      .u32(arch + ".attention.value_length", s.head_dim)
      .f32(arch + ".attention.layer_norm_rms_epsilon", 1e-6f);
  w.texts("tokenizer.ggml.tokens", {"<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "<end_of_turn>"});
  return w;
}

ModelConfig read(const GgufWriter& w) { return config_from_gguf(*GgufFile::open(w.write(temporary_folder() + "/m.gguf"))); }

std::string locals(const ModelConfig& c) {
  std::string s;
  for (const LayerConfig& l : c.layers) s += l.is_local() ? 'l' : 'G';
  return s;
}
const RopeConfig& rope(const ModelConfig& c, size_t layer) { return c.ropes[static_cast<size_t>(c.layers[layer].rope)]; }
bool is(const RopeConfig& r, double base, double factor) { return r.base == base && r.factor == factor; }

TEST("gguf config: gemma 3") {
  GgufWriter w = basic("gemma3");
  w.u32("gemma3.attention.sliding_window", 512)
      .f32("gemma3.rope.freq_base", 1e6f)
      .text("gemma3.rope.scaling.type", "linear")
      .f32("gemma3.rope.scaling.factor", 8);
  w.u32("tokenizer.ggml.bos_token_id", 2).u32("tokenizer.ggml.eos_token_id", 1).u32("tokenizer.ggml.padding_token_id", 0);
  const ModelConfig c = read(w);
  CHECK(c.family == "gemma3" && c.num_layers == 18 && c.hidden == 640 && c.ffn == 2048 && c.num_heads == 4 && c.num_kv_heads == 1 &&
        c.head_dim == 256);
  CHECK(c.max_positions == 32768 && c.vocab == 7 && c.norm_offset == 0 && c.qk_norm && c.tied_head && c.query_scale == 1.0 / 16);
  CHECK(c.norm_eps == static_cast<double>(1e-6f) && c.attention_softcap == 0 && c.final_softcap == 0);
  CHECK(locals(c) == "lllllGlllllGlllllG" && c.layers[0].window == 512);
  CHECK(is(rope(c, 0), 1e4, 1) && is(rope(c, 5), 1e6, 8));
  CHECK((c.eos_ids == std::vector<int32_t>{1, 6}) && c.bos_id == 2 && c.pad_id == 0);
}

TEST("gguf config: gemma 2 and its defaults") {
  const ModelConfig c = read(basic("gemma2", {4, 2304, 9216, 8, 4, 256}));
  CHECK(c.family == "gemma2" && locals(c) == "lGlG" && c.layers[0].window == 4096 && !c.qk_norm);
  CHECK(c.attention_softcap == 50 && c.final_softcap == 30 && c.ropes.size() == 1 && is(rope(c, 0), 1e4, 1));
  GgufWriter w = basic("gemma2", {4, 2304, 9216, 8, 4, 256});
  w.f32("gemma2.attn_logit_softcapping", 40)
      .f32("gemma2.final_logit_softcapping", 0)
      .u64("gemma2.attention.sliding_window", 16)
      .f32("gemma2.rope.freq_base", 5000);
  const ModelConfig other = read(w);
  CHECK(other.attention_softcap == 40 && other.final_softcap == 0 && other.layers[0].window == 16 && other.ropes.size() == 1 &&
        is(rope(other, 0), 5000, 1));
}

TEST("gguf config: patterns and windows") {
  const Shape four = {4, 640, 2048, 4, 1, 256};
  const auto with_window = [&] { return basic("gemma3", four).u32("gemma3.attention.sliding_window", 9); };
  CHECK(locals(read(with_window().u32("gemma3.attention.sliding_window_pattern", 2))) == "lGlG");
  CHECK(locals(read(with_window().u32("gemma3.attention.sliding_window_pattern", 1))) == "GGGG");
  CHECK(locals(read(with_window().u32("gemma3.attention.sliding_window_pattern", 0))) == "llll");
  CHECK(locals(read(with_window().bools("gemma3.attention.sliding_window_pattern", {true, false, false, true}))) == "lGGl");
  CHECK_THROWS(read(with_window().bools("gemma3.attention.sliding_window_pattern", {true})), ErrorCode::bad_file, "1 entries for 4 layers");
  CHECK(is(rope(read(with_window().f32("gemma3.rope.freq_base_swa", 7000)), 0), 7000, 1));
  const ModelConfig no_window = read(basic("gemma3", four).f32("gemma3.rope.freq_base", 1e6f));
  CHECK(locals(no_window) == "GGGG" && no_window.ropes.size() == 1 && is(rope(no_window, 0), 1e6, 1));
}

TEST("gguf config: the query scale of the 27B sizes") {
  CHECK(std::abs(read(basic("gemma2", {46, 4608, 36864, 32, 16, 128})).query_scale - 1.0 / 12) < 1e-15);
  CHECK(std::abs(read(basic("gemma3", {62, 5376, 21504, 32, 16, 128})).query_scale - 1 / std::sqrt(168.0)) < 1e-15);
  CHECK(std::abs(read(basic("gemma3", {46, 4608, 36864, 32, 16, 128})).query_scale - 1 / std::sqrt(128.0)) < 1e-15);
}

TEST("gguf config: the embedding's rows are the vocabulary") {
  CHECK(read(basic("gemma3").tensor("token_embd.weight", tiny_tensor("e", {9, 640}))).vocab == 9);
}

TEST("gguf config: what is refused") {
  CHECK_THROWS(read(GgufWriter().text("general.name", "x")), ErrorCode::bad_file, "general.architecture is missing");
  CHECK_THROWS(read(basic("llama")), ErrorCode::unsupported, "\"llama\"");
  CHECK_THROWS(read(basic("gemma3n")), ErrorCode::unsupported, "\"gemma3n\"");
  CHECK_THROWS(read(GgufWriter().text("general.architecture", "gemma3").texts("tokenizer.ggml.tokens", {"a"})), ErrorCode::bad_file,
               "gemma3.embedding_length is missing");
  CHECK_THROWS(read(GgufWriter().text("general.architecture", "gemma3")), ErrorCode::bad_file, "vocabulary size");
  CHECK_THROWS(read(basic("gemma3", {4, 640, 2048, 0, 1, 256})), ErrorCode::bad_file, "0 heads");
  CHECK_THROWS(read(basic("gemma3", {4, 640, 2048, 4, 3, 256})), ErrorCode::bad_file, "4 heads cannot share 3");
  CHECK_THROWS(read(basic("gemma3", {4000000000, 640, 2048, 4, 1, 256})), ErrorCode::bad_file, "4000000000 layers");
  CHECK_THROWS(read(basic("gemma3", {4, 640, 2048, 4, 1, 255})), ErrorCode::bad_file, "255 must be even");
  CHECK_THROWS(read(basic("gemma3").text("gemma3.rope.scaling.type", "yarn")), ErrorCode::unsupported, "\"yarn\"");
  CHECK_THROWS(read(basic("gemma3").u32("gemma3.rope.dimension_count", 64)), ErrorCode::unsupported, "64 rotated dimensions");
  CHECK_THROWS(read(basic("gemma3").f32("gemma3.rope.freq_base", NAN)), ErrorCode::bad_file, "RoPE base");
  CHECK_THROWS(read(basic("gemma2").f32("gemma2.attn_logit_softcapping", NAN)), ErrorCode::bad_file, "attn_logit_softcapping");
}

}  // namespace
}  // namespace lapidary::test
