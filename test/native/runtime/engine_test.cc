// Results of the engine: golden text and logits, and that nothing about a step changes them.
#include "runtime/engine.h"

#include "engine_fixture.h"
#include "model/runner.h"

using namespace lapidary;
using namespace lapidary::test;

namespace {

const char* const kModels[] = {"gemma2-tiny", "gemma3-tiny"};

// Eight other runs of every kind, sampled and greedy, of all lengths.
std::vector<Started> start_company(Engine& engine) {
  std::vector<Started> company;
  for (uint32_t i = 0; i < 6; ++i) {
    RunRequest r = greedy_request(some_ids(1 + i * 37, 100 + i), 20 + i * 9);
    r.sampling.temperature = i % 2 ? 1.5f : 0;
    r.seed = i;
    company.push_back(start(engine, std::move(r)));
  }
  company.push_back(start(engine, score_request(RunKind::logits, some_ids(90, 200))));
  company.push_back(start(engine, score_request(RunKind::hidden, some_ids(33, 201))));
  return company;
}

}  // namespace

TEST("engine: greedy text is the golden one with any prefill chunk, on every backend") {
  for (const char* name : kModels) {
    const auto prompt = golden_values<int32_t>(name, "greedy.prompt"), want = golden_values<int32_t>(name, "greedy.continuation");
    for (const char* backend : kBackendNames) {
      const Model model = golden_model(name, backend);
      std::shared_ptr<Recorder> first;
      for (const int64_t chunk : {1, 7, 64, 1024}) {
        const auto engine = model.engine(f32_options(chunk));
        const auto got = run_to_end(*engine, greedy_request(prompt, static_cast<int64_t>(want.size())));
        CHECK_MSG(got->tokens == want, name << " on " << backend << ", chunk " << chunk);
        CHECK(got->outcome.reason == FinishReason::length && got->outcome.usage.generated_tokens == 64 &&
              got->outcome.usage.prompt_tokens == 23);
        if (!first) first = got;
        CHECK_MSG(same_run(*first, *got), name << " on " << backend << ", chunk " << chunk << ": other logits than chunk 1");
      }
    }
  }
}

TEST("engine: log-probabilities are those of the logits, with any chunk; a lone token has none") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  const auto ids = golden_values<int32_t>("gemma3-tiny", "case1.ids");
  const size_t vocab = static_cast<size_t>(model.weights->config.vocab);
  for (const int64_t chunk : {1, 7, 1024}) {
    const auto engine = model.engine(f32_options(chunk));
    const std::vector<float> logits = run_to_end(*engine, score_request(RunKind::logits, ids))->scores[0];
    const auto got = run_to_end(*engine, score_request(RunKind::logprobs, ids));
    REQUIRE(got->scores.size() == 1 && got->scores[0].size() + 1 == ids.size());
    for (size_t t = 0; t + 1 < ids.size(); ++t) {
      double sum = 0;
      for (size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[t * vocab + i]));
      const double wanted = logits[t * vocab + static_cast<size_t>(ids[t + 1])] - std::log(sum);
      CHECK_MSG(std::abs(got->scores[0][t] - wanted) <= 1e-5 * std::abs(wanted),
                "token " << t << ": " << got->scores[0][t] << ", not " << wanted);
    }
    CHECK(run_to_end(*engine, score_request(RunKind::logprobs, {ids[0]}))->scores[0].empty());
  }
}

TEST("engine: logits and hidden states are the golden ones, the same bits with any chunk") {
  for (const char* name : kModels) {
    for (const char* backend : kBackendNames) {
      const Model model = golden_model(name, backend);
      std::vector<std::vector<float>> first(5);
      for (const int64_t chunk : {1, 7, 64, 1024}) {
        const auto engine = model.engine(f32_options(chunk));
        for (size_t c = 0; c < 4; ++c) {
          const std::string key = "case" + std::to_string(c);
          const auto ids = golden_values<int32_t>(name, key + ".ids");
          const auto got = run_to_end(*engine, score_request(RunKind::logits, ids));
          REQUIRE(got->scores.size() == 1 && got->outcome.reason == FinishReason::stop);
          const double error = relative_error(got->scores[0], golden_values<float>(name, key + ".logits_f32"));
          CHECK_MSG(error <= 1e-4, name << " " << key << " on " << backend << ": relative error " << error);
          if (first[c].empty()) first[c] = got->scores[0];
          CHECK_MSG(same_bits(first[c], got->scores[0]), name << " " << key << " on " << backend << ", chunk " << chunk);
        }
        const auto hidden = run_to_end(*engine, score_request(RunKind::hidden, golden_values<int32_t>(name, "case2.ids")));
        REQUIRE(static_cast<int64_t>(hidden->scores.size()) == model.weights->config.num_layers + 1);
        std::vector<float> all;
        for (size_t l = 0; l < hidden->scores.size(); ++l) {
          const double error = relative_error(hidden->scores[l], golden_values<float>(name, "case2.hidden" + std::to_string(l)));
          CHECK_MSG(error <= 1e-4, name << " hidden " << l << " on " << backend << ": relative error " << error);
          all.insert(all.end(), hidden->scores[l].begin(), hidden->scores[l].end());
        }
        if (first[4].empty()) first[4] = all;
        CHECK_MSG(same_bits(first[4], all), name << " hidden states on " << backend << ", chunk " << chunk);
      }
    }
  }
}

