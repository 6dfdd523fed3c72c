// The layout of the new checkpoint follows from the plan; its bytes then come layer by layer, and the rest from the source at the end.
#include "compress/save_checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "compress/quant_config_text.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"
#include "model/weights.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

namespace fs = std::filesystem;

// What belongs to a checkpoint besides its weights and config.json, where the source has it.
constexpr const char* kCompanions[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
};

std::string reason(int error) { return std::generic_category().message(error); }

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// A hidden folder beside the target, which takes its place or goes.
class StagedFolder {
 public:
  explicit StagedFolder(const std::string& target) : target_(without_slashes(target)) {
    static std::atomic<uint64_t> counter{0};
    std::error_code error;
    expect(!target_.empty() && target_.find('\0') == target_.npos, ErrorCode::invalid_argument,
           "saving: an empty folder name, or one with a zero byte in it");
    const bool exists = fs::exists(target_, error);
    expect(!exists || (fs::is_directory(target_, error) && fs::is_empty(target_, error)), ErrorCode::invalid_argument, target_,
           ": is there already; choose a folder that does not exist or is empty");
    do folder_ = folder_of(target_) + "/.lapidary-" + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".tmp";
    while (::mkdir(folder_.c_str(), 0777) != 0 && errno == EEXIST);
    if (!is_directory(folder_)) {
      const std::string why = reason(errno);
      folder_.clear();
      fail(ErrorCode::bad_file, "cannot write ", target_, ": ", why, " (the folder above it must exist and be writable)");
    }
  }
  ~StagedFolder() {
    std::error_code ignored;
    if (!folder_.empty()) fs::remove_all(folder_, ignored);
  }
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  const std::string& folder() const { return folder_; }
  void commit() {
    expect(std::rename(folder_.c_str(), target_.c_str()) == 0, ErrorCode::bad_file, "cannot put ", target_, " in place: ", reason(errno));
    folder_.clear();
  }

 private:
  const std::string target_;
  std::string folder_;
};

void write_text(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

bool is_layer_matrix(TensorRole role) { return !is_norm(role) && role != TensorRole::embedding && role != TensorRole::head; }

// Matrices that other programs fuse into one, by the first of them.
TensorSlot fused_into(const TensorSlot& slot) {
  if (slot.role == TensorRole::k || slot.role == TensorRole::v) return {TensorRole::q, slot.layer};
  if (slot.role == TensorRole::up) return {TensorRole::gate, slot.layer};
  return slot;
}

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

std::vector<std::byte> norm_bytes(std::span<const float> values, DType dtype) {
  std::vector<std::byte> bytes(static_cast<size_t>(dtype_bytes(dtype, static_cast<int64_t>(values.size()))));
  if (dtype == DType::f32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      const bf16 rounded = to_bf16(values[i]);
      std::memcpy(bytes.data() + 2 * i, &rounded, 2);
    }
  }
  return bytes;
}

}  // namespace

CheckpointPlan plan_all_layers(const ModelConfig& config, ActScheme activations) {
  CheckpointPlan plan;
  for (const TensorSlot& slot : expected_slots(config)) {
    if (is_layer_matrix(slot.role)) plan.linears[slot] = activations;
  }
  return plan;
}

struct CheckpointWriter::State {
  CheckpointPlan plan;
  std::string folder;  // of the source
  ModelConfig config;
  TensorFile file;
  std::map<TensorSlot, std::string> names;  // of the source's weights
  std::unique_ptr<StagedFolder> staged;
  std::unique_ptr<SafetensorsWriter> writer;
  std::set<std::string> given;               // tensors of the source that need not be copied
  std::map<TensorSlot, float> input_scales;  // by the first of those that are fused

  void open(const std::string& source);
  void check_plan() const;
  DType norm_dtype(const std::string& name) const;
  const std::string& name_of(const TensorSlot& slot) const;
  std::vector<SafetensorsEntry> entries() const;
  void copy(const std::string& name, const Tensor& view);
  void copy_companions() const;
};

void CheckpointWriter::State::open(const std::string& source) {
  expect(
      !source.ends_with(".gguf"), ErrorCode::unsupported, source,
      ": saving needs the config.json and the tokenizer of a Hugging Face folder; load the model from its safetensors checkpoint instead");
  folder = is_directory(source) ? without_slashes(source) : folder_of(source);
  config = load_config(source);
  expect(!config.quantization, ErrorCode::unsupported, source, ": is quantised already; start from the unquantised checkpoint");
  file = open_safetensors(source);
  for (const auto& [name, dtype] : file.other_dtypes)
    fail(ErrorCode::unsupported, source, ": ", name, " is stored as ", dtype, ", which cannot be taken over");
  for (const auto& [name, stored] : file.tensors) {
    const NameMatch match = match_tensor_name(NameStyle::safetensors, name);
    if (match.kind == NameMatch::Kind::weight && match.part == TensorPart::weight) names[match.slot] = name;
  }
}

