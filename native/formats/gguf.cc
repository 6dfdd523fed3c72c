// Reading GGUF: header, metadata, tensor table, each length checked against the bytes that are left before it is believed.
#include "formats/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/utf8.h"
#include "formats/json.h"

namespace lapidary {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF" read as a little-endian word
constexpr uint64_t kMaxNameBytes = 65535;
constexpr uint64_t kMaxArray = uint64_t{1} << 24;  // far above any vocabulary; bounds what a small element type unpacks to
constexpr uint64_t kDefaultAlignment = 32;
constexpr int kMaxRank = 4;
// The least bytes of a metadata entry (length, key, type, value) and of a tensor's entry (length, name, rank, one
// dimension, type, offset): a count beyond what the file can hold is refused before anything is reserved.
constexpr uint64_t kLeastMetadataBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// Element types by their number in the file. `dtype` -1: the layout is known, the values are not ours to read.
struct GgmlType {
  uint32_t number;
  std::string_view name;
  int32_t block_elements, block_bytes;
  int dtype = -1;
};
constexpr int of(DType dtype) { return static_cast<int>(dtype); }
constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, of(DType::f32)},
    {1, "F16", 1, 2, of(DType::f16)},
    {2, "Q4_0", 32, 18, of(DType::q4_0)},
    {3, "Q4_1", 32, 20, of(DType::q4_1)},
    {6, "Q5_0", 32, 22, of(DType::q5_0)},
    {7, "Q5_1", 32, 24, of(DType::q5_1)},
    {8, "Q8_0", 32, 34, of(DType::q8_0)},
    {9, "Q8_1", 32, 36},
    {10, "Q2_K", 256, 84, of(DType::q2_k)},
    {11, "Q3_K", 256, 110, of(DType::q3_k)},
    {12, "Q4_K", 256, 144, of(DType::q4_k)},
    {13, "Q5_K", 256, 176, of(DType::q5_k)},
    {14, "Q6_K", 256, 210, of(DType::q6_k)},
    {15, "Q8_K", 256, 292},
    {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},
    {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136},
    {24, "I8", 1, 1, of(DType::i8)},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4, of(DType::i32)},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2, of(DType::bf16)},
    {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},
    {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},
};

// Reads little-endian fields one after another; running past the end is bad_file.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return file_.bytes().size() - at_; }
  const std::string& path() const { return file_.path(); }

  template <typename T>
  T read() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }

  std::string string(std::string_view purpose, uint64_t limit = std::numeric_limits<uint64_t>::max()) {
    const uint64_t bytes = read<uint64_t>();
    expect(bytes <= left() && bytes <= limit, ErrorCode::bad_file, path(), ": ", purpose, " at byte ", at_, " has ", bytes, " bytes, but ",
           std::min(left(), limit), " are possible there; the file is damaged or incomplete");
    const std::string text(reinterpret_cast<const char*>(take(bytes)), static_cast<size_t>(bytes));
    expect(utf8_valid(text), ErrorCode::bad_file, path(), ": ", purpose, " at byte ", at_ - bytes, " is not valid UTF-8");
    return text;
  }

 private:
  const std::byte* take(uint64_t bytes) {
    const std::byte* p = file_.slice(at_, bytes).data();
    at_ += bytes;
    return p;
  }

  const MappedFile& file_;
  uint64_t at_ = 0;
};

std::string quoted(std::string_view name) { return json_quote(name); }

uint64_t value_bytes(uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    default:
      return 8;  // strings: their length field
  }
}

bool is_integer(uint32_t type) { return type <= kI32 || type == kU64 || type == kI64; }

int64_t read_integer(Cursor& in, uint32_t type, const std::string& key) {
  switch (type) {
    case kU8:
      return in.read<uint8_t>();
    case kI8:
      return in.read<int8_t>();
    case kU16:
      return in.read<uint16_t>();
    case kI16:
      return in.read<int16_t>();
    case kU32:
      return in.read<uint32_t>();
    case kI32:
      return in.read<int32_t>();
    case kI64:
      return in.read<int64_t>();
    default:
      break;
  }
  const uint64_t value = in.read<uint64_t>();
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    fail(ErrorCode::bad_file, in.path(), ": metadata ", quoted(key), " is ", value, ", beyond 63 bits");
  return static_cast<int64_t>(value);
}

