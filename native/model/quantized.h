// int8 checkpoints in the compressed-tensors layout: what config.json's quantization_config says of each layer, and the stored numbers and
// scales as a Linear. Everything read is distrusted: Error(bad_file) or Error(unsupported) with what to do.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/name_pattern.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "ops/ops.h"

namespace lapidary {

// How the layers of one group are stored and computed.
struct QuantScheme {
  bool per_channel = true;  // a scale per output channel; false: one per matrix
  bool packed = false;      // four numbers in an i32 (`weight_packed`); false: i8 (`weight`)
  ActScheme activations = ActScheme::none;
};

// The modules that an entry of `targets` or `ignore` names: a pattern after "re:", a module's whole name, or a class.
class ModuleTarget {
 public:
  explicit ModuleTarget(std::string text);

  enum class Match { none, by_class, by_pattern, by_name };  // a later one is more specific
  // `names`: every name under which transformers has known the module.
  Match match(const std::vector<std::string>& names, std::string_view class_name) const;

 private:
  std::string text_;
  std::shared_ptr<const NamePattern> pattern_;  // null: no pattern
};

struct QuantGroup {
  std::vector<ModuleTarget> targets;
  QuantScheme scheme;
};

struct QuantConfig {
  std::vector<QuantGroup> groups;
  std::vector<ModuleTarget> ignore;
  std::string summary;             // for people: "int8 weights (compressed-tensors), inputs quantised per token"
  std::vector<std::string> notes;  // what of the config has no effect here, one sentence each

  // Null: the module is not quantised. The most specific target counts, of equal ones the first. `module` is the name in the file without
  // ".weight"; `is_embedding` says its class.
  const QuantScheme* scheme_of(std::string_view module, bool is_embedding) const;
};

// `object` is the quantization_config of the file `path`, `key` its name there.
std::shared_ptr<const QuantConfig> read_quant_config(const JsonValue& object, const std::string& path, const std::string& key);

// What a file holds for one quantised layer, by names; null where it has none.
struct QuantTensors {
  const StoredTensor* weight = nullptr;
  const StoredTensor* scale = nullptr;
  const StoredTensor* input_scale = nullptr;
  const StoredTensor* zero_point = nullptr;
  const StoredTensor* input_zero_point = nullptr;
};

// Checks shapes, types and values of a layer [out, in]; `module` and `path` for messages.
void check_quantized(const QuantTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in, const std::string& path,
                     const std::string& module);
// The layer in host memory, after that check: i8 in the mapping or unpacked, scales f32 [out].
Linear quantized_linear(const QuantTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in);

}  // namespace lapidary
