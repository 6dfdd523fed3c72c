// The greedy search on a model whose one good prefix is known, its measures against plain loops, and its states.
#include "compress/cushion_search.h"

#include <algorithm>
#include <filesystem>

#include "compress/cushion_rivals.h"
#include "compress/cushion_state.h"
#include "compress/spiking_model.h"
#include "ops/int8.h"

namespace lapidary::test {
namespace {

// Rows of text of every site, from one plain pass.
std::vector<std::vector<float>> site_rows(const Measured& m, const std::vector<int32_t>& ids, int64_t skipped, const Cushion* cushion,
                                          Precision precision) {
  std::vector<std::vector<float>> all;
  TextPass pass(*m.backend, *m.weights, {.precision = precision, .cushion = cushion});
  pass.run(ids, nullptr, {.sites = [&](int64_t, Site, const Tensor& x) {
             std::vector<float>& values = all.emplace_back();
             for (int64_t i = skipped * x.row_elements(); i < x.elements(); ++i)
               values.push_back(x.dtype == DType::bf16 ? to_f32(x.as<bf16>()[i]) : x.as<float>()[i]);
           }});
  return all;
}

double plain_error(const std::vector<float>& values, bool exact) {
  const float scale = int8_scale(absolute_max(values.data(), static_cast<int64_t>(values.size())));
  double error = 0, squares = 0;
  for (const float v : values) {
    error += std::pow(static_cast<double>(v) - static_cast<float>(to_int8(v * (1.0f / scale))) * scale, 2);
    squares += static_cast<double>(v) * v;
  }
  return exact ? error : std::min(static_cast<double>(values.size()) * scale * scale / 12, squares);
}

CushionSearchOptions small_options() {
  CushionSearchOptions options;
  options.text_tokens = 40;
  options.max_tokens = 4;
  options.texts = 6;
  options.held_out = 6;
  options.stages = {{10, 2, 1, 16}, {40, 2, 0, 6}};
  options.rows = 100;
  return options;
}

bool same_steps(const CushionSearchResult& a, const CushionSearchResult& b) {
  return a.cushion.tokens == b.cushion.tokens && steps_json(a.steps) == steps_json(b.steps) && a.found.sites == b.found.sites &&
         cushion_fingerprint(a.cushion) == cushion_fingerprint(b.cushion);
}

TEST("cushion search: the exact error is that of plain loops, over text alone and per text") {
  for (const std::string name : {"gemma3-tiny", "gemma2-tiny"}) {
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      const Measured m = open_measured(name);
      Subject subject = m.subject();
      subject.precision = precision;
      const std::vector<TextIds> texts = {some_text(m.config().vocab, 37, 1), some_text(m.config().vocab, 1, 2),
                                          some_text(m.config().vocab, 1, 3)};
      ExactError exact(subject, 37);
      const std::vector<int32_t> tokens = {m.config().bos_id, 9};
      for (const CushionWindow window : {CushionWindow::native, CushionWindow::pinned}) {
        const Cushion made = exact.make(tokens, window);
        for (const Cushion* cushion : {static_cast<const Cushion*>(nullptr), &made}) {
          std::vector<double> want(static_cast<size_t>(m.config().num_layers * kNumSites));
          for (const TextIds& text : texts) {
            TextIds ids = text;
            if (!cushion) ids.insert(ids.begin(), m.config().bos_id);
            const auto rows = site_rows(m, ids, 0, cushion, precision);
            for (size_t i = 0; i < want.size(); ++i) want[i] += plain_error(rows[i], true);
          }
          const SiteErrors got = exact.measure(cushion, texts);
          REQUIRE(got.sites.size() == want.size());
          // Sums in double in another order.
          for (size_t i = 0; i < want.size(); ++i) CHECK_MSG(std::abs(got.sites[i] - want[i]) <= 1e-10 * want[i], name << " site " << i);
        }
      }
    }
  }
}

TEST("cushion search: a text of several steps is measured with one scale") {
  const Measured m = open_measured("gemma2-tiny");  // 1024 positions: the longest text, in one step, and a model of two
  const TextIds text = some_text(m.config().vocab, 90, 3);
  ExactError once(m.subject(), 90);
  const SiteErrors whole = once.measure(nullptr, {{text}});
  CHECK(whole.total() > 0);
  // A pass whose steps are shorter than its texts.
  ExactError pieces(m.subject(), 20);
  const SiteErrors split = pieces.measure(nullptr, {{text}});
  // The steps' attention sums differ by f32 rounding, which moves single values over the edge of a step of q.
  for (size_t i = 0; i < whole.sites.size(); ++i)
    CHECK_MSG(std::abs(split.sites[i] - whole.sites[i]) <= 1e-2 * whole.sites[i], "site " << i << ": " << split.sites[i]);
}

TEST("cushion search: the surrogate of many candidates is that of each alone, whatever the batch and depth") {
  const Measured m = open_measured("gemma3-tiny");
  const TextIds text = some_text(m.config().vocab, 13, 4);
  const std::vector<int32_t> candidates = {CandidatePass::kNone, 3, 77, m.config().bos_id, 3, 101, 5};
  for (const std::vector<int32_t>& prefix : {std::vector<int32_t>{}, {m.config().bos_id}, {8, 4}}) {
    for (const int64_t layers : {int64_t{1}, m.config().num_layers}) {
      std::vector<double> first;
      for (const int64_t rows : {1, 31, 200}) {
        CandidatePass pass(m.subject(), 13, rows);
        pass.use_prefix(prefix);
        std::vector<double> got(candidates.size());
        pass.score(candidates, text, layers, got);
        if (first.empty()) first = got;
        CHECK_MSG(got == first, "rows " << rows);
      }
      for (size_t i = 0; i < candidates.size(); ++i) {
        std::vector<int32_t> ids = prefix;
        if (candidates[i] != CandidatePass::kNone) ids.push_back(candidates[i]);
        const auto before = static_cast<int64_t>(ids.size());
        if (std::find(ids.begin(), ids.end(), m.config().bos_id) == ids.end()) ids.push_back(m.config().bos_id);
        ids.insert(ids.end(), text.begin(), text.end());
        const auto rows = site_rows(m, ids, before, nullptr, Precision::f32);
        double want = 0;
        for (size_t s = 0; s < static_cast<size_t>(layers * kNumSites); ++s) want += plain_error(rows[s], false);
        // Prefixes in a step of their own: attention's f32 sums in another order.
        CHECK_MSG(std::abs(first[i] - want) <= 1e-4 * want, "candidate " << candidates[i] << ": " << first[i] << ", plainly " << want);
      }
    }
  }
}

TEST("cushion search: finds the token that silences spikes, though some texts have none") {
  const Measured m = open_spiking();
  const std::vector<TextIds> texts = spiking_texts(18, 40);
  for (const std::vector<int32_t>& init : {std::vector<int32_t>{}, {m.config().bos_id}}) {
    CushionSearchOptions options = small_options();
    options.init = init;
    const CushionSearchResult result = search_cushion(m.subject(), texts, options);
    std::vector<int32_t> want = init;
    want.push_back(kSink);
    CHECK_MSG(result.cushion.tokens == want, "found " << json_list(result.cushion.tokens) << ": " << search_report(result));
    REQUIRE(result.steps.size() == 2 && result.steps[0].accepted && !result.steps[1].accepted);
    CHECK(result.steps[0].tried == kSpikingVocab && result.steps[0].best.size() == 6 && result.steps[0].best[0].token == kSink);
    CHECK(result.steps[0].after <= 0.5 * result.steps[0].before);
    CHECK_MSG(result.found.total() <= 0.5 * result.init.total(), result.init.total() << " to " << result.found.total());
    // The spikes' own site: layer 0, down_in.
    CHECK(result.found.sites[3] <= 0.01 * result.init.sites[3]);

    const std::vector<TextIds> held_out = split_texts(texts, options).held_out;
    const RandomPrefixes random = random_prefixes(m.subject(), held_out, 9, static_cast<int64_t>(want.size()), options.window, 7);
    CHECK_MSG(random.median() >= 2 * result.found.total(), "random " << random.median() << ", found " << result.found.total());
    CHECK(std::all_of(random.tokens.begin(), random.tokens.end(), [&](const auto& t) { return t.size() == want.size(); }));
  }
}

TEST("cushion search: pinned cushions are seen behind the window, native ones are not") {
  const Measured m = open_spiking();
  ExactError exact(m.subject(), 40);
  TextIds text(40, 30);
  text[35] = kSpiking[0];
  const std::vector<int32_t> tokens = {m.config().bos_id, kSink};
  const Cushion pinned = exact.make(tokens, CushionWindow::pinned), native = exact.make(tokens, CushionWindow::native);
  const double none = exact.measure(nullptr, {{text}}).total(), with_pinned = exact.measure(&pinned, {{text}}).total(),
               with_native = exact.measure(&native, {{text}}).total();
  CHECK_MSG(with_pinned < 0.1 * none && with_native > 0.5 * none, none << ", pinned " << with_pinned << ", native " << with_native);
}

TEST("cushion search: never worse than where it began, and stops where nothing helps") {
  for (const std::string name : {"gemma3-tiny", "gemma2-tiny"}) {
    const Measured m = open_measured(name);
    std::vector<TextIds> texts;
    for (uint64_t i = 0; i < 6; ++i) texts.push_back(some_text(m.config().vocab, 24, i + 1));
    CushionSearchOptions options = small_options();
    options.text_tokens = 24;
    options.init = {m.config().bos_id};
    options.stages = {{6, 1, 1, 24}, {24, 1, 0, 4}};
    options.rows = 512;
    options.max_tokens = 3;
    const CushionSearchResult result = search_cushion(m.subject(), texts, options);
    CHECK_MSG(result.found.total() <= result.init.total(), name << ": " << result.init.total() << " to " << result.found.total());
    for (const CushionSearchStep& step : result.steps)
      CHECK(step.accepted == (step.after <= options.tau * step.before && step.held_out_after < step.held_out_before));
    CHECK(result.cushion.tokens[0] == m.config().bos_id && result.cushion.k.size() == static_cast<size_t>(m.config().num_layers));
    // With any gain welcome, tokens are added while they lower held-out errors.
    options.tau = 1;
    const CushionSearchResult greedy = search_cushion(m.subject(), texts, options);
    CHECK(greedy.found.total() <= greedy.init.total() && greedy.cushion.size() >= result.cushion.size());
    CHECK(same_steps(greedy, search_cushion(m.subject(), texts, options)));
  }
}

TEST("cushion search: interrupted anywhere, it goes on to the same result") {
  const Measured m = open_spiking();
  const std::vector<TextIds> texts = spiking_texts(12, 40);
  CushionSearchOptions options = small_options();
  options.init = {m.config().bos_id};
  const CushionSearchResult whole = search_cushion(m.subject(), texts, options);
  options.state_file = temporary_folder() + "/search.json";
  options.state_seconds = 0;
  int interruptions = 0;
  for (;;) {
    int64_t calls = 0, last = 0, step = 0;
    bool stopped = false;
    const CushionWatch watch = {.progress =
                                    [&](const CushionProgress& p) {
                                      last = p.step == step ? last : 0;
                                      step = p.step;
                                      CHECK(p.done >= last && p.done <= p.total && p.seconds_left >= 0 && std::isfinite(p.seconds_left));
                                      last = p.done;
                                      stopped = ++calls >= 5;
                                    },
                                .stop = [&] { return stopped; }};
    try {
      CHECK(same_steps(search_cushion(m.subject(), texts, options, watch), whole));
      break;
    } catch (const Error& error) {
      REQUIRE(error.code() == ErrorCode::aborted);
      REQUIRE(++interruptions < 60);
    }
  }
  CHECK(interruptions >= 3);
  // What is finished is read, not done again.
  CHECK(same_steps(search_cushion(m.subject(), texts, options), whole));
  options.seed = 1;
  CHECK_THROWS(search_cushion(m.subject(), texts, options), ErrorCode::invalid_argument, "another model, other options");
  write_text(options.state_file, "{\"format\":\"lapidary cushion search 1\"}");
  CHECK_THROWS(search_cushion(m.subject(), texts, options), ErrorCode::bad_file, "missing");
}

TEST("cushion search: stop, and options that do not fit") {
  const Measured m = open_spiking();
  const std::vector<TextIds> texts = spiking_texts(6, 40);
  const CushionSearchOptions good = small_options();
  CHECK_THROWS(search_cushion(m.subject(), texts, good, {.progress = {}, .stop = [] { return true; }}), ErrorCode::aborted, "stopped");
  const auto refuse = [&](auto change, const char* part) {
    CushionSearchOptions options = good;
    change(options);
    CHECK_THROWS(search_cushion(m.subject(), texts, options), ErrorCode::invalid_argument, part);
  };
  refuse([](auto& o) { o.max_tokens = kSpikingWindow + 1; }, "max_tokens");
  refuse([](auto& o) { o.init = {1, 2, 3, 4, 5}; }, "init");
  refuse([](auto& o) { o.init = {64}; }, "vocabulary");
  refuse([](auto& o) { o.candidates = {-1}; }, "vocabulary");
  refuse([](auto& o) { o.tau = 1.5; }, "tau");
  refuse([](auto& o) { o.text_tokens = 128; }, "positions");
  refuse([](auto& o) { o.stages[0].layers = 3; }, "stage");
  CHECK_THROWS(search_cushion(m.subject(), {{texts[0]}}, good), ErrorCode::invalid_argument, "at least two texts");
}

TEST("cushion rivals: tokens by how often they are outliers, BOS last") {
  const Measured m = open_spiking();
  std::vector<TextIds> texts = spiking_texts(9, 40);
  // Two of three texts have one outlier: one token per text, rounded up. The first text with a spike at its beginning counts too.
  std::map<int32_t, int64_t> frequency;
  for (const TextIds& text : texts)
    for (const int32_t id : text) frequency[id] += id == kSpiking[0] || id == kSpiking[1];
  const int32_t frequent = frequency[kSpiking[0]] >= frequency[kSpiking[1]] ? kSpiking[0] : kSpiking[1];
  CHECK(frequent_outliers(m.subject(), texts) == std::vector<int32_t>({frequent, m.config().bos_id}));
  CHECK(frequent_outliers(m.subject(), texts, 1e9) == std::vector<int32_t>({m.config().bos_id}));
  CHECK_THROWS(frequent_outliers(m.subject(), texts, 64, {.progress = {}, .stop = [] { return true; }}), ErrorCode::aborted, "");
}

}  // namespace
}  // namespace lapidary::test