TEST("engine: alone or among eight others, tokens and logits are the same bits") {
  for (const char* backend : kBackendNames) {
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      if (kSanitized && precision == Precision::bf16) continue;
      const Model model = golden_model("gemma3-tiny", backend);
      EngineOptions options = f32_options(48);
      options.precision = precision;
      const auto engine = model.engine(options);
      RunRequest sampled = greedy_request(some_ids(70, 1), 60);
      sampled.sampling.temperature = 1, sampled.seed = 42;
      const RunRequest requests[] = {greedy_request(some_ids(101, 2), 50), sampled, score_request(RunKind::logits, some_ids(150, 3)),
                                     score_request(RunKind::hidden, some_ids(80, 4))};
      for (const RunRequest& request : requests) {
        const auto alone = run_to_end(*engine, request);
        std::vector<Started> company = start_company(*engine);
        const auto together = run_to_end(*engine, request);
        CHECK(alone->tokens == together->tokens && same_bits(alone->logprobs, together->logprobs));
        REQUIRE(alone->scores.size() == together->scores.size());
        for (size_t i = 0; i < alone->scores.size(); ++i) CHECK(same_bits(alone->scores[i], together->scores[i]));
        for (const Started& c : company) c.seen->wait_well();
      }
    }
  }
}

TEST("engine: one thread or two, the same bits") {
  std::shared_ptr<Recorder> first;
  for (const int threads : {1, 2}) {
    const auto engine = load_model(golden("gemma2-tiny"), std::shared_ptr<Backend>(make_cpu_backend(threads))).engine(f32_options());
    const auto got = run_to_end(*engine, greedy_request(some_ids(90, 6), 60));
    if (!first) first = got;
    CHECK(same_run(*first, *got));
  }
}

TEST("engine: across the edges of local windows, as recomputed without a cache") {
  for (const char* name : kModels) {
    const Model model = golden_model(name, "cpu");
    int64_t window = 0;
    for (const LayerConfig& l : model.weights->config.layers)
      if (l.is_local()) window = l.window;
    REQUIRE(window > 1);
    EngineOptions options = f32_options(5);
    const auto engine = model.engine(options);
    for (const int64_t length : {window - 1, window, window + 1, 2 * window, 5 * window + 3}) {
      // One token at a time behind a prompt in chunks of 5; then everything again in one step, in which no key was ever overwritten.
      const auto prompt = some_ids(static_cast<size_t>(std::min<int64_t>(length, 12)), static_cast<uint32_t>(length));
      RunRequest r = greedy_request(prompt, length - static_cast<int64_t>(prompt.size()) + 3);
      r.sampling.temperature = 1.2f;
      const auto got = run_to_end(*engine, r);
      const auto all = joined(prompt, got->tokens);
      const int64_t n = static_cast<int64_t>(all.size()), vocab = model.weights->config.vocab;
      const std::vector<float> logits = Runner(*model.backend, *model.weights, Precision::f32, n, n).append(all);
      std::vector<float> want;
      for (size_t t = 0; t < got->tokens.size(); ++t) {
        SampleRequest s;
        s.settings = &r.sampling, s.top_logprobs = r.top_logprobs, s.counter = t;
        const SampleResult drawn =
            sample_token(std::span(logits).subspan((prompt.size() + t - 1) * static_cast<size_t>(vocab), static_cast<size_t>(vocab)), s);
        CHECK(drawn.id == got->tokens[t]);
        want.push_back(drawn.logprob);
        for (const TokenLogprob& top : drawn.top) want.push_back(top.logprob);
      }
      CHECK_MSG(same_bits(want, got->logprobs), name << ", length " << length);
    }
  }
}

