// Reads the SentencePiece vocabulary that GGUF metadata carries: pieces, scores, types.
#include <cmath>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/string_index.h"
#include "formats/tokenizer_file.h"

namespace lapidary {
namespace {

constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kScores = "tokenizer.ggml.scores";
constexpr const char* kTypes = "tokenizer.ggml.token_type";

// The array under `key`, as many numbers as there are pieces; whole numbers serve as floats too.
std::vector<double> numbers(const GgufFile& file, const char* key, size_t count) {
  const GgufValue* value = file.find(key);
  expect(value != nullptr, ErrorCode::bad_file, file.path(), ": has ", kTokens, " but no ", key);
  std::vector<double> out;
  if (const auto* floats = std::get_if<std::vector<double>>(value))
    out = *floats;
  else if (const auto* integers = std::get_if<std::vector<int64_t>>(value))
    out.assign(integers->begin(), integers->end());
  else
    fail(ErrorCode::bad_file, file.path(), ": ", key, " is no array of numbers");
  expect(out.size() == count, ErrorCode::bad_file, file.path(), ": ", key, " has ", out.size(), " entries, ", kTokens, " has ", count);
  return out;
}

PieceType piece_type(const GgufFile& file, double stored, size_t id, const std::string& piece) {
  constexpr PieceType kTypesByNumber[] = {PieceType::normal,       PieceType::unknown, PieceType::control,
                                          PieceType::user_defined, PieceType::unused,  PieceType::byte};
  expect(stored >= 1 && stored <= 6 && stored == std::floor(stored), ErrorCode::bad_file, file.path(), ": piece ", id, " '", piece,
         "' has type ", stored, "; types are 1 to 6");
  const PieceType type = kTypesByNumber[static_cast<size_t>(stored) - 1];
  if (type != PieceType::unknown && type != PieceType::byte && is_control_name(piece)) return PieceType::control;
  return type;
}

void check_settings(const GgufFile& file) {
  const std::string* model = file.string("tokenizer.ggml.model");
  expect(model && *model == "llama", ErrorCode::unsupported, file.path(), ": tokenizer.ggml.model is '", model ? *model : "",
         "'; only 'llama' (SentencePiece, which Gemma 2 and 3 use) is read");
  bool flag = false;
  for (const char* key : {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"}) {
    expect(!file.boolean(key, flag) || !flag, ErrorCode::unsupported, file.path(), ": ", key,
           " is true, which Gemma's vocabularies do not use");
  }
}

}  // namespace

TokenizerData read_tokenizer_gguf(const GgufFile& file) {
  check_settings(file);
  const std::vector<std::string>* tokens = file.strings(kTokens);
  expect(tokens && !tokens->empty(), ErrorCode::bad_file, file.path(), ": has no ", kTokens, "; convert the model with its tokenizer");
  TokenizerData data;
  data.source = file.path();
  data.pieces = *tokens;
  const std::vector<double> scores = numbers(file, kScores, tokens->size()), types = numbers(file, kTypes, tokens->size());
  StringIndex index(tokens->size());
  const auto text_of = [&](int32_t id) { return std::string_view(data.pieces[static_cast<size_t>(id)]); };
  for (size_t i = 0; i < data.pieces.size(); ++i) {
    const std::string& piece = data.pieces[i];
    expect(!std::isnan(scores[i]), ErrorCode::bad_file, file.path(), ": the score of piece ", i, " '", piece, "' is not a number");
    const int32_t holder = index.insert(piece, static_cast<int32_t>(i), text_of);
    expect(holder == static_cast<int32_t>(i), ErrorCode::bad_file, file.path(), ": piece '", piece, "' has two ids, ", holder, " and ", i);
    data.types.push_back(piece_type(file, types[i], i, piece));
    data.scores.push_back(static_cast<float>(scores[i]));
  }
  const auto id = [&](const char* key, const char* piece) {
    int64_t value = -1;
    if (!file.integer(key, value)) return index.find(piece, text_of);
    expect(value >= 0 && static_cast<uint64_t>(value) < data.pieces.size(), ErrorCode::bad_file, file.path(), ": ", key, " is ", value,
           ", the vocabulary has ", data.pieces.size(), " pieces");
    return static_cast<int32_t>(value);
  };
  data.bos_id = id("tokenizer.ggml.bos_token_id", "<bos>");
  data.eos_id = id("tokenizer.ggml.eos_token_id", "<eos>");
  data.unk_id = id("tokenizer.ggml.unknown_token_id", "<unk>");
  data.pad_id = id("tokenizer.ggml.padding_token_id", "<pad>");
  file.boolean("tokenizer.ggml.add_bos_token", data.add_bos);
  if (const std::string* chat = file.string("tokenizer.chat_template")) data.chat_template = *chat;
  return data;
}

}  // namespace lapidary
