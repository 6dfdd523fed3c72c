// The pass over texts against a plain collection of every site's rows.
#include "compress/activations.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "check.h"
#include "compress/measured_model.h"

namespace lapidary::test {
namespace {

struct Row {
  Spike where;
  std::vector<float> x;
};

TEST("activations: every row of every site is counted once, where it stands") {
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const Measured m = open_measured("gemma3-tiny");
    const std::vector<TextIds> texts = {some_text(m.config().vocab, 45, 1), some_text(m.config().vocab, 20, 2), {7}};
    constexpr int64_t kWindow = 20;
    Subject subject = m.subject();
    subject.precision = precision;
    const Activations got = collect_activations(subject, texts, kWindow);

    std::map<std::pair<int64_t, Site>, std::vector<Row>> plain;
    int64_t rows = 0;
    for (size_t text = 0; text < texts.size(); ++text) {
      for (int64_t first = 0; first < static_cast<int64_t>(texts[text].size()); first += kWindow) {
        const std::vector<int32_t> ids = m.with_bos(texts[text], first, kWindow);
        rows += static_cast<int64_t>(ids.size());
        TextPass pass(*m.backend, *m.weights, {.precision = precision});
        pass.run(ids, nullptr, {.sites = [&](int64_t layer, Site site, const Tensor& x) {
                   REQUIRE(x.shape[0] == static_cast<int64_t>(ids.size()));
                   for (int64_t r = 0; r < x.shape[0]; ++r) {
                     Row row = {{static_cast<int64_t>(text), r == 0 ? -1 : first + r - 1, ids[static_cast<size_t>(r)], 0, 0}, {}};
                     for (int64_t c = 0; c < x.shape[1]; ++c) {
                       const size_t at = static_cast<size_t>(r * x.shape[1] + c);
                       row.x.push_back(x.dtype == DType::bf16 ? to_f32(x.as<bf16>()[at]) : x.as<float>()[at]);
                     }
                     plain[{layer, site}].push_back(std::move(row));
                   }
                 }});
      }
    }
    CHECK(got.rows == rows && rows == 65 + 1 + 5);
    REQUIRE(plain.size() == got.sites.size());
    for (const auto& [key, all] : plain) {
      const SiteStatistics& s = got.at(key.first, key.second);
      const std::string where = "layer " + std::to_string(key.first) + ' ' + site_name(key.second);
      SiteStatistics want(site_width(m.config(), key.second));
      for (const Row& row : all) want.add(row.x, row.where);
      REQUIRE(s.channel_max.size() == all[0].x.size());
      CHECK_MSG(s.rows == rows && s.channel_max == want.channel_max && s.absmax == want.absmax, where);
      CHECK_MSG(s.absmax == *std::max_element(s.channel_max.begin(), s.channel_max.end()) && s.absmax > 0, where);
      CHECK_MSG(std::abs(s.sum_of_squares - want.sum_of_squares) <= 1e-9 * want.sum_of_squares, where);
      CHECK_MSG(s.mean_row_max() == want.mean_row_max() && s.values.quantile(0.9) == want.values.quantile(0.9), where);
      REQUIRE(s.spikes.size() == want.spikes.size());
      for (size_t i = 0; i < s.spikes.size(); ++i) {
        const Spike &a = s.spikes[i], &b = want.spikes[i];
        CHECK_MSG(a.text == b.text && a.position == b.position && a.id == b.id && a.channel == b.channel && a.value == b.value, where);
        CHECK_MSG(a.id == (a.position < 0 ? m.config().bos_id : texts[static_cast<size_t>(a.text)][static_cast<size_t>(a.position)]),
                  where);
      }
    }
  }
}

TEST("activations: long windows in several steps, progress and stop") {
  const Measured m = open_measured("tiny");
  const std::vector<TextIds> texts = {some_text(m.config().vocab, 700, 1)};
  const Activations whole = collect_activations(m.subject(), texts, 700);
  CHECK(whole.rows == 701);
  for (const SiteStatistics& s : whole.sites) {
    CHECK(s.rows == 701);
    for (const Spike& spike : s.spikes)
      CHECK(spike.id == (spike.position < 0 ? m.config().bos_id : texts[0][static_cast<size_t>(spike.position)]));
  }
  int64_t last = 0;
  collect_activations(m.subject(), texts, 200, {.progress = [&](int64_t done, int64_t total) {
                        CHECK(done > last && total == 700);
                        last = done;
                      }});
  CHECK(last == 700);
  CHECK_THROWS(collect_activations(m.subject(), texts, 200, {.stop = [] { return true; }}), ErrorCode::aborted, "stopped");
  CHECK_THROWS(collect_activations(m.subject(), texts, 0), ErrorCode::invalid_argument, "window");
}

}  // namespace
}  // namespace lapidary::test
