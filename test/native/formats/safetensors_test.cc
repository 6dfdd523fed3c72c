// safetensors: golden files, sharded folders, the writer, and every way in which a file can lie.
#include "formats/safetensors.h"

#include <cstring>
#include <filesystem>

#include "check.h"
#include "formats/build_files.h"

namespace lapidary {
namespace {

using test::safetensors_bytes;
using test::write_bytes;

// Opens one file made of a header and `data_bytes` bytes of data.
TensorFile open_made(const std::string& header, size_t data_bytes) {
  static const std::string folder = test::temporary_folder();
  return open_safetensors(write_bytes(folder + "/made.safetensors", safetensors_bytes(header, std::string(data_bytes, '\1'))));
}

TEST("safetensors: a golden checkpoint opens as a file and as a folder") {
  const std::string folder = test::golden("gemma3-tiny");
  const TensorFile file = open_safetensors(folder + "/model.safetensors"), same = open_safetensors(folder);
  REQUIRE(file.tensors.count("model.embed_tokens.weight") == 1);
  const Tensor t = file.tensors.at("model.embed_tokens.weight").view;
  CHECK(t.dtype == DType::bf16 && t.rank == 2 && t.shape[0] == 512 && t.shape[1] == 128);
  CHECK(file.metadata.count("format") == 1 && file.metadata.at("format") == "pt");
  CHECK(file.tensors.size() == same.tensors.size() && same.files.size() == 1);
}

TEST("safetensors: dtypes, scalars, empty tensors and types kept by name") {
  const TensorFile f = open_made(
      R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[2,3],"data_offsets":[4,10]},)"
      R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[10,10]},"big":{"dtype":"I64","shape":[2],"data_offsets":[10,26]},)"
      R"("deep":{"dtype":"U8","shape":[1,1,1,1,2],"data_offsets":[26,28]},"e":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[28,31]},)"
      R"("__metadata__":{"k":"v"}}   )",
      31);
  CHECK(f.tensors.at("a").view.rank == 1 && f.tensors.at("a").view.elements() == 1);
  CHECK(f.tensors.at("b").view.dtype == DType::i8 && f.tensors.at("b").view.shape_text() == "[2, 3]");
  CHECK(f.tensors.at("none").view.elements() == 0);
  CHECK(f.other_dtypes.at("big") == "I64" && f.other_dtypes.at("e") == "F8_E4M3" && f.other_dtypes.at("deep") == "U8 of rank 5");
  CHECK(f.metadata.at("k") == "v" && f.tensors.size() == 3);
}

TEST("safetensors: lying headers are refused") {
  const auto refused = [](const std::string& entries, size_t data_bytes, const char* part) {
    CHECK_THROWS(open_made("{" + entries + "}", data_bytes), ErrorCode::bad_file, part);
  };
  refused(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4, "needs 8 bytes");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]})", 8, "needs 4 bytes");
  refused(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 4, "incomplete");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 8, "the file holds 8");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4, "needs 4 bytes");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8, "belong to no tensor");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]})", 12,
          "belong to no tensor");
  refused(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})", 12,
          "inside another");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8, "twice");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"dtype":"F32"})", 4, "twice");
  refused(R"("a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0, "more elements");
  refused(R"("a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", 0, "more elements");
  refused(R"("a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4, "negative");
  refused(R"("a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4, "whole number");
  refused(R"("a":{"dtype":"F32","shape":1,"data_offsets":[0,4]})", 4, "array");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0]})", 4, "two numbers");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})", 4, "two numbers");
  refused(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]})", 4, "64 bits");
  refused(R"("a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]})", 4, "unknown dtype \"F33\"");
  refused(R"("a":{"dtype":7,"shape":[1],"data_offsets":[0,4]})", 4, "string");
  refused(R"("a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]})", 1, "does not end at a byte");
  refused(R"("a":{"shape":[1],"data_offsets":[0,4]})", 4, "has no dtype");
  refused(R"("a":[])", 0, "object");
  refused(R"("__metadata__":{"k":1})", 0, "string");
  refused(R"("__metadata__":{"k":"1","k":"2"})", 0, "twice");
  refused("\"\xff\":{}", 0, "UTF-8");
}