bool read_bool(Cursor& in, const std::string& key) {
  const uint8_t value = in.read<uint8_t>();
  if (value > 1) fail(ErrorCode::bad_file, in.path(), ": metadata ", quoted(key), " has the boolean ", int{value}, ", neither 0 nor 1");
  return value == 1;
}

double read_float(Cursor& in, uint32_t type) { return type == kF32 ? static_cast<double>(in.read<float>()) : in.read<double>(); }

GgufValue read_array(Cursor& in, const std::string& key) {
  const uint32_t type = in.read<uint32_t>();
  const uint64_t count = in.read<uint64_t>();
  expect(type != kArray, ErrorCode::bad_file, in.path(), ": metadata ", quoted(key), " is an array of arrays, which no model here uses");
  expect(type <= kF64, ErrorCode::bad_file, in.path(), ": metadata ", quoted(key), " is an array of the unknown type ", type);
  expect(count <= in.left() / value_bytes(type) && count <= kMaxArray, ErrorCode::bad_file, in.path(), ": metadata ", quoted(key),
         " announces ", count, " elements, but only ", in.left(), " bytes follow; the file is damaged or incomplete");
  if (type == kString) {
    std::vector<std::string> values;
    values.reserve(static_cast<size_t>(count));
    const std::string purpose = "a string of metadata " + quoted(key);
    for (uint64_t i = 0; i < count; ++i) values.push_back(in.string(purpose));
    return values;
  }
  if (type == kF32 || type == kF64) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& v : values) v = read_float(in, type);
    return values;
  }
  std::vector<int64_t> values(static_cast<size_t>(count));
  for (int64_t& v : values) v = type == kBool ? read_bool(in, key) : read_integer(in, type, key);
  return values;
}

GgufValue read_value(Cursor& in, const std::string& key) {
  const uint32_t type = in.read<uint32_t>();
  if (type == kArray) return read_array(in, key);
  if (type == kString) return in.string("the value of metadata " + quoted(key));
  if (type == kBool) return read_bool(in, key);
  if (type == kF32 || type == kF64) return read_float(in, type);
  expect(is_integer(type), ErrorCode::bad_file, in.path(), ": metadata ", quoted(key), " has the unknown type ", type);
  return read_integer(in, type, key);
}

struct Header {
  uint64_t num_tensors, num_metadata;
};

Header read_header(Cursor& in) {
  expect(in.left() >= 24, ErrorCode::bad_file, in.path(), " has only ", in.left(),
         " bytes, too few for a GGUF file; the download may be incomplete");
  const uint32_t magic = in.read<uint32_t>();
  expect(magic == kMagic, ErrorCode::bad_file, in.path(), " does not begin with \"GGUF\"; is this a GGUF file?");
  const uint32_t version = in.read<uint32_t>();
  expect(version == 0 || (version & 0xffffu) != 0, ErrorCode::unsupported, in.path(),
         " is a big-endian GGUF file; convert it to a little-endian one");
  expect(version != 1, ErrorCode::unsupported, in.path(), " is GGUF version 1, only versions 2 and 3 are read; convert the model again");
  expect(version != 0, ErrorCode::bad_file, in.path(), " claims to be GGUF version 0");
  expect(version <= 3, ErrorCode::unsupported, in.path(), " is GGUF version ", version, ", only versions 2 and 3 are read");
  const Header header{in.read<uint64_t>(), in.read<uint64_t>()};
  expect(header.num_metadata <= in.left() / kLeastMetadataBytes && header.num_tensors <= in.left() / kLeastTensorBytes, ErrorCode::bad_file,
         in.path(), " announces ", header.num_metadata, " metadata entries and ", header.num_tensors, " tensors, more than its ", in.left(),
         " further bytes can hold; the file is damaged or incomplete");
  return header;
}

// One line of the tensor table, with its dimensions as the file has them: innermost first.
struct Entry {
  std::string name;
  int rank = 0;
  uint64_t dims[kMaxRank] = {1, 1, 1, 1};
  const GgmlType* type = nullptr;
  uint64_t offset = 0, bytes = 0;
};

