// Reads tokenizer.json (Hugging Face "tokenizers") and the two files that accompany it. Accepts the one shape that Gemma
// uses, byte-fallback BPE over the whole text, and names whatever else it meets.
#include "formats/tokenizer_file.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/error.h"
#include "base/prefetch.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/string_index.h"

namespace lapidary {
namespace {

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";  // U+2581, written for a space

struct AddedToken {
  int64_t id = -1;
  std::string content;
  bool special = false, normalized = false, whole_word = false, strips = false;
};

const std::string& text_or_empty(const JsonValue* value) {
  static const std::string kEmpty;
  return value && value->is(JsonValue::Type::string) ? value->string() : kEmpty;
}

// Everything of tokenizer.json that outlives the reading of one member.
class TokenizerJson {
 public:
  TokenizerJson(std::string_view text, std::string name) : text_(text), name_(std::move(name)), index_(text.size() / 128) {
    data_.source = name_;
    data_.pieces.reserve(text.size() / 128);
  }

  // The data stays this object's until the caller moves it away.
  TokenizerData& read() {
    JsonReader reader(text_, name_);
    std::string key;
    reader.begin_object();
    while (reader.next_key(key)) read_member(reader, key);
    reader.end();
    expect(saw_model_, ErrorCode::bad_file, name_, ": has no \"model\"; this is not a tokenizer.json");
    expect(saw_normalizer_, ErrorCode::unsupported, name_, ": has no normalizer; Gemma's replaces ' ' by '", kSpacePiece, "'");
    add_tokens();
    finish_types();
    if (merges_wait_) read_late_merges();
    return data_;
  }

  int32_t find(std::string_view piece) const {
    return index_.find(piece, [&](int32_t id) { return std::string_view(data_.pieces[static_cast<size_t>(id)]); });
  }

 private:
  void read_member(JsonReader& reader, const std::string& key) {
    if (key == "added_tokens") return read_added(reader);
    if (key == "model") return read_model(reader);
    if (key == "normalizer") return check_normalizer(JsonValue::read(reader, name_));
    if (key == "pre_tokenizer") return check_pre_tokenizer(JsonValue::read(reader, name_));
    if (key == "decoder") return check_decoder(JsonValue::read(reader, name_));
    reader.skip();
  }

  void read_added(JsonReader& reader) {
    std::string key;
    reader.begin_array();
    while (reader.next_element()) {
      AddedToken token;
      reader.begin_object();
      while (reader.next_key(key)) {
        if (key == "id")
          token.id = reader.integer();
        else if (key == "content")
          reader.string(token.content);
        else if (key == "special")
          token.special = reader.boolean();
        else if (key == "normalized")
          token.normalized = reader.boolean();
        else if (key == "single_word")
          token.whole_word = reader.boolean();
        else if (key == "lstrip" || key == "rstrip")
          token.strips = reader.boolean() || token.strips;
        else
          reader.skip();
      }
      expect(token.id >= 0, ErrorCode::bad_file, name_, ": added token '", token.content, "' has no id of its own");
      added_.push_back(std::move(token));
    }
  }

  void read_model(JsonReader& reader) {
    expect(!saw_model_, ErrorCode::bad_file, name_, ": holds two models");
    saw_model_ = true;
    std::string key, type, unknown;
    bool saw_vocab = false, byte_fallback = false;
    reader.begin_object();
    while (reader.next_key(key)) {
      if (key == "type")
        reader.string(type), expect_bpe(type);
      else if (key == "vocab")
        read_vocab(reader), saw_vocab = true;
      else if (key == "merges" && saw_vocab)
        read_merges(reader);
      else if (key == "merges")
        merges_wait_ = true, reader.skip();
      else if (key == "byte_fallback")
        byte_fallback = reader.boolean();
      else if (key == "unk_token" && reader.peek() == JsonReader::Type::string)
        reader.string(unknown);
      else if (key == "ignore_merges" || key == "dropout" || key == "continuing_subword_prefix" || key == "end_of_word_suffix")
        check_model_option(key, JsonValue::read(reader, name_));
      else
        reader.skip();
    }
    expect_bpe(type);
    expect(saw_vocab, ErrorCode::bad_file, name_, ": the model has no \"vocab\"");
    expect(byte_fallback, ErrorCode::unsupported, name_, ": the BPE model lacks byte_fallback, which Gemma's vocabularies have");
    unknown_name_ = unknown;
  }

  void expect_bpe(const std::string& type) const {
    expect(type == "BPE", ErrorCode::unsupported, name_, ": the model's type is '", type, "'; only 'BPE' with byte fallback is read");
  }

