// Strict JSON reading (grammar, UTF-8, depth all checked) and the quoting of strings.
#include "formats/json.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/utf8.h"

namespace lapidary {
namespace {

// Deeper nesting than any real file has; keeps skip() and JsonValue::read() off the end of the stack.
constexpr int kMaxDepth = 96;
// Beyond this a double no longer holds every integer.
constexpr double kMaxExactInteger = 9007199254740992.0;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Bytes that stand for themselves inside a string: printable ASCII but '"' and '\'.
bool is_plain(unsigned char c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; }

// The top bit of every byte that is not plain; of the bytes above the first such one some may be set in error (a borrow).
uint64_t not_plain(uint64_t v) {
  constexpr uint64_t kOnes = 0x0101010101010101u, kTops = 0x8080808080808080u;
  const uint64_t quote = v ^ (kOnes * '"'), backslash = v ^ (kOnes * '\\');
  return (v | (v - kOnes * 0x20) | ((quote - kOnes) & ~quote) | ((backslash - kOnes) & ~backslash)) & kTops;
}

// The end of the run of plain bytes that starts at `at`.
size_t skip_plain(std::string_view text, size_t at) {
  while (text.size() - at >= 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    const uint64_t found = not_plain(word);  // little-endian: the lowest byte comes first
    if (found != 0) return at + static_cast<size_t>(std::countr_zero(found)) / 8;
    at += 8;
  }
  while (at < text.size() && is_plain(static_cast<unsigned char>(text[at]))) ++at;
  return at;
}

// The four hexadecimal digits at `at`, or -1.
int32_t hex4(std::string_view text, size_t at) {
  if (at > text.size() || text.size() - at < 4) return -1;
  int32_t value = 0;
  for (const char c : text.substr(at, 4)) {
    const int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Reads what follows a backslash at `at`, appends the character and moves `at` past it. Returns the problem, or nullptr.
const char* append_escape(std::string_view text, size_t& at, std::string& out) {
  if (at >= text.size()) return "the text ends inside a string";
  const char c = text[at++];
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  if (const size_t i = kNames.find(c); i != kNames.npos) return out.push_back(kValues[i]), nullptr;
  if (c != 'u') return "a backslash before a character that cannot be escaped";
  const int32_t unit = hex4(text, at);
  if (unit < 0) return "\\u without four hexadecimal digits";
  at += 4;
  if (unit >= 0xdc00 && unit <= 0xdfff) return "a low surrogate without a high one before it";
  if (unit < 0xd800 || unit > 0xdbff) return append_utf8(out, static_cast<uint32_t>(unit)), nullptr;
  const int32_t low = text.substr(at, 2) == "\\u" ? hex4(text, at + 2) : -1;
  if (low < 0xdc00 || low > 0xdfff) return "a high surrogate without a low one after it";
  at += 6;
  append_utf8(out, 0x10000u + ((static_cast<uint32_t>(unit) - 0xd800u) << 10) + (static_cast<uint32_t>(low) - 0xdc00u));
  return nullptr;
}

// The characters of the number at the start of `text` (RFC 8259 section 6), or nothing when it breaks the grammar.
std::string_view number_text(std::string_view text) {
  size_t i = 0;
  const auto digits = [&] {
    const size_t from = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i > from;
  };
  if (i < text.size() && text[i] == '-') ++i;
  if (i < text.size() && text[i] == '0') {
    ++i;
  } else if (!digits()) {
    return {};
  }
  if (i < text.size() && text[i] == '.' && (++i, !digits())) return {};
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (!digits()) return {};
  }
  return text.substr(0, i);
}

void expect_type(JsonValue::Type want, JsonValue::Type got) {
  expect(got == want, ErrorCode::bad_file, "expected ", type_name(want), ", found ", type_name(got));
}

}  // namespace

const char* type_name(JsonValue::Type type) {
  switch (type) {
    case JsonValue::Type::object:
      return "an object";
    case JsonValue::Type::array:
      return "an array";
    case JsonValue::Type::string:
      return "a string";
    case JsonValue::Type::number:
      return "a number";
    case JsonValue::Type::boolean:
      return "a boolean";
    case JsonValue::Type::null:
      return "null";
  }
  return "a value";
}

JsonReader::JsonReader(std::string_view text, std::string_view what) : text_(text), what_(what) {}

void JsonReader::fail_here(std::string_view problem) const {
  fail(ErrorCode::bad_file, what_, ": JSON, byte ", at_, " of ", text_.size(), ": ", problem);
}

void JsonReader::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
}

// The next character that is not white space, left where it is.
char JsonReader::take() {
  skip_space();
  if (at_ >= text_.size()) [[unlikely]]
    fail_here("the text ends too early; the file may be incomplete");
  return text_[at_];
}

void JsonReader::expect_literal(std::string_view literal) {
  take();
  if (text_.substr(at_, literal.size()) != literal) fail_here("expected " + std::string(literal));
  at_ += literal.size();
}

void JsonReader::enter() {
  if (++depth_ > kMaxDepth) fail_here("nested deeper than " + std::to_string(kMaxDepth) + " levels");
  ++at_;
  first_ = true;
}

JsonReader::Type JsonReader::peek() {
  const char c = take();
  switch (c) {
    case '{':
      return Type::object;
    case '[':
      return Type::array;
    case '"':
      return Type::string;
    case 't':
    case 'f':
      return Type::boolean;
    case 'n':
      return Type::null;
    default:
      if (c != '-' && !is_digit(c)) fail_here("expected a value");
      return Type::number;
  }
}

void JsonReader::begin_object() {
  if (take() != '{') fail_here("expected an object");
  enter();
}

void JsonReader::begin_array() {
  if (take() != '[') fail_here("expected an array");
  enter();
}

bool JsonReader::next_key(std::string& key) {
  char c = take();
  if (c == '}') {
    ++at_, --depth_, first_ = false;
    return false;
  }
  if (!first_) {
    if (c != ',') fail_here("expected ',' or '}'");
    ++at_;
    c = take();
  }
  if (c != '"') fail_here("expected a key in quotes");
  string(key);
  if (take() != ':') fail_here("expected ':'");
  ++at_;
  first_ = false;
  return true;
}

bool JsonReader::next_element() {
  const char c = take();
  if (c == ']') {
    ++at_, --depth_, first_ = false;
    return false;
  }
  if (!first_) {
    if (c != ',') fail_here("expected ',' or ']'");
    ++at_;
  }
  first_ = false;
  return true;
}

void JsonReader::string(std::string& out) {
  if (take() != '"') fail_here("expected a string");
  size_t at = at_ + 1, start = at;
  out.clear();
  const auto stop = [&](std::string_view problem) {
    at_ = std::min(at, text_.size());
    fail_here(problem);
  };
  for (;;) {
    at = skip_plain(text_, at);
    if (at >= text_.size()) stop("the text ends inside a string; the file may be incomplete");
    const unsigned char c = static_cast<unsigned char>(text_[at]);
    if (c >= 0x80) {
      const size_t bytes = utf8_character(text_.substr(at));
      if (bytes == 0) stop("a string that is not valid UTF-8");
      at += bytes;
      continue;
    }
    out.append(text_.data() + start, at - start);
    if (c == '"') break;
    if (c != '\\') stop("a control character inside a string");
    if (const char* problem = append_escape(text_, ++at, out)) stop(problem);
    start = at;
  }
  at_ = at + 1;
}

double JsonReader::number() {
  take();
  const std::string_view digits = number_text(text_.substr(at_));
  if (digits.empty()) fail_here("expected a number");
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || !std::isfinite(value)) fail_here("a number out of a double's range");
  at_ += digits.size();
  return value;
}

