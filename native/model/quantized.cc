// compressed-tensors: the keys of its configs, and its tensors.
#include "model/quantized.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

using Type = JsonValue::Type;

constexpr std::string_view kInstead = "; load the unquantised checkpoint, or one with symmetric int8 weights per channel";

// One object of the quantization_config, with its place in the file for messages. Null counts as absent.
class Section {
 public:
  Section(const JsonValue& value, const std::string& path, std::string name) : value_(value), path_(path), name_(std::move(name)) {
    expect(value.is(Type::object), ErrorCode::bad_file, path_, ": ", name_, " must be an object, found ", type_name(value.type()));
  }

  template <typename... Parts>
  [[noreturn]] void refuse(std::string_view key, const Parts&... what) const {
    fail(ErrorCode::unsupported, path_, ": ", name_, ".", key, " ", what..., kInstead);
  }
  template <typename... Parts>
  [[noreturn]] void wrong(std::string_view key, const Parts&... what) const {
    fail(ErrorCode::bad_file, path_, ": ", name_, ".", key, " ", what..., "; is the download complete and unchanged?");
  }

  const JsonValue* find(std::string_view key) const { return value_.find(key); }
  const JsonValue& value() const { return value_; }
  std::optional<Section> section(std::string_view key) const {
    const JsonValue* value = find(key);
    if (!value) return {};
    return Section(*value, path_, name_ + "." + std::string(key));
  }
  std::string text(std::string_view key, std::string_view fallback) const {
    const JsonValue* value = find(key);
    if (!value) return std::string(fallback);
    if (!value->is(Type::string)) wrong(key, "must be a string, found ", type_name(value->type()));
    return value->string();
  }
  bool flag(std::string_view key, bool fallback) const {
    const JsonValue* value = find(key);
    if (!value) return fallback;
    if (value->is(Type::string)) refuse(key, "is \"", value->string(), "\", only true and false are supported");
    if (!value->is(Type::boolean)) wrong(key, "must be true or false, found ", type_name(value->type()));
    return value->boolean();
  }
  double number(std::string_view key, double fallback) const {
    const JsonValue* value = find(key);
    if (!value) return fallback;
    if (!value->is(Type::number)) wrong(key, "must be a number, found ", type_name(value->type()));
    return value->number();
  }
  bool is_filled(std::string_view key) const {  // neither absent, null nor {}
    const JsonValue* value = find(key);
    return value && !(value->is(Type::object) && value->object().empty());
  }
  std::vector<ModuleTarget> targets(std::string_view key) const {
    std::vector<ModuleTarget> all;
    const JsonValue* value = find(key);
    if (!value) return all;
    if (!value->is(Type::array)) wrong(key, "must be an array of strings, found ", type_name(value->type()));
    for (const JsonValue& one : value->array()) {
      if (!one.is(Type::string)) wrong(key, "must be an array of strings, has ", type_name(one.type()));
      try {
        all.emplace_back(one.string());
      } catch (const Error& e) {
        fail(e.code(), path_, ": ", name_, ".", key, ": ", e.what());
      }
    }
    return all;
  }

 private:
  const JsonValue& value_;
  const std::string& path_;
  const std::string name_;
};

// What weights and inputs have in common: 8-bit symmetric integers. Defaults are those of the format.
void require_int8(const Section& args) {
  const std::string type = args.text("type", "int");
  const double bits = args.number("num_bits", 8);
  if (type != "int") args.refuse("type", "is \"", type, "\", only \"int\" is supported");
  if (bits != 8) args.refuse("num_bits", "is ", bits, ", only 8 is supported");
  if (!args.flag("symmetric", true)) args.refuse("symmetric", "is false: asymmetric quantisation (zero points) is not supported");
}

bool per_channel(const Section& weights) {
  require_int8(weights);
  if (weights.flag("dynamic", false)) weights.wrong("dynamic", "is true: weights have fixed scales");
  const double group_size = weights.number("group_size", -1);
  const std::string strategy = weights.text("strategy", weights.find("group_size") ? (group_size > 0 ? "group" : "channel") : "tensor");
  if (strategy != "channel" && strategy != "tensor")
    weights.refuse("strategy", "is \"", strategy, "\", only \"channel\" and \"tensor\" are supported");
  if (group_size > 0) weights.refuse("group_size", "is ", group_size, ": scales per group of inputs are not supported");
  return strategy == "channel";
}

ActScheme activation_scheme(const Section& group) {
  const std::optional<Section> inputs = group.section("input_activations");
  if (!inputs) return ActScheme::none;
  require_int8(*inputs);
  const bool dynamic = inputs->flag("dynamic", false);
  const std::string strategy = inputs->text("strategy", dynamic ? "token" : "tensor");
  if (strategy == "token") {
    if (!dynamic) inputs->wrong("strategy", "is \"token\" with dynamic false: there is no such scheme");
    return ActScheme::token;
  }
  if (strategy != "tensor") inputs->refuse("strategy", "is \"", strategy, "\", only \"token\" and \"tensor\" are supported");
  return dynamic ? ActScheme::sequence : ActScheme::fixed;
}

