// Stop strings by looking at every end of the text once; strings are few and short, so nothing cleverer.
#include "runtime/stop_strings.h"

#include <algorithm>
#include <utility>

namespace lapidary {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::stable_sort(stops_.begin(), stops_.end(), [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
}

std::string StopMatcher::push(std::string_view text) {
  if (matched()) return {};
  if (stops_.empty()) return std::string(text);
  const size_t known = held_.size();  // no match ends in here
  held_ += text;
  const std::string_view all = held_;
  for (size_t end = known + 1; end <= all.size(); ++end) {
    for (const std::string& stop : stops_) {
      if (!all.substr(0, end).ends_with(stop)) continue;
      match_ = &stop;
      held_.resize(end - stop.size());
      return std::exchange(held_, {});
    }
  }
  // Held back: the longest end of the text that begins a stop string.
  size_t keep = std::min(all.size(), stops_.front().size() - 1);
  while (keep > 0 && std::none_of(stops_.begin(), stops_.end(),
                                  [&](const std::string& stop) { return stop.starts_with(all.substr(all.size() - keep)); }))
    --keep;
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

std::string StopMatcher::flush() { return matched() ? std::string() : std::exchange(held_, {}); }

}  // namespace lapidary