int64_t JsonReader::integer() {
  take();
  const std::string_view digits = number_text(text_.substr(at_));
  if (digits.empty()) fail_here("expected a whole number");
  if (digits.find_first_of(".eE") != digits.npos) {
    const size_t before = at_;
    const double value = number();
    if (value == std::trunc(value) && std::abs(value) <= kMaxExactInteger) return static_cast<int64_t>(value);
    at_ = before;
    fail_here("expected a whole number");
  }
  int64_t value = 0;
  if (std::from_chars(digits.data(), digits.data() + digits.size(), value).ec != std::errc()) fail_here("a whole number out of 64 bits");
  at_ += digits.size();
  return value;
}

bool JsonReader::boolean() {
  const bool value = take() == 't';
  expect_literal(value ? "true" : "false");
  return value;
}

void JsonReader::null() { expect_literal("null"); }

void JsonReader::skip() {
  std::string scratch;
  switch (peek()) {
    case Type::object:
      begin_object();
      while (next_key(scratch)) skip();
      break;
    case Type::array:
      begin_array();
      while (next_element()) skip();
      break;
    case Type::string:
      string(scratch);
      break;
    case Type::number:
      number();
      break;
    case Type::boolean:
      boolean();
      break;
    case Type::null:
      null();
      break;
  }
}