const std::string& CheckpointWriter::State::name_of(const TensorSlot& slot) const {
  const auto found = names.find(slot);
  expect(found != names.end(), ErrorCode::invalid_argument, "saving: ", folder, " has no ", slot_name(NameStyle::safetensors, slot));
  return found->second;
}

void CheckpointWriter::State::check_plan() const {
  expect(!plan.linears.empty() && plan.max_shard_bytes > 0, ErrorCode::invalid_argument, "saving: the plan quantises nothing");
  for (const auto& [slot, scheme] : plan.linears) {
    const std::string& name = name_of(slot);
    const Tensor& view = file.tensors.at(name).view;
    const std::vector<int64_t> shape = slot_shape(slot, config);
    const bool allowed = is_layer_matrix(slot.role) || (slot.role == TensorRole::embedding && scheme == ActScheme::none);
    expect(allowed, ErrorCode::invalid_argument, "saving: ", name, " cannot be quantised in this way");
    expect(std::equal(shape.begin(), shape.end(), view.shape, view.shape + view.rank), ErrorCode::bad_file, folder, ": ", name,
           " has shape ", view.shape_text(), ", config.json says otherwise");
    const auto first = plan.linears.find(fused_into(slot));
    expect(first != plan.linears.end() && first->second == scheme, ErrorCode::invalid_argument, "saving: ", name, " and ",
           name_of(fused_into(slot)), " must be quantised alike");
    for (const TensorRole role : {TensorRole::k, TensorRole::v, TensorRole::up}) {
      const TensorSlot other{role, slot.layer};
      if (other != slot && fused_into(other) == slot)
        expect(plan.linears.contains(other), ErrorCode::invalid_argument, "saving: ", name, " and ", name_of(other),
               " must be quantised alike");
    }
  }
}

// f16 has no rounding here; f32 holds it exactly.
DType CheckpointWriter::State::norm_dtype(const std::string& name) const {
  const DType dtype = file.tensors.at(name).view.dtype;
  return plan.f32_norms || dtype == DType::f16 ? DType::f32 : dtype;
}

std::vector<SafetensorsEntry> CheckpointWriter::State::entries() const {
  std::vector<SafetensorsEntry> all;
  for (const auto& [name, stored] : file.tensors) {
    const NameMatch match = match_tensor_name(NameStyle::safetensors, name);
    const bool weight = match.kind == NameMatch::Kind::weight && match.part == TensorPart::weight;
    const auto planned = weight ? plan.linears.find(match.slot) : plan.linears.end();
    const Tensor& view = stored.view;
    if (planned != plan.linears.end()) {
      all.push_back({name, DType::i8, {view.shape[0], view.shape[1]}});
      if (plan.is_per_channel(match.slot))
        all.push_back({module_of(name) + ".weight_scale", DType::f32, {view.shape[0], 1}});
      else
        all.push_back({module_of(name) + ".weight_scale", DType::f32, {1}});
      if (planned->second == ActScheme::fixed) all.push_back({module_of(name) + ".input_scale", DType::f32, {1}});
    } else {
      const bool norm = weight && is_norm(match.slot.role);
      all.push_back({name, norm ? norm_dtype(name) : view.dtype, {view.shape, view.shape + view.rank}});
    }
  }
  return all;
}

void CheckpointWriter::State::copy(const std::string& name, const Tensor& view) {
  const NameMatch match = match_tensor_name(NameStyle::safetensors, name);
  const bool norm = match.kind == NameMatch::Kind::weight && is_norm(match.slot.role);
  if (!norm || norm_dtype(name) == view.dtype) return writer->write(name, view.data, view.bytes());
  std::vector<float> values(static_cast<size_t>(view.elements()));
  dequantize_row(view.dtype, view.data, view.elements(), values.data());
  writer->write(name, values.data(), view.elements() * static_cast<int64_t>(sizeof(float)));
}

void CheckpointWriter::State::copy_companions() const {
  for (const char* name : kCompanions) {
    const std::string from = folder + "/" + name;
    if (is_file(from)) write_text(staged->folder() + "/" + name, read_text_file(from));
  }
}

