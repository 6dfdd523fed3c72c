// GGUF: files of llama.cpp's own making, metadata of every type, and every way in which a file can lie.
#include "formats/gguf.h"

#include <filesystem>

#include "check.h"
#include "formats/build_files.h"

namespace lapidary {
namespace {

using namespace test;

std::shared_ptr<const GgufFile> open_made(const GgufParts& parts) {
  static const std::string folder = temporary_folder();
  return GgufFile::open(write_bytes(folder + "/made.gguf", parts.bytes()));
}

// Two tensors, one of floats and one of two Q4_0 rows, and a little metadata.
GgufParts valid() {
  GgufParts parts;
  parts.metadata = {{"general.architecture", gguf_text("gemma3")}, {"gemma3.block_count", gguf_u32(2)}};
  parts.tensors = {{"norm", {8}, 0, 0}, {"blocks", {32, 2}, 2, 32}};
  parts.data = std::string(32 + 36, '\1');
  return parts;
}

GgufParts with(const std::string& key, const std::string& value) {
  GgufParts parts = valid();
  parts.metadata.emplace_back(key, value);
  return parts;
}

void refused(const GgufParts& parts, const char* part, ErrorCode code = ErrorCode::bad_file) { CHECK_THROWS(open_made(parts), code, part); }

template <typename Edit>
void refused_when(Edit edit, const char* part) {
  GgufParts parts = valid();
  edit(parts);
  refused(parts, part);
}

TEST("gguf: files of the reference converter open, with their types and metadata") {
  size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden("gguf"))) {
    if (entry.path().extension() != ".gguf") continue;
    ++files;
    const auto file = GgufFile::open(entry.path().string());
    REQUIRE(file->string("general.architecture") != nullptr);
    const std::string arch = *file->string("general.architecture");
    int64_t layers = 0, alignment = 0;
    double epsilon = 0;
    CHECK(arch == "gemma2" || arch == "gemma3");
    CHECK(file->integer(arch + ".block_count", layers) && layers > 0 && !file->integer("general.alignment", alignment));
    CHECK(file->number(arch + ".attention.layer_norm_rms_epsilon", epsilon) && epsilon == double(1e-6f));
    const auto* pieces = file->strings("tokenizer.ggml.tokens");
    REQUIRE(pieces != nullptr && file->tensors().count("token_embd.weight") == 1);
    const Tensor t = file->tensors().at("token_embd.weight").view;
    CHECK(t.rank == 2 && t.shape[0] == int64_t(pieces->size()) && file->other_dtypes().empty());
  }
  CHECK(files >= 9);
}

TEST("gguf: shapes come outermost first and views lie where the table says") {
  const auto file = open_made(valid());
  const Tensor norm = file->tensors().at("norm").view, blocks = file->tensors().at("blocks").view;
  CHECK(norm.dtype == DType::f32 && norm.shape_text() == "[8]");
  CHECK(blocks.dtype == DType::q4_0 && blocks.shape_text() == "[2, 32]" && blocks.bytes() == 36);
  CHECK(blocks.data - norm.data == 32 && norm.as<uint8_t>()[0] == 1);
  GgufParts v2 = valid();
  v2.version = 2;
  CHECK(open_made(v2)->tensors().size() == 2);
}

