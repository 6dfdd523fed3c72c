// UTF-8 by the table of well-formed byte sequences (Unicode chapter 3, table 3-7).
#include "base/utf8.h"

#include <cstring>

namespace lapidary {
namespace {

// How long the character announced by `text`'s first byte is (0: no such character), and how many of those bytes are there
// and fit.
struct Probe {
  size_t length;
  size_t fits;
};

Probe probe(std::string_view text) {
  const auto byte = [&](size_t i) -> unsigned { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const unsigned first = byte(0);
  if (text.empty()) return {0, 0};
  if (first < 0x80) return {1, 1};
  const size_t length = first >= 0xc2 && first <= 0xdf ? 2 : (first & 0xf0) == 0xe0 ? 3 : first >= 0xf0 && first <= 0xf4 ? 4 : 0;
  if (length == 0) return {0, 0};
  // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
  const unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < low || byte(1) > high) return {length, 1};
  size_t fits = 2;
  while (fits < length && (byte(fits) & 0xc0) == 0x80) ++fits;
  return {length, fits};
}

}  // namespace

size_t utf8_character(std::string_view text) {
  const Probe p = probe(text);
  return p.fits == p.length ? p.length : 0;
}

size_t utf8_defect(std::string_view text) {
  const Probe p = probe(text);
  return p.length == 0 ? 1 : p.fits;
}

bool utf8_valid(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word;
    while (text.size() - at >= 8 && (std::memcpy(&word, text.data() + at, 8), (word & 0x8080808080808080u) == 0)) at += 8;
    if (at >= text.size()) break;
    const size_t bytes = utf8_character(text.substr(at));
    if (bytes == 0) return false;
    at += bytes;
  }
  return true;
}

void append_utf8(std::string& out, uint32_t code_point) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto tail = [&](int shift) { put(0x80 | ((code_point >> shift) & 0x3f)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xc0 | code_point >> 6), tail(0);
  } else if (code_point < 0x10000) {
    put(0xe0 | code_point >> 12), tail(6), tail(0);
  } else {
    put(0xf0 | code_point >> 18), tail(12), tail(6), tail(0);
  }
}

}  // namespace lapidary
