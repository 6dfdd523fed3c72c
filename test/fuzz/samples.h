// Small valid models of every kind that the library reads, in parts that can be spoilt one by one before they become bytes.
#pragma once

#include <map>
#include <string>

#include "../native/formats/build_files.h"
#include "random.h"

namespace lapidary::fuzz {

struct SafetensorsParts {
  std::string header, data;
  std::string bytes() const { return test::safetensors_bytes(header, data); }
};

// A model folder or a GGUF file.
struct Sample {
  std::map<std::string, std::string> texts;             // JSON files by name
  std::map<std::string, SafetensorsParts> safetensors;  // by name
  bool has_gguf = false;
  test::GgufParts gguf;  // written as model.gguf
};

Sample make_sample(Random& random);

}  // namespace lapidary::fuzz
