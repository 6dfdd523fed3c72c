// tokenizer.json, the files beside it, and GGUF vocabularies: what is read, and what is refused with which words.
#include "formats/tokenizer_file.h"

#include <cstring>
#include <fstream>
#include <functional>

#include "check.h"
#include "formats/json.h"
#include "runtime/tokenizer.h"

namespace lapidary::test {
namespace {

using Text = std::string;

void write(const Text& path, const Text& text) { std::ofstream(path, std::ios::binary) << text; }

// A whole tokenizer.json of few pieces; tests replace one member.
struct Json {
  Text vocab = R"("<pad>":0,"<eos>":1,"<bos>":2,"<unk>":3,"▁":4,"a":5,"b":6,"ab":7,"\n":8)";
  Text merges = R"(["a","b"])";
  Text added = R"({"id":2,"content":"<bos>","special":true,"normalized":false},{"id":8,"content":"\n","special":false})";
  Text normalizer = R"({"type":"Replace","pattern":{"String":" "},"content":"▁"})";
  Text pre_tokenizer = "null";
  Text decoder =
      R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"}]})";
  Text options = R"("dropout":null,"ignore_merges":false)";
  Text type = "BPE";
  Text fallback = "true";
  bool merges_first = false;

  Text text() const {
    Text bytes;
    for (int b = 0; b < 256; ++b) {
      char piece[24];
      std::snprintf(piece, sizeof piece, ",\"<0x%02X>\":%d", static_cast<unsigned>(b), 9 + b);
      bytes += piece;
    }
    const Text merge_list = R"("merges":[)" + merges + "]", vocabulary = R"("vocab":{)" + vocab + bytes + "}";
    return R"({"version":"1.0","added_tokens":[)" + added + R"(],"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer +
           R"(,"post_processor":null,"decoder":)" + decoder + R"(,"model":{"type":")" + type + R"(",)" + options +
           R"(,"unk_token":"<unk>","byte_fallback":)" + fallback + "," +
           (merges_first ? merge_list + "," + vocabulary : vocabulary + "," + merge_list) + "}}";
  }
};

Text folder_of(const Json& json) {
  const Text folder = temporary_folder();
  write(folder + "/tokenizer.json", json.text());
  return folder;
}

TokenizerData read(const std::function<void(Json&)>& change) {
  Json json;
  change(json);
  return read_tokenizer_json(folder_of(json));
}

TEST("tokenizer_file: pieces, merges, types") {
  for (const bool merges_first : {false, true}) {
    for (const char* merges : {R"(["a","b"])", R"("a b")"}) {
      const TokenizerData d = read([&](Json& j) { j.merges = merges, j.merges_first = merges_first; });
      CHECK(d.pieces.size() == 265 && d.pieces[7] == "ab" && d.scores.empty());
      CHECK(d.merges == (std::vector<std::pair<int32_t, int32_t>>{{5, 6}}));
      CHECK(d.types[2] == PieceType::control && d.types[8] == PieceType::user_defined && d.types[3] == PieceType::unknown);
      CHECK(d.types[9] == PieceType::byte && d.types[5] == PieceType::normal);
      CHECK(d.bos_id == 2 && d.eos_id == 1 && d.unk_id == 3 && d.pad_id == 0 && d.add_bos);
    }
  }
  const Tokenizer t(read([](Json&) {}));
  CHECK(t.encode("ab a\n", false) == (std::vector<int32_t>{7, 4, 5, 8}));
}

TEST("tokenizer_file: control by flag or by name") {
  const TokenizerData d = read([](Json& j) {
    j.added += R"(,{"id":265,"content":"<unused12>","special":false},{"id":266,"content":"<unused>","special":false},
      {"id":267,"content":"<tool>","special":true},{"id":268,"content":"<h1>","special":false},{"id":269,"content":"<end_of_turn>","special":false})";
  });
  CHECK(d.types[265] == PieceType::user_defined && d.types[266] == PieceType::user_defined && d.types[267] == PieceType::control);
  CHECK(d.types[268] == PieceType::user_defined && d.types[269] == PieceType::control);
  CHECK(is_control_name("<end_of_image>") && !is_control_name("<end_of_image") && !is_control_name("<unused0>"));
  CHECK(byte_of_piece("<0xE2>") == 0xe2 && byte_of_piece("<0xe2>") == -1 && byte_of_piece("<0x123>") == -1);
}

TEST("tokenizer_file: defects are named") {
  const auto bad = [](const std::function<void(Json&)>& change, const char* part) {
    CHECK_THROWS(read(change), ErrorCode::bad_file, part);
  };
  bad([](Json& j) { j.vocab += R"(,"c":9)"; }, "id 9 stands for both");
  bad([](Json& j) { j.vocab += R"(,"a":265)"; }, "piece 'a' has two ids, 5 and 265");
  bad([](Json& j) { j.vocab += R"(,"c":-1)"; }, "id -1");
  bad([](Json& j) { j.vocab += R"(,"c":99999999999)"; }, "id 99999999999");
  bad([](Json& j) { j.vocab += R"(,"c":266)"; }, "no piece has id 265");
  bad([](Json& j) { j.vocab += R"(,"":265)"; }, "empty piece");
  bad([](Json& j) { j.vocab += R"(,"c":1.5)"; }, "tokenizer.json");
  bad([](Json& j) { j.merges = R"(["a","q"])"; }, "merge 0 names 'q'");
  bad([](Json& j) { j.merges = R"(["a","b"],["a"])"; }, "merge 1 is not a pair");
  bad([](Json& j) { j.merges = R"("a b c")"; }, "merge 0 is 'a b c'");
  bad([](Json& j) { j.added += R"(,{"id":300,"content":"<x>"})"; }, "no piece has id 265");
  bad([](Json& j) { j.added += R"(,{"id":9,"content":"a"})"; }, "'a' has id 9, the vocabulary says 5");
  bad([](Json& j) { j.added += R"(,{"content":"<x>"})"; }, "'<x>' has no id");
  CHECK_THROWS(Tokenizer(read([](Json& j) { j.merges = R"(["b","a"])"; })), ErrorCode::bad_file, "'ba'");
  const auto refused = [](const std::function<void(Json&)>& change, const char* part) {
    CHECK_THROWS(read(change), ErrorCode::unsupported, part);
  };
  refused([](Json& j) { j.type = "Unigram"; }, "'Unigram'");
  refused([](Json& j) { j.fallback = "false"; }, "byte_fallback");
  refused([](Json& j) { j.options = R"("ignore_merges":true)"; }, "ignore_merges");
  refused([](Json& j) { j.options = R"("dropout":0.1)"; }, "dropout");
  refused([](Json& j) { j.normalizer = R"({"type":"NFKC"})"; }, "'NFKC'");
  refused([](Json& j) { j.normalizer = "null"; }, "normalizer");
  refused([](Json& j) { j.pre_tokenizer = R"({"type":"ByteLevel"})"; }, "'ByteLevel'");
  refused([](Json& j) { j.decoder = R"({"type":"ByteLevel"})"; }, "'ByteLevel'");
  refused([](Json& j) { j.added += R"(,{"id":265,"content":"<x>","lstrip":true})"; }, "'<x>'");
  refused([](Json& j) { j.added += R"(,{"id":265,"content":"x\ny","normalized":true})"; }, "normalized");
  CHECK(read([](Json& j) { j.added += R"(,{"id":265,"content":"<x>","normalized":true})"; }).pieces.size() == 266);
  CHECK_THROWS(read_tokenizer_json(temporary_folder()), ErrorCode::bad_file, "has no tokenizer.json");
}

TEST("tokenizer_file: a cut file is refused at every length") {
  const Text whole = Json{}.text(), folder = temporary_folder();
  for (size_t bytes = 1; bytes < whole.size(); bytes += 7) {
    write(folder + "/tokenizer.json", whole.substr(0, bytes));
    CHECK_THROWS(read_tokenizer_json(folder), ErrorCode::bad_file, "tokenizer.json");
  }
}

TEST("tokenizer_file: settings and chat templates beside it") {
  const Text folder = folder_of({});
  const auto config = [&](const Text& text) {
    write(folder + "/tokenizer_config.json", text);
    return read_tokenizer_json(folder);
  };
  TokenizerData d =
      config(R"({"eos_token":{"content":"ab"},"bos_token":"a","pad_token":"nowhere","add_bos_token":false,"chat_template":"T"})");
  CHECK(d.eos_id == 7 && d.bos_id == 5 && d.pad_id == 0 && !d.add_bos && d.chat_template == "T");
  CHECK_THROWS(config(R"({"eos_token":"nowhere"})"), ErrorCode::bad_file, "'nowhere'");
  CHECK(config(R"({"chat_template":[{"name":"tool","template":"X"},{"name":"default","template":"D"}]})").chat_template == "D");
  CHECK_THROWS(config(R"({"chat_template":[{"name":"tool","template":"X"}]})"), ErrorCode::bad_file, "default");
  write(folder + "/chat_template.json", R"({"chat_template":"J"})");
  CHECK(config("{}").chat_template == "J");
  write(folder + "/chat_template.jinja", "F");
  CHECK(config(R"({"chat_template":"T"})").chat_template == "F");
  CHECK(read_tokenizer_json(folder + "/tokenizer.json").chat_template == "F");
}

// GGUF bytes with metadata only.
class GgufBytes {
 public:
  void text(const Text& key, const Text& value) { head(key, 8), put(value); }
  void flag(const Text& key, bool value) { head(key, 7), raw<uint8_t>(value); }
  void number(const Text& key, uint32_t value) { head(key, 4), raw(value); }
  void texts(const Text& key, const std::vector<Text>& values) {
    head(key, 9), raw<uint32_t>(8), raw<uint64_t>(values.size());
    for (const Text& value : values) put(value);
  }
  template <typename T>
  void numbers(const Text& key, uint32_t type, const std::vector<T>& values) {
    head(key, 9), raw(type), raw<uint64_t>(values.size());
    for (const T value : values) raw(value);
  }
  Text file() const {
    GgufBytes header;
    header.out_ = "GGUF";
    header.raw<uint32_t>(3), header.raw<uint64_t>(0), header.raw<uint64_t>(count_);
    Text bytes = header.out_ + out_;
    bytes.resize((bytes.size() + 31) / 32 * 32);
    return bytes;
  }

