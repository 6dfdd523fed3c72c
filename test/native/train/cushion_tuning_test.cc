// Tuning a cushion on the package's small model: what it gains under quantisation, what it costs without, and that it can be interrupted.
#include "train/cushion_tuning.h"

#include <algorithm>
#include <filesystem>

#include "compress/measured_model.h"
#include "compress/prefix_error.h"
#include "formats/mapped_file.h"
#include "runtime/tokenizer.h"
#include "train/train_data.h"

namespace lapidary::test {
namespace {

std::string path_of(const std::string& name) { return name == "tiny" ? std::string(LAPIDARY_SOURCE_DIR "/models/tiny") : golden(name); }

struct Tuned {
  Measured model;
  std::shared_ptr<const ModelWeights> host;
  WidenedWeights weights;

  explicit Tuned(const std::string& name)
      : model(open_measured(name)), host(load_weights(path_of(name), *make_reference_backend())), weights(*model.backend, *host) {}
  Cushion start(std::vector<int32_t> tokens) const { return ExactError(model.subject(), 1).make(tokens, CushionWindow::pinned); }
};

// The beginning of a text of the kind that the package's model was trained on, unseen by it.
std::vector<TextIds> english(int64_t tokens) {
  const std::string text = read_text_file(golden("gemma3-small/validation.txt"));
  TextIds ids = Tokenizer::load(path_of("tiny"))->encode(std::string_view(text).substr(0, static_cast<size_t>(tokens) * 6), false);
  REQUIRE(static_cast<int64_t>(ids.size()) >= tokens);
  ids.resize(static_cast<size_t>(tokens));
  return {ids};
}

bool same_figures(const HeldOut& a, const HeldOut& b) {
  return a.step == b.step && a.quantised == b.quantised && a.unquantised == b.unquantised && a.error == b.error && a.training == b.training;
}
bool same_result(const CushionTuningResult& a, const CushionTuningResult& b) {
  return cushion_fingerprint(a.cushion) == cushion_fingerprint(b.cushion) &&
         std::equal(a.measured.begin(), a.measured.end(), b.measured.begin(), b.measured.end(), same_figures);
}

TEST("cushion tuning: lowers held-out cross-entropy under quantisation and keeps the model") {
  Tuned t("tiny");
  const std::vector<TextIds> texts = english(1600);
  CushionTuningOptions options;
  options.text_tokens = 80;
  options.steps = 16;
  options.every = 8;
  options.batch = 4;
  options.calibration_texts = 4;
  options.learning_rate = 0.01;
  options.warmup = 2;
  const CushionTuningResult result = tune_cushion(t.model.subject(), t.weights, t.start({t.model.config().bos_id, 10}), texts, options);
  REQUIRE(result.measured.size() == 3 && result.skipped == 0);
  CHECK(result.best.step > 0);
  CHECK_MSG(result.best.quantised < result.start.quantised, tuning_report(result));
  // A cushion that costs the model itself anything is not kept, however little int8 costs behind it.
  CHECK_MSG(result.best.unquantised <= result.start.unquantised, tuning_report(result));
  for (const HeldOut& h : result.measured) {
    if (h.unquantised <= result.start.unquantised) CHECK(result.best.quantised <= h.quantised);
  }
  CHECK(result.start.error == 1 && result.start.quantised > result.start.unquantised - 0.01 && result.no_cushion > 0);

  // The figures are the evaluation's own: the same tokens, scored behind the cushion that came out.
  CushionTuningOptions again = options;
  again.steps = 0;
  const CushionTuningResult measured = tune_cushion(t.model.subject(), t.weights, result.cushion, texts, again);
  CHECK(measured.start.unquantised == result.best.unquantised && measured.start.quantised == result.best.quantised);
  CHECK(measured.no_cushion == result.no_cushion);
}

TEST("cushion tuning: held-out figures are those of evaluate") {
  Tuned t("gemma3-tiny");
  std::vector<TextIds> texts;
  for (uint64_t i = 0; i < 6; ++i) texts.push_back(some_text(t.model.config().vocab, 30, i + 1));
  CushionTuningOptions options;
  options.text_tokens = 30;
  options.steps = 0;
  options.held_out = 3;
  options.batch = 2;
  const Cushion cushion = t.start({t.model.config().bos_id, 7});
  const CushionTuningResult result = tune_cushion(t.model.subject(), t.weights, cushion, texts, options);
  // Which texts are held out is the tuning's to say; all choices of three are tried.
  std::vector<double> with, without;
  for (const TextIds& text : texts) {
    Subject subject = t.model.subject();
    without.push_back(text_likelihood(subject, {{text}}, {31, 0, false}).all.nats);
    subject.cushion = &cushion;
    with.push_back(text_likelihood(subject, {{text}}, {31, 0, false}).all.nats);
  }
  bool found = false;
  for (size_t a = 0; a < 6; ++a)
    for (size_t b = a + 1; b < 6; ++b)
      for (size_t c = b + 1; c < 6; ++c)
        found = found || (std::abs((with[a] + with[b] + with[c]) / 87 - result.start.unquantised) < 1e-5 &&
                          std::abs((without[a] + without[b] + without[c]) / 87 - result.no_cushion) < 1e-5);
  CHECK(found);
}

TEST("cushion tuning: interrupted and taken up again, it gives the same bits") {
  Tuned t("gemma2-tiny");
  std::vector<TextIds> texts;
  for (uint64_t i = 0; i < 7; ++i) texts.push_back(some_text(t.model.config().vocab, 24, i + 1));
  CushionTuningOptions options;
  options.text_tokens = 24;
  options.steps = 11;
  options.every = 3;
  options.patience = 0;
  options.batch = 2;
  options.held_out = 2;
  options.learning_rate = 0.01;
  for (const QuantErrorGradient gradient :
       {QuantErrorGradient::literal, QuantErrorGradient::straight_through, QuantErrorGradient::through_scale}) {
    options.gradient = gradient;
    options.state_file = "";
    const Cushion start = t.start({t.model.config().bos_id, 7});
    const CushionTuningResult whole = tune_cushion(t.model.subject(), t.weights, start, texts, options);
    CHECK(whole.measured.size() == 5 && whole.measured.back().step == 11);
    CHECK(same_result(tune_cushion(t.model.subject(), t.weights, start, texts, options), whole));
    options.state_file = temporary_folder() + "/tuning.safetensors";
    int interruptions = 0;
    for (;;) {
      int64_t steps = 0;
      try {
        const CushionTuningWatch watch = {.progress =
                                              [&](int64_t step, int64_t of, double seconds, const HeldOut&) {
                                                CHECK(step <= of && of == 11 && seconds >= 0);
                                                ++steps;
                                              },
                                          .stop = [&] { return steps >= 5; }};
        CHECK(same_result(tune_cushion(t.model.subject(), t.weights, start, texts, options, watch), whole));
        break;
      } catch (const Error& error) {
        REQUIRE(error.code() == ErrorCode::aborted);
        REQUIRE(++interruptions < 10);
      }
    }
    CHECK(interruptions >= 2);
  }
  options.seed = 5;
  CHECK_THROWS(tune_cushion(t.model.subject(), t.weights, t.start({2, 7}), texts, options), ErrorCode::invalid_argument,
               "state of a tuning");
}

TEST("cushion tuning: every variant of the rounding error falls on its own texts when it alone is pulled down") {
  Tuned t("gemma3-tiny");
  std::vector<TextIds> texts;
  for (uint64_t i = 0; i < 4; ++i) texts.push_back(some_text(t.model.config().vocab, 24, i + 1));
  CushionTuningOptions options;
  options.text_tokens = 24;
  options.batch = 2;  // every step sees both training texts
  options.steps = 40;
  options.every = 10;
  options.patience = 0;
  options.lambda = 1000;  // cross-entropy does not count beside it
  options.learning_rate = 0.01;
  for (const QuantErrorGradient gradient : {QuantErrorGradient::straight_through, QuantErrorGradient::through_scale}) {
    options.gradient = gradient;
    const CushionTuningResult result = tune_cushion(t.model.subject(), t.weights, t.start({t.model.config().bos_id, 7}), texts, options);
    CHECK_MSG(result.measured.back().training < 0.95 * result.measured[1].training, tuning_report(result));
  }
}

TEST("cushion tuning: early end, stop, and options that do not fit") {
  Tuned t("gemma3-tiny");
  std::vector<TextIds> texts;
  for (uint64_t i = 0; i < 4; ++i) texts.push_back(some_text(t.model.config().vocab, 20, i + 1));
  const Cushion start = t.start({t.model.config().bos_id});
  CushionTuningOptions good;
  good.text_tokens = 20;
  good.steps = 30;
  good.every = 1;
  good.patience = 2;
  good.learning_rate = 1e-30;  // nothing moves: no measurement is better than the first
  good.warmup = 0;
  const CushionTuningResult result = tune_cushion(t.model.subject(), t.weights, start, texts, good);
  CHECK_MSG(result.measured.size() == 3 && result.best.step == 0, tuning_report(result));
  CHECK(cushion_fingerprint(result.cushion) == cushion_fingerprint(start));
  const auto refuse = [&](auto change, const char* part) {
    CushionTuningOptions options = good;
    change(options);
    CHECK_THROWS(tune_cushion(t.model.subject(), t.weights, start, texts, options), ErrorCode::invalid_argument, part);
  };
  refuse([](auto& o) { o.batch = 0; }, "batch");
  refuse([](auto& o) { o.text_tokens = 100000; }, "positions");
  refuse([](auto& o) { o.learning_rate = 0; }, "learning_rate");
  CHECK_THROWS(tune_cushion(t.model.subject(), t.weights, make_cushion(t.model.config(), {}, CushionWindow::pinned), texts, good),
               ErrorCode::invalid_argument, "at least one token");
  CHECK_THROWS(tune_cushion(t.model.subject(), t.weights, start, {{texts[0]}}, good), ErrorCode::invalid_argument, "at least two texts");
  CHECK_THROWS(tune_cushion(t.model.subject(), t.weights, start, texts, good, {.progress = {}, .stop = [] { return true; }}),
               ErrorCode::aborted, "");
}

}  // namespace
}  // namespace lapidary::test