TEST("gguf: metadata of every type") {
  GgufParts p;
  p.metadata = {{"u8", gguf_value<uint8_t>(0, 200)},
                {"i8", gguf_value<int8_t>(1, -3)},
                {"u16", gguf_value<uint16_t>(2, 60000)},
                {"i16", gguf_value<int16_t>(3, -300)},
                {"u32", gguf_u32(4000000000u)},
                {"i32", gguf_value<int32_t>(5, -7)},
                {"f32", gguf_f32(0.5f)},
                {"yes", gguf_bool(true)},
                {"text", gguf_text("a\xe2\x96\x81")},
                {"u64", gguf_value<uint64_t>(10, INT64_MAX)},
                {"i64", gguf_value<int64_t>(11, INT64_MIN)},
                {"f64", gguf_value<double>(12, 3.0)},
                {"list", gguf_strings({"x", "", "y"})},
                {"flags", gguf_array(7, 3, std::string("\1\0\1", 3))},
                {"floats", gguf_array(6, 2, little_endian(1.5f) + little_endian(-2.f))},
                {"none", gguf_array(4, 0, "")}};
  const auto file = open_made(p);
  int64_t n = 0;
  double x = 0;
  bool b = false;
  CHECK(file->integer("u8", n) && n == 200 && file->integer("i8", n) && n == -3 && file->integer("u16", n) && n == 60000);
  CHECK(file->integer("i16", n) && n == -300 && file->integer("u32", n) && n == 4000000000 && file->integer("i32", n) && n == -7);
  CHECK(file->integer("u64", n) && n == INT64_MAX && file->integer("i64", n) && n == INT64_MIN && file->integer("f64", n) && n == 3);
  CHECK(file->number("f32", x) && x == 0.5 && file->number("i32", x) && x == -7 && file->boolean("yes", b) && b);
  CHECK(*file->string("text") == "a\xe2\x96\x81" && *file->strings("list") == (std::vector<std::string>{"x", "", "y"}));
  CHECK(std::get<std::vector<int64_t>>(*file->find("flags")) == (std::vector<int64_t>{1, 0, 1}));
  CHECK(std::get<std::vector<double>>(*file->find("floats")) == (std::vector<double>{1.5, -2}));
  CHECK(std::get<std::vector<int64_t>>(*file->find("none")).empty());
  CHECK(!file->integer("absent", n) && !file->string("absent") && !file->strings("absent") && !file->number("absent", x) &&
        !file->boolean("absent", b));
  CHECK_THROWS(file->integer("f32", n), ErrorCode::bad_file, "\"f32\" is not a whole number");
  CHECK_THROWS(file->string("u8"), ErrorCode::bad_file, "\"u8\" is not a string");
  CHECK_THROWS(file->strings("floats"), ErrorCode::bad_file, "array of strings");
  CHECK_THROWS(file->number("text", x), ErrorCode::bad_file, "not a number");
  CHECK_THROWS(file->boolean("u8", b), ErrorCode::bad_file, "not a boolean");
}

TEST("gguf: other versions and split models are named") {
  GgufParts p = valid();
  p.version = 1;
  refused(p, "version 1", ErrorCode::unsupported);
  p.version = 0x03000000;
  refused(p, "big-endian", ErrorCode::unsupported);
  p.version = 4;
  refused(p, "version 4", ErrorCode::unsupported);
  p.version = 0;
  refused(p, "version 0");
  refused(with("split.count", gguf_value<uint16_t>(2, 3)), "merge them first", ErrorCode::unsupported);
  CHECK(open_made(with("split.count", gguf_value<uint16_t>(2, 1)))->tensors().size() == 2);
}

TEST("gguf: lying metadata is refused") {
  refused(with("general.architecture", gguf_text("x")), "occurs twice");
  refused(with("", gguf_u32(1)), "empty metadata key");
  refused(with("k\xff", gguf_u32(1)), "UTF-8");
  refused(with(std::string(70000, 'k'), gguf_u32(1)), "70000 bytes");
  refused(with("k", gguf_text("\xed\xa0\x80")), "UTF-8");
  refused(with("k", little_endian<uint32_t>(13) + std::string(8, '\0')), "unknown type 13");
  refused(with("k", gguf_value<uint8_t>(7, 2)), "neither 0 nor 1");
  refused(with("k", gguf_value<uint64_t>(10, uint64_t(INT64_MAX) + 1)), "63 bits");
  refused(with("k", gguf_array(9, 1, gguf_array(4, 0, ""))), "array of arrays");
  refused(with("k", gguf_array(77, 1, "")), "unknown type 77");
  refused(with("k", gguf_array(4, UINT64_MAX, "")), "announces 18446744073709551615");
  refused(with("k", gguf_array(8, 1u << 20, "")), "announces 1048576");
  refused(with("k", little_endian<uint32_t>(8) + little_endian(UINT64_MAX)), "possible there");
  refused(with("general.alignment", gguf_u32(0)), "power of two");
  refused(with("general.alignment", gguf_u32(24)), "power of two");
  refused(with("general.alignment", gguf_text("32")), "whole number");
  refused(with("general.alignment", gguf_value<uint64_t>(10, uint64_t{1} << 62)), "no multiple");
}

