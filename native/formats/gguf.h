// GGUF version 2 and 3: metadata and tensor views over a mapping. Knows no model. Everything in the file is distrusted.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "formats/safetensors.h"

namespace lapidary {

// Arrays keep three shapes only, which is all that metadata uses: numbers, strings, booleans as numbers.
// Integers wider than i64 are bad_file.
using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

class GgufFile {
 public:
  static std::shared_ptr<const GgufFile> open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }           // shapes outermost first ([out, in])
  const std::map<std::string, std::string>& other_dtypes() const { return other_dtypes_; }  // ggml types without a DType

  const GgufValue* find(std::string_view key) const;
  // Typed look-ups: nullptr when absent; Error(bad_file) naming the key when the type is another. Numbers convert.
  const std::string* string(std::string_view key) const;
  const std::vector<std::string>* strings(std::string_view key) const;
  bool integer(std::string_view key, int64_t& out) const;  // false when absent
  bool number(std::string_view key, double& out) const;
  bool boolean(std::string_view key, bool& out) const;

 private:
  GgufFile() = default;
  std::string path_;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> other_dtypes_;
};

}  // namespace lapidary
