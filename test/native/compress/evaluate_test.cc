// Likelihood, divergence and choices against straightforward computations from whole texts' logits.
#include "compress/evaluate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>
#include <thread>

#include "check.h"
#include "compress/measured_model.h"

namespace lapidary::test {
namespace {

TEST("evaluate: windows score every token once, whatever window and stride") {
  const std::vector<int64_t> lengths = {0, 1, 2, 17, 64, 65, 100};
  for (const bool first_tokens : {false, true}) {
    for (const int64_t window : {1, 2, 3, 16, 17, 64, 1000}) {
      const int64_t most = first_tokens ? window : window - 1;
      for (const int64_t stride : {int64_t{0}, int64_t{1}, int64_t{5}, most}) {
        if (most < 1 || stride > most) {
          CHECK_THROWS(plan_windows(lengths, {window, stride, first_tokens}), ErrorCode::invalid_argument, "must be");
          continue;
        }
        std::multiset<std::pair<size_t, int64_t>> scored;
        for (const TextWindow& w : plan_windows(lengths, {window, stride, first_tokens})) {
          CHECK(w.tokens >= 1 && w.tokens <= window && w.first % (stride ? stride : most) == 0);
          CHECK(w.first + w.tokens <= lengths[w.text] && w.scored >= w.first + !first_tokens && w.scored < w.first + w.tokens);
          for (int64_t t = w.scored; t < w.first + w.tokens; ++t) scored.insert({w.text, t});
        }
        std::multiset<std::pair<size_t, int64_t>> all;
        for (size_t text = 0; text < lengths.size(); ++text)
          for (int64_t t = !first_tokens; t < lengths[text]; ++t) all.insert({text, t});
        CHECK_MSG(scored == all, "window " << window << ", stride " << stride << ", first tokens " << first_tokens);
      }
    }
  }
}

TEST("evaluate: likelihood is that of whole windows' logits, by position too") {
  for (const std::string name : {"tiny", "gemma3-tiny", "gemma2-tiny"}) {
    const Measured m = open_measured(name);
    const int64_t local = local_window(m.config());
    const std::vector<TextIds> texts = {some_text(m.config().vocab, 3 * local + 5, 1), some_text(m.config().vocab, 7, 2)};
    for (const WindowOptions options :
         {WindowOptions{2 * local + 3, 0, false}, WindowOptions{31, 13, false}, WindowOptions{31, 31, true}}) {
      const auto got = text_likelihood(m.subject(), texts, options);
      ByPosition<Likelihood> want;
      for (size_t text = 0; text < texts.size(); ++text) {
        const auto length = static_cast<int64_t>(texts[text].size()), stride = options.stride ? options.stride : options.window - 1;
        int64_t done = options.first_tokens ? 0 : 1;
        for (int64_t first = 0; done < length; first += stride) {
          const std::vector<int32_t> ids = m.with_bos(texts[text], first, options.window);
          const std::vector<float> logits = m.logits(ids);
          const int64_t end = first + static_cast<int64_t>(ids.size()) - 1;
          for (; done < end; ++done) {
            const double nats = nats_of(m.row(logits, done - first), texts[text][static_cast<size_t>(done)]);
            for (Likelihood* l : {&want.all, done - first < local ? &want.within : &want.beyond}) l->tokens++, l->nats += nats;
          }
        }
      }
      CHECK(got.all.tokens == want.all.tokens && got.within.tokens == want.within.tokens && got.beyond.tokens == want.beyond.tokens);
      CHECK(options.window < local || got.beyond.tokens > 0);
      // Single log-probabilities are f32 here: 1e-6 of a token's nats.
      for (auto part : {&ByPosition<Likelihood>::all, &ByPosition<Likelihood>::within, &ByPosition<Likelihood>::beyond})
        CHECK_MSG(std::abs((got.*part).nats - (want.*part).nats) <= 1e-5 * (want.*part).nats,
                  name << ": " << (got.*part).nats << ", plainly " << (want.*part).nats);
    }
  }
}

TEST("evaluate: a cushion that holds BOS stands for it, and the same tokens are scored") {
  const Measured m = open_measured("gemma3-tiny");
  TextPass maker(*m.backend, *m.weights, {});
  const std::vector<int32_t> bos = {m.config().bos_id};
  maker.run(bos, nullptr);
  const Cushion cushion = maker.to_cushion(CushionWindow::native);
  Subject with = m.subject();
  with.cushion = &cushion;
  CHECK(with.opening().empty() && m.subject().opening() == bos);
  const std::vector<TextIds> texts = {some_text(m.config().vocab, 90, 4)};
  // BOS as a native cushion equals BOS in the text while the window holds it, whether or not it may leave the text's window one token
  // later.
  const WindowOptions options = {local_window(m.config()), 0, false};
  const auto plain = text_likelihood(m.subject(), texts, options), cushioned = text_likelihood(with, texts, options);
  CHECK(plain.all.tokens == 89 && cushioned.all.tokens == 89);
  CHECK_MSG(std::abs(plain.all.nats - cushioned.all.nats) <= 1e-4 * plain.all.nats, plain.all.nats << " and " << cushioned.all.nats);
  const auto apart = divergence(m.subject(), with, texts, options);
  CHECK(apart.all.tokens == 89 && apart.all.agreement == 1 && apart.all.max_kl < 1e-6);
  CHECK_THROWS(text_likelihood(with, texts, {32, 0, true}), ErrorCode::invalid_argument, "cushion");
  CHECK_THROWS(divergence(m.subject(), with, texts, {32, 0, true}), ErrorCode::invalid_argument, "cushion");
  const std::vector<Question> empty = {{{}, {{1, 2}}}};
  CHECK_THROWS(choice_likelihoods(with, empty), ErrorCode::invalid_argument, "prompt has no tokens");
}

TEST("evaluate: divergence is that of whole windows' logits") {
  for (const std::string name : {"tiny", "gemma2-tiny"}) {
    const Measured m = open_measured(name), rough = open_measured(name, WeightsKind::int8);
    const int64_t local = local_window(m.config());
    // Longer than the chunk of lock step, so that a window is met piece by piece.
    const std::vector<TextIds> texts = {some_text(m.config().vocab, 2, 7), some_text(m.config().vocab, 700, 6)};
    for (const WindowOptions options : {WindowOptions{600, 0, false}, WindowOptions{540, 301, false}, WindowOptions{560, 0, true}}) {
      const auto got = divergence(m.subject(), rough.subject(), texts, options);
      std::vector<double> kls, near, far;
      double agreed = 0, reference_nats = 0, nats = 0;
      for (const TextIds& text : texts) {
        const auto length = static_cast<int64_t>(text.size()), most = options.first_tokens ? options.window : options.window - 1;
        int64_t done = options.first_tokens ? 0 : 1;
        for (int64_t first = 0; done < length; first += options.stride ? options.stride : most) {
          const std::vector<int32_t> ids = m.with_bos(text, first, options.window);
          const std::vector<float> a = m.logits(ids), b = rough.logits(ids);
          for (const int64_t end = first + static_cast<int64_t>(ids.size()) - 1; done < end; ++done) {
            const auto ra = m.row(a, done - first), rb = m.row(b, done - first);
            const double kl = mean_kl(ra, rb, ra.size());
            kls.push_back(kl);
            (done - first < local ? near : far).push_back(kl);
            agreed += std::max_element(ra.begin(), ra.end()) - ra.begin() == std::max_element(rb.begin(), rb.end()) - rb.begin();
            reference_nats += nats_of(ra, text[static_cast<size_t>(done)]);
            nats += nats_of(rb, text[static_cast<size_t>(done)]);
          }
        }
      }
      const auto mean = [](const std::vector<double>& v) {
        double sum = 0;
        for (double x : v) sum += x;
        return v.empty() ? 0 : sum / static_cast<double>(v.size());
      };
      const auto close = [](double x, double y) { return std::abs(x - y) <= 1e-6 * std::abs(y) + 1e-12; };
      const auto count = static_cast<double>(kls.size());
      CHECK(got.all.tokens == static_cast<int64_t>(kls.size()) && got.all.tokens == (options.first_tokens ? 702 : 700));
      CHECK_MSG(close(got.all.mean_kl, mean(kls)) && mean(kls) > 0, got.all.mean_kl << ", plainly " << mean(kls));
      CHECK(close(got.within.mean_kl, mean(near)) && close(got.beyond.mean_kl, mean(far)));
      CHECK(got.within.tokens == static_cast<int64_t>(near.size()) && got.beyond.tokens == static_cast<int64_t>(far.size()));
      CHECK(close(got.all.agreement, agreed / count) && close(got.all.reference_nats, reference_nats) &&
            close(got.all.candidate_nats, nats));
      std::sort(kls.begin(), kls.end());
      CHECK(close(got.all.max_kl, kls.back()) && close(got.all.p99_kl, kls[static_cast<size_t>(std::ceil(0.99 * count)) - 1]));
    }
    const auto same = divergence(m.subject(), m.subject(), texts, {50, 0, false});
    CHECK(same.all.mean_kl == 0 && same.all.agreement == 1 && same.all.reference_nats == same.all.candidate_nats);
  }
  const Measured a = open_measured("tiny"), b = open_measured("gemma2-tiny");
  const std::vector<TextIds> text = {{3, 4, 5}};
  REQUIRE(a.config().vocab != b.config().vocab);
  CHECK_THROWS(divergence(a.subject(), b.subject(), text, {}), ErrorCode::invalid_argument, "vocabularies differ");
}

TEST("evaluate: choices have the likelihood of their tokens after the prompt") {
  const Measured m = open_measured("gemma3-tiny");
  const int64_t vocab = m.config().vocab, local = local_window(m.config());
  std::vector<Question> questions;
  // Prompts that fill the ring to every side of a page and of the window.
  for (const int64_t length : {int64_t{0}, int64_t{1}, local - 1, local, int64_t{63}, int64_t{64}, int64_t{65}, int64_t{130}}) {
    Question q = {some_text(vocab, length, static_cast<uint64_t>(length) + 1), {}};
    for (const int64_t tokens : {3, 1, 0, 9, 70, 3}) q.choices.push_back(some_text(vocab, tokens, 77));
    questions.push_back(q);
  }
  const auto got = choice_likelihoods(m.subject(), questions);
  REQUIRE(got.size() == questions.size());
  for (size_t i = 0; i < questions.size(); ++i) {
    REQUIRE(got[i].size() == questions[i].choices.size());
    for (size_t c = 0; c < got[i].size(); ++c) {
      std::vector<int32_t> ids = m.with_bos(questions[i].prompt, 0, 10'000);
      const auto before = static_cast<int64_t>(ids.size());
      ids.insert(ids.end(), questions[i].choices[c].begin(), questions[i].choices[c].end());
      const std::vector<float> logits = m.logits(ids);
      double want = 0;
      for (int64_t t = before; t < static_cast<int64_t>(ids.size()); ++t)
        want -= nats_of(m.row(logits, t - 1), ids[static_cast<size_t>(t)]);
      CHECK_MSG(std::abs(got[i][c] - want) <= 1e-5 * std::abs(want),
                "question " << i << ", choice " << c << ": " << got[i][c] << ", plainly " << want);
    }
  }
}

TEST("evaluate: tells its progress and stops when asked") {
  const Measured m = open_measured("gemma3-tiny");
  const std::vector<TextIds> texts = {some_text(m.config().vocab, 100, 4)};
  std::vector<int64_t> told;
  text_likelihood(m.subject(), texts, {11, 0, false}, {.progress = [&](int64_t done, int64_t total) {
                    CHECK(total == 99);
                    told.push_back(done);
                  }});
  CHECK(std::is_sorted(told.begin(), told.end()) && told.back() == 99 && told.size() == 10);
  const Question question = {{3, 4}, {{5, 6}}};
  int polls = 0;
  const EvaluationWatch stops = {.stop = [&] { return ++polls > 20; }};
  CHECK_THROWS(text_likelihood(m.subject(), texts, {11, 0, false}, stops), ErrorCode::aborted, "stopped");
  CHECK_THROWS(divergence(m.subject(), m.subject(), texts, {11, 0, false}, stops), ErrorCode::aborted, "stopped");
  CHECK_THROWS(choice_likelihoods(m.subject(), {&question, 1}, stops), ErrorCode::aborted, "stopped");
  CHECK(polls <= 24);
}

TEST("evaluate: takes turns with an engine, and ends with it") {
  const Measured m = open_measured("gemma3-tiny");
  TurnLock turns;
  Subject subject = m.subject();
  subject.turns = &turns;
  const std::vector<TextIds> texts = {some_text(m.config().vocab, 300, 4)};
  const double alone = text_likelihood(m.subject(), texts, {50, 0, false}).all.nats;
  // Others hold turns of their own meanwhile; nobody is left out.
  std::atomic<bool> ended{false};
  int others = 0;
  std::thread other([&] {
    while (!ended) {
      const TurnLock::Hold turn(&turns);
      ++others;
    }
  });
  const double together = text_likelihood(subject, texts, {50, 0, false}).all.nats;
  ended = true;
  other.join();
  CHECK(alone == together && others > 0);
  const auto end_early = [&](int64_t done, int64_t) {
    if (done > 100) turns.announce_end();
  };
  CHECK_THROWS(text_likelihood(subject, texts, {50, 0, false}, {.progress = end_early}), ErrorCode::disposed, "closed");
}

}  // namespace
}  // namespace lapidary::test
