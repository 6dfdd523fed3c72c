// Writing a conversation, and reading one back from a file that is not trusted in anything.
#include "runtime/session_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>

#include "base/error.h"

namespace lapidary {

namespace {

constexpr const char* kFormat = "lapidary-session";
constexpr const char* kVersion = "1";

// The tensors of a layer in files of a cache in `kv`.
struct Part {
  const char* name;
  Tensor SessionImage::Layer::* tensor;
  bool is_scale;

  bool in(DType kv) const { return !is_scale || kv == DType::i8; }
  Tensor view(const void* memory, DType kv, int64_t positions, const ModelConfig& config) const {
    if (is_scale) return Tensor(memory, DType::f32, {positions, config.num_kv_heads});
    return Tensor(memory, kv, {positions, config.num_kv_heads, config.head_dim});
  }
};
const Part kParts[] = {{"k", &SessionImage::Layer::k, false},
                       {"v", &SessionImage::Layer::v, false},
                       {"k_scale", &SessionImage::Layer::k_scale, true},
                       {"v_scale", &SessionImage::Layer::v_scale, true}};

std::string tensor_name(size_t layer, const char* part) { return "layer." + std::to_string(layer) + "." + part; }

// Positions that a file of `cached` tokens holds for a layer: what KvCache::first_retained leaves.
int64_t positions(const LayerConfig& layer, int64_t cached) {
  return layer.is_local() ? std::min(cached, std::max<int64_t>(layer.window - 1, 1)) : cached;
}

// A fast 64-bit checksum against accidents, eight bytes at a time.
uint64_t checksum(uint64_t hash, const void* data, int64_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  const auto mix = [&](uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    mix(word);
  }
  uint64_t last = 0;
  if (bytes > 0) std::memcpy(&last, p, static_cast<size_t>(bytes));
  mix(last);
  return hash;
}

std::string image_checksum(const SessionImage& image) {
  uint64_t hash =
      checksum(static_cast<uint64_t>(image.cached), image.tokens.data(), static_cast<int64_t>(image.tokens.size() * sizeof(int32_t)));
  for (const Part& part : kParts) {
    for (const SessionImage::Layer& layer : image.layers) {
      const Tensor& t = layer.*part.tensor;
      if (t) hash = checksum(hash, t.data, t.bytes());
    }
  }
  return std::to_string(hash);
}

// Checks of one file, each with the path in its message.
class Reader {
 public:
  Reader(const std::string& path, const SessionModel& model) : path_(path), model_(model) { image_.file = open_safetensors(path); }

  SessionImage read() {
    check_metadata();
    read_tokens();
    read_layers();
    for (const auto& [name, tensor] : image_.file.tensors) require(seen_.contains(name), "unknown tensor ", name);
    require(image_.file.other_dtypes.empty(), "it holds tensors of types that no session has");
    require(image_checksum(image_) == metadata("checksum"), "its checksum does not match: the contents have changed since it was saved");
    return std::move(image_);
  }

 private:
  template <typename... Parts>
  void require(bool ok, const Parts&... parts) const {
    expect(ok, ErrorCode::bad_file, path_, ": not a session that can be restored: ", parts...);
  }

  const std::string& metadata(const std::string& key) const {
    const auto found = image_.file.metadata.find(key);
    require(found != image_.file.metadata.end(), "metadata lacks \"", key, "\"");
    return found->second;
  }

  void check_metadata() {
    require(metadata("format") == kFormat, "its format is \"", metadata("format"), "\", not \"", kFormat, "\"");
    require(metadata("version") == kVersion, "version ", metadata("version"), ", this build reads version ", kVersion);
    require(metadata("model") == model_.fingerprint, "it was saved from another model");
    const std::string precision(dtype_info(model_.kv_dtype).name);
    require(metadata("precision") == precision, "it was saved with precision ", metadata("precision"), ", the model is loaded with ",
            precision);
    const std::string& cached = metadata("cached");
    const auto [end, error] = std::from_chars(cached.data(), cached.data() + cached.size(), image_.cached);
    require(error == std::errc() && end == cached.data() + cached.size() && image_.cached >= 0, "metadata \"cached\" is \"", cached, "\"");
  }

