// What merging looks things up in, built from a vocabulary: characters, ranked pairs, and where text may be cut.
#include <algorithm>

#include "base/error.h"
#include "base/prefetch.h"
#include "base/utf8.h"
#include "runtime/bpe.h"

namespace lapidary {
namespace {

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint64_t kJoinBits = 1u << 21;

bool one_character(std::string_view text) { return utf8_character(text) == text.size(); }

uint32_t first_character(std::string_view text) {
  size_t at = 0;
  return utf8_next(text, at);
}

}  // namespace

Bpe::Bpe(const PieceTable& pieces, const TokenizerData& data)
    : stand_ins_(pieces.size()), character_pages_(kCodePoints >> 8, 0), characters_(256, -1), join_bits_(kJoinBits / 64, 0) {
  const bool scored = !data.scores.empty();
  expect(!scored || data.merges.empty(), ErrorCode::bad_file, data.source, ": the vocabulary has both merges and scores");
  expect(pieces.size() < INT32_MAX / 4, ErrorCode::unsupported, data.source, ": a vocabulary of ", pieces.size(), " pieces");
  read_characters(pieces, scored);
  const std::vector<Pair> pairs = scored ? scored_pairs(pieces, data) : ranked_pairs(pieces, data);
  fixed_ = stand_ins_ + static_cast<int32_t>(stand_in_characters_.size());
  for (int b = 0; b < 256; ++b) {
    const bool needed = b >= 128 || character(static_cast<uint32_t>(b)) < 0 || character(static_cast<uint32_t>(b)) >= stand_ins_;
    expect(bytes_[static_cast<size_t>(b)] >= 0 || !needed, ErrorCode::unsupported, data.source, ": the vocabulary has no piece for byte ",
           b, "; Gemma's have '<0x00>' to '<0xFF>'");
  }
  for (uint32_t c = 0; c < 128; ++c) {
    const int32_t symbol = character(c == ' ' ? 0x2581 : c);
    ascii_ids_[c] = symbol < stand_ins_ ? symbol : -1;
  }
  fill_table(pairs);
  find_joins(pieces, pairs);
}

void Bpe::set_character(uint32_t code_point, int32_t symbol) {
  uint16_t& page = character_pages_[code_point >> 8];
  if (page == 0) {
    page = static_cast<uint16_t>(characters_.size() >> 8);
    characters_.resize(characters_.size() + 256, -1);
  }
  characters_[static_cast<size_t>(page) << 8 | (code_point & 0xff)] = symbol;
}

// Single characters that are pieces. Those of control, unused and byte pieces are not: such ids never come from plain text.
// User-defined ones are cut out beforehand; Hugging Face lets merges build on them, SentencePiece does not.
void Bpe::read_characters(const PieceTable& pieces, bool scored) {
  bytes_.fill(-1);
  for (int32_t id = 0; id < pieces.size(); ++id) {
    const std::string_view text = pieces.text(id);
    const PieceType type = pieces.type(id);
    if (type == PieceType::byte) {
      const int byte = byte_of_piece(text);
      bytes_[static_cast<size_t>(byte)] = id;
    } else if ((type == PieceType::normal || (type == PieceType::user_defined && !scored)) && one_character(text)) {
      set_character(first_character(text), id);
    }
  }
}

// Merges as tokenizer.json lists them. One that would make a control or unused piece is left out.
std::vector<Bpe::Pair> Bpe::ranked_pairs(const PieceTable& pieces, const TokenizerData& data) {
  std::vector<Pair> pairs;
  pairs.reserve(data.merges.size());
  std::string joined;
  int32_t product = -1;
  // Files list a piece's merges together and pieces by id, so the last product or the one after it is often right.
  const auto is_joined = [&](int32_t id) { return id >= 0 && id < pieces.size() && pieces.text(id) == joined; };
  for (size_t rank = 0; rank < data.merges.size(); ++rank) {
    const auto [left, right] = data.merges[rank];
    expect(std::min(left, right) >= 0 && std::max(left, right) < pieces.size(), ErrorCode::bad_file, data.source, ": merge ", rank,
           " is of ids ", left, " and ", right, ", the vocabulary has ", pieces.size(), " pieces");
    joined.assign(pieces.text(left)).append(pieces.text(right));
    if (!is_joined(product)) product = is_joined(product + 1) ? product + 1 : pieces.find(joined);
    expect(product >= 0, ErrorCode::bad_file, data.source, ": merge ", rank, " joins '", pieces.text(left), "' and '", pieces.text(right),
           "' to '", joined, "', which is no piece of the vocabulary");
    // Byte pieces stand for parts of any character, so characters side by side no longer tell where merges may cross.
    if (pieces.type(left) == PieceType::byte || pieces.type(right) == PieceType::byte) whole_text_ = true;
    const bool allowed = !pieces.is_control(product) && pieces.type(product) != PieceType::unused;
    if (allowed) pairs.push_back({left, right, static_cast<uint32_t>(rank), product});
  }
  return pairs;
}

// SentencePiece joins any two neighbours whose joined text is a piece: every way to cut a piece into two that can arise is a pair,
// ranked by the piece's score. Unused pieces take part and are taken apart again at the end.
std::vector<Bpe::Pair> Bpe::scored_pairs(const PieceTable& pieces, const TokenizerData& data) {
  const auto merges = [&](int32_t id) {
    const PieceType type = pieces.type(id);
    return (type == PieceType::normal || type == PieceType::unused) && !one_character(pieces.text(id));
  };
  std::vector<int32_t> order;
  for (int32_t id = 0; id < pieces.size(); ++id) {
    if (merges(id)) order.push_back(id);
  }
  const auto score = [&](int32_t id) { return data.scores[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
  const auto half = [&](std::string_view text) {
    if (one_character(text)) {
      const uint32_t code = first_character(text);
      const int32_t known = character(code);
      if (known >= 0) return known;
      const int32_t symbol = stand_ins_ + static_cast<int32_t>(stand_in_characters_.size());
      stand_in_characters_.push_back(code);
      set_character(code, symbol);
      return symbol;
    }
    const int32_t id = pieces.find(text);
    return id >= 0 && merges(id) ? id : -1;
  };
  std::vector<Pair> pairs;
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t product = order[i];
    if (i > 0 && score(order[i - 1]) > score(product)) ++rank;
    const std::string_view text = pieces.text(product);
    bool made = false;
    for (size_t cut = utf8_character(text); cut < text.size(); cut += utf8_character(text.substr(cut))) {
      const int32_t left = half(text.substr(0, cut));
      const int32_t right = left < 0 ? -1 : half(text.substr(cut));
      if (right < 0) continue;
      pairs.push_back({left, right, rank, product});
      made = true;
    }
    if (made && pieces.type(product) == PieceType::unused) resegment_ = whole_text_ = true;
  }
  if (!resegment_) return pairs;
  unused_.resize(static_cast<size_t>(pieces.size()));
  for (int32_t id = 0; id < pieces.size(); ++id) unused_[static_cast<size_t>(id)] = pieces.type(id) == PieceType::unused;
  return pairs;
}

uint64_t Bpe::join_bit(uint32_t left, uint32_t right) {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | right;
  return ((key ^ key >> 17) * 0x9e3779b97f4a7c15u) >> 43;
}

void Bpe::find_joins(const PieceTable& pieces, const std::vector<Pair>& pairs) {
  static_assert(kJoinBits == 1ull << (64 - 43));
  if (whole_text_) {
    ascii_joins_.fill(true);
    std::fill(join_bits_.begin(), join_bits_.end(), ~uint64_t{0});
    return;
  }
  std::vector<bool> seen(static_cast<size_t>(pieces.size()));
  for (const Pair& pair : pairs) {
    if (seen[static_cast<size_t>(pair.product)]) continue;
    seen[static_cast<size_t>(pair.product)] = true;
    const std::string_view text = pieces.text(pair.product);
    size_t at = 0;
    uint32_t left = plain(utf8_next(text, at));
    while (at < text.size()) {
      const uint32_t right = plain(utf8_next(text, at));
      if ((left | right) < 128) ascii_joins_[left << 7 | right] = true;
      const uint64_t bit = join_bit(left, right);
      join_bits_[bit >> 6] |= uint64_t{1} << (bit & 63);
      left = right;
    }
  }
}

// At most three quarters full. Of a pair listed twice the later rank holds, as in Hugging Face's map.
void Bpe::fill_table(const std::vector<Pair>& pairs) {
  table_.assign(pairs.size() + pairs.size() / 3 + 16, Pair{-1, -1, kNoRank, -1});
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (i + kAhead < pairs.size()) prefetch(&table_[slot(pairs[i + kAhead].left, pairs[i + kAhead].right)]);
    const Pair& pair = pairs[i];
    size_t at = slot(pair.left, pair.right);
    while (table_[at].product >= 0 && (table_[at].left != pair.left || table_[at].right != pair.right)) {
      if (++at == table_.size()) at = 0;
    }
    table_[at] = pair;
  }
}

}  // namespace lapidary
