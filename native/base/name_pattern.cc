// A pattern as a tree. Matching maps sets of positions to sets of positions, node by node, so no choice is ever taken back.
#include "base/name_pattern.h"

#include <bitset>
#include <cstdint>
#include <vector>

#include "base/error.h"

namespace lapidary {

struct NamePattern::Node {
  enum class Kind { set, sequence, either, repeat, start, end, ahead, not_ahead };
  Kind kind = Kind::sequence;
  std::bitset<256> set;                           // Kind::set: the bytes that match
  int64_t least = 1, most = 1;                    // Kind::repeat
  std::vector<std::unique_ptr<Node>> parts = {};  // of a sequence, an alternation, or the one inside
};

namespace {

using Node = NamePattern::Node;
using Kind = Node::Kind;

constexpr size_t kMaxPattern = 1000;  // bytes
constexpr int kMaxDepth = 32;         // of parentheses
constexpr int64_t kMaxRepeat = 1000;
constexpr int64_t kMaxSteps = 200'000;  // of one match

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::unique_ptr<Node> parse() {
    if (text_.size() > kMaxPattern) refuse("it is longer than 1000 bytes");
    std::unique_ptr<Node> all = alternatives(0);
    if (at_ < text_.size()) refuse("there is a ) without its (");
    return all;
  }

 private:
  [[noreturn]] void refuse(std::string_view why) const {
    fail(ErrorCode::unsupported, "the pattern \"", text_.substr(0, kMaxPattern), "\" cannot be used: ", why, ", at character ", at_ + 1);
  }
  bool more() const { return at_ < text_.size(); }
  char take() {
    if (!more()) refuse("it ends too early");
    return text_[at_++];
  }
  bool take_if(std::string_view wanted) {
    if (!text_.substr(at_).starts_with(wanted)) return false;
    at_ += wanted.size();
    return true;
  }

  static std::unique_ptr<Node> make(Kind kind) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    return node;
  }

  std::unique_ptr<Node> alternatives(int depth) {
    if (depth > kMaxDepth) refuse("its parentheses are nested too deeply");
    std::unique_ptr<Node> either = make(Kind::either);
    do either->parts.push_back(sequence(depth));
    while (take_if("|"));
    return either;
  }

  std::unique_ptr<Node> sequence(int depth) {
    std::unique_ptr<Node> parts = make(Kind::sequence);
    while (more() && text_[at_] != '|' && text_[at_] != ')') parts->parts.push_back(repeated(item(depth)));
    return parts;
  }

  std::unique_ptr<Node> item(int depth) {
    const char c = take();
    if (c == '(') return group(depth);
    if (c == '^') return make(Kind::start);
    if (c == '$') return make(Kind::end);
    if (c == '*' || c == '+' || c == '?' || c == '{') refuse("nothing stands before the repetition");
    std::unique_ptr<Node> node = make(Kind::set);
    if (c == '[') {
      node->set = bracket();
    } else if (c == '.') {
      node->set.set();
    } else if (c == '\\') {
      node->set = escape();
    } else {
      node->set.set(static_cast<unsigned char>(c));
    }
    return node;
  }

  std::unique_ptr<Node> group(int depth) {
    const bool ahead = take_if("?="), not_ahead = !ahead && take_if("?!");
    if (!ahead && !not_ahead && !take_if("?:") && take_if("?")) refuse("only (?: ), (?= ) and (?! ) are supported of the (? ) groups");
    std::unique_ptr<Node> inside = alternatives(depth + 1);
    if (!take_if(")")) refuse("a ( is not closed");
    if (!ahead && !not_ahead) return inside;
    std::unique_ptr<Node> node = make(ahead ? Kind::ahead : Kind::not_ahead);
    node->parts.push_back(std::move(inside));
    return node;
  }

  std::unique_ptr<Node> repeated(std::unique_ptr<Node> inside) {
    int64_t least = 0, most = kMaxRepeat;
    bool bounded = true;
    if (take_if("*")) {
      bounded = false;
    } else if (take_if("+")) {
      least = 1, bounded = false;
    } else if (take_if("?")) {
      most = 1;
    } else if (take_if("{")) {
      least = most = number();
      if (take_if(",")) bounded = more() && text_[at_] != '}', most = bounded ? number() : most;
      if (!take_if("}")) refuse("a { is not closed");
      if (bounded && most < least) refuse("a repetition ends before it begins");
    } else {
      return inside;
    }
    take_if("?");  // lazy: the same matches
    if (more() && std::string_view("*+?{").find(text_[at_]) != std::string_view::npos) refuse("a repetition of a repetition");
    std::unique_ptr<Node> node = make(Kind::repeat);
    node->least = least, node->most = bounded ? most : INT64_MAX;
    node->parts.push_back(std::move(inside));
    return node;
  }

