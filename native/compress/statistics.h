// What the inputs of matrix products look like: the ranges and distributions that outliers are seen in and that int8 scales are chosen
// from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lapidary {

// Magnitudes by size: 64 bins per factor of two, of equal width within it, from 2^-40 to 2^40. So an edge of a bin is within 1/64 of any
// value in it. Smaller values count as 0, larger ones are in the last bin.
class Histogram {
 public:
  Histogram();

  void add(float x);  // finite, of either sign
  void add(const Histogram& other);

  int64_t count() const { return count_; }
  // The magnitude that the share q of all values, rounded up to a whole number of them, does not exceed; linear within its bin. q in [0,
  // 1]; 0 when nothing was counted.
  double quantile(double q) const;
  // Calls visit(low, high, count) for every bin that holds something, in rising order; values counted as 0 come as (0, 0, count).
  template <typename Visit>
  void each_bin(const Visit& visit) const {
    if (zeros_ > 0) visit(0.0, 0.0, zeros_);
    for (size_t i = 0; i < counts_.size(); ++i)
      if (counts_[i] > 0) visit(edge(i), edge(i + 1), counts_[i]);
  }

 private:
  static double edge(size_t bin);

  std::vector<int64_t> counts_;
  int64_t zeros_ = 0, count_ = 0;
};

// The mean squared error of int8 with this scale (docs/numerics.md, int8) on values spread evenly within their bins; scale > 0.
double int8_error(const Histogram& magnitudes, double scale);

// The share c of `absmax`, from 0.5 to 1 in steps of 1/128, for which the scale c * absmax / 127 has the least such error: clipping rare
// large values makes the steps of all others finer. Of equal ones the largest; 1 when nothing was counted.
double mse_clip(const Histogram& magnitudes, double absmax);

// Where a row comes from, and its largest magnitude.
struct Spike {
  int64_t text = 0, position = 0;  // which of the texts, and which of its tokens; -1: the BOS before a window
  int32_t id = 0;
  int64_t channel = 0;
  float value = 0;  // |x|
};

// One site of one layer over many rows.
class SiteStatistics {
 public:
  static constexpr size_t kSpikes = 8;

  explicit SiteStatistics(int64_t channels) : channel_max(static_cast<size_t>(channels), 0.0f) {}

  // One more row; `where` says where it comes from, its channel and value are not looked at.
  void add(std::span<const float> row, Spike where);

  int64_t rows = 0;
  int64_t not_finite = 0;        // values that are left out of everything else
  float absmax = 0;              // largest magnitude
  double sum_of_row_maxima = 0;  // of every row's largest magnitude
  double sum_of_squares = 0;
  std::vector<float> channel_max;  // largest magnitude per channel
  Histogram values, row_maxima;
  std::vector<Spike> spikes;  // the rows with the largest magnitudes, at most kSpikes, largest first, earlier ones among equals

  double mean_row_max() const { return rows ? sum_of_row_maxima / static_cast<double>(rows) : 0; }
  // Largest magnitude over the median of the rows' largest: about 1 without outlying tokens. 0 when the median is 0.
  double token_ratio() const;
  // Largest magnitude over the median magnitude. 0 when the median is 0.
  double value_ratio() const;
};

}  // namespace lapidary