CheckpointWriter::CheckpointWriter(const std::string& source, const std::string& target, const CheckpointPlan& plan)
    : state_(std::make_unique<State>()) {
  state_->plan = plan;
  state_->open(source);
  state_->check_plan();
  state_->staged = std::make_unique<StagedFolder>(target);
  const std::string config_path = state_->folder + "/config.json";
  const std::string text = read_text_file(config_path);
  const bool nested = JsonValue::parse(text, config_path).find("text_config") != nullptr;
  const std::string quantization = quant_config_text(state_->config, plan.linears, plan.per_channel, nested);
  std::string new_config = with_member(text, config_path, "quantization_config", quantization);
  if (plan.cushion) {
    const std::string facts = "{\"cushion\": " + json_quote(cushion_fingerprint(*plan.cushion)) + "}";
    new_config = with_member(new_config, config_path, "lapidary", facts);
    Cushion kept = *plan.cushion;
    kept.notes["fingerprint"] = cushion_fingerprint(kept);
    write_cushion(state_->staged->folder() + "/cushion.safetensors", kept);
  }
  write_text(state_->staged->folder() + "/config.json", new_config);
  state_->writer = std::make_unique<SafetensorsWriter>(state_->staged->folder(), "model", state_->entries(), plan.max_shard_bytes,
                                                       std::map<std::string, std::string>{{"format", "pt"}});
}

CheckpointWriter::~CheckpointWriter() {
  if (state_) state_->writer.reset();  // its temporaries before their folder
}

void CheckpointWriter::linear(const TensorSlot& slot, const Linear& quantised) {
  const std::string& name = state_->name_of(slot);
  const auto require = [&](bool ok, const auto&... what) { expect(ok, ErrorCode::invalid_argument, "saving ", name, ": ", what...); };
  const auto planned = state_->plan.linears.find(slot);
  require(planned != state_->plan.linears.end(), "the plan leaves it as it is");
  const std::vector<int64_t> shape = slot_shape(slot, state_->config);
  const Tensor &weight = quantised.weight, &scale = quantised.scale;
  require(weight.device == Device::host && weight.dtype == DType::i8 && weight.rank == 2 && weight.shape[0] == shape[0] &&
              weight.shape[1] == shape[1],
          "the weight is ", dtype_info(weight.dtype).name, " ", weight.shape_text(), ", expected i8 [", shape[0], ", ", shape[1], "]");
  require(scale.device == Device::host && scale.dtype == DType::f32 && scale.elements() == shape[0], "the scales are ",
          dtype_info(scale.dtype).name, " ", scale.shape_text(), ", expected f32 [", shape[0], "]");
  const float* scales = scale.as<float>();
  require(std::all_of(scales, scales + shape[0], [](float s) { return std::isfinite(s) && s > 0; }), "a scale is not a positive number");
  const bool per_channel = state_->plan.is_per_channel(slot);
  require(per_channel || std::all_of(scales, scales + shape[0], [&](float s) { return s == scales[0]; }),
          "the rows' scales differ, the plan says one per matrix");
  require(quantised.activations == planned->second, "its inputs are treated otherwise than planned");
  const bool fixed = planned->second == ActScheme::fixed;
  if (fixed) {
    const float input_scale = quantised.input_scale;
    require(std::isfinite(input_scale) && input_scale > 0, "its input scale is ", input_scale);
    const auto [other, fresh] = state_->input_scales.try_emplace(fused_into(slot), input_scale);
    require(fresh || other->second == input_scale, "its input scale is ", input_scale, ", that of the others with the same input is ",
            other->second);
  }
  require(state_->given.insert(name).second, "it was given already");
  state_->writer->write(name, weight.data, weight.bytes());
  state_->writer->write(module_of(name) + ".weight_scale", scale.data, per_channel ? scale.bytes() : static_cast<int64_t>(sizeof(float)));
  if (fixed) state_->writer->write(module_of(name) + ".input_scale", &quantised.input_scale, sizeof(float));
}

void CheckpointWriter::norm(const TensorSlot& slot, std::span<const float> weight) {
  const std::string& name = state_->name_of(slot);
  expect(is_norm(slot.role) && static_cast<int64_t>(weight.size()) == slot_shape(slot, state_->config)[0], ErrorCode::invalid_argument,
         "saving ", name, ": ", weight.size(), " numbers for a norm of another size");
  expect(state_->given.insert(name).second, ErrorCode::invalid_argument, "saving ", name, ": it was given already");
  const std::vector<std::byte> bytes = norm_bytes(weight, state_->norm_dtype(name));
  state_->writer->write(name, bytes.data(), static_cast<int64_t>(bytes.size()));
}

void CheckpointWriter::commit() {
  for (const auto& [slot, scheme] : state_->plan.linears) {
    expect(state_->given.contains(state_->name_of(slot)), ErrorCode::invalid_argument, "saving: ", state_->name_of(slot), " was not given");
  }
  for (const auto& [name, stored] : state_->file.tensors) {
    if (state_->given.contains(name)) continue;
    state_->copy(name, stored.view);
    stored.file->release(stored.view.data, static_cast<size_t>(stored.view.bytes()));
  }
  state_->writer->commit();
  state_->copy_companions();
  state_->staged->commit();
}

}  // namespace lapidary
