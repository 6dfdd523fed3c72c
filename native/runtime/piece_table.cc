// Builds the table of pieces and refuses vocabularies that contradict themselves.
#include "runtime/piece_table.h"

#include "base/error.h"
#include "base/utf8.h"

namespace lapidary {

PieceTable::PieceTable(const TokenizerData& data) : types_(data.types), index_(data.pieces.size()) {
  const size_t n = data.pieces.size();
  expect(n > 0, ErrorCode::bad_file, data.source, ": the vocabulary is empty");
  expect(types_.size() == n && (data.scores.empty() || data.scores.size() == n), ErrorCode::bad_file, data.source, ": ", n, " pieces, ",
         types_.size(), " types, ", data.scores.size(), " scores");
  size_t bytes = 0;
  for (const std::string& piece : data.pieces) bytes += piece.size();
  expect(bytes < UINT32_MAX && n < INT32_MAX, ErrorCode::unsupported, data.source, ": a vocabulary of ", bytes, " bytes");
  arena_.reserve(bytes);
  offsets_.reserve(n + 1);
  offsets_.push_back(0);
  std::vector<uint32_t> hashes(n);
  for (size_t i = 0; i < n; ++i) {
    const std::string& piece = data.pieces[i];
    expect(!piece.empty() && utf8_valid(piece), ErrorCode::bad_file, data.source, ": piece ", i,
           piece.empty() ? " is empty" : " is not valid UTF-8");
    expect(types_[i] != PieceType::byte || byte_of_piece(piece) >= 0, ErrorCode::bad_file, data.source, ": byte piece ", i, " is '", piece,
           "', not of the form '<0x41>'");
    arena_ += piece;
    offsets_.push_back(static_cast<uint32_t>(arena_.size()));
    hashes[i] = StringIndex::hash(piece);
  }
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) index_.prefetch(hashes[i + kAhead]);
    const int32_t id = static_cast<int32_t>(i);
    const int32_t holder = index_.insert(text(id), hashes[i], id, [this](int32_t other) { return text(other); });
    expect(holder == id, ErrorCode::bad_file, data.source, ": piece '", text(id), "' has two ids, ", holder, " and ", id);
  }
}

}  // namespace lapidary
