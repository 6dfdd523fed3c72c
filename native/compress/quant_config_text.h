// The quantization_config of a compressed-tensors checkpoint as JSON text, and its place in a config.json whose other members keep their
// spelling to the letter.
#pragma once

#include <map>
#include <string>

#include "model/tensor_table.h"
#include "ops/ops.h"

namespace lapidary {

// `linears`: the quantised matrices; the others of the layers are listed as ignored. `per_channel`: of the layers' weights; the embedding's
// always are. `nested`: the text model is part of a larger one,
// whose modules other programs name in more than one way.
std::string quant_config_text(const ModelConfig& config, const std::map<TensorSlot, ActScheme>& linears, bool per_channel, bool nested);

// The object `text` of the file `path` with the member `key` set to `value`, JSON text, at the end.
std::string with_member(const std::string& text, const std::string& path, const std::string& key, const std::string& value);

}  // namespace lapidary
