// What a tokenizer is made of, read from tokenizer.json or GGUF metadata: pieces, merge order, special tokens.
// Text in, text out is runtime/tokenizer's business. Distrusts the file (Error(bad_file)).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/gguf.h"

namespace lapidary {

enum class PieceType : uint8_t { normal, unknown, control, user_defined, unused, byte };

struct TokenizerData {
  std::vector<std::string> pieces;  // by id, as stored ("▁" for space in normal pieces)
  std::vector<PieceType> types;     // by id
  // Merge order, one of the two: pairs of piece ids in rank order (tokenizer.json), or a score per piece (SentencePiece in
  // GGUF; the adjacent pair whose joined piece has the highest score merges first).
  std::vector<std::pair<int32_t, int32_t>> merges;
  std::vector<float> scores;
  int32_t bos_id = -1, eos_id = -1, unk_id = -1, pad_id = -1;  // -1: none
  bool add_bos = true;
  std::string chat_template;  // Jinja, empty when the file has none
  std::string source;         // the file, named in errors
};

TokenizerData read_tokenizer_json(const std::string& folder_or_file);  // + tokenizer_config.json, chat_template.* beside it
TokenizerData read_tokenizer_gguf(const GgufFile& file);

// Pieces that steer every Gemma (<bos>, turn and image markers ...): control whatever the file's flags say. Others follow the flags.
bool is_control_name(std::string_view piece);
// 0..255 for a byte piece as "<0xE2>", else -1.
int byte_of_piece(std::string_view piece);

}  // namespace lapidary
