// Where a cushion search stands, as a JSON file that it goes on from.
#pragma once

#include <string>
#include <vector>

#include "compress/cushion_search.h"

namespace lapidary {

struct CushionSearchState {
  std::string identity;         // of model, options and texts
  std::vector<int32_t> tokens;  // accepted so far
  std::vector<CushionSearchStep> steps;
  bool finished = false;
  int64_t stage = 0;               // of the step at hand
  std::vector<int32_t> survivors;  // candidates of that stage
  std::vector<double> scores;      // of the first of them
};

void write_state(const std::string& path, const CushionSearchState& state);
// Error(bad_file).
CushionSearchState read_state(const std::string& path);

// A finite number so that it is read back to the bit; others as null, which are read as infinity.
std::string json_number(double x);
std::string steps_json(const std::vector<CushionSearchStep>& steps);
template <typename T>
std::string json_list(const std::vector<T>& values) {
  std::string text = "[";
  for (const T& value : values) {
    if (text.size() > 1) text += ',';
    text += json_number(static_cast<double>(value));
  }
  return text + ']';
}

}  // namespace lapidary
