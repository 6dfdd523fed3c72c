// Finds stop strings in text that arrives in pieces: lets through what is certainly before any of them, holds back what may be
// the beginning of one. Knows no tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // none of them empty

  // The text that has become certain. The match is the one that ends first, the longest of those that end together: how the
  // text was cut into pieces makes no difference.
  std::string push(std::string_view text);
  std::string flush();  // what was held back, when no more comes
  bool matched() const { return match_ != nullptr; }
  const std::string& match() const { return *match_; }

 private:
  std::vector<std::string> stops_;  // longest first
  const std::string* match_ = nullptr;
  std::string held_;
};

}  // namespace lapidary