  const Tensor& tensor(const std::string& name) {
    const auto found = image_.file.tensors.find(name);
    require(found != image_.file.tensors.end(), "tensor ", name, " is missing");
    seen_.insert(name);
    return found->second.view;
  }

  void read_tokens() {
    const Tensor& t = tensor("tokens");
    require(t.dtype == DType::i32 && t.rank == 1, "tensor tokens is ", dtype_info(t.dtype).name, " ", t.shape_text(),
            ", must be i32 [tokens]");
    require(t.shape[0] <= model_.context, t.shape[0], " tokens, the context holds ", model_.context);
    require(image_.cached <= t.shape[0], image_.cached, " cached of ", t.shape[0], " tokens");
    image_.tokens.resize(static_cast<size_t>(t.shape[0]));
    if (!image_.tokens.empty()) std::memcpy(image_.tokens.data(), t.data, static_cast<size_t>(t.bytes()));
    for (int32_t id : image_.tokens)
      require(id >= 0 && id < model_.config->vocab, "token ", id, ", the vocabulary has ", model_.config->vocab);
  }

  void read_layers() {
    if (image_.cached == 0) return;
    for (size_t l = 0; l < model_.config->layers.size(); ++l) {
      SessionImage::Layer& layer = image_.layers.emplace_back();
      for (const Part& part : kParts) {
        if (!part.in(model_.kv_dtype)) continue;
        const std::string name = tensor_name(l, part.name);
        const Tensor& t = tensor(name);
        const Tensor want = part.view(nullptr, model_.kv_dtype, positions(model_.config->layers[l], image_.cached), *model_.config);
        require(t.dtype == want.dtype && t.shape_text() == want.shape_text(), "tensor ", name, " is ", dtype_info(t.dtype).name, " ",
                t.shape_text(), ", must be ", dtype_info(want.dtype).name, " ", want.shape_text());
        layer.*part.tensor = t;
      }
    }
  }

  const std::string& path_;
  const SessionModel& model_;
  SessionImage image_;
  std::set<std::string> seen_;
};

}  // namespace

SessionImage capture_session(const SessionModel& model, std::span<const int32_t> tokens, const KvCache* cache) {
  SessionImage image;
  image.tokens.assign(tokens.begin(), tokens.end());
  image.cached = cache ? cache->length() : 0;
  if (image.cached == 0) return image;
  for (size_t l = 0; l < model.config->layers.size(); ++l) {
    const int64_t rows = positions(model.config->layers[l], image.cached);
    SessionImage::Layer& layer = image.layers.emplace_back();
    for (const Part& part : kParts) {
      if (!part.in(model.kv_dtype)) continue;
      image.owned.push_back(allocate_host(static_cast<size_t>(part.view(nullptr, model.kv_dtype, rows, *model.config).bytes())));
      layer.*part.tensor = part.view(image.owned.back().memory.get(), model.kv_dtype, rows, *model.config);
    }
    cache->export_layer(static_cast<int64_t>(l), layer.rows());
  }
  return image;
}

void write_session(const std::string& path, const SessionModel& model, const SessionImage& image) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  tensors.emplace_back("tokens", Tensor(image.tokens.data(), DType::i32, {static_cast<int64_t>(image.tokens.size())}));
  for (size_t l = 0; l < image.layers.size(); ++l) {
    for (const Part& part : kParts)
      if (part.in(model.kv_dtype)) tensors.emplace_back(tensor_name(l, part.name), image.layers[l].*part.tensor);
  }
  write_safetensors(path, tensors,
                    {{"format", kFormat},
                     {"version", kVersion},
                     {"model", model.fingerprint},
                     {"precision", std::string(dtype_info(model.kv_dtype).name)},
                     {"cached", std::to_string(image.cached)},
                     {"checksum", image_checksum(image)}});
}

SessionImage read_session(const std::string& path, const SessionModel& model) { return Reader(path, model).read(); }

void restore_cache(const SessionImage& image, KvCache& cache) {
  cache.import_begin(image.cached);
  for (size_t l = 0; l < image.layers.size(); ++l) cache.import_layer(static_cast<int64_t>(l), image.layers[l].rows());
}

}  // namespace lapidary