bool is_packed(const Section& section, const std::string& format) {
  if (format == "pack-quantized") return true;
  if (format == "int-quantized" || format == "naive-quantized") return false;
  section.refuse("format", "is \"", format, "\", only \"int-quantized\" and \"pack-quantized\" are supported");
}

QuantGroup read_group(const Section& group, const std::string& format) {
  QuantGroup out;
  if (!group.find("targets")) group.wrong("targets", "is missing");
  out.targets = group.targets("targets");
  const std::optional<Section> weights = group.section("weights");
  if (!weights) group.refuse("weights", "is null: quantised inputs of weights that are not are not supported");
  if (group.find("output_activations")) group.refuse("output_activations", "is set: quantised outputs are not supported");
  out.scheme.per_channel = per_channel(*weights);
  out.scheme.activations = activation_scheme(group);
  const std::string own = group.text("format", format);
  if (own == "mixed-precision") group.wrong("format", "is missing, with \"mixed-precision\" above it");
  out.scheme.packed = is_packed(group, own);
  return out;
}

std::string describe(const QuantConfig& config) {
  bool seen[4] = {};
  for (const QuantGroup& group : config.groups) seen[static_cast<int>(group.scheme.activations)] = true;
  std::string text;
  const auto add = [&](ActScheme scheme, const char* words) {
    if (seen[static_cast<int>(scheme)])
      text += (text.empty() ? "int8 weights (compressed-tensors), inputs " : "; others ") + std::string(words);
  };
  add(ActScheme::token, "quantised per token");
  add(ActScheme::sequence, "quantised with a scale per sequence and step");
  add(ActScheme::fixed, "quantised with calibrated scales");
  add(ActScheme::none, "not quantised");
  return text;
}

bool strip(std::string_view& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  return true;
}

// Patterns are written against the module tree in memory, files follow the published layout, and both have changed.
std::vector<std::string> module_names(std::string_view module) {
  std::vector<std::string> names = {std::string(module)};
  strip(module, "model.");
  strip(module, "language_model.");
  strip(module, "model.");
  const bool head = module == "lm_head";
  for (const char* prefix : {"model.", "model.language_model.", "language_model.model.", "language_model."})
    if (!head || std::string_view(prefix) == "language_model.") names.push_back(prefix + std::string(module));
  if (head) names.push_back("lm_head");
  return names;
}

bool is_number(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

std::vector<float> widened(const Tensor& view) {
  std::vector<float> values(static_cast<size_t>(view.elements()));
  if (!values.empty()) dequantize_row(view.dtype, view.data, view.elements(), values.data());
  return values;
}

bool all_zero(const Tensor& view) {
  return std::all_of(view.data, view.data + view.bytes(), [](std::byte b) { return b == std::byte{}; });
}

int64_t packed_columns(int64_t in) { return (in + 3) / 4; }

// One allocation behind a Linear: the file's mapping, and what was made from it.
struct Kept {
  std::shared_ptr<const MappedFile> file;
  Buffer scales, numbers;
};

}  // namespace

ModuleTarget::ModuleTarget(std::string text) : text_(std::move(text)) {
  if (std::string_view rest = text_; strip(rest, "re:")) pattern_ = std::make_shared<const NamePattern>(rest);
}

ModuleTarget::Match ModuleTarget::match(const std::vector<std::string>& names, std::string_view class_name) const {
  if (pattern_) {
    const bool any = std::any_of(names.begin(), names.end(), [&](const std::string& name) { return pattern_->matches(name); });
    return any ? Match::by_pattern : Match::none;
  }
  if (std::find(names.begin(), names.end(), text_) != names.end()) return Match::by_name;
  return text_ == class_name ? Match::by_class : Match::none;
}

const QuantScheme* QuantConfig::scheme_of(std::string_view module, bool is_embedding) const {
  const std::vector<std::string> names = module_names(module);
  const std::string_view class_name = is_embedding ? "Embedding" : "Linear";
  for (const ModuleTarget& target : ignore) {
    if (target.match(names, class_name) != ModuleTarget::Match::none) return nullptr;
  }
  const QuantScheme* best = nullptr;
  ModuleTarget::Match how = ModuleTarget::Match::none;
  for (const QuantGroup& group : groups) {
    for (const ModuleTarget& target : group.targets) {
      const ModuleTarget::Match match = target.match(names, class_name);
      if (match > how) how = match, best = &group.scheme;
    }
  }
  return best;
}