TEST("gguf: lying tensor tables are refused") {
  refused_when([](GgufParts& p) { p.tensors[1].name = "norm"; }, "occurs twice");
  refused_when([](GgufParts& p) { p.tensors[0].name = ""; }, "without a name");
  refused_when([](GgufParts& p) { p.tensors[0].name = "\xc0\x80"; }, "UTF-8");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {}; }, "0 dimensions");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {2, 2, 2, 1, 1}; }, "5 dimensions");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {8, 0}; }, "dimension of zero");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {uint64_t{1} << 32, uint64_t{1} << 32}; }, "more elements");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {UINT64_MAX}; }, "more elements");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {uint64_t{1} << 62}; }, "more bytes");
  refused_when([](GgufParts& p) { p.tensors[1].dims = {16, 4}; }, "no whole number of Q4_0 blocks");
  refused_when([](GgufParts& p) { p.tensors[0].type = 4; }, "unknown type number 4");
  refused_when([](GgufParts& p) { p.tensors[0].type = 99; }, "unknown type number 99");
  refused_when([](GgufParts& p) { p.tensors[1].offset = 40; }, "no multiple of the alignment");
  refused_when([](GgufParts& p) { p.tensors[1].offset = 0; }, "overlap");
  refused_when([](GgufParts& p) { p.tensors[1].offset = 64; }, "incomplete");
  refused_when([](GgufParts& p) { p.tensors[1].offset = UINT64_MAX - 31; }, "incomplete");
  refused_when([](GgufParts& p) { p.tensors[0].dims = {9}; }, "overlap");
  refused_when([](GgufParts& p) { p.extra_tensors = 1; }, "made.gguf");
  refused_when([](GgufParts& p) { p.extra_tensors = -3; }, "more than its");
  refused_when([](GgufParts& p) { p.extra_metadata = 1 << 20; }, "more than its");
}

TEST("gguf: types without a kernel are kept by name") {
  GgufParts p = valid();
  p.tensors[1] = {"iq", {256, 1}, 23, 32};
  p.data.resize(32 + 136);
  const auto file = open_made(p);
  CHECK(file->tensors().size() == 1 && file->other_dtypes().at("iq") == "IQ4_XS");
}

TEST("gguf: an alignment of its own is obeyed") {
  GgufParts p = with("general.alignment", gguf_u32(64));
  p.alignment = 64;
  p.tensors[1].offset = 64;
  p.data.resize(64 + 36);
  p.data[64] = '\x7f';
  CHECK(open_made(p)->tensors().at("blocks").view.as<char>()[0] == '\x7f');
}

// Every cut of a valid file is refused; none is read past its end.
TEST("gguf: every truncation is refused") {
  const std::string whole = valid().bytes(), path = temporary_folder() + "/cut.gguf";
  for (size_t n = 0; n < whole.size(); ++n)
    CHECK_THROWS(GgufFile::open(write_bytes(path, whole.substr(0, n))), ErrorCode::bad_file, "cut.gguf");
  CHECK(GgufFile::open(write_bytes(path, whole))->tensors().size() == 2);
  CHECK_THROWS(GgufFile::open(write_bytes(path, "GGML" + whole.substr(4))), ErrorCode::bad_file, "is this a GGUF file");
}

}  // namespace
}  // namespace lapidary
