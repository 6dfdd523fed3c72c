// Finds the tokens that are cut out of the text before merging: the longest one that starts at a place.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/piece_table.h"

namespace lapidary {

class TokenMatcher {
 public:
  // `spaces`: "▁" in a token stands for a space (SentencePiece); else it is the character itself.
  TokenMatcher(const PieceTable& pieces, bool spaces);

  static constexpr uint8_t kUserDefined = 1, kControl = 2;
  // Which kinds of token may start with this byte.
  uint8_t starts(unsigned char byte) const { return starts_[byte]; }

  struct Match {
    int32_t id = -1;
    size_t bytes = 0;
  };
  // The longest token at `at`; a control token only when it ends at or before `control_end`.
  Match longest(std::string_view text, size_t at, size_t control_end) const;

 private:
  // A trie; siblings form a list.
  struct Node {
    int32_t child = -1, sibling = -1;
    int32_t id = -1;
    char byte = 0;
    bool control = false;
  };
  int32_t step(int32_t node, char byte) const;
  void add(std::string_view token, int32_t id, bool control);

  std::vector<Node> nodes_;
  std::array<int32_t, 256> roots_;  // child of the root by byte
  std::array<uint8_t, 256> starts_{};
};

}  // namespace lapidary
