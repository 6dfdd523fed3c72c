// Byte-pair merging of text without added tokens, for both ways a vocabulary gives the order: ranked pairs (tokenizer.json)
// and scored pieces (SentencePiece).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/tokenizer_file.h"
#include "runtime/piece_table.h"

namespace lapidary {

// Merging starts from characters and joins, again and again, the adjacent pair of the lowest rank (highest score), the leftmost
// of equals. A character that the vocabulary lacks takes part in no merge and comes out as its bytes.
//
// Symbols are what merging works on: ids of pieces; above them stand-ins for characters that are no piece of their own but
// part of longer ones; above those, ids that must come out as they are.
class Bpe {
 public:
  Bpe(const PieceTable& pieces, const TokenizerData& data);

  // Working memory of one encoding at a time.
  struct Scratch {
    struct Node {
      int32_t symbol;
      uint32_t previous, next;
      uint32_t rank;    // of the pair that starts here; kNoRank when there is none
      int32_t product;  // of that pair
    };
    std::vector<int32_t> symbols;
    std::vector<Node> nodes;
    std::vector<uint64_t> heap;  // rank << 32 | position, smallest on top
    std::vector<uint32_t> ranks;
    std::vector<int32_t> products;
    std::unordered_map<int32_t, std::pair<int32_t, int32_t>> splits;  // unused piece -> the pair last seen to make it
  };

  // False when no merge can cross a boundary between the two characters (a space and U+2581 are one): no product of any merge
  // has them side by side. So text may be cut there and the parts be merged, and remembered, each on its own.
  bool joins(uint32_t left, uint32_t right) const {
    if ((left | right) < 128) return ascii_joins_[left << 7 | right];
    const uint64_t bit = join_bit(left, right);
    return (join_bits_[bit >> 6] >> (bit & 63)) & 1;
  }
  // U+2581 as a space, every other character as itself.
  static uint32_t plain(uint32_t code_point) { return code_point == 0x2581 ? ' ' : code_point; }

  // The id of an ASCII character that is a piece, else -1.
  int32_t ascii_id(unsigned char c) const { return ascii_ids_[c]; }

  // True when merging has to see the whole text at once, added tokens included: then joins() is always true, and the caller
  // gives everything to one begin() ... finish().
  bool whole_text() const { return whole_text_; }

  void begin(Scratch& scratch) const { scratch.symbols.clear(); }
  void add_text(std::string_view text, Scratch& scratch) const;
  void add_id(int32_t id, Scratch& scratch) const { scratch.symbols.push_back(fixed_ + id); }
  void finish(Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  struct Pair {
    int32_t left, right;
    uint32_t rank;
    int32_t product;  // -1: an empty slot
  };

  void read_characters(const PieceTable& pieces, bool scored);
  void set_character(uint32_t code_point, int32_t symbol);
  int32_t character(uint32_t code_point) const;
  std::vector<Pair> ranked_pairs(const PieceTable& pieces, const TokenizerData& data);
  std::vector<Pair> scored_pairs(const PieceTable& pieces, const TokenizerData& data);
  void find_joins(const PieceTable& pieces, const std::vector<Pair>& pairs);
  void fill_table(const std::vector<Pair>& pairs);
  size_t slot(int32_t left, int32_t right) const;
  const Pair* find(int32_t left, int32_t right) const;
  static uint64_t join_bit(uint32_t left, uint32_t right);

  void merge_few(Scratch& scratch) const;
  void merge_many(Scratch& scratch) const;
  void look(Scratch& scratch, uint32_t at) const;
  void emit(int32_t symbol, std::vector<int32_t>& out) const;
  void emit_resegmented(int32_t symbol, const Scratch& scratch, std::vector<int32_t>& out) const;

  int32_t stand_ins_ = 0, fixed_ = 0;  // the first symbol of each kind
  bool whole_text_ = false, resegment_ = false;
  std::vector<bool> unused_;                   // by symbol of a piece; empty unless resegment_
  std::vector<uint32_t> stand_in_characters_;  // by symbol - stand_ins_
  std::array<int32_t, 256> bytes_;             // ids of the byte pieces, -1 where none is needed
  std::array<int32_t, 128> ascii_ids_;
  std::vector<uint16_t> character_pages_;  // code point / 256 -> page, 0 for none
  std::vector<int32_t> characters_;        // [page][256] -> symbol or -1
  std::vector<Pair> table_;                // open addressing
  std::array<bool, 128 * 128> ascii_joins_{};
  std::vector<uint64_t> join_bits_;  // hashed pairs of characters; may say true too often, never false
};

}  // namespace lapidary