const GgmlType& find_type(uint32_t number, const std::string& name, const std::string& path) {
  for (const GgmlType& type : kTypes)
    if (type.number == number) return type;
  fail(ErrorCode::bad_file, path, ": tensor ", quoted(name), " has the unknown type number ", number);
}

// Bytes of the tensor; refuses dimensions of zero, products beyond 63 bits and rows that are no whole number of blocks.
uint64_t bytes_of(const Entry& entry, const std::string& path) {
  int64_t elements = 1, bytes = 0;
  for (int i = 0; i < entry.rank; ++i) {
    const uint64_t d = entry.dims[i];
    expect(d > 0, ErrorCode::bad_file, path, ": tensor ", quoted(entry.name), " has a dimension of zero");
    const bool fits = d <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) &&
                      !__builtin_mul_overflow(elements, static_cast<int64_t>(d), &elements);
    expect(fits, ErrorCode::bad_file, path, ": tensor ", quoted(entry.name), " has more elements than 64 bits can count");
  }
  expect(entry.dims[0] % static_cast<uint64_t>(entry.type->block_elements) == 0, ErrorCode::bad_file, path, ": tensor ", quoted(entry.name),
         " has rows of ", entry.dims[0], " elements, no whole number of ", entry.type->name, " blocks of ", entry.type->block_elements);
  expect(!__builtin_mul_overflow(elements / entry.type->block_elements, int64_t{entry.type->block_bytes}, &bytes), ErrorCode::bad_file,
         path, ": tensor ", quoted(entry.name), " has more bytes than 64 bits can count");
  return static_cast<uint64_t>(bytes);
}

Entry read_entry(Cursor& in, uint64_t alignment) {
  Entry entry;
  entry.name = in.string("a tensor name", kMaxNameBytes);
  expect(!entry.name.empty(), ErrorCode::bad_file, in.path(), ": a tensor without a name at byte ", in.at());
  const uint32_t rank = in.read<uint32_t>();
  expect(rank >= 1 && rank <= kMaxRank, ErrorCode::bad_file, in.path(), ": tensor ", quoted(entry.name), " has ", rank,
         " dimensions, the format allows 1 to ", kMaxRank);
  entry.rank = static_cast<int>(rank);
  for (int i = 0; i < entry.rank; ++i) entry.dims[i] = in.read<uint64_t>();
  entry.type = &find_type(in.read<uint32_t>(), entry.name, in.path());
  entry.offset = in.read<uint64_t>();
  entry.bytes = bytes_of(entry, in.path());
  expect(entry.offset % alignment == 0, ErrorCode::bad_file, in.path(), ": tensor ", quoted(entry.name), " lies at data offset ",
         entry.offset, ", no multiple of the alignment ", alignment);
  return entry;
}

void check_layout(const std::vector<Entry>& entries, uint64_t data_begin, const MappedFile& file) {
  const uint64_t size = file.bytes().size(), room = size - std::min(size, data_begin);
  std::vector<const Entry*> order;
  for (const Entry& e : entries) {
    expect(e.offset <= room && e.bytes <= room - e.offset, ErrorCode::bad_file, file.path(), ": tensor ", quoted(e.name), " needs ",
           e.bytes, " bytes at data offset ", e.offset, ", but the file holds only ", room,
           " bytes of data; the download may be incomplete");
    order.push_back(&e);
  }
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i)
    expect(order[i]->offset - order[i - 1]->offset >= order[i - 1]->bytes, ErrorCode::bad_file, file.path(), ": the tensors ",
           quoted(order[i - 1]->name), " and ", quoted(order[i]->name), " overlap");
}

Tensor view_of(const Entry& entry, const std::byte* data) {
  Tensor view;
  view.data = const_cast<std::byte*>(data + entry.offset);
  view.dtype = static_cast<DType>(entry.type->dtype);
  view.rank = entry.rank;
  for (int i = 0; i < entry.rank; ++i) view.shape[i] = static_cast<int64_t>(entry.dims[entry.rank - 1 - i]);
  return view;
}