TEST("safetensors: broken frames are refused") {
  const std::string folder = test::temporary_folder();
  const auto refused = [&](const std::string& bytes, const char* part) {
    CHECK_THROWS(open_safetensors(write_bytes(folder + "/x.safetensors", bytes)), ErrorCode::bad_file, part);
  };
  refused("", "empty");
  refused("1234567", "only 7 bytes");
  refused(test::little_endian<uint64_t>(100) + "{}", "100 bytes at offset 8");
  refused(test::little_endian<uint64_t>(UINT64_MAX) + "{}", "is this a safetensors file");
  refused(safetensors_bytes("", ""), "ends too early");
  refused(safetensors_bytes("[]", ""), "object");
  refused(safetensors_bytes("{}x", ""), "follows");
  CHECK(open_safetensors(write_bytes(folder + "/x.safetensors", safetensors_bytes("{}", ""))).tensors.empty());
  CHECK_THROWS(open_safetensors(folder), ErrorCode::bad_file, "no model.safetensors");
  CHECK_THROWS(open_safetensors(folder + "/missing.safetensors"), ErrorCode::bad_file, "missing.safetensors");
  std::filesystem::create_directory(folder + "/f.safetensors");
  std::filesystem::create_directory(folder + "/f.safetensors/model.safetensors");
  CHECK_THROWS(open_safetensors(folder + "/f.safetensors"), ErrorCode::bad_file, "no model.safetensors");
}

// Every cut of a valid file is refused; none is read past its end.
TEST("safetensors: every truncation is refused") {
  const std::string whole = safetensors_bytes(
      R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[12,20]}})",
      std::string(20, '\2'));
  const std::string path = test::temporary_folder() + "/cut.safetensors";
  CHECK(open_safetensors(write_bytes(path, whole)).tensors.size() == 2);
  for (size_t n = 0; n < whole.size(); ++n)
    CHECK_THROWS(open_safetensors(write_bytes(path, whole.substr(0, n))), ErrorCode::bad_file, "cut.safetensors");
}

const char kOneFloat[] = R"(:{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
std::string one_float(const std::string& name) { return safetensors_bytes("{\"" + name + "\"" + kOneFloat + "}", "\1\2\3\4"); }

TEST("safetensors: shards come together and lying indexes are refused") {
  const std::string folder = test::temporary_folder(), index = folder + "/model.safetensors.index.json";
  write_bytes(folder + "/one.safetensors", one_float("a"));
  write_bytes(folder + "/two.safetensors", one_float("b"));
  write_bytes(folder + "/again.safetensors", one_float("a"));
  const auto with_map = [&](const std::string& map) { write_bytes(index, "{\"metadata\":{},\"weight_map\":" + map + "}"); };
  with_map(R"({"a":"one.safetensors","b":"two.safetensors"})");
  CHECK(open_safetensors(folder).tensors.size() == 2 && open_safetensors(index).files.size() == 2);
  const auto refused = [&](const std::string& map, const char* part) {
    with_map(map);
    CHECK_THROWS(open_safetensors(folder), ErrorCode::bad_file, part);
  };
  refused(R"({"a":"one.safetensors","b":"three.safetensors"})", "\"three.safetensors\" is missing");
  refused(R"({"a":"two.safetensors"})", "should be in");
  refused(R"({"a":"one.safetensors","b":"again.safetensors"})", "should be in");
  refused(R"({"a":"one.safetensors","a":"again.safetensors"})", "twice");
  for (const char* shard : {"../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", ".safetensors",
                            "model.safetensors.index.json", "one.safetensors\\u0000", "..\\\\one.safetensors"})
    refused("{\"a\":\"" + std::string(shard) + "\"}", "not the plain name");
  refused("{}", "empty one");
  refused("[]", "weight_map");
  refused(R"({"a":1})", "no string");
  // The second shard holds a tensor that the first has too, though the index names each once.
  write_bytes(
      folder + "/two.safetensors",
      safetensors_bytes(std::string("{\"b\"") + kOneFloat + R"(,"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})", "\1\2\3\4"));
  refused(R"({"a":"one.safetensors","b":"two.safetensors"})", "in two shards");
  write_bytes(index, "{\"weight_map\":");
  CHECK_THROWS(open_safetensors(folder), ErrorCode::bad_file, "ends too early");
  std::filesystem::remove(index);
  std::filesystem::create_symlink("model.safetensors.index.json", index);
  CHECK_THROWS(open_safetensors(folder), ErrorCode::bad_file, "no model.safetensors");
  CHECK_THROWS(open_safetensors(index), ErrorCode::bad_file, "cannot open");
}

