// How benchmarks look at results: a few elements against sums in double, computed on the host from the patterns.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "harness.h"

namespace lapidary::bench {

inline std::string mismatch(int64_t row, int64_t column, double got, double want) {
  return "[" + std::to_string(row) + ", " + std::to_string(column) + "] is " + std::to_string(got) + ", want " + std::to_string(want);
}

// Elements that a check looks at: the corners, and others spread over the output. `compare` gives "" or what is wrong.
template <typename Compare>
std::string spot_check(int64_t m, int64_t n, const Compare& compare) {
  constexpr int kChecked = 48;
  for (int i = 0; i < kChecked; ++i) {
    const int64_t row = i == 0 ? 0 : i == 1 ? m - 1 : (i * 7919LL) % m, column = i == 0 ? 0 : i == 1 ? n - 1 : (i * 104729LL) % n;
    if (std::string wrong = compare(row, column); !wrong.empty()) return wrong;
  }
  return "";
}

// A NaN is never close.
inline bool close(double got, double want, double relative, double absolute) {
  return std::abs(got - want) <= relative * std::abs(want) + absolute;
}

template <typename T>
T device_element(const Session& session, const DeviceMemory& memory, int64_t index) {
  return session.download<T>(memory.as<T>() + index, 1)[0];
}

// Attention of one query row by definition: `score(key)` before the softmax, `value(key, d)`.
template <typename Score, typename Value>
std::vector<double> naive_attention(int64_t first_key, int64_t end_key, int head_dim, const Score& score, const Value& value) {
  std::vector<double> scores, out(static_cast<size_t>(head_dim), 0.0);
  double most = -INFINITY, total = 0;
  for (int64_t key = first_key; key < end_key; ++key) {
    scores.push_back(score(key));
    most = std::max(most, scores.back());
  }
  for (double& s : scores) total += s = std::exp(s - most);
  for (int64_t key = first_key; key < end_key; ++key) {
    const double p = scores[static_cast<size_t>(key - first_key)] / total;
    for (int d = 0; d < head_dim; ++d) out[static_cast<size_t>(d)] += p * value(key, d);
  }
  return out;
}

// Norm of the difference over norm of `want`; the bar for bf16 attention is 4e-3, a benchmark only looks for what is plainly wrong.
inline std::string compare_rows(const std::vector<uint16_t>& got, const std::vector<double>& want, const std::string& where) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(from_bf16(got[i]) - want[i], 2);
    norm += want[i] * want[i];
  }
  const double error = std::sqrt(difference / norm);
  return error <= 2e-2 ? "" : where + ": relative error " + std::to_string(error);
}

}  // namespace lapidary::bench
