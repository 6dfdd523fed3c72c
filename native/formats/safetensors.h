// safetensors: one file, or a folder's model.safetensors / model.safetensors.index.json with its shards. Writing in pieces is in
// safetensors_writer.h.
// Gives names, dtypes, shapes and bytes; knows no model. Everything in the files is distrusted (Error(bad_file)).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "formats/mapped_file.h"
#include "tensor/tensor.h"

namespace lapidary {

struct StoredTensor {
  Tensor view;                             // into the mapping; data may be unaligned
  std::shared_ptr<const MappedFile> file;  // keeps it mapped
};

// Names -> views, over all shards. Dtypes of the format that Tensor lacks (F64, I64, BOOL, FP8 ...) are kept in
// `other_dtypes` by name only, so that a model that does not need them still loads.
struct TensorFile {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> other_dtypes;  // name -> dtype as written, e.g. "F8_E4M3"
  std::map<std::string, std::string> metadata;      // the first file's __metadata__
  std::vector<std::string> files;                   // paths, in shard order
};

// `path` is a .safetensors file, an index .json, or a folder holding either.
TensorFile open_safetensors(const std::string& path);

// Writes atomically; F32, BF16, F16, I8, I32 and U8 tensors on the host; data starts 64-byte aligned.
void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace lapidary
