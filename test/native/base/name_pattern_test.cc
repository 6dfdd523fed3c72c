// Patterns of module names: what Python's re.match says of them, and what is refused.
#include "base/name_pattern.h"

#include "check.h"

namespace lapidary::test {
namespace {

bool matches(const char* pattern, const char* name) { return NamePattern(pattern).matches(name); }

TEST("name pattern: what configs write") {
  const char* q3 = "model.layers.3.self_attn.q_proj";
  CHECK(matches(".*self_attn.(k|q|o|v)_proj$", q3) && !matches(".*self_attn.(k|o|v)_proj$", q3));
  CHECK(matches("model\\.layers\\.\\d+\\.self_attn.*", q3) && !matches("model\\.layers\\.\\d{2}\\.", q3));
  CHECK(matches("model.layers.[0-3].", q3) && !matches("model.layers.[^0-3].", q3) && matches("model.layers.(?:1|3)", q3));
  CHECK(matches("^(?!.*(mlp|vision)).*$", q3) && !matches("^(?!.*(attn|vision)).*$", q3) && matches(".*(?=q_proj)", q3));
  CHECK(matches("model", q3) && !matches("layers", q3) && !matches("model$", q3) && matches("", q3) && matches("^", "") &&
        matches("$", ""));
  CHECK(matches(".*lm_head", "language_model.lm_head") && matches("a{2,3}$", "aaa") && !matches("a{2,3}$", "aaaa") &&
        matches("a{2,}$", "aaaa"));
  CHECK(matches("(ab|a)(bc)?$", "abc") && matches("a*?b+?c??$", "aabb") && matches("[]a]+$", "a]") && matches("[a-]+$", "a-"));
  CHECK(matches("\\w+\\s\\W\\S$", "a_9 -x") && matches("[\\d.]+$", "1.5") && !matches("\\D", "1"));
  CHECK(matches("(a|b*)*c$", "abbac") && matches("(?:a?){3}$", "aa") && !matches("(?:a?){3}$", "aaaa") && matches("((a{2}){2})$", "aaaa"));
}

TEST("name pattern: what is refused") {
  for (const char* pattern : {"(", ")", "a)", "[a", "a{2", "a{", "*", "(?P<n>a)", "(?<=a)b", "\\b", "\\1", "a**", "a{3,2}", "a{2000}", "\\",
                              "[z-a]", "[\\d-z]{", "a|*"})
    CHECK_THROWS(NamePattern{pattern}, ErrorCode::unsupported, std::string("the pattern \"") + pattern + "\" cannot be used");
  CHECK_THROWS(NamePattern{std::string(1001, 'a')}, ErrorCode::unsupported, "longer than 1000");
  CHECK_THROWS(NamePattern{std::string(40, '(')}, ErrorCode::unsupported, "nested too deeply");
}

TEST("name pattern: no pattern takes for ever") {
  const std::string name(200, 'a');
  CHECK(!NamePattern("(a*)*(a*)*(a*)*b").matches(name) && !NamePattern("((a|aa)+)+$b").matches(name));
  std::string nested = "a";
  for (int i = 0; i < 30; ++i) nested = "(" + nested + "?){0,900}";
  CHECK(!NamePattern(nested + "b").matches(name));
  CHECK_THROWS(NamePattern("(?=.*(?=.*(?=.*b)))").matches(name), ErrorCode::unsupported, "too complicated");
}

}  // namespace
}  // namespace lapidary::test
