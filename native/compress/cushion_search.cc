#include "compress/cushion_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "compress/cushion_state.h"
#include "compress/text_pieces.h"
#include "formats/mapped_file.h"

namespace lapidary {

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kBestShown = 8;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string identity(const Subject& subject, const CushionSearchOptions& o, const SearchTexts& texts) {
  const ModelConfig& c = subject.weights.config;
  WorkIdentity all;
  all.text(o.model_id).add(c.num_layers).add(c.hidden).add(c.vocab).add(c.ffn).add(subject.precision);
  all.add(o.window).ids(o.init).add(o.max_tokens).add(o.tau).add(o.text_tokens).add(o.texts).add(o.held_out).ids(o.candidates).add(o.seed);
  for (const ScreenStage& s : o.stages) all.add(s.tokens).add(s.texts).add(s.layers).add(s.keep);
  return all.texts(texts.held_out).texts(texts.pool).done();
}

void check(const Subject& subject, std::span<const TextIds> texts, const CushionSearchOptions& o) {
  const ModelConfig& c = subject.weights.config;
  const auto in_range = [](bool fits, auto name, auto value, auto wanted) {
    expect(fits, ErrorCode::invalid_argument, name, " is ", value, ", must be ", wanted);
  };
  const int64_t room = std::min(local_window(c), c.max_positions);
  in_range(o.max_tokens >= 1 && o.max_tokens <= room, "max_tokens", o.max_tokens, "at least 1 and fit in the shortest window");
  in_range(static_cast<int64_t>(o.init.size()) <= o.max_tokens, "the size of init", o.init.size(), "at most max_tokens");
  in_range(o.tau > 0 && o.tau <= 1, "tau", o.tau, "above 0 and at most 1");
  in_range(o.text_tokens >= 2 && o.text_tokens + o.max_tokens + 1 <= c.max_positions, "text_tokens", o.text_tokens,
           "at least 2 and fit in the model's positions behind the cushion");
  in_range(o.texts >= 1, "texts", o.texts, "at least 1");
  in_range(o.held_out >= 1, "held_out", o.held_out, "at least 1");
  in_range(o.rows >= 1, "rows", o.rows, "at least 1");
  for (const ScreenStage& s : o.stages) {
    expect(s.tokens >= 1 && s.texts >= 1 && s.keep >= 1 && s.layers >= 0 && s.layers <= c.num_layers, ErrorCode::invalid_argument,
           "a stage of the search needs tokens, texts and survivors, and at most the model's layers");
  }
  const auto known = [&](std::span<const int32_t> ids) {
    for (const int32_t id : ids)
      expect(id >= 0 && id < c.vocab, ErrorCode::invalid_argument, "token id ", id, " is outside the vocabulary of ", c.vocab);
  };
  known(o.init);
  known(o.candidates);
  for (const TextIds& text : texts) known(text);
}

// Positions of `scores` in rising order, of equal ones the earlier first.
std::vector<size_t> ranking(std::span<const double> scores) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  return order;
}

class Search {
 public:
  Search(const Subject& subject, std::span<const TextIds> texts, const CushionSearchOptions& options, const CushionWatch& watch)
      : subject_(subject),
        options_(options),
        watch_(watch),
        config_(subject.weights.config),
        texts_(split_texts(texts, options)),
        exact_(subject, options.text_tokens),
        candidates_(subject, longest_stage(), options.rows) {}

  CushionSearchResult run() {
    load();
    while (!state_.finished) step();
    CushionSearchResult result;
    result.cushion = state_.tokens.empty() ? make_cushion(config_, {}, options_.window) : exact_.make(state_.tokens, options_.window);
    result.steps = state_.steps;
    result.none = held_out({});
    result.init = options_.init.empty() ? result.none : held_out(options_.init);
    result.found = state_.tokens == options_.init ? result.init : held_out(state_.tokens);
    return result;
  }

 private:
  int64_t longest_stage() const {
    int64_t most = 1;
    for (const ScreenStage& s : options_.stages) most = std::max(most, tokens_of(s));
    return std::max(most, options_.max_tokens);
  }

  void load() {
    const std::string wanted = identity(subject_, options_, texts_);
    if (!options_.state_file.empty() && is_file(options_.state_file)) {
      state_ = read_state(options_.state_file);
      expect(state_.identity == wanted, ErrorCode::invalid_argument, options_.state_file,
             " is the state of a search with another model, other options or other texts");
      expect(state_.stage <= static_cast<int64_t>(options_.stages.size()), ErrorCode::bad_file, options_.state_file, ": no such stage");
      for (const auto* ids : {&state_.tokens, &state_.survivors})
        for (const int32_t id : *ids) expect(id >= 0 && id < config_.vocab, ErrorCode::bad_file, options_.state_file, ": no such token");
      return;
    }
    state_.identity = wanted;
    state_.tokens = options_.init;
    begin_step();
  }

  void save(bool now) {
    if (options_.state_file.empty() || (!now && seconds_since(saved_) < options_.state_seconds)) return;
    write_state(options_.state_file, state_);
    saved_ = Clock::now();
  }