// The model's context is raised to 20,480 for this test: positions beyond what it was trained for are as good as any for comparing.
// "Without a cache" is one forward over all 20,000 tokens at once with a page for every position in every layer: each row then
// depends on this step alone. The engine gets there in chunks of 256 through rings that wrap some sixty times.
TEST("engine: a context of 20,000 tokens equals one step over all of them, at sampled positions") {
  Model model = load_model(tiny_model(), backend_named("cpu"));
  auto longer = std::make_shared<ModelWeights>(*model.weights);
  longer->config.max_positions = 20480;
  model.weights = longer;
  const int64_t vocab = model.weights->config.vocab;
  std::vector<int32_t> sampled = {63, 64, 65, 2047, 2048, 9999, 16384, 19999};  // positions
  if (kSanitized) sampled.resize(5);
  const std::vector<int32_t> ids = some_ids(static_cast<size_t>(sampled.back()) + 1, 8, static_cast<int32_t>(vocab));

  EngineOptions options = f32_options(256);
  const auto engine = model.engine(options);
  const auto sequence = engine->new_sequence();
  RunRequest request = greedy_request({}, 1);
  request.top_logprobs = static_cast<int32_t>(vocab);
  request.sequence = sequence;
  std::vector<std::vector<float>> got;
  int64_t at = 0;
  for (const int32_t position : sampled) {
    request.prompt.assign(ids.begin() + at, ids.begin() + position + 1);
    got.push_back(run_to_end(*engine, request)->logprobs);
    at = position + 1;
    sequence->rewind(at);  // without the token drawn
    CHECK(sequence->length() == at);
  }

  const int64_t n = static_cast<int64_t>(ids.size());
  StepScratch scratch(*model.backend, model.weights->config, Precision::f32, n, static_cast<int64_t>(sampled.size()));
  const TestCache cache(*model.backend, model.weights->config, DType::f32, n);
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const StepSpan span = {0, n, 0, cache.views()};
  const Tensor logits = forward(*model.backend, *model.weights, {ids, positions, {&span, 1}, sampled}, scratch);
  for (size_t i = 0; i < sampled.size(); ++i) {
    SampleRequest s;
    s.settings = &request.sampling, s.top_logprobs = request.top_logprobs;
    const SampleResult drawn = sample_token({logits.as<float>() + static_cast<int64_t>(i) * vocab, static_cast<size_t>(vocab)}, s);
    std::vector<float> want = {drawn.logprob};
    for (const TokenLogprob& top : drawn.top) want.push_back(top.logprob);
    CHECK_MSG(same_bits(want, got[i]), "position " << sampled[i]);
  }
}

TEST("engine: the memory estimate is what a full context takes") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  using Kind = std::pair<Precision, std::optional<DType>>;
  for (const auto& [precision, kv] : {Kind{Precision::f32, {}}, Kind{Precision::bf16, {}}, Kind{Precision::bf16, DType::i8}}) {
    EngineOptions options = f32_options(32);
    options.precision = precision;
    options.kv = kv;
    options.context = 200;
    const auto engine = model.engine(options);
    const MemoryEstimate estimate = estimate_memory(model.weights->config, model.weights->file_bytes, options, 2);
    std::vector<std::shared_ptr<Sequence>> sequences;
    for (uint32_t i = 0; i < 2; ++i) {
      RunRequest r = greedy_request(some_ids(30, i), -1);
      r.sequence = engine->new_sequence();
      sequences.push_back(r.sequence);
      const auto got = run_to_end(*engine, r);
      CHECK(got->outcome.reason == FinishReason::length && got->tokens.size() == 170);
      CHECK(r.sequence->tokens().size() == 200 && r.sequence->length() == 199);
      CHECK(r.sequence->bytes() == estimate.kv_bytes_per_sequence);
    }
    const MemoryUse use = engine->memory();
    CHECK_MSG(use.kv_bytes == estimate.kv_bytes, use.kv_bytes << " and " << estimate.kv_bytes);
    CHECK(use.scratch_bytes == estimate.scratch_bytes && use.weight_bytes == estimate.weight_bytes);
    CHECK(estimate.total_bytes == estimate.kv_bytes + estimate.scratch_bytes + estimate.weight_bytes);
    sequences.clear();
    CHECK(engine->memory().kv_bytes == 0);
  }
}

TEST("engine: options are completed and checked") {
  const Model model = golden_model("gemma3-tiny", "reference");
  EngineOptions options;
  options.prefill_chunk = 5000;
  const auto engine = model.engine(options);
  CHECK(engine->options().context == 1024 && engine->options().prefill_chunk == 1024 && engine->options().max_batch_tokens == 1024);
  options.context = 2000;
  CHECK_THROWS(model.engine(options), ErrorCode::invalid_argument, "at most 1024");
  options = {};
  options.kv = DType::f16;
  CHECK_THROWS(model.engine(options), ErrorCode::invalid_argument, "a cache of f16");
  options = {};
  options.prefill_chunk = 0;
  CHECK_THROWS(model.engine(options), ErrorCode::invalid_argument, "prefill chunk is 0");
  CHECK_THROWS(estimate_memory(model.weights->config, 0, options, 1), ErrorCode::invalid_argument, "prefill chunk");
}
