#include "compress/statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lapidary {

namespace {

constexpr int kBitsPerOctave = 6;
constexpr int kLowest = -40, kHighest = 40;  // exponents of two
constexpr uint32_t kFirst = static_cast<uint32_t>(kLowest + 127) << kBitsPerOctave;
constexpr size_t kBins = static_cast<size_t>(kHighest - kLowest) << kBitsPerOctave;

// The integral from 0 to x of the squared error of rounding to multiples of `scale`, the largest being 127.
double error_up_to(double x, double scale) {
  const double n = std::min(std::nearbyint(x / scale), 127.0), rest = x - n * scale;
  return n * scale * scale * scale / 12 + rest * rest * rest / 3;
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace

Histogram::Histogram() : counts_(kBins, 0) {}

// A float's bits rise with its magnitude: exponent and upper bits of the mantissa are the bin.
void Histogram::add(float x) {
  const uint32_t bin = (std::bit_cast<uint32_t>(x) & 0x7fffffffu) >> (23 - kBitsPerOctave);
  ++count_;
  if (bin < kFirst)
    ++zeros_;
  else
    ++counts_[std::min<size_t>(bin - kFirst, kBins - 1)];
}

void Histogram::add(const Histogram& other) {
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  zeros_ += other.zeros_;
  count_ += other.count_;
}

double Histogram::edge(size_t bin) {
  const size_t octave = bin >> kBitsPerOctave, within = bin & ((1u << kBitsPerOctave) - 1);
  return std::ldexp(1.0 + static_cast<double>(within) / (1 << kBitsPerOctave), kLowest + static_cast<int>(octave));
}

double Histogram::quantile(double q) const {
  const double wanted = std::max(std::ceil(q * static_cast<double>(count_)), 1.0);
  double before = 0, found = 0;
  each_bin([&](double low, double high, int64_t count) {
    const auto here = static_cast<double>(count);
    if (before < wanted) found = low + (high - low) * std::min((wanted - before) / here, 1.0);
    before += here;
  });
  return found;
}

double int8_error(const Histogram& magnitudes, double scale) {
  double sum = 0;
  magnitudes.each_bin([&](double low, double high, int64_t count) {
    if (high > low) sum += static_cast<double>(count) * (error_up_to(high, scale) - error_up_to(low, scale)) / (high - low);
  });
  return magnitudes.count() ? sum / static_cast<double>(magnitudes.count()) : 0;
}

double mse_clip(const Histogram& magnitudes, double absmax) {
  if (magnitudes.count() == 0 || !(absmax > 0)) return 1;
  double best = 1, least = int8_error(magnitudes, absmax / 127);
  for (int step = 127; step >= 64; --step) {
    const double share = step / 128.0, error = int8_error(magnitudes, share * absmax / 127);
    if (error < least) best = share, least = error;
  }
  return best;
}

void SiteStatistics::add(std::span<const float> row, Spike where) {
  where.value = 0;
  where.channel = 0;
  for (size_t c = 0; c < row.size(); ++c) {
    const float x = std::abs(row[c]);
    if (!std::isfinite(x)) {
      ++not_finite;
      continue;
    }
    values.add(x);
    sum_of_squares += static_cast<double>(x) * x;
    channel_max[c] = std::max(channel_max[c], x);
    if (x > where.value) where.value = x, where.channel = static_cast<int64_t>(c);
  }
  ++rows;
  row_maxima.add(where.value);
  sum_of_row_maxima += where.value;
  absmax = std::max(absmax, where.value);
  if (spikes.size() == kSpikes && where.value <= spikes.back().value) return;
  const auto place = std::find_if(spikes.begin(), spikes.end(), [&](const Spike& s) { return s.value < where.value; });
  spikes.insert(place, where);
  if (spikes.size() > kSpikes) spikes.pop_back();
}

double SiteStatistics::token_ratio() const { return ratio(absmax, row_maxima.quantile(0.5)); }

double SiteStatistics::value_ratio() const { return ratio(absmax, values.quantile(0.5)); }

}  // namespace lapidary
