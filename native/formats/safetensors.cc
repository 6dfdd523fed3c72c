// Reading safetensors. A header is checked as a whole before the first view is made.
#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>

#include "base/error.h"
#include "formats/json.h"

namespace lapidary {
namespace {

// What the format's own reader accepts; a header of a real model has a few megabytes at most.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int kMaxRank = 4;

struct StoredType {
  std::string_view name;
  int bits;        // per element
  int dtype = -1;  // a DType, or -1: kept by name only
};
constexpr StoredType kTypes[] = {
    {"F32", 32, static_cast<int>(DType::f32)},
    {"BF16", 16, static_cast<int>(DType::bf16)},
    {"F16", 16, static_cast<int>(DType::f16)},
    {"I8", 8, static_cast<int>(DType::i8)},
    {"I32", 32, static_cast<int>(DType::i32)},
    {"U8", 8, static_cast<int>(DType::u8)},
    {"F64", 64},
    {"I64", 64},
    {"U64", 64},
    {"U32", 32},
    {"I16", 16},
    {"U16", 16},
    {"BOOL", 8},
    {"F8_E4M3", 8},
    {"F8_E5M2", 8},
    {"F8_E8M0", 8},
    {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8},
    {"C64", 64},
    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
    {"F4", 4},
};

// One entry of a header, before its meaning is checked.
struct Entry {
  std::string name, dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

std::string in_quotes(std::string_view name) { return json_quote(name); }

std::vector<int64_t> read_naturals(JsonReader& reader) {
  std::vector<int64_t> values;
  reader.begin_array();
  while (reader.next_element()) {
    values.push_back(reader.integer());
    if (values.back() < 0) reader.fail_here("a negative number");
  }
  return values;
}

Entry read_entry(JsonReader& reader, std::string name) {
  Entry entry;
  entry.name = std::move(name);
  std::set<std::string> seen;
  reader.begin_object();
  for (std::string key; reader.next_key(key);) {
    if (!seen.insert(key).second) reader.fail_here("the key " + in_quotes(key) + " twice");
    if (key == "dtype") {
      reader.string(entry.dtype);
    } else if (key == "shape") {
      entry.shape = read_naturals(reader);
    } else if (key == "data_offsets") {
      const std::vector<int64_t> offsets = read_naturals(reader);
      if (offsets.size() != 2) reader.fail_here("data_offsets must have two numbers");
      entry.begin = static_cast<uint64_t>(offsets[0]);
      entry.end = static_cast<uint64_t>(offsets[1]);
    } else {
      reader.skip();
    }
  }
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!seen.count(key)) reader.fail_here("tensor " + in_quotes(entry.name) + " has no " + key);
  return entry;
}

void read_metadata(JsonReader& reader, std::map<std::string, std::string>& metadata) {
  if (reader.peek() == JsonReader::Type::null) return reader.null();
  reader.begin_object();
  for (std::string key, value; reader.next_key(key);) {
    reader.string(value);
    if (!metadata.emplace(key, value).second) reader.fail_here("the key " + in_quotes(key) + " twice");
  }
}

std::vector<Entry> read_header(std::string_view text, const std::string& path, std::map<std::string, std::string>& metadata) {
  JsonReader reader(text, path + ": safetensors header");
  std::vector<Entry> entries;
  bool has_metadata = false;
  reader.begin_object();
  for (std::string key; reader.next_key(key);) {
    if (key != "__metadata__") {
      entries.push_back(read_entry(reader, key));
    } else {
      if (std::exchange(has_metadata, true)) reader.fail_here("__metadata__ twice");
      read_metadata(reader, metadata);
    }
  }
  reader.end();
  return entries;
}

const StoredType& stored_type(const Entry& entry, const std::string& path) {
  for (const StoredType& type : kTypes)
    if (type.name == entry.dtype) return type;
  fail(ErrorCode::bad_file, path, ": tensor ", in_quotes(entry.name), " has the unknown dtype ", in_quotes(entry.dtype));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Bytes that dtype and shape call for. No partial product may overflow either, so that code which multiplies some of the
// dimensions of an accepted tensor is safe.
uint64_t bytes_of(const Entry& entry, const StoredType& type, const std::string& path) {
  int64_t extent = type.bits, bits = type.bits;
  for (const int64_t d : entry.shape) {
    expect(!__builtin_mul_overflow(extent, std::max<int64_t>(d, 1), &extent), ErrorCode::bad_file, path, ": tensor ", in_quotes(entry.name),
           " has the shape ", shape_text(entry.shape), ", more elements than 64 bits can count");
    bits *= d;
  }
  expect(bits % 8 == 0, ErrorCode::bad_file, path, ": tensor ", in_quotes(entry.name), " of ", entry.dtype, " ", shape_text(entry.shape),
         " does not end at a byte");
  return static_cast<uint64_t>(bits) / 8;
}

// The data of the tensors must fill [0, data_bytes) without gap or overlap.
void check_layout(const std::vector<Entry>& entries, uint64_t data_bytes, const std::string& path) {
  std::vector<const Entry*> order;
  for (const Entry& e : entries) {
    expect(e.begin <= e.end, ErrorCode::bad_file, path, ": tensor ", in_quotes(e.name), " begins at byte ", e.begin,
           " and ends before, at ", e.end);
    expect(e.end <= data_bytes, ErrorCode::bad_file, path, ": tensor ", in_quotes(e.name), " ends at data byte ", e.end,
           ", but the file holds only ", data_bytes, " bytes of data; the download may be incomplete");
    order.push_back(&e);
  }
  std::sort(order.begin(), order.end(),
            [](const Entry* a, const Entry* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  uint64_t at = 0;
  for (const Entry* e : order) {
    expect(e->begin >= at, ErrorCode::bad_file, path, ": tensor ", in_quotes(e->name), " begins at data byte ", e->begin,
           ", inside another tensor that ends at ", at);
    expect(e->begin == at, ErrorCode::bad_file, path, ": data bytes ", at, " to ", e->begin, " belong to no tensor");
    at = e->end;
  }
  expect(at == data_bytes, ErrorCode::bad_file, path, ": the tensors end at data byte ", at, ", the file holds ", data_bytes);
}

Tensor view_of(const Entry& entry, const StoredType& type, const std::byte* data) {
  Tensor view;
  view.data = const_cast<std::byte*>(data + entry.begin);
  view.dtype = static_cast<DType>(type.dtype);
  view.rank = std::max<int>(1, static_cast<int>(entry.shape.size()));
  view.shape[0] = 1;  // a scalar is one element of rank 1
  std::copy(entry.shape.begin(), entry.shape.end(), view.shape);
  return view;
}

std::string_view header_text(const MappedFile& file) {
  const auto bytes = file.bytes();
  uint64_t header_bytes = 0;
  expect(bytes.size() >= sizeof(header_bytes), ErrorCode::bad_file, file.path(), " has only ", bytes.size(),
         " bytes, too few for a safetensors file; the download may be incomplete");
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  expect(header_bytes <= kMaxHeaderBytes, ErrorCode::bad_file, file.path(), ": the first 8 bytes announce a header of ", header_bytes,
         " bytes, more than ", kMaxHeaderBytes, "; is this a safetensors file?");
  const auto header = file.slice(sizeof(header_bytes), header_bytes);
  return {reinterpret_cast<const char*>(header.data()), header.size()};
}

// Adds one file's tensors to `out`.
void read_file(const std::string& path, TensorFile& out) {
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  const std::string_view header = header_text(*file);
  std::map<std::string, std::string> metadata;
  const std::vector<Entry> entries = read_header(header, path, metadata);
  const auto data = file->bytes().subspan(sizeof(uint64_t) + header.size());
  for (const Entry& e : entries) {
    const uint64_t want = bytes_of(e, stored_type(e, path), path);
    expect(e.begin <= e.end && e.end - e.begin == want, ErrorCode::bad_file, path, ": tensor ", in_quotes(e.name), " of ", e.dtype, " ",
           shape_text(e.shape), " needs ", want, " bytes, its data_offsets are [", e.begin, ", ", e.end, "]");
  }
  check_layout(entries, data.size(), path);
  for (const Entry& e : entries) {
    const StoredType& type = stored_type(e, path);
    expect(!out.tensors.count(e.name) && !out.other_dtypes.count(e.name), ErrorCode::bad_file, path, ": the tensor name ",
           in_quotes(e.name), " occurs twice");
    if (type.dtype < 0 || e.shape.size() > kMaxRank) {
      out.other_dtypes[e.name] = e.shape.size() > kMaxRank ? e.dtype + " of rank " + std::to_string(e.shape.size()) : e.dtype;
    } else {
      out.tensors[e.name] = {view_of(e, type, data.data()), file};
    }
  }
  if (out.files.empty()) out.metadata = std::move(metadata);
  out.files.push_back(path);
}

// A shard lies beside its index and is no index itself; so no chain of files can be built, let alone a circle.
void check_shard_name(const std::string& shard, const std::string& index_path) {
  constexpr std::string_view kEnding = ".safetensors";
  const bool plain = shard.find_first_of(std::string_view("/\\\0", 3)) == shard.npos;
  const bool ending = shard.size() > kEnding.size() && std::string_view(shard).substr(shard.size() - kEnding.size()) == kEnding;
  expect(plain && ending, ErrorCode::bad_file, index_path, ": the shard ", in_quotes(shard),
         " is not the plain name of a .safetensors file in the same folder");
}

TensorFile read_sharded(const std::string& index_path) {
  const JsonValue index = JsonValue::parse(read_text_file(index_path), index_path);
  const JsonValue* map = index.find("weight_map");
  expect(map && map->is(JsonValue::Type::object) && !map->object().empty(), ErrorCode::bad_file, index_path,
         " has no weight_map, or an empty one; is this a safetensors index?");
  std::map<std::string, std::vector<const std::string*>> shards;  // file name -> the tensors it must hold
  for (const auto& [name, shard] : map->object()) {
    expect(shard.is(JsonValue::Type::string), ErrorCode::bad_file, index_path, ": the shard of ", in_quotes(name), " is no string");
    check_shard_name(shard.string(), index_path);
    shards[shard.string()].push_back(&name);
  }
  const size_t slash = index_path.rfind('/');
  const std::string folder = slash == index_path.npos ? "" : index_path.substr(0, slash + 1);
  for (const auto& [shard, names] : shards)
    expect(is_file(folder + shard), ErrorCode::bad_file, index_path, ": the shard ", in_quotes(shard),
           " is missing; the download may be incomplete");
  TensorFile out;
  for (const auto& [shard, names] : shards) {
    TensorFile one;
    read_file(folder + shard, one);
    for (const std::string* name : names)
      expect(one.tensors.count(*name) || one.other_dtypes.count(*name), ErrorCode::bad_file, index_path, ": tensor ", in_quotes(*name),
             " should be in ", in_quotes(shard), " but is not");
    if (out.files.empty()) out.metadata = std::move(one.metadata);
    out.files.push_back(folder + shard);
    for (const auto& [name, stored] : one.tensors)
      expect(out.tensors.emplace(name, stored).second && !out.other_dtypes.count(name), ErrorCode::bad_file, index_path, ": tensor ",
             in_quotes(name), " is in two shards, the second is ", in_quotes(shard));
    for (const auto& [name, dtype] : one.other_dtypes)
      expect(out.other_dtypes.emplace(name, dtype).second && !out.tensors.count(name), ErrorCode::bad_file, index_path, ": tensor ",
             in_quotes(name), " is in two shards, the second is ", in_quotes(shard));
  }
  return out;
}

bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

}  // namespace

TensorFile open_safetensors(const std::string& path) {
  if (is_directory(path)) {
    const std::string single = path + "/model.safetensors", index = path + "/model.safetensors.index.json";
    if (is_file(single)) return open_safetensors(single);
    if (is_file(index)) return read_sharded(index);
    fail(ErrorCode::bad_file, path, " has no model.safetensors and no model.safetensors.index.json");
  }
  if (ends_with(path, ".json")) return read_sharded(path);
  TensorFile out;
  read_file(path, out);
  return out;
}

}  // namespace lapidary
