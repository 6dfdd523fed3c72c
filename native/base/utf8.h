// UTF-8: checking, decoding, and replacing what is malformed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lapidary {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Bytes of the well-formed character that `text` starts with; 0 when it starts with none.
size_t utf8_character(std::string_view text);
// Bytes of the maximal ill-formed sequence that `text` starts with (it starts with no character): the longest beginning of
// a well-formed one, or a single byte.
size_t utf8_defect(std::string_view text);
bool utf8_valid(std::string_view text);
void append_utf8(std::string& out, uint32_t code_point);

// The character at `at` of valid text; `at` moves past it.
inline uint32_t utf8_next(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
  const uint32_t first = byte(0);
  if (first < 0x80) return ++at, first;
  uint32_t code;
  if (first < 0xe0) {
    code = (first & 0x1f) << 6 | (byte(1) & 0x3f);
    at += 2;
  } else if (first < 0xf0) {
    code = (first & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    at += 3;
  } else {
    code = (first & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
    at += 4;
  }
  return code;
}

}  // namespace lapidary
