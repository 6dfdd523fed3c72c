// Writing safetensors in pieces, so that no more than one piece is in memory: the entries are declared first, their bytes come in any
// order.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace lapidary {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;  // F32, BF16, F16, I8, I32 or U8
  std::vector<int64_t> shape;
  int64_t bytes() const;
};

// `stem`.safetensors in a folder, or where it would exceed a limit `stem`-00001-of-0000N.safetensors with `stem`.safetensors.index.json.
// Nothing appears under these names before commit(); without it nothing is left behind.
class SafetensorsWriter {
 public:
  // Entries keep their order over the shards; a shard holds at most `max_shard_bytes` of data, or one entry. Within one, wide elements come
  // first, so that every tensor starts at a multiple of its element's size. Error(invalid_argument): names twice, unknown dtypes.
  SafetensorsWriter(const std::string& folder, const std::string& stem, std::vector<SafetensorsEntry> entries, int64_t max_shard_bytes,
                    const std::map<std::string, std::string>& metadata);
  // One file at that path.
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries, const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();

  // The next `bytes` bytes of that tensor. Error(bad_file) with the system's reason, such as a full disk.
  void write(const std::string& name, const void* data, int64_t bytes);
  // Error(internal) naming a tensor of which bytes are missing.
  void commit();

 private:
  class Shard;
  struct Place;
  void add_shard(const std::string& path, std::vector<SafetensorsEntry> entries, const std::map<std::string, std::string>& metadata);

  std::string stem_, index_path_;  // empty: one file
  int64_t total_bytes_ = 0;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::map<std::string, Place> places_;
};

}  // namespace lapidary
