// The pieces of a vocabulary, compact: one arena, one index.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/string_index.h"
#include "formats/tokenizer_file.h"

namespace lapidary {

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";  // U+2581, which stands for a space in pieces

// The piece as text: every U+2581 a space.
inline void append_plain(std::string& out, std::string_view piece) {
  for (size_t at; (at = piece.find(kSpacePiece)) != piece.npos; piece.remove_prefix(at + kSpacePiece.size())) {
    out += piece.substr(0, at);
    out += ' ';
  }
  out += piece;
}

class PieceTable {
 public:
  // Error(bad_file) for what no vocabulary may hold: empty, malformed or repeated pieces, lists of different lengths.
  explicit PieceTable(const TokenizerData& data);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  std::string_view text(int32_t id) const {
    const size_t i = static_cast<size_t>(id);
    return {arena_.data() + offsets_[i], offsets_[i + 1] - offsets_[i]};
  }
  PieceType type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  bool is_control(int32_t id) const { return type(id) == PieceType::control || type(id) == PieceType::unknown; }
  int32_t find(std::string_view text) const {
    return index_.find(text, [this](int32_t id) { return this->text(id); });
  }

 private:
  std::string arena_;
  std::vector<uint32_t> offsets_;  // [size + 1]
  std::vector<PieceType> types_;
  StringIndex index_;
};

}  // namespace lapidary