  void check_model_option(const std::string& key, const JsonValue& value) const {
    const bool off = value.is(JsonValue::Type::null) || (value.is(JsonValue::Type::boolean) && !value.boolean()) ||
                     (value.is(JsonValue::Type::number) && value.number() == 0) ||
                     (value.is(JsonValue::Type::string) && value.string().empty());
    expect(off, ErrorCode::unsupported, name_, ": the BPE model sets ", key, ", which Gemma's vocabularies do not use");
  }

  void read_vocab(JsonReader& reader) {
    std::string piece;
    reader.begin_object();
    while (reader.next_key(piece)) place(reader.integer(), piece);
  }

  // Gives `id` its piece. Ids are dense in the end, so none can exceed what the file has room for.
  void place(int64_t id, const std::string& piece) {
    expect(!piece.empty(), ErrorCode::bad_file, name_, ": id ", id, " stands for an empty piece");
    expect(id >= 0 && static_cast<uint64_t>(id) < text_.size() / 4, ErrorCode::bad_file, name_, ": piece '", piece, "' has id ", id,
           ", more than a file of ", text_.size(), " bytes can hold");
    const size_t at = static_cast<size_t>(id);
    auto& pieces = data_.pieces;
    if (at >= pieces.size()) pieces.resize(at + 1);
    expect(pieces[at].empty(), ErrorCode::bad_file, name_, ": id ", id, " stands for both '", pieces[at], "' and '", piece, "'");
    pieces[at] = piece;
    const int32_t holder =
        index_.insert(piece, static_cast<int32_t>(id), [&](int32_t i) { return std::string_view(pieces[static_cast<size_t>(i)]); });
    expect(holder == id, ErrorCode::bad_file, name_, ": piece '", piece, "' has two ids, ", holder, " and ", id);
  }

  // Merges read but not yet looked up; looking up many together hides the wait for memory.
  struct Half {
    std::string text;
    uint32_t hash = 0;
  };
  static constexpr size_t kBatch = 64;

  void read_merges(JsonReader& reader) {
    expect(data_.merges.empty(), ErrorCode::bad_file, name_, ": holds two lists of merges");
    std::array<Half, 2 * kBatch> halves;
    size_t waiting = 0;
    reader.begin_array();
    while (reader.next_element()) {
      Half &left = halves[waiting], &right = halves[waiting + 1];
      read_merge(reader, data_.merges.size() + waiting / 2, left.text, right.text);
      for (Half* half : {&left, &right}) {
        half->hash = StringIndex::hash(half->text);
        index_.prefetch(half->hash);
      }
      waiting += 2;
      if (waiting == halves.size()) find_merges(halves.data(), waiting), waiting = 0;
    }
    find_merges(halves.data(), waiting);
  }

  // Older files write a merge as one string with a space between the halves, newer ones as a pair.
  void read_merge(JsonReader& reader, size_t number, std::string& left, std::string& right) const {
    if (reader.peek() == JsonReader::Type::string) {
      reader.string(left);
      const size_t space = left.find(' ');
      expect(space != left.npos && left.find(' ', space + 1) == left.npos, ErrorCode::bad_file, name_, ": merge ", number, " is '", left,
             "', not two pieces with a space between them");
      right.assign(left, space + 1);
      left.resize(space);
      return;
    }
    reader.begin_array();
    const bool two =
        reader.next_element() && (reader.string(left), reader.next_element()) && (reader.string(right), !reader.next_element());
    expect(two, ErrorCode::bad_file, name_, ": merge ", number, " is not a pair");
  }

  void find_merges(const Half* halves, size_t count) {
    const auto text_of = [&](int32_t id) { return std::string_view(data_.pieces[static_cast<size_t>(id)]); };
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = index_.candidate(halves[i].hash);
      if (id >= 0) prefetch(&data_.pieces[static_cast<size_t>(id)]);
    }
    const auto find_half = [&](const Half& half) {
      const int32_t id = index_.find(half.text, half.hash, text_of);
      expect(id >= 0, ErrorCode::bad_file, name_, ": merge ", data_.merges.size(), " names '", half.text,
             "', which is no piece of the vocabulary");
      return id;
    };
    for (size_t i = 0; i < count; i += 2) {
      const int32_t left = find_half(halves[i]);
      data_.merges.emplace_back(left, find_half(halves[i + 1]));
    }
  }

  // The merges stood before the vocabulary: a second pass for them alone.
  void read_late_merges() {
    JsonReader reader(text_, name_);
    std::string key, member;
    reader.begin_object();
    while (reader.next_key(key)) {
      if (key != "model") {
        reader.skip();
        continue;
      }
      reader.begin_object();
      while (reader.next_key(member)) {
        if (member == "merges")
          read_merges(reader);
        else
          reader.skip();
      }
    }
  }