  int64_t number() {
    int64_t value = 0;
    const size_t first = at_;
    while (more() && text_[at_] >= '0' && text_[at_] <= '9' && value <= kMaxRepeat) value = 10 * value + (text_[at_++] - '0');
    if (at_ == first) refuse("a number is missing after {");
    if (value > kMaxRepeat) refuse("a repetition of more than 1000");
    return value;
  }

  // After the backslash.
  std::bitset<256> escape() {
    const char c = take();
    std::bitset<256> set;
    const auto add = [&set](int first, int last) {
      for (int i = first; i <= last; ++i) set.set(static_cast<size_t>(i));
    };
    const char kind = static_cast<char>(c | 0x20);
    if (kind == 'd' || kind == 'w') add('0', '9');
    if (kind == 'w') add('a', 'z'), add('A', 'Z'), add('_', '_');
    if (kind == 's') add('\t', '\r'), add(' ', ' ');
    if (c == 'D' || c == 'W' || c == 'S') return ~set;
    if (set.any()) return set;
    const bool alphanumeric = (c >= '0' && c <= '9') || (kind >= 'a' && kind <= 'z');
    if (alphanumeric) refuse("an escape that is not supported");
    return set.set(static_cast<unsigned char>(c));
  }

  // After the [.
  std::bitset<256> bracket() {
    std::bitset<256> set;
    const bool negated = take_if("^");
    for (bool first = true; first || !take_if("]"); first = false) {
      const char c = take();
      if (c == '\\') {
        set |= escape();
      } else if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        ++at_;
        const auto low = static_cast<unsigned char>(c), high = static_cast<unsigned char>(take());
        if (high == '\\' || high < low) refuse("a range in [ ] that is not supported");
        for (size_t i = low; i <= high; ++i) set.set(i);
      } else {
        set.set(static_cast<unsigned char>(c));
      }
    }
    return negated ? ~set : set;
  }

  std::string_view text_;
  size_t at_ = 0;
};

using Positions = std::vector<bool>;  // [name's length + 1]

class Matcher {
 public:
  Matcher(std::string_view pattern, std::string_view name) : pattern_(pattern), name_(name) {}

  // The positions at which a match of `node` can end that begins at one of `from`.
  Positions ends(const Node& node, const Positions& from) {
    expect(++steps_ <= kMaxSteps, ErrorCode::unsupported, "the pattern \"", pattern_, "\" is too complicated for the name \"", name_, "\"");
    Positions to(from.size(), false);
    switch (node.kind) {
      case Kind::set:
        for (size_t i = 0; i < name_.size(); ++i) to[i + 1] = from[i] && node.set[static_cast<unsigned char>(name_[i])];
        break;
      case Kind::start:
        to[0] = from[0];
        break;
      case Kind::end:
        to.back() = from.back();
        break;
      case Kind::sequence:
        to = from;
        for (const auto& part : node.parts) to = ends(*part, to);
        break;
      case Kind::either:
        for (const auto& part : node.parts) add(to, ends(*part, from));
        break;
      case Kind::repeat:
        to = repeat(node, from);
        break;
      case Kind::ahead:
      case Kind::not_ahead:
        for (size_t i = 0; i < from.size(); ++i) {
          if (!from[i]) continue;
          Positions one(from.size(), false);
          one[i] = true;
          to[i] = any(ends(*node.parts[0], one)) == (node.kind == Kind::ahead);
        }
        break;
    }
    return to;
  }

  static bool any(const Positions& set) {
    for (const bool bit : set) {
      if (bit) return true;
    }
    return false;
  }

 private:
  static void add(Positions& to, const Positions& more) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = to[i] || more[i];
  }

  // A set that one more repetition leaves as it is stays so for ever.
  Positions repeat(const Node& node, const Positions& from) {
    Positions at = from;
    bool still = false;
    for (int64_t i = 0; i < node.least && !still; ++i) {
      Positions next = ends(*node.parts[0], at);
      still = next == at;
      at = std::move(next);
    }
    Positions all = at;
    still = false;
    for (int64_t i = node.least; i < node.most && !still; ++i) {
      const Positions before = all;
      at = ends(*node.parts[0], at);
      add(all, at);
      still = all == before;
    }
    return all;
  }

  std::string_view pattern_, name_;
  int64_t steps_ = 0;
};

}  // namespace

NamePattern::NamePattern(std::string_view pattern) : pattern_(pattern), root_(Parser(pattern).parse()) {}
NamePattern::~NamePattern() = default;
NamePattern::NamePattern(NamePattern&&) noexcept = default;
NamePattern& NamePattern::operator=(NamePattern&&) noexcept = default;

bool NamePattern::matches(std::string_view name) const {
  Positions start(name.size() + 1, false);
  start[0] = true;
  return Matcher::any(Matcher(pattern_, name).ends(*root_, start));
}

}  // namespace lapidary
