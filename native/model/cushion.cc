// The side-car file, and the way from its pre-RoPE keys to what attention reads.
#include "model/cushion.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "base/error.h"
#include "base/float16.h"
#include "formats/safetensors.h"

namespace lapidary {

namespace {

constexpr const char* kFormat = "lapidary-cushion";
constexpr const char* kRope = "before, slot j at position j";

std::string layer_name(size_t layer, const char* side) { return "cushion." + std::to_string(layer) + "." + side; }

std::string ids_text(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += (text.empty() ? "" : " ") + std::to_string(id);
  return text;
}

std::vector<int32_t> parse_ids(const std::string& text, const ModelConfig& config, const std::string& path) {
  std::vector<int32_t> ids;
  std::istringstream in(text);
  for (int64_t id; in >> id;) {
    expect(id >= 0 && id < config.vocab, ErrorCode::bad_file, path, ": cushion token ", id, " is outside the vocabulary of ", config.vocab);
    ids.push_back(static_cast<int32_t>(id));
  }
  expect(in.eof() && !ids.empty(), ErrorCode::bad_file, path, ": metadata `tokens` is \"", text, "\", must be token ids");
  return ids;
}

const std::string& metadata(const TensorFile& file, const char* key, const std::string& path) {
  const auto found = file.metadata.find(key);
  expect(found != file.metadata.end(), ErrorCode::bad_file, path, ": metadata `", key, "` is missing: not a cushion that lapidary wrote");
  return found->second;
}

// Rotates keys f32 [heads, dim] of one slot to its position, as Backend::rope does.
void rotate(float* keys, int64_t heads, int64_t dim, int64_t position, const std::vector<float>& inv_freq) {
  const int64_t half = dim / 2;
  for (int64_t j = 0; j < half; ++j) {
    const float angle = static_cast<float>(position) * inv_freq[static_cast<size_t>(j)], c = std::cos(angle), s = std::sin(angle);
    for (int64_t h = 0; h < heads; ++h) {
      float *a = keys + h * dim + j, *b = a + half;
      const float x = *a, y = *b;
      *a = x * c - y * s;
      *b = y * c + x * s;
    }
  }
}

}  // namespace

Cushion make_cushion(const ModelConfig& config, std::vector<int32_t> tokens, CushionWindow window) {
  Cushion c;
  c.tokens = std::move(tokens);
  c.window = window;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    for (std::vector<Tensor>* side : {&c.k, &c.v}) {
      const Buffer& buffer = c.owned.emplace_back(allocate_host(static_cast<size_t>(c.size() * config.kv_width()) * sizeof(float)));
      side->push_back(buffer.tensor(DType::f32, {c.size(), config.num_kv_heads, config.head_dim}));
      std::memset(side->back().data, 0, static_cast<size_t>(side->back().bytes()));
    }
  }
  return c;
}

Cushion read_cushion(const std::string& path, const ModelConfig& config) {
  const TensorFile file = open_safetensors(path);
  expect(metadata(file, "format", path) == kFormat, ErrorCode::bad_file, path, ": metadata `format` is not ", kFormat);
  expect(metadata(file, "rope", path) == kRope, ErrorCode::unsupported, path, ": keys are stored by a rule this version does not know");
  const std::string& window = metadata(file, "window", path);
  expect(window == "native" || window == "pinned", ErrorCode::bad_file, path, ": metadata `window` is \"", window,
         "\", must be native or pinned");
  Cushion c = make_cushion(config, parse_ids(metadata(file, "tokens", path), config, path),
                           window == "native" ? CushionWindow::native : CushionWindow::pinned);
  expect(file.tensors.size() == 2 * c.k.size(), ErrorCode::bad_file, path, ": holds ", file.tensors.size(), " tensors, a model of ",
         config.num_layers, " layers needs ", 2 * c.k.size());
  for (size_t l = 0; l < c.k.size(); ++l) {
    for (const auto& [side, to] : {std::pair{"k", &c.k[l]}, std::pair{"v", &c.v[l]}}) {
      const auto found = file.tensors.find(layer_name(l, side));
      expect(found != file.tensors.end(), ErrorCode::bad_file, path, ": tensor ", layer_name(l, side), " is missing");
      const Tensor& view = found->second.view;
      expect(view.dtype == DType::f32 && view.shape_text() == to->shape_text(), ErrorCode::bad_file, path, ": ", layer_name(l, side),
             " is ", dtype_info(view.dtype).name, " ", view.shape_text(), ", expected f32 ", to->shape_text());
      std::memcpy(to->data, view.data, static_cast<size_t>(to->bytes()));
      for (int64_t i = 0; i < to->elements(); ++i)
        expect(std::isfinite(to->as<float>()[i]), ErrorCode::bad_file, path, ": ", layer_name(l, side),
               " holds a number that is not finite");
    }
  }
  for (const auto& [key, value] : file.metadata)
    if (key != "format" && key != "rope" && key != "window" && key != "tokens") c.notes[key] = value;
  return c;
}

