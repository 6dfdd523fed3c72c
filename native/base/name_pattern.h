// Regular expressions over short names, in the part of Python's syntax that configs use. For patterns nobody vouches for: matching takes
// time polynomial in the lengths, and whatever is not understood is refused, never guessed.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace lapidary {

// Literals, . [set] [^set] \d \D \w \W \s \S \escaped ^ $ ( ) (?: ) (?= ) (?! ) | * + ? {n} {n,} {n,m}, each also lazy.
class NamePattern {
 public:
  // Error(unsupported) naming the pattern and what in it is not understood.
  explicit NamePattern(std::string_view pattern);
  ~NamePattern();
  NamePattern(NamePattern&&) noexcept;
  NamePattern& operator=(NamePattern&&) noexcept;

  // Whether some beginning of `name` matches: the pattern starts with the name, but need not end with it (Python's re.match).
  bool matches(std::string_view name) const;

  struct Node;  // of the parsed pattern

 private:
  std::string pattern_;
  std::unique_ptr<Node> root_;
};

}  // namespace lapidary
