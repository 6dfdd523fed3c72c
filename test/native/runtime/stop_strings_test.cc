// Stop strings against a plain search, however the text is cut.
#include "runtime/stop_strings.h"

#include <algorithm>
#include <random>

#include "check.h"

using namespace lapidary;

namespace {

struct Seen {
  std::string text, match;
  bool operator==(const Seen&) const = default;
};

Seen feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher(stops);
  Seen seen;
  for (const std::string& piece : pieces) seen.text += matcher.push(piece);
  seen.text += matcher.flush();
  if (matcher.matched()) seen.match = matcher.match();
  return seen;
}

// Looks at every end in turn, then at every stop.
Seen naive(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops)
      if (std::string_view(text).substr(0, end).ends_with(stop) && stop.size() > best.size()) best = stop;
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

}  // namespace

TEST("stop strings: found across pieces, and nothing of them is told") {
  CHECK((feed({"STOP"}, {"one S", "T", "OP two"}) == Seen{"one ", "STOP"}));
  CHECK((feed({"STOP"}, {"one S", "T", "O"}) == Seen{"one STO", ""}));
  CHECK((feed({}, {"a", "b"}) == Seen{"ab", ""}));
  CHECK((feed({"abc", "b"}, {"xab"}) == Seen{"xa", "b"}));
  CHECK((feed({"b", "ab"}, {"xa", "b"}) == Seen{"x", "ab"}));
  CHECK((feed({"aab"}, {"a", "a", "a", "b", "c"}) == Seen{"a", "aab"}));
}

TEST("stop strings: text is held back only while it may begin one") {
  StopMatcher matcher({"\n\n", "end"});
  CHECK(matcher.push("a\n") == "a");
  CHECK(matcher.push("b") == "\nb");
  CHECK(matcher.push("e") == "");
  CHECK(matcher.push("n") == "");
  CHECK(matcher.push("x") == "enx");
  CHECK(matcher.push("\n\nmore") == "");
  CHECK(matcher.matched() && matcher.match() == "\n\n");
  CHECK(matcher.push("more").empty() && matcher.flush().empty());
}

TEST("stop strings: however the text is cut, as a plain search") {
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  const auto word = [&](int length) {
    std::string s;
    for (int i = 0; i < length; ++i) s += static_cast<char>('a' + below(2));
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (int i = below(3); i >= 0; --i) stops.push_back(word(1 + below(6)));
    const std::string text = word(below(30));
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(text.size() - at, static_cast<size_t>(1 + below(5)));
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    CHECK_MSG(feed(stops, pieces) == naive(stops, text), text << " stop " << stops[0]);
  }
}