  bool replaces_space(const JsonValue& value, std::string_view from, std::string_view to) const {
    const JsonValue* pattern = value.find("pattern");
    return text_or_empty(value.find("type")) == "Replace" && pattern && text_or_empty(pattern->find("String")) == from &&
           text_or_empty(value.find("content")) == to;
  }

  [[noreturn]] void refuse(std::string_view what, const JsonValue& value, std::string_view want) const {
    fail(ErrorCode::unsupported, name_, ": ", what, " of type '", text_or_empty(value.find("type")), "' is not Gemma's (", want, ")");
  }

  void check_normalizer(const JsonValue& value) {
    const JsonValue* list = value.find("normalizers");
    const bool one =
        text_or_empty(value.find("type")) == "Sequence" && list && list->is(JsonValue::Type::array) && list->array().size() == 1;
    if (!replaces_space(one ? list->array()[0] : value, " ", kSpacePiece)) refuse("a normalizer", value, "Replace ' ' by '\u2581'");
    saw_normalizer_ = true;
  }

  // A split at spaces does nothing, since the normalizer has left none.
  void check_pre_tokenizer(const JsonValue& value) const {
    if (value.is(JsonValue::Type::null)) return;
    const JsonValue* pattern = value.find("pattern");
    const bool split = text_or_empty(value.find("type")) == "Split" && pattern && text_or_empty(pattern->find("String")) == " ";
    if (!split) refuse("a pre_tokenizer", value, "none, or Split at ' '");
  }

  void check_decoder(const JsonValue& value) const {
    constexpr std::string_view kWant = "Sequence of Replace '\u2581' by ' ', ByteFallback, Fuse";
    const JsonValue* list = value.find("decoders");
    if (text_or_empty(value.find("type")) != "Sequence" || !list || !list->is(JsonValue::Type::array)) refuse("a decoder", value, kWant);
    const auto& steps = list->array();
    const bool fits = steps.size() == 3 && replaces_space(steps[0], kSpacePiece, " ") &&
                      text_or_empty(steps[1].find("type")) == "ByteFallback" && text_or_empty(steps[2].find("type")) == "Fuse";
    if (!fits) refuse("a decoder", value, kWant);
  }

  // Added tokens are matched in one sweep. Hugging Face matches those marked "normalized" in a second one; the result is the
  // same unless such a token overlaps another, or holds a space, which the normalizer changes in between.
  void check_added(const AddedToken& token) const {
    expect(!token.whole_word && !token.strips, ErrorCode::unsupported, name_, ": added token '", token.content,
           "' sets single_word, lstrip or rstrip, which Gemma's tokens do not");
    if (!token.normalized) return;
    const std::string_view text = token.content;
    bool clash = text.find(' ') != text.npos || text.find(kSpacePiece) != text.npos;
    for (const AddedToken& other : added_) {
      if (other.normalized || clash) continue;
      const std::string_view fixed = other.content;
      for (size_t at = 0; at < text.size() && !clash; ++at) {
        const size_t shared = std::min(text.size() - at, fixed.size());
        clash = text.substr(at, shared) == fixed.substr(0, shared);
      }
      for (size_t at = 1; at < fixed.size() && !clash; ++at) {
        const size_t shared = std::min(fixed.size() - at, text.size());
        clash = fixed.substr(at, shared) == text.substr(0, shared);
      }
    }
    expect(!clash, ErrorCode::unsupported, name_, ": added token '", text,
           "' is marked \"normalized\" and overlaps a space or another added token; save it with normalized=false");
  }

  void add_tokens() {
    const size_t model_pieces = data_.pieces.size();
    for (const AddedToken& token : added_) {
      check_added(token);
      const int32_t known = find(token.content);
      if (known < 0)
        place(token.id, token.content);
      else
        expect(known == token.id, ErrorCode::bad_file, name_, ": added token '", token.content, "' has id ", token.id,
               ", the vocabulary says ", known);
    }
    const auto gap = std::find_if(data_.pieces.begin(), data_.pieces.end(), [](const std::string& p) { return p.empty(); });
    expect(gap == data_.pieces.end(), ErrorCode::bad_file, name_, ": no piece has id ", gap - data_.pieces.begin(),
           ", though ids go up to ", data_.pieces.size() - 1, " (", model_pieces, " in the model's vocabulary)");
    expect(!data_.pieces.empty(), ErrorCode::bad_file, name_, ": the vocabulary is empty");
  }

