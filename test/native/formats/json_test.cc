// The JSON reader and tree: what is accepted, what is refused and where, escapes, numbers, and what quoting gives back.
#include "formats/json.h"

#include <string>
#include <vector>

#include "check.h"

namespace lapidary {
namespace {

std::string read_string(const std::string& text) {
  JsonReader reader(text, "text");
  std::string out = "left over";
  reader.string(out);
  reader.end();
  return out;
}

JsonValue parse(const std::string& text) { return JsonValue::parse(text, "x.json"); }

TEST("json: the pull reader walks a nested text in order") {
  const std::string text = R"( { "a" : [ 1 , 2.5, -3e2 ], "b":{}, "c":[], "d":{"e":[{"f":null}]}, "g":true,"h":false , "i":"x" } )";
  JsonReader r(text, "text");
  std::string key, value;
  r.begin_object();
  REQUIRE(r.next_key(key) && key == "a");
  r.begin_array();
  CHECK(r.next_element() && r.integer() == 1);
  CHECK(r.next_element() && r.number() == 2.5);
  CHECK(r.next_element() && r.integer() == -300);
  CHECK(!r.next_element());
  REQUIRE(r.next_key(key) && key == "b");
  r.begin_object();
  CHECK(!r.next_key(key));
  REQUIRE(r.next_key(key) && key == "c");
  r.begin_array();
  CHECK(!r.next_element());
  REQUIRE(r.next_key(key) && key == "d");
  CHECK(r.peek() == JsonReader::Type::object);
  r.skip();
  REQUIRE(r.next_key(key) && key == "g");
  CHECK(r.boolean());
  REQUIRE(r.next_key(key) && key == "h");
  CHECK(!r.boolean());
  REQUIRE(r.next_key(key) && key == "i");
  r.string(value);
  CHECK(value == "x");
  CHECK(!r.next_key(key));
  r.end();
}

TEST("json: escapes and UTF-8 in strings") {
  CHECK(read_string(R"("")").empty());
  CHECK(read_string(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
  CHECK(read_string(R"("\u0041\u00e9\u20AC\ud83d\uDE00")") == "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(read_string(R"("a\u0000b")") == std::string("a\0b", 3));
  CHECK(read_string("\"\xe2\x96\x81the \xf0\x9f\x98\x80\"") == "\xe2\x96\x81the \xf0\x9f\x98\x80");
  // A special byte at each place of the eight that are examined together.
  for (size_t length = 0; length < 40; ++length) {
    const std::string run(length, 'x');
    CHECK(read_string("\"" + run + "\"") == run);
    CHECK(read_string("\"" + run + "\\n" + run + "\"") == run + "\n" + run);
    CHECK(read_string("\"" + run + "\xc3\xa9" + run + "\"") == run + "\xc3\xa9" + run);
    CHECK_THROWS(read_string("\"" + run + "\x1f" + run + "\""), ErrorCode::bad_file, "control character");
    CHECK_THROWS(read_string("\"" + run + "\xff" + run + "\""), ErrorCode::bad_file, "UTF-8");
    CHECK_THROWS(read_string("\"" + run), ErrorCode::bad_file, "ends inside a string");
  }
}

TEST("json: malformed strings are refused") {
  for (const char* text :
       {R"("\x")", R"("\u12")", R"("\u12g4")", R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")", R"("\ud800x")", "\"\\"})
    CHECK_THROWS(read_string(text), ErrorCode::bad_file, "text");
  // Overlong forms, surrogates, beyond U+10FFFF, lone and missing continuation bytes.
  for (const char* text : {"\"\xc0\x80\"", "\"\xc1\xbf\"", "\"\xe0\x9f\xbf\"", "\"\xed\xa0\x80\"", "\"\xf0\x8f\xbf\xbf\"",
                           "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\x80\"", "\"\xe2\x96\"", "\"\xf0\x9f\x98\"", "\"\xc3"})
    CHECK_THROWS(read_string(text), ErrorCode::bad_file, "UTF-8");
}

TEST("json: numbers") {
  CHECK(parse("0").number() == 0 && parse("-0").number() == 0 && parse("1e-06").number() == 1e-6 && parse("1.5E+2").number() == 150);
  CHECK(parse("9007199254740992").integer() == 9007199254740992);
  CHECK(JsonReader("9223372036854775807", "n").integer() == INT64_MAX);
  CHECK(JsonReader("-9223372036854775808", "n").integer() == INT64_MIN);
  CHECK(JsonReader("1e3", "n").integer() == 1000);
  CHECK_THROWS(JsonReader("9223372036854775808", "n").integer(), ErrorCode::bad_file, "64 bits");
  CHECK_THROWS(JsonReader("1.5", "n").integer(), ErrorCode::bad_file, "whole number");
  CHECK_THROWS(JsonReader("1e300", "n").integer(), ErrorCode::bad_file, "whole number");
  CHECK_THROWS(parse("1.5").integer(), ErrorCode::bad_file, "whole number");
  CHECK_THROWS(parse("1e400"), ErrorCode::bad_file, "range");
  for (const char* text : {"01", "+1", "-", ".5", "1.", "1e", "1e+", "0x10", "NaN", "Infinity", "-Infinity", "1_000"})
    CHECK_THROWS(parse(text), ErrorCode::bad_file, "x.json");
}

TEST("json: broken grammar is refused with the byte at fault") {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "{]",
                           "[}",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "[1,]",
                           "[1 2]",
                           "[,1]",
                           "{,}",
                           "{\"a\":1 \"b\":2}",
                           "{a:1}",
                           "tru",
                           "nul",
                           "falsey",
                           "1 2",
                           "[1]]",
                           "'a'",
                           "// c\n1",
                           "\xef\xbb\xbf{}",
                           "[1]\x01"})
    CHECK_THROWS(parse(text), ErrorCode::bad_file, "x.json");
  CHECK_THROWS(parse("[1, 2 3]"), ErrorCode::bad_file, "byte 6 of 8");
  CHECK_THROWS(parse("{\"a\":1,\"b\":2,\"a\":3}"), ErrorCode::bad_file, "\"a\" twice");
  CHECK_THROWS(parse(std::string(100'000, '[')), ErrorCode::bad_file, "nested deeper");
  CHECK_THROWS(JsonReader(std::string(100'000, '['), "t").skip(), ErrorCode::bad_file, "nested deeper");
}

TEST("json: the tree keeps order, finds members and names wrong types") {
  const JsonValue v = parse(R"({"z":1,"a":[true,"s"],"n":null})");
  REQUIRE(v.object().size() == 3);
  CHECK(v.object()[0].first == "z" && v.object()[1].first == "a");
  CHECK(v.find("n") == nullptr && v.find("missing") == nullptr && v.find("z")->integer() == 1);
  CHECK(v.find("a")->array()[0].boolean() && v.find("a")->array()[1].string() == "s");
  CHECK(parse("3").find("z") == nullptr);
  CHECK_THROWS(v.find("z")->string(), ErrorCode::bad_file, "expected a string, found a number");
  CHECK_THROWS(v.array(), ErrorCode::bad_file, "found an object");
}

TEST("json: quoting reads back as the same text") {
  for (const std::string& text :
       {std::string("plain"), std::string("q\" b\\ n\n t\t \x01 \x7f"), std::string("\0x", 2), std::string("\xe2\x96\x81\xf0\x9f\x98\x80")})
    CHECK_MSG(read_string(json_quote(text)) == text, json_quote(text));
  CHECK(read_string(json_quote("a\xff"
                               "b\xe2\x96")) ==
        "a\xef\xbf\xbd"
        "b\xef\xbf\xbd\xef\xbf\xbd");
}

}  // namespace
}  // namespace lapidary