uint64_t read_alignment(const GgufFile& file) {
  int64_t value = kDefaultAlignment;
  file.integer("general.alignment", value);
  expect(value > 0 && (value & (value - 1)) == 0, ErrorCode::bad_file, file.path(), ": general.alignment is ", value, ", no power of two");
  return static_cast<uint64_t>(value);
}

void refuse_split(const GgufFile& file) {
  int64_t parts = 1;
  file.integer("split.count", parts);
  expect(parts <= 1, ErrorCode::unsupported, file.path(), " is one of ", parts,
         " parts of a split model; merge them first (llama-gguf-split --merge FIRST_PART OUTPUT)");
}

[[noreturn]] void fail_type(const GgufFile& file, std::string_view key, const char* want) {
  fail(ErrorCode::bad_file, file.path(), ": metadata ", quoted(key), " is not ", want);
}

}  // namespace

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  const std::shared_ptr<const MappedFile> mapped = MappedFile::open(path);
  std::shared_ptr<GgufFile> file(new GgufFile);
  file->path_ = path;
  Cursor in(*mapped);
  const Header header = read_header(in);
  for (uint64_t i = 0; i < header.num_metadata; ++i) {
    std::string key = in.string("a metadata key", kMaxNameBytes);
    expect(!key.empty(), ErrorCode::bad_file, path, ": an empty metadata key at byte ", in.at());
    GgufValue value = read_value(in, key);
    expect(!file->metadata_.count(key), ErrorCode::bad_file, path, ": metadata ", quoted(key), " occurs twice");
    file->metadata_.emplace(std::move(key), std::move(value));
  }
  refuse_split(*file);
  const uint64_t alignment = read_alignment(*file);
  std::vector<Entry> entries;
  for (uint64_t i = 0; i < header.num_tensors; ++i) entries.push_back(read_entry(in, alignment));
  const uint64_t padding = (alignment - in.at() % alignment) % alignment, data_begin = in.at() + padding;
  check_layout(entries, data_begin, *mapped);
  for (const Entry& e : entries) {
    expect(!file->tensors_.count(e.name) && !file->other_dtypes_.count(e.name), ErrorCode::bad_file, path, ": the tensor name ",
           quoted(e.name), " occurs twice");
    if (e.type->dtype < 0) {
      file->other_dtypes_[e.name] = e.type->name;
    } else {
      file->tensors_[e.name] = {view_of(e, mapped->bytes().data() + data_begin), mapped};
    }
  }
  return file;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = metadata_.find(std::string(key));
  return found == metadata_.end() ? nullptr : &found->second;
}

const std::string* GgufFile::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return nullptr;
  const auto* text = std::get_if<std::string>(value);
  if (!text) fail_type(*this, key, "a string");
  return text;
}

const std::vector<std::string>* GgufFile::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return nullptr;
  const auto* list = std::get_if<std::vector<std::string>>(value);
  if (!list) fail_type(*this, key, "an array of strings");
  return list;
}

bool GgufFile::integer(std::string_view key, int64_t& out) const {
  const GgufValue* value = find(key);
  if (!value) return false;
  if (const auto* whole = std::get_if<int64_t>(value)) return out = *whole, true;
  const auto* real = std::get_if<double>(value);
  constexpr double kMaxExact = 9007199254740992.0;
  if (!real || !(std::abs(*real) <= kMaxExact) || *real != std::trunc(*real)) fail_type(*this, key, "a whole number");
  return out = static_cast<int64_t>(*real), true;
}

bool GgufFile::number(std::string_view key, double& out) const {
  const GgufValue* value = find(key);
  if (!value) return false;
  if (const auto* real = std::get_if<double>(value)) return out = *real, true;
  const auto* whole = std::get_if<int64_t>(value);
  if (!whole) fail_type(*this, key, "a number");
  return out = static_cast<double>(*whole), true;
}

bool GgufFile::boolean(std::string_view key, bool& out) const {
  const GgufValue* value = find(key);
  if (!value) return false;
  const auto* flag = std::get_if<bool>(value);
  if (!flag) fail_type(*this, key, "a boolean");
  return out = *flag, true;
}

}  // namespace lapidary