 private:
  template <typename T>
  void raw(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put(const Text& value) { raw<uint64_t>(value.size()), out_ += value; }
  void head(const Text& key, uint32_t type) { put(key), raw(type), ++count_; }
  Text out_;
  uint64_t count_ = 0;
};

struct Vocabulary {
  Text model = "llama";
  std::vector<Text> tokens = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "  ", "\n", "▁", "a", "b", "ab", "▁ab"};
  std::vector<float> scores = {0, 0, 0, 0, -1000, -1000, -1000, -3, -4, -5, -1, -2};
  std::vector<int32_t> types = {3, 3, 3, 2, 4, 4, 4, 1, 1, 1, 1, 1};
  bool space_prefix = false;
  uint32_t bos = 2;

  Text path() const {
    GgufBytes bytes;
    std::vector<Text> all = tokens;
    std::vector<float> all_scores = scores;
    std::vector<int32_t> all_types = types;
    for (unsigned b = 0; b < 256; ++b) {
      char piece[24];
      std::snprintf(piece, sizeof piece, "<0x%02X>", b);
      all.push_back(piece), all_scores.push_back(0), all_types.push_back(6);
    }
    bytes.text("general.architecture", "gemma3");
    bytes.text("tokenizer.ggml.model", model);
    bytes.texts("tokenizer.ggml.tokens", all);
    bytes.numbers("tokenizer.ggml.scores", 6, all_scores);
    bytes.numbers("tokenizer.ggml.token_type", 5, all_types);
    bytes.number("tokenizer.ggml.bos_token_id", bos);
    bytes.flag("tokenizer.ggml.add_space_prefix", space_prefix);
    bytes.flag("tokenizer.ggml.add_bos_token", true);
    bytes.text("tokenizer.chat_template", "T");
    const Text path = temporary_folder() + "/model.gguf";
    write(path, bytes.file());
    return path;
  }
};

TEST("tokenizer_file: a GGUF vocabulary") {
  const auto t = Tokenizer::load(Vocabulary{}.path());
  CHECK(t->bos_id() == 2 && t->eos_id() == 1 && t->unk_id() == 3 && t->pad_id() == 0 && t->add_bos() && t->chat_template() == "T");
  using Ids = std::vector<int32_t>;
  CHECK(t->encode("ab ab", false) == (Ids{10, 11}));
  CHECK(t->encode("▁ab", false) == (Ids{11}));
  // Runs of spaces are tokens of their own before any merging; a typed U+2581 is a space.
  CHECK(t->encode("a   b", false) == (Ids{8, 5, 7, 9}));
  CHECK(t->encode("▁▁", false) == (Ids{5}));
  CHECK(t->encode("<start_of_turn>a", true) == (Ids{4, 8}));
  CHECK(t->encode("<start_of_turn>", false).size() == 15);
  CHECK(t->decode(Ids{4, 11, 5, 10}) == " ab  ab");
}

TEST("tokenizer_file: GGUF defects are named") {
  const auto load = [](const std::function<void(Vocabulary&)>& change) {
    Vocabulary v;
    change(v);
    return Tokenizer::load(v.path());
  };
  CHECK_THROWS(load([](auto& v) { v.model = "gpt2"; }), ErrorCode::unsupported, "gpt2");
  CHECK_THROWS(load([](auto& v) { v.space_prefix = true; }), ErrorCode::unsupported, "add_space_prefix");
  CHECK_THROWS(load([](auto& v) { v.scores.pop_back(); }), ErrorCode::bad_file, "scores has 267 entries");
  CHECK_THROWS(load([](auto& v) { v.scores[8] = NAN; }), ErrorCode::bad_file, "not a number");
  CHECK_THROWS(load([](auto& v) { v.types[8] = 7; }), ErrorCode::bad_file, "type 7");
  CHECK_THROWS(load([](auto& v) { v.types[8] = 6; }), ErrorCode::bad_file, "byte piece 8");
  CHECK_THROWS(load([](auto& v) { v.tokens[8] = "b"; }), ErrorCode::bad_file, "piece 'b' has two ids");
  CHECK_THROWS(load([](auto& v) { v.tokens[8] = "\xff"; }), ErrorCode::bad_file, "");
  CHECK_THROWS(load([](auto& v) { v.bos = 5000; }), ErrorCode::bad_file, "5000");
}

}  // namespace
}  // namespace lapidary::test