  void finish_types() {
    data_.types.assign(data_.pieces.size(), PieceType::normal);
    for (size_t i = 0; i < data_.pieces.size(); ++i) {
      if (byte_of_piece(data_.pieces[i]) >= 0) data_.types[i] = PieceType::byte;
    }
    for (const AddedToken& token : added_) {
      const bool control = token.special || is_control_name(token.content);
      data_.types[static_cast<size_t>(token.id)] = control ? PieceType::control : PieceType::user_defined;
    }
    data_.unk_id = find(unknown_name_.empty() ? "<unk>" : unknown_name_);
    expect(data_.unk_id >= 0 || unknown_name_.empty(), ErrorCode::bad_file, name_, ": unk_token '", unknown_name_, "' is no piece");
    if (data_.unk_id >= 0) data_.types[static_cast<size_t>(data_.unk_id)] = PieceType::unknown;
    data_.bos_id = find("<bos>"), data_.eos_id = find("<eos>"), data_.pad_id = find("<pad>");
  }

  std::string_view text_;
  std::string name_;
  TokenizerData data_;
  StringIndex index_;
  std::vector<AddedToken> added_;
  std::string unknown_name_;
  bool saw_model_ = false, saw_normalizer_ = false, merges_wait_ = false;
};

// The token's text: a plain string, or an object as the tokenizers library saves it.
std::string token_text(const JsonValue& value) {
  return value.is(JsonValue::Type::string) ? value.string() : text_or_empty(value.find("content"));
}

// One template, or the one named "default" of a list.
std::string template_text(const JsonValue& value, const std::string& name) {
  if (value.is(JsonValue::Type::string)) return value.string();
  if (!value.is(JsonValue::Type::array)) return "";
  for (const JsonValue& entry : value.array()) {
    if (text_or_empty(entry.find("name")) == "default") return text_or_empty(entry.find("template"));
  }
  expect(value.array().empty(), ErrorCode::bad_file, name, ": none of its ", value.array().size(), " chat templates is named 'default'");
  return "";
}

void read_config(const std::string& path, const TokenizerJson& vocabulary, TokenizerData& data) {
  const std::string text = read_text_file(path);
  JsonReader reader(text, path);
  std::string key;
  const auto assign = [&](int32_t& id, bool required) {
    const std::string piece = token_text(JsonValue::read(reader, path));
    if (piece.empty()) return;
    const int32_t found = vocabulary.find(piece);
    expect(found >= 0 || !required, ErrorCode::bad_file, path, ": ", key, " is '", piece, "', which the vocabulary lacks");
    if (found >= 0) id = found;
  };
  reader.begin_object();
  while (reader.next_key(key)) {
    if (key == "bos_token")
      assign(data.bos_id, true);
    else if (key == "eos_token")
      assign(data.eos_id, true);
    else if (key == "pad_token")
      assign(data.pad_id, false);
    else if (key == "add_bos_token" && reader.peek() == JsonReader::Type::boolean)
      data.add_bos = reader.boolean();
    else if (key == "chat_template")
      data.chat_template = template_text(JsonValue::read(reader, path), path);
    else
      reader.skip();
  }
  reader.end();
}

}  // namespace

bool is_control_name(std::string_view piece) {
  constexpr std::array<std::string_view, 9> kNames = {
      "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"};
  return std::find(kNames.begin(), kNames.end(), piece) != kNames.end();
}

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = digit(piece[3]), low = digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

TokenizerData read_tokenizer_json(const std::string& folder_or_file) {
  namespace fs = std::filesystem;
  const bool folder = is_directory(folder_or_file);
  const fs::path path = folder ? fs::path(folder_or_file) / "tokenizer.json" : fs::path(folder_or_file);
  expect(!folder || is_file(path.string()), ErrorCode::bad_file, folder_or_file, ": the folder has no tokenizer.json",
         is_file((path.parent_path() / "tokenizer.model").string())
             ? "; tokenizer.model alone is not read, save the fast tokenizer beside it"
             : "");
  const auto file = MappedFile::open(path.string());
  TokenizerJson vocabulary({reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()}, path.string());
  TokenizerData& data = vocabulary.read();
  const auto beside = [&](const char* name) { return (path.parent_path() / name).string(); };
  if (const std::string config = beside("tokenizer_config.json"); is_file(config)) read_config(config, vocabulary, data);
  if (const std::string jinja = beside("chat_template.jinja"); is_file(jinja))
    data.chat_template = read_text_file(jinja);
  else if (const std::string json = beside("chat_template.json"); data.chat_template.empty() && is_file(json)) {
    const JsonValue value = JsonValue::parse(read_text_file(json), json);
    if (const JsonValue* entry = value.find("chat_template")) data.chat_template = template_text(*entry, json);
  }
  return std::move(data);
}

}  // namespace lapidary