TEST("safetensors: what is written reads back, aligned and atomically") {
  const std::string folder = test::temporary_folder(), path = folder + "/out.safetensors";
  const int8_t bytes[3] = {1, -2, 3};
  const float floats[4] = {1, 2, 3, 4};
  const uint16_t halves[2] = {0x3f80, 0x4000};
  write_safetensors(
      path,
      {{"b", Tensor(bytes, DType::i8, {3})}, {"f \"q\"", Tensor(floats, DType::f32, {2, 2})}, {"h", Tensor(halves, DType::bf16, {1, 2})}},
      {{"format", "pt"}, {"note", "line\nbreak"}});
  const TensorFile f = open_safetensors(path);
  REQUIRE(f.tensors.size() == 3);
  const Tensor t = f.tensors.at("f \"q\"").view;
  CHECK(t.shape_text() == "[2, 2]" && std::memcmp(t.data, floats, sizeof(floats)) == 0);
  CHECK(reinterpret_cast<uintptr_t>(t.data) % 64 == 0 && reinterpret_cast<uintptr_t>(f.tensors.at("h").view.data) % 2 == 0);
  CHECK(std::memcmp(f.tensors.at("b").view.data, bytes, 3) == 0 && std::memcmp(f.tensors.at("h").view.data, halves, 4) == 0);
  CHECK(f.metadata.at("note") == "line\nbreak");
  CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  CHECK_THROWS(write_safetensors(path, {{"a", Tensor(bytes, DType::i8, {3})}, {"a", Tensor(bytes, DType::i8, {3})}}, {}),
               ErrorCode::invalid_argument, "twice");
  CHECK_THROWS(write_safetensors(path, {{"a", Tensor(bytes, DType::q8_0, {32})}}, {}), ErrorCode::invalid_argument, "q8_0");
  CHECK_THROWS(write_safetensors(folder + "/no/where", {}, {}), ErrorCode::bad_file, "cannot write");
  CHECK(open_safetensors(path).tensors.size() == 3);
  write_safetensors(path, {}, {});
  CHECK(open_safetensors(path).tensors.empty());
}

TEST("safetensors: every length of header is padded to the same alignment") {
  const std::string path = test::temporary_folder() + "/padded.safetensors";
  const float one = 1;
  for (size_t length = 1; length <= 64; ++length) {
    const std::string name(length, 'n');
    write_safetensors(path, {{name, Tensor(&one, DType::f32, {1})}}, {});
    const TensorFile f = open_safetensors(path);
    REQUIRE(f.tensors.count(name) == 1);
    CHECK(reinterpret_cast<uintptr_t>(f.tensors.at(name).view.data) % 64 == 0 && *f.tensors.at(name).view.as<float>() == 1);
  }
}

TEST("files: an abandoned write leaves the old file and no temporary") {
  const std::string folder = test::temporary_folder(), path = write_bytes(folder + "/keep", "old");
  {
    AtomicFile file(path);
    file.write("new text", 8);
    CHECK(read_text_file(path) == "old");
  }
  CHECK(read_text_file(path) == "old" && std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  AtomicFile file(path);
  file.write("new", 3);
  file.commit();
  CHECK(read_text_file(path) == "new" && std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  CHECK_THROWS(file.write("x", 1), ErrorCode::internal, "after its commit");
}

TEST("files: mapping refuses folders, empty files and slices beyond the end") {
  const std::string folder = test::temporary_folder(), path = write_bytes(folder + "/ten", "0123456789");
  const auto file = MappedFile::open(path);
  CHECK(file->slice(3, 7).size() == 7 && file->slice(10, 0).empty());
  CHECK_THROWS(file->slice(3, 8), ErrorCode::bad_file, "8 bytes at offset 3");
  CHECK_THROWS(file->slice(11, 0), ErrorCode::bad_file, "offset 11");
  CHECK_THROWS(file->slice(UINT64_MAX, 2), ErrorCode::bad_file, "10 bytes");
  CHECK_THROWS(file->slice(2, UINT64_MAX), ErrorCode::bad_file, "10 bytes");
  CHECK_THROWS(MappedFile::open(folder), ErrorCode::bad_file, "is a folder");
  CHECK_THROWS(MappedFile::open(folder + "/missing"), ErrorCode::bad_file, "No such file");
  CHECK_THROWS(MappedFile::open(write_bytes(folder + "/empty", "")), ErrorCode::bad_file, "is empty");
  CHECK_THROWS(MappedFile::open("/dev/null"), ErrorCode::bad_file, "not a regular file");
  CHECK(is_file(path) && !is_file(folder) && is_directory(folder) && !is_directory(path));
}

}  // namespace
}  // namespace lapidary
