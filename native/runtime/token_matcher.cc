// The trie of tokens that are matched on the text itself.
#include "runtime/token_matcher.h"

#include <string>

namespace lapidary {

TokenMatcher::TokenMatcher(const PieceTable& pieces, bool spaces) {
  roots_.fill(-1);
  for (int32_t id = 0; id < pieces.size(); ++id) {
    const PieceType type = pieces.type(id);
    // The unknown token counts: Hugging Face parses "<unk>" in text that may hold control tokens.
    const bool control = pieces.is_control(id);
    if (!control && type != PieceType::user_defined) continue;
    std::string plain;
    if (spaces) append_plain(plain, pieces.text(id));
    add(spaces ? plain : pieces.text(id), id, control);
  }
}

int32_t TokenMatcher::step(int32_t node, char byte) const {
  int32_t child = nodes_[static_cast<size_t>(node)].child;
  while (child >= 0 && nodes_[static_cast<size_t>(child)].byte != byte) child = nodes_[static_cast<size_t>(child)].sibling;
  return child;
}

void TokenMatcher::add(std::string_view token, int32_t id, bool control) {
  const auto new_node = [&](char byte, int32_t sibling) {
    nodes_.push_back({.sibling = sibling, .byte = byte});
    return static_cast<int32_t>(nodes_.size() - 1);
  };
  const unsigned char first = static_cast<unsigned char>(token[0]);
  starts_[first] = static_cast<uint8_t>(starts_[first] | (control ? kControl : kUserDefined));
  if (roots_[first] < 0) roots_[first] = new_node(token[0], -1);
  int32_t node = roots_[first];
  for (const char byte : token.substr(1)) {
    int32_t next = step(node, byte);
    if (next < 0) {
      next = new_node(byte, nodes_[static_cast<size_t>(node)].child);
      nodes_[static_cast<size_t>(node)].child = next;
    }
    node = next;
  }
  Node& end = nodes_[static_cast<size_t>(node)];
  if (end.id < 0) end.id = id, end.control = control;
}

TokenMatcher::Match TokenMatcher::longest(std::string_view text, size_t at, size_t control_end) const {
  Match best;
  int32_t node = roots_[static_cast<unsigned char>(text[at])];
  for (size_t end = at + 1; node >= 0; ++end) {
    const Node& here = nodes_[static_cast<size_t>(node)];
    if (here.id >= 0 && (!here.control || end <= control_end)) best = {here.id, end - at};
    if (end >= text.size()) break;
    node = step(node, text[end]);
  }
  return best;
}

}  // namespace lapidary
