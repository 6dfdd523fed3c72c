// Histograms, clipping and site statistics against plain computations on the same values.
#include "compress/statistics.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"

namespace lapidary::test {
namespace {

std::vector<float> gaussian(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (float& v : values) v = draw(random);
  return values;
}

Histogram histogram_of(const std::vector<float>& values) {
  Histogram h;
  for (float v : values) h.add(v);
  return h;
}

double plain_quantile(std::vector<float> values, double q) {
  for (float& v : values) v = std::abs(v);
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::max(std::ceil(q * static_cast<double>(values.size())), 1.0));
  return values[rank - 1];
}

double plain_error(const std::vector<float>& values, double scale) {
  double sum = 0;
  for (float v : values) {
    const double q = std::clamp(std::nearbyint(v / scale), -127.0, 127.0);
    sum += std::pow(v - q * scale, 2);
  }
  return sum / static_cast<double>(values.size());
}

// A bin is 1/64 of its lower edge wide at most.
constexpr double kBin = 1.0 / 64;

TEST("statistics: quantiles are within a bin of those of the sorted values") {
  for (const size_t count : {size_t{1}, size_t{2}, size_t{7}, size_t{1000}, size_t{4097}}) {
    const std::vector<float> values = gaussian(count, static_cast<uint32_t>(count));
    const Histogram h = histogram_of(values);
    CHECK(h.count() == static_cast<int64_t>(count));
    for (const double q : {0.0, 0.01, 0.5, 0.9, 0.999, 1.0}) {
      const double got = h.quantile(q), want = plain_quantile(values, q);
      CHECK_MSG(std::abs(got - want) <= kBin * want, count << " values, quantile " << q << ": " << got << ", sorted " << want);
    }
  }
}

TEST("statistics: bins hold what falls between their edges, the ends included") {
  Histogram h;
  CHECK(h.quantile(0.5) == 0);
  const std::vector<float> values = {0.0f, -0.0f, 1e-30f, std::ldexp(1.0f, -40), 1.0f, -1.984375f, std::nextafter(2.0f, 0.0f), 2.0f, 1e30f};
  for (float v : values) h.add(v);
  int64_t total = 0, zeros = 0;
  double last = -1;
  h.each_bin([&](double low, double high, int64_t count) {
    CHECK(low > last || last < 0);
    last = low;
    total += count;
    if (high == 0)
      zeros = count;
    else
      CHECK(std::abs(high / low - 1) <= kBin + 1e-12);
    const int64_t plain = std::count_if(values.begin(), values.end(), [&, low, high](float v) {
      return high == 0 ? std::abs(v) < std::ldexp(1.0, -40) : std::abs(v) >= low && (std::abs(v) < high || high >= std::ldexp(1.0, 40));
    });
    CHECK_MSG(plain == count, "[" << low << ", " << high << "): " << count << ", counted " << plain);
  });
  CHECK(total == 9 && zeros == 3);
  Histogram twice;
  twice.add(h);
  twice.add(h);
  CHECK(twice.count() == 18 && twice.quantile(0.4) == h.quantile(0.4));
}

TEST("statistics: the error of int8 from the histogram is that of the values") {
  const std::vector<float> values = gaussian(50'000, 3);
  const Histogram h = histogram_of(values);
  for (const double scale : {0.003, 0.01, 0.02, 0.03, 0.3}) {
    const double got = int8_error(h, scale), want = plain_error(values, scale);
    // 50,000 values spread within bins as good as evenly: 1 % of sampling error at the least.
    CHECK_MSG(std::abs(got - want) <= 0.02 * want, "scale " << scale << ": " << got << ", plainly " << want);
  }
}

TEST("statistics: clipping is as good as the best of a plain search") {
  for (const float outlier : {0.0f, 8.0f, 40.0f}) {
    std::vector<float> values = gaussian(50'000, 5);
    if (outlier > 0) values[17] = outlier;
    float most = 0;
    for (float v : values) most = std::max(most, std::abs(v));
    const double share = mse_clip(histogram_of(values), most);
    CHECK(share >= 0.5 && share <= 1);
    double least = INFINITY;
    for (int step = 64; step <= 128; ++step) least = std::min(least, plain_error(values, step / 128.0 * most / 127));
    const double got = plain_error(values, share * most / 127);
    CHECK_MSG(got <= 1.02 * least, "outlier " << outlier << ": share " << share << " gives " << got << ", the best " << least);
    if (outlier == 0) CHECK_MSG(got < 0.95 * plain_error(values, most / 127.0), "clipping must gain on Gaussian values");
  }
  CHECK(mse_clip(Histogram(), 0) == 1);
  Histogram same;  // every value is the largest: clipping only loses
  for (int i = 0; i < 1000; ++i) same.add(3.0f);
  CHECK(mse_clip(same, 3.0) == 1);
}

TEST("statistics: sites against plain loops, not-numbers left out") {
  const int64_t rows = 41, channels = 13;
  std::vector<float> x = gaussian(static_cast<size_t>(rows * channels), 8);
  x[5 * channels + 2] = -300;
  x[9 * channels + 12] = 250;
  x[11 * channels + 0] = NAN;
  x[12 * channels + 1] = -INFINITY;
  SiteStatistics s(channels);
  std::vector<float> maxima, all, channel_max(channels, 0.0f);
  double squares = 0, sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::span<const float> row(x.data() + r * channels, static_cast<size_t>(channels));
    s.add(row, {r % 3, r, static_cast<int32_t>(100 + r), 0, 0});
    float most = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const float v = std::abs(row[static_cast<size_t>(c)]);
      if (!std::isfinite(v)) continue;
      most = std::max(most, v);
      channel_max[static_cast<size_t>(c)] = std::max(channel_max[static_cast<size_t>(c)], v);
      squares += static_cast<double>(v) * v;
      all.push_back(v);
    }
    maxima.push_back(most);
    sum += most;
  }
  CHECK(s.rows == rows && s.not_finite == 2 && s.absmax == 300 && s.channel_max == channel_max);
  CHECK(std::abs(s.mean_row_max() - sum / rows) < 1e-9 && std::abs(s.sum_of_squares - squares) < 1e-6 * squares);
  CHECK(s.values.count() == rows * channels - 2 && s.row_maxima.count() == rows);
  const double median = plain_quantile(maxima, 0.5), value_median = plain_quantile(all, 0.5);
  CHECK(std::abs(s.token_ratio() - 300 / median) <= 2 * kBin * 300 / median);
  CHECK(std::abs(s.value_ratio() - 300 / value_median) <= 2 * kBin * 300 / value_median);
  REQUIRE(s.spikes.size() == SiteStatistics::kSpikes);
  CHECK(s.spikes[0].position == 5 && s.spikes[0].text == 2 && s.spikes[0].id == 105 && s.spikes[0].channel == 2 &&
        s.spikes[0].value == 300);
  CHECK(s.spikes[1].position == 9 && s.spikes[1].channel == 12 && s.spikes[1].value == 250);
  std::sort(maxima.rbegin(), maxima.rend());
  for (size_t i = 0; i < s.spikes.size(); ++i) CHECK(s.spikes[i].value == maxima[i]);
}

}  // namespace
}  // namespace lapidary::test
