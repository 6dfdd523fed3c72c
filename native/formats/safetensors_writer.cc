// Layout first: headers and offsets follow from the entries alone, so bytes can go to their place as they come.
#include "formats/safetensors_writer.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "base/error.h"
#include "base/utf8.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"

namespace lapidary {

namespace {

constexpr size_t kDataAlignment = 64;

std::string_view written_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i8:
      return "I8";
    case DType::i32:
      return "I32";
    case DType::u8:
      return "U8";
    default:
      fail(ErrorCode::invalid_argument, "safetensors has no dtype for ", dtype_info(dtype).name);
  }
}

void check_entries(const std::vector<SafetensorsEntry>& entries) {
  std::set<std::string_view> names{"__metadata__"};
  for (const SafetensorsEntry& entry : entries) {
    expect(utf8_valid(entry.name) && names.insert(entry.name).second, ErrorCode::invalid_argument, "writing safetensors: the tensor name ",
           json_quote(entry.name), " is used twice, reserved, or not UTF-8");
    (void)written_name(entry.dtype);
  }
}

std::string shard_name(const std::string& stem, size_t shard, size_t shards) {
  char number[40];
  std::snprintf(number, sizeof(number), "-%05zu-of-%05zu", shard + 1, shards);
  return stem + (shards == 1 ? "" : number) + ".safetensors";
}

}  // namespace

int64_t SafetensorsEntry::bytes() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return dtype_bytes(dtype, n);
}

// One file: its header is written at once, its tensors piece by piece.
class SafetensorsWriter::Shard {
 public:
  Shard(const std::string& path, std::vector<SafetensorsEntry> entries, const std::map<std::string, std::string>& metadata)
      : entries_(std::move(entries)), file_(path) {
    std::stable_sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
      return dtype_info(a.dtype).block_bytes > dtype_info(b.dtype).block_bytes;
    });
    std::string header = "{\"__metadata__\":{";
    for (const auto& [key, value] : metadata) header += (header.back() == '{' ? "" : ",") + json_quote(key) + ":" + json_quote(value);
    header += "}";
    int64_t at = 0;
    for (const SafetensorsEntry& entry : entries_) {
      std::string shape;
      for (const int64_t d : entry.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
      begins_.push_back(at);
      header += "," + json_quote(entry.name) + ":{\"dtype\":\"" + std::string(written_name(entry.dtype)) + "\",\"shape\":[" + shape +
                "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + entry.bytes()) + "]}";
      at += entry.bytes();
    }
    header += "}";
    header.resize((header.size() + 8 + kDataAlignment - 1) / kDataAlignment * kDataAlignment - 8, ' ');
    const uint64_t header_bytes = header.size();
    file_.write(&header_bytes, sizeof(header_bytes));
    file_.write(header.data(), header.size());
    data_begin_ = sizeof(header_bytes) + header_bytes;
  }

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  void write(size_t entry, int64_t offset, const void* data, int64_t bytes) {
    file_.write_at(data_begin_ + static_cast<uint64_t>(begins_[entry] + offset), data, static_cast<size_t>(bytes));
  }
  void commit() { file_.commit(); }

 private:
  std::vector<SafetensorsEntry> entries_;
  std::vector<int64_t> begins_;  // per entry, in the data
  AtomicFile file_;
  uint64_t data_begin_ = 0;
};

struct SafetensorsWriter::Place {
  size_t shard = 0, entry = 0;
  int64_t bytes = 0, written = 0;
};

SafetensorsWriter::SafetensorsWriter(const std::string& folder, const std::string& stem, std::vector<SafetensorsEntry> entries,
                                     int64_t max_shard_bytes, const std::map<std::string, std::string>& metadata)
    : stem_(stem) {
  check_entries(entries);
  std::vector<std::vector<SafetensorsEntry>> shards(1);
  int64_t bytes = 0;  // of the last shard
  for (SafetensorsEntry& entry : entries) {
    if (bytes > 0 && bytes + entry.bytes() > max_shard_bytes) shards.emplace_back(), bytes = 0;
    bytes += entry.bytes();
    total_bytes_ += entry.bytes();
    shards.back().push_back(std::move(entry));
  }
  if (shards.size() > 1) index_path_ = folder + "/" + stem_ + ".safetensors.index.json";
  for (size_t s = 0; s < shards.size(); ++s) {
    add_shard(folder + "/" + shard_name(stem_, s, shards.size()), std::move(shards[s]), metadata);
  }
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                                     const std::map<std::string, std::string>& metadata) {
  check_entries(entries);
  add_shard(path, std::move(entries), metadata);
}

void SafetensorsWriter::add_shard(const std::string& path, std::vector<SafetensorsEntry> entries,
                                  const std::map<std::string, std::string>& metadata) {
  shards_.push_back(std::make_unique<Shard>(path, std::move(entries), metadata));
  const std::vector<SafetensorsEntry>& placed = shards_.back()->entries();
  for (size_t e = 0; e < placed.size(); ++e) places_[placed[e].name] = {shards_.size() - 1, e, placed[e].bytes(), 0};
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const std::string& name, const void* data, int64_t bytes) {
  const auto found = places_.find(name);
  expect(found != places_.end(), ErrorCode::internal, "writing safetensors: no entry ", json_quote(name));
  Place& place = found->second;
  expect(bytes <= place.bytes - place.written, ErrorCode::internal, "writing safetensors: ", place.written + bytes, " bytes for ",
         json_quote(name), " of ", place.bytes);
  shards_[place.shard]->write(place.entry, place.written, data, bytes);
  place.written += bytes;
}

void SafetensorsWriter::commit() {
  for (const auto& [name, place] : places_) {
    expect(place.written == place.bytes, ErrorCode::internal, "writing safetensors: ", json_quote(name), " has ", place.written,
           " bytes of ", place.bytes);
  }
  for (const std::unique_ptr<Shard>& shard : shards_) shard->commit();
  if (index_path_.empty()) return;
  std::string map;
  for (const auto& [name, place] : places_)
    map += (map.empty() ? "\n    " : ",\n    ") + json_quote(name) + ": " + json_quote(shard_name(stem_, place.shard, shards_.size()));
  const std::string index =
      "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total_bytes_) + "\n  },\n  \"weight_map\": {" + map + "\n  }\n}\n";
  AtomicFile file(index_path_);
  file.write(index.data(), index.size());
  file.commit();
}

void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    expect(tensor.device == Device::host && tensor.rank > 0 && (tensor || tensor.elements() == 0), ErrorCode::invalid_argument,
           "writing safetensors: tensor ", json_quote(name), " has no host memory or no shape");
    entries.push_back({name, tensor.dtype, {tensor.shape, tensor.shape + tensor.rank}});
  }
  SafetensorsWriter writer(path, std::move(entries), metadata);
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.data, tensor.bytes());
  writer.commit();
}

}  // namespace lapidary