std::shared_ptr<const QuantConfig> read_quant_config(const JsonValue& object, const std::string& path, const std::string& key) {
  const Section top(object, path, key);
  const std::string method = top.text("quant_method", "unknown");
  if (method != "compressed-tensors") top.refuse("quant_method", "is \"", method, "\", only \"compressed-tensors\" is supported");
  const std::string status = top.text("quantization_status", "compressed"), format = top.text("format", "int-quantized");
  if (status != "compressed") top.refuse("quantization_status", "is \"", status, "\", only \"compressed\" is supported");
  if (const std::optional<Section> sparsity = top.section("sparsity_config"); sparsity && sparsity->text("format", "dense") != "dense")
    sparsity->refuse("format", "is \"", sparsity->text("format", ""), "\": sparse weights are not supported in this layout");
  if (top.is_filled("transform_config")) top.refuse("transform_config", "is set: transforms of inputs (rotations) are not supported");

  auto config = std::make_shared<QuantConfig>();
  const std::optional<Section> groups = top.section("config_groups");
  if (!groups || groups->value().object().empty()) top.wrong("config_groups", "is missing or empty");
  for (const auto& [name, value] : groups->value().object()) {
    if (value.is(Type::array)) groups->refuse(name, "is a list for a preset: only groups written out are supported");
    const Section group(value, path, key + ".config_groups." + name);
    config->groups.push_back(read_group(group, format));
  }
  config->ignore = top.targets("ignore");
  config->summary = describe(*config);
  if (top.is_filled("kv_cache_scheme"))
    config->notes.push_back("the checkpoint's kv_cache_scheme is not used: keys and values are kept in the precision of the model");
  return config;
}

void check_quantized(const QuantTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in, const std::string& path,
                     const std::string& module) {
  const auto require = [&](bool ok, const char* part, const auto&... what) {
    expect(ok, ErrorCode::bad_file, path, ": ", module, part, " ", what..., "; download the checkpoint again, or quantise it anew");
  };
  const Tensor& weight = tensors.weight->view;
  const char* part = scheme.packed ? ".weight_packed" : ".weight";
  const DType dtype = scheme.packed ? DType::i32 : DType::i8;
  const int64_t columns = scheme.packed ? packed_columns(in) : in;
  require(weight.dtype == dtype, part, "is stored as ", dtype_info(weight.dtype).name, ", config.json says ", dtype_info(dtype).name);
  require(weight.rank == 2 && weight.shape[0] == out && weight.shape[1] == columns, part, "has shape ", weight.shape_text(),
          ", config.json says [", out, ", ", columns, "]");

  require(tensors.scale, ".weight_scale", "is missing, config.json says that this layer is quantised");
  const Tensor& scale = tensors.scale->view;
  require(is_number(scale.dtype), ".weight_scale", "is stored as ", dtype_info(scale.dtype).name, ", expected f32, bf16 or f16");
  const int64_t scales = scheme.per_channel ? out : 1;
  require(scale.shape[0] == scales && (scale.rank == 1 || (scale.rank == 2 && scale.shape[1] == 1)), ".weight_scale", "has shape ",
          scale.shape_text(), ", config.json says [", scales, ", 1]");
  for (const float value : widened(scale))
    require(std::isfinite(value) && value >= 0, ".weight_scale", "holds ", value, ", expected finite numbers that are not negative");

  const bool fixed = scheme.activations == ActScheme::fixed;
  require(fixed == (tensors.input_scale != nullptr), ".input_scale",
          fixed ? "is missing, config.json says that inputs have a calibrated scale"
                : "is in the file, config.json says that inputs have no calibrated scale");
  if (fixed) {
    const Tensor& input = tensors.input_scale->view;
    require(is_number(input.dtype) && input.elements() == 1, ".input_scale", "is ", dtype_info(input.dtype).name, " ", input.shape_text(),
            ", expected one number in f32, bf16 or f16");
    const float value = widened(input)[0];
    require(std::isfinite(value) && value >= FLT_MIN, ".input_scale", "is ", value, ", expected a positive number");
  }
  for (const auto& [zero_point, name] :
       {std::pair(tensors.zero_point, "weight_zero_point"), {tensors.input_zero_point, "input_zero_point"}}) {
    expect(!zero_point || all_zero(zero_point->view), ErrorCode::unsupported, path, ": ", module, ".", name,
           " is not zero: asymmetric quantisation is not supported", kInstead);
  }
}

Linear quantized_linear(const QuantTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in) {
  auto kept = std::make_shared<Kept>();
  kept->file = tensors.weight->file;
  kept->scales = allocate_host(static_cast<size_t>(out) * sizeof(float));
  Linear linear;
  linear.weight = tensors.weight->view;
  if (scheme.packed) {  // byte i of a row is number i plus 128
    kept->numbers = allocate_host(static_cast<size_t>(out * in));
    linear.weight = kept->numbers.tensor(DType::i8, {out, in});
    for (int64_t row = 0; row < out; ++row) {
      const std::byte* from = tensors.weight->view.data + row * 4 * packed_columns(in);
      for (int64_t i = 0; i < in; ++i) linear.weight.data[row * in + i] = from[i] ^ std::byte{0x80};
    }
  }
  linear.scale = kept->scales.tensor(DType::f32, {out});
  const std::vector<float> scales = widened(tensors.scale->view);
  for (int64_t row = 0; row < out; ++row) linear.scale.as<float>()[row] = scales[scheme.per_channel ? static_cast<size_t>(row) : 0];
  linear.activations = scheme.activations;
  if (scheme.activations == ActScheme::fixed) linear.input_scale = widened(tensors.input_scale->view)[0];
  linear.keep = std::move(kept);
  return linear;
}

}  // namespace lapidary