  void begin_step() {
    state_.stage = 0;
    state_.scores.clear();
    state_.survivors = options_.candidates;
    if (state_.survivors.empty()) {
      state_.survivors.resize(static_cast<size_t>(config_.vocab));
      std::iota(state_.survivors.begin(), state_.survivors.end(), 0);
    }
    state_.finished = static_cast<int64_t>(state_.tokens.size()) >= options_.max_tokens;
  }

  double error_of(std::span<const int32_t> tokens, std::span<const TextIds> texts) {
    if (tokens.empty()) return exact_.measure(nullptr, texts, watch_.stop).total();
    const Cushion cushion = exact_.make(tokens, options_.window);
    return exact_.measure(&cushion, texts, watch_.stop).total();
  }
  SiteErrors held_out(std::span<const int32_t> tokens) {
    if (tokens.empty()) return exact_.measure(nullptr, texts_.held_out, watch_.stop);
    const Cushion cushion = exact_.make(tokens, options_.window);
    return exact_.measure(&cushion, texts_.held_out, watch_.stop);
  }
  std::vector<int32_t> with(int32_t token) const {
    std::vector<int32_t> tokens = state_.tokens;
    tokens.push_back(token);
    return tokens;
  }

  // The step's texts.
  std::vector<TextIds> draw() const {
    std::vector<TextIds> texts = texts_.pool;
    Draws(options_.seed, state_.steps.size() + 1).shuffle(texts);
    texts.resize(std::min(texts.size(), static_cast<size_t>(options_.texts)));
    return texts;
  }

  // Behind a pinned cushion screening stays where all of it is in the window, which is where ordinary tokens are seen alike.
  int64_t tokens_of(const ScreenStage& stage) const {
    const int64_t most = std::min(stage.tokens, options_.text_tokens);
    if (options_.window == CushionWindow::native) return most;
    return std::max<int64_t>(std::min(most, local_window(config_) - options_.max_tokens - 1), 1);
  }
  int64_t layers_of(const ScreenStage& stage) const { return stage.layers ? stage.layers : config_.num_layers; }

  // Stages of the step with the work each still has.
  void plan_work(std::span<const TextIds> texts) {
    work_.clear();
    auto count = static_cast<int64_t>(options_.candidates.empty() ? static_cast<size_t>(config_.vocab) : options_.candidates.size());
    for (const ScreenStage& stage : options_.stages) {
      const bool runs = count > stage.keep;
      const int64_t tokens = tokens_of(stage);
      work_.push_back({runs, runs ? count * stage.texts * (tokens + 1) * layers_of(stage) : 0});
      count = std::min(count, stage.keep);
    }
    int64_t tokens = 0;
    for (const TextIds& text : texts) tokens += static_cast<int64_t>(text.size());
    exact_work_ = tokens * config_.num_layers;
    work_.push_back({true, count * exact_work_});
    done_ = 0;
    total_ = 0;
    for (size_t i = 0; i < work_.size(); ++i) {
      total_ += work_[i].second;
      if (static_cast<int64_t>(i) < state_.stage) done_ += work_[i].second;
    }
    done_ += state_.survivors.empty() ? 0
                                      : work_[static_cast<size_t>(state_.stage)].second / static_cast<int64_t>(state_.survivors.size()) *
                                            static_cast<int64_t>(state_.scores.size());
    begun_ = Clock::now();
    done_before_ = done_;
  }

  void advance(int64_t work) {
    done_ += work;
    expect(!watch_.stop || !watch_.stop(), ErrorCode::aborted, "the search was stopped");
    if (!watch_.progress) return;
    const double share = static_cast<double>(total_ - done_) / static_cast<double>(std::max<int64_t>(done_ - done_before_, 1));
    watch_.progress({static_cast<int64_t>(state_.steps.size()), state_.stage, std::min(done_, total_), total_,
                     std::max(share, 0.0) * seconds_since(begun_), state_.tokens});
  }

  // The pieces that cost most behind the prefix as it is.
  std::vector<TextIds> loudest(const ScreenStage& stage, std::span<const TextIds> texts) {
    std::vector<TextIds> pieces = text_pieces(texts, tokens_of(stage));
    std::vector<double> quiet;
    for (const TextIds& piece : pieces) {
      double error = 0;
      const int32_t none = CandidatePass::kNone;
      candidates_.score({&none, 1}, piece, layers_of(stage), {&error, 1}, watch_.stop);
      quiet.push_back(-error);
    }
    std::vector<TextIds> chosen;
    for (const size_t i : ranking(quiet)) {
      if (static_cast<int64_t>(chosen.size()) < stage.texts) chosen.push_back(pieces[i]);
    }
    return chosen;
  }

