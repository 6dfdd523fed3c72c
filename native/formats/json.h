// Strict JSON (RFC 8259, UTF-8) for files nobody vouches for: a pull reader for large ones, a small tree for configs.
// Every defect is Error(bad_file) with the file's name and the byte offset. Knows no format's meaning.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lapidary {

// Reads values in the order they stand in the text; nothing is kept. Duplicate keys are the caller's to notice.
class JsonReader {
 public:
  enum class Type { object, array, string, number, boolean, null };

  // `what` names the file in errors. `text` must outlive the reader.
  JsonReader(std::string_view text, std::string_view what);

  Type peek();  // type of the value at hand
  void begin_object();
  bool next_key(std::string& key);  // false at the closing brace, which is consumed
  void begin_array();
  bool next_element();            // false at the closing bracket, which is consumed
  void string(std::string& out);  // unescaped, valid UTF-8
  double number();
  int64_t integer();  // a number without fraction that fits
  bool boolean();
  void null();
  void skip();  // any value, whole, checked all the same
  void end();   // only white space may remain
  [[noreturn]] void fail_here(std::string_view problem) const;

 private:
  void skip_space();
  char take();
  void expect_literal(std::string_view literal);
  void enter();

  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
  int depth_ = 0;
  bool first_ = false;  // the next key or element is the first of its container
};

// For messages: "an object", "a number", "null" ...
const char* type_name(JsonReader::Type type);

// A parsed value. Objects keep the order of the file; a duplicate key is bad_file.
class JsonValue {
 public:
  using Type = JsonReader::Type;

  Type type() const { return type_; }
  bool is(Type t) const { return type_ == t; }
  bool boolean() const;  // these five throw bad_file when the type is another
  double number() const;
  int64_t integer() const;
  const std::string& string() const;
  const std::vector<JsonValue>& array() const;
  const std::vector<std::pair<std::string, JsonValue>>& object() const;

  // The member, or nullptr when absent, null, or when this is no object.
  const JsonValue* find(std::string_view key) const;

  static JsonValue parse(std::string_view text, std::string_view what);
  static JsonValue read(JsonReader& reader, std::string_view what);  // the value at hand of a larger text

 private:
  Type type_ = Type::null;
  bool bool_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<JsonValue> array_;
  std::vector<std::pair<std::string, JsonValue>> object_;
};

// `text` as a JSON string literal, quotes included; invalid UTF-8 becomes U+FFFD.
std::string json_quote(std::string_view text);

}  // namespace lapidary