void JsonReader::end() {
  skip_space();
  if (at_ != text_.size()) fail_here("something follows the value");
}

JsonValue JsonValue::parse(std::string_view text, std::string_view what) {
  JsonReader reader(text, what);
  JsonValue value = read(reader, what);
  reader.end();
  return value;
}

JsonValue JsonValue::read(JsonReader& reader, std::string_view what) {
  JsonValue value;
  value.type_ = reader.peek();
  switch (value.type_) {
    case Type::object: {
      reader.begin_object();
      for (std::string key; reader.next_key(key);) value.object_.emplace_back(std::move(key), read(reader, what));
      std::vector<std::string_view> keys;
      for (const auto& [key, member] : value.object_) keys.push_back(key);
      std::sort(keys.begin(), keys.end());
      if (const auto twin = std::adjacent_find(keys.begin(), keys.end()); twin != keys.end())
        reader.fail_here("the object that ends here has the key " + json_quote(*twin) + " twice");
      break;
    }
    case Type::array:
      reader.begin_array();
      while (reader.next_element()) value.array_.push_back(read(reader, what));
      break;
    case Type::string:
      reader.string(value.string_);
      break;
    case Type::number:
      value.number_ = reader.number();
      break;
    case Type::boolean:
      value.bool_ = reader.boolean();
      break;
    case Type::null:
      reader.null();
      break;
  }
  return value;
}

bool JsonValue::boolean() const {
  expect_type(Type::boolean, type_);
  return bool_;
}

double JsonValue::number() const {
  expect_type(Type::number, type_);
  return number_;
}

int64_t JsonValue::integer() const {
  expect_type(Type::number, type_);
  expect(number_ == std::trunc(number_) && std::abs(number_) <= kMaxExactInteger, ErrorCode::bad_file, "expected a whole number, found ",
         number_);
  return static_cast<int64_t>(number_);
}

const std::string& JsonValue::string() const {
  expect_type(Type::string, type_);
  return string_;
}

const std::vector<JsonValue>& JsonValue::array() const {
  expect_type(Type::array, type_);
  return array_;
}

const std::vector<std::pair<std::string, JsonValue>>& JsonValue::object() const {
  expect_type(Type::object, type_);
  return object_;
}

const JsonValue* JsonValue::find(std::string_view key) const {
  for (const auto& [name, member] : object_)
    if (name == key) return member.is(Type::null) ? nullptr : &member;
  return nullptr;
}

std::string json_quote(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = utf8_character(text.substr(at));
    const char c = text[at];
    if (bytes == 0) {
      out += kReplacementCharacter;
    } else if (bytes > 1 || is_plain(static_cast<unsigned char>(c))) {
      out.append(text, at, bytes);
    } else if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += {'\\', 'u', '0', '0', kHex[(c >> 4) & 15], kHex[c & 15]};
    }
    at += std::max<size_t>(bytes, 1);
  }
  return out += '"';
}

}  // namespace lapidary