  void screen(const ScreenStage& stage, std::span<const TextIds> texts) {
    const std::vector<TextIds> pieces = loudest(stage, texts);
    int64_t longest = 1;
    for (const TextIds& piece : pieces) longest = std::max(longest, static_cast<int64_t>(piece.size()));
    const auto batch = static_cast<size_t>(candidates_.batch(longest));
    const int64_t per_candidate = work_[static_cast<size_t>(state_.stage)].second / static_cast<int64_t>(state_.survivors.size());
    std::vector<double> errors(batch);
    while (state_.scores.size() < state_.survivors.size()) {
      const size_t first = state_.scores.size(), count = std::min(batch, state_.survivors.size() - first);
      std::vector<double> sums(count);
      for (const TextIds& piece : pieces) {
        candidates_.score(std::span(state_.survivors).subspan(first, count), piece, layers_of(stage), std::span(errors).first(count),
                          watch_.stop);
        for (size_t i = 0; i < count; ++i) sums[i] += errors[i];
      }
      state_.scores.insert(state_.scores.end(), sums.begin(), sums.end());
      save(false);
      advance(per_candidate * static_cast<int64_t>(count));
    }
    std::vector<int32_t> kept;
    for (const size_t i : ranking(state_.scores)) {
      if (static_cast<int64_t>(kept.size()) < stage.keep) kept.push_back(state_.survivors[i]);
    }
    // By id, so that of equal errors the same token is always first.
    std::sort(kept.begin(), kept.end());
    state_.survivors = std::move(kept);
    state_.scores.clear();
  }

  void step() {
    const std::vector<TextIds> texts = draw();
    plan_work(texts);
    candidates_.use_prefix(state_.tokens);
    for (; state_.stage < static_cast<int64_t>(options_.stages.size()); ++state_.stage, save(true)) {
      const auto at = static_cast<size_t>(state_.stage);
      if (work_[at].first) screen(options_.stages[at], texts);
    }
    while (state_.scores.size() < state_.survivors.size()) {
      state_.scores.push_back(error_of(with(state_.survivors[state_.scores.size()]), texts));
      save(false);
      advance(exact_work_);
    }
    CushionSearchStep found;
    found.tried = static_cast<int64_t>(options_.candidates.empty() ? static_cast<size_t>(config_.vocab) : options_.candidates.size());
    for (const size_t i : ranking(state_.scores)) {
      if (found.best.size() < kBestShown) found.best.push_back({state_.survivors[i], state_.scores[i]});
    }
    found.before = error_of(state_.tokens, texts);
    found.after = found.best[0].error;
    found.held_out_before = held_out(state_.tokens).total();
    found.held_out_after = held_out(with(found.best[0].token)).total();
    found.accepted =
        std::isfinite(found.after) && found.after <= options_.tau * found.before && found.held_out_after < found.held_out_before;
    if (found.accepted) state_.tokens.push_back(found.best[0].token);
    const bool accepted = found.accepted;
    state_.steps.push_back(std::move(found));
    begin_step();
    if (!accepted) state_.finished = true;
    save(true);
  }

  const Subject& subject_;
  const CushionSearchOptions& options_;
  const CushionWatch& watch_;
  const ModelConfig& config_;
  const SearchTexts texts_;
  ExactError exact_;
  CandidatePass candidates_;
  CushionSearchState state_;
  std::vector<std::pair<bool, int64_t>> work_;  // per stage: whether it runs, and its work
  int64_t exact_work_ = 0, done_ = 0, done_before_ = 0, total_ = 0;
  Clock::time_point begun_{}, saved_ = Clock::now();
};

}  // namespace

SearchTexts split_texts(std::span<const TextIds> texts, const CushionSearchOptions& options) {
  std::vector<TextIds> pieces = text_pieces(texts, options.text_tokens);
  expect(pieces.size() >= 2, ErrorCode::invalid_argument, "the search needs at least two texts, or one of ", 2 * options.text_tokens,
         " tokens");
  Draws(options.seed, 0).shuffle(pieces);
  const auto held = static_cast<int64_t>(std::min(pieces.size() / 2, static_cast<size_t>(options.held_out)));
  return {{pieces.begin(), pieces.begin() + held}, {pieces.begin() + held, pieces.end()}};
}

CushionSearchResult search_cushion(const Subject& subject, std::span<const TextIds> texts, const CushionSearchOptions& options,
                                   const CushionWatch& watch) {
  check(subject, texts, options);
  return Search(subject, texts, options, watch).run();
}

std::string search_report(const CushionSearchResult& result) {
  std::string text = "{\"tokens\":" + json_list(result.cushion.tokens) + ",\"window\":\"" +
                     (result.cushion.window == CushionWindow::native ? "native" : "pinned") + "\",\"steps\":" + steps_json(result.steps) +
                     ",\"sites\":[";
  for (size_t i = 0; i < result.found.sites.size(); ++i) {
    text += std::string(i ? "," : "") + "{\"layer\":" + std::to_string(i / kNumSites) + ",\"site\":\"" +
            site_name(static_cast<Site>(i % kNumSites)) + "\",\"none\":" + json_number(result.none.sites[i]) +
            ",\"init\":" + json_number(result.init.sites[i]) + ",\"found\":" + json_number(result.found.sites[i]) + '}';
  }
  return text + "]}";
}

}  // namespace lapidary
