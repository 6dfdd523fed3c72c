// A checkpoint on disk, opened and checked: which file is what, which tensor is which weight, that none is missing, foreign or of another
// shape than config.json says. Nothing is computed or copied.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "formats/safetensors.h"
#include "model/config.h"
#include "model/quantized.h"
#include "model/tensor_table.h"

namespace lapidary {

// Where a model lies: a GGUF file, or a config.json and the safetensors that belong to it.
struct Place {
  std::string gguf;                // or empty
  std::string config, generation;  // paths
  std::string tensors;             // what open_safetensors takes
};
Place find_place(const std::string& path);

ModelConfig read_config(const Place& place);  // a folder's, not a GGUF file's
void set_vision(ModelConfig& config, bool present);

// Both file types, opened: names -> views.
struct Checkpoint {
  NameStyle style = NameStyle::safetensors;
  std::string path;         // of the model, for messages
  std::string config_name;  // who says what sizes to expect
  ModelConfig config;
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> other_dtypes;  // name -> a dtype that cannot be computed on
  std::vector<std::string> files;
};
Checkpoint open_checkpoint(const std::string& path);

using SlotNames = std::map<TensorSlot, std::string>;

// The names of a checkpoint's tensors by what they are.
struct Slots {
  SlotNames weights;                                                // the matrix or the norm
  std::map<std::pair<TensorSlot, TensorPart>, std::string> others;  // what a quantised checkpoint stores beside it
  bool has_vision = false;
};

// Gives every tensor of the file its slot; what has none, or shares one, fails.
Slots assign_slots(const Checkpoint& c);

// How config.json says that a matrix is quantised, or null.
const QuantScheme* scheme_of(const Checkpoint& c, const TensorSlot& slot, const std::string& name);
QuantTensors quant_tensors(const Checkpoint& c, const Slots& slots, const TensorSlot& slot);

// Every weight is there with the config's shape and a dtype that can be computed on, or Error(bad_file | unsupported) names what is not.
void check_complete(const Checkpoint& c, const Slots& slots);

// A head in the file that is the embedding again is tied, whatever the config says; one that differs is a head of its own, as
// transformers takes it.
bool has_own_head(const Checkpoint& c, const Slots& slots);

}  // namespace lapidary
