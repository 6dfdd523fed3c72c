#include "train/cushion_tuning_state.h"

#include <cstring>
#include <limits>

#include "base/error.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"

namespace lapidary {

namespace {

constexpr const char* kFormat = "lapidary cushion tuning 1";

// Everything the file holds, by name; where it lies in memory.
std::vector<std::pair<std::string, Tensor>> tensors_of(const TuningState& state, const Optimizer& optimizer) {
  std::vector<std::pair<std::string, Tensor>> all = optimizer.state();
  for (const auto& [name, cushion] : {std::pair{"current", &state.current}, std::pair{"best", &state.best}}) {
    for (size_t l = 0; l < cushion->k.size(); ++l) {
      all.emplace_back(std::string(name) + ".k." + std::to_string(l), cushion->k[l]);
      all.emplace_back(std::string(name) + ".v." + std::to_string(l), cushion->v[l]);
    }
  }
  return all;
}

double number_at(const JsonValue& object, const char* key) {
  const JsonValue* found = object.find(key);
  return found ? found->number() : std::numeric_limits<double>::infinity();
}

int64_t integer_at(const JsonValue& object, const char* key, const std::string& path) {
  const JsonValue* found = object.find(key);
  expect(found != nullptr && found->integer() >= 0, ErrorCode::bad_file, path, ": `", key, "` is missing or negative");
  return found->integer();
}

}  // namespace

Cushion copy_cushion(const Cushion& cushion) {
  Cushion copy;
  copy.tokens = cushion.tokens;
  copy.window = cushion.window;
  copy.notes = cushion.notes;
  for (const auto& [from, to] : {std::pair{&cushion.k, &copy.k}, std::pair{&cushion.v, &copy.v}}) {
    for (const Tensor& t : *from) {
      const Buffer& buffer = copy.owned.emplace_back(allocate_host(static_cast<size_t>(t.bytes())));
      to->push_back(buffer.tensor(DType::f32, {t.shape[0], t.shape[1], t.shape[2]}));
      std::memcpy(to->back().data, t.data, static_cast<size_t>(t.bytes()));
    }
  }
  return copy;
}

std::string held_out_json(std::span<const HeldOut> measured, bool only) {
  std::string text;
  for (const HeldOut& m : measured) {
    text += std::string(text.empty() ? "" : ",") + "{\"step\":" + std::to_string(m.step) + ",\"quantised\":" + json_number(m.quantised) +
            ",\"unquantised\":" + json_number(m.unquantised) + ",\"error\":" + json_number(m.error) +
            ",\"training\":" + json_number(m.training) + '}';
  }
  return only ? text : '[' + text + ']';
}

void save_tuning_state(const std::string& path, const TuningState& state, const Optimizer& optimizer) {
  const std::string figures = "{\"step\":" + std::to_string(state.step) + ",\"bestAt\":" + std::to_string(state.best_at) +
                              ",\"withoutBetter\":" + std::to_string(state.without_better) +
                              ",\"skipped\":" + std::to_string(state.skipped) + ",\"optimizerSteps\":" + std::to_string(optimizer.steps()) +
                              ",\"errorAtStart\":" + json_number(state.error_at_start) +
                              ",\"measured\":" + held_out_json(state.measured, false) + '}';
  write_safetensors(path, tensors_of(state, optimizer), {{"format", kFormat}, {"identity", state.identity}, {"figures", figures}});
}

void load_tuning_state(const std::string& path, TuningState& state, Optimizer& optimizer) {
  if (!is_file(path)) return;
  TensorFile file = open_safetensors(path);
  expect(file.metadata["format"] == kFormat, ErrorCode::bad_file, path, ": is not the state of a cushion's tuning");
  expect(file.metadata["identity"] == state.identity, ErrorCode::invalid_argument, path,
         " is the state of a tuning of another model or cushion, with other options or other texts");
  for (const auto& [name, tensor] : tensors_of(state, optimizer)) {
    const auto found = file.tensors.find(name);
    expect(found != file.tensors.end() && found->second.view.dtype == DType::f32 && found->second.view.bytes() == tensor.bytes(),
           ErrorCode::bad_file, path, ": tensor ", name, " is missing or of another shape");
    std::memcpy(tensor.data, found->second.view.data, static_cast<size_t>(tensor.bytes()));
  }
  const JsonValue root = JsonValue::parse(file.metadata["figures"], path);
  state.step = integer_at(root, "step", path);
  state.best_at = integer_at(root, "bestAt", path);
  state.without_better = integer_at(root, "withoutBetter", path);
  state.skipped = integer_at(root, "skipped", path);
  state.error_at_start = number_at(root, "errorAtStart");
  optimizer.set_steps(integer_at(root, "optimizerSteps", path));
  const JsonValue* measured = root.find("measured");
  expect(measured != nullptr, ErrorCode::bad_file, path, ": `measured` is missing");
  state.measured.clear();
  for (const JsonValue& m : measured->array())
    state.measured.push_back({integer_at(m, "step", path), number_at(m, "quantised"), number_at(m, "unquantised"), number_at(m, "error"),
                              number_at(m, "training")});
  expect(state.best_at < static_cast<int64_t>(state.measured.size()), ErrorCode::bad_file, path, ": `bestAt` is out of range");
}

}  // namespace lapidary
