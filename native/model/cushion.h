// A cushion: keys and values of a few tokens that stand before every text, computed once, kept in high precision and visible in every layer
// (CushionCache, arXiv 2406.12016). Attention sinks settle on them, so that the text's own activations have no outliers and one static int8
// scale per site is enough.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "ops/ops.h"

namespace lapidary {

// How local layers see the cushion (docs/numerics.md, "prefix"). In global layers both are the same.
enum class CushionWindow : uint8_t {
  native,  // like ordinary tokens: it leaves the window
  pinned,  // always, at the distance that the window's last token would have
};

struct Cushion {
  std::vector<int32_t> tokens;  // what the keys and values were computed from, or tuned from
  CushionWindow window = CushionWindow::pinned;
  // Per layer, f32 on the host [tokens, num_kv_heads, head_dim]; keys after k-norm and before RoPE. Slot j stands at position j.
  std::vector<Tensor> k, v;
  std::vector<Buffer> owned;
  std::map<std::string, std::string> notes;  // further metadata: the model's and the calibration's ids

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

// Zeroed memory for a cushion of that many tokens.
Cushion make_cushion(const ModelConfig& config, std::vector<int32_t> tokens, CushionWindow window);

// One safetensors file: cushion.N.k and .v F32 [tokens, num_kv_heads, head_dim] per layer; metadata: format, tokens, window, rope, notes.
// Error(bad_file): damaged, not a cushion, or not of this model's shape.
Cushion read_cushion(const std::string& path, const ModelConfig& config);
void write_cushion(const std::string& path, const Cushion& cushion);

// Tells cushions apart: a hash of everything in it.
std::string cushion_fingerprint(const Cushion& cushion);

// As attention wants it: on the device, [num_kv_heads, tokens, head_dim], keys after RoPE.
struct PlacedCushion {
  int64_t tokens = 0;
  CushionWindow window = CushionWindow::pinned;
  std::vector<Tensor> k, v;
  std::vector<Buffer> owned;
};

// `dtype`: f32 or bf16. inv_freq: per kind of RoPE, as in StepScratch.
std::unique_ptr<const PlacedCushion> place_cushion(Backend& backend, const ModelConfig& config, const Cushion& cushion, DType dtype,
                                                   const std::vector<std::vector<float>>& inv_freq);

}  // namespace lapidary