void write_cushion(const std::string& path, const Cushion& cushion) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (size_t l = 0; l < cushion.k.size(); ++l) {
    tensors.push_back({layer_name(l, "k"), cushion.k[l]});
    tensors.push_back({layer_name(l, "v"), cushion.v[l]});
  }
  std::map<std::string, std::string> facts = cushion.notes;
  facts["format"] = kFormat;
  facts["rope"] = kRope;
  facts["window"] = cushion.window == CushionWindow::native ? "native" : "pinned";
  facts["tokens"] = ids_text(cushion.tokens);
  write_safetensors(path, tensors, facts);
}

std::string cushion_fingerprint(const Cushion& cushion) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](const void* data, int64_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (int64_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
  };
  add(cushion.tokens.data(), cushion.size() * static_cast<int64_t>(sizeof(int32_t)));
  add(&cushion.window, sizeof cushion.window);
  for (const std::vector<Tensor>* side : {&cushion.k, &cushion.v})
    for (const Tensor& t : *side) add(t.data, t.bytes());
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::unique_ptr<const PlacedCushion> place_cushion(Backend& backend, const ModelConfig& config, const Cushion& cushion, DType dtype,
                                                   const std::vector<std::vector<float>>& inv_freq) {
  auto placed = std::make_unique<PlacedCushion>();
  const int64_t m = placed->tokens = cushion.size(), heads = config.num_kv_heads, dim = config.head_dim;
  placed->window = cushion.window;
  std::vector<float> slot(static_cast<size_t>(heads * dim)), heads_first(static_cast<size_t>(m * heads * dim));
  std::vector<bf16> rounded(heads_first.size());
  for (size_t l = 0; l < cushion.k.size(); ++l) {
    for (const bool keys : {true, false}) {
      const float* from = (keys ? cushion.k : cushion.v)[l].as<float>();
      for (int64_t j = 0; j < m; ++j) {
        std::memcpy(slot.data(), from + j * heads * dim, slot.size() * sizeof(float));
        if (keys) rotate(slot.data(), heads, dim, j, inv_freq[static_cast<size_t>(config.layers[l].rope)]);
        for (int64_t h = 0; h < heads; ++h)
          std::memcpy(heads_first.data() + (h * m + j) * dim, slot.data() + h * dim, static_cast<size_t>(dim) * sizeof(float));
      }
      const Buffer& buffer = placed->owned.emplace_back(backend.allocate(static_cast<size_t>(dtype_bytes(dtype, m * heads * dim))));
      const Tensor t = buffer.tensor(dtype, {heads, m, dim});
      if (dtype == DType::bf16) {
        for (size_t i = 0; i < rounded.size(); ++i) rounded[i] = to_bf16(heads_first[i]);
        backend.upload(t, rounded.data());
      } else {
        backend.upload(t, heads_first.data());
      }
      (keys ? placed->k : placed->v).push_back(t);
    }
  }
  return placed;
}

}  // namespace lapidary
