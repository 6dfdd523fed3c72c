// The derivatives of whole models by every parameter against the golden ones, and what may not change a bit of them.
#include "ops/ops_data.h"
#include "train/train_data.h"

namespace lapidary::test {
namespace {

// Checkpoints with golden gradients in gradients.safetensors.
const char* const kGolden[] = {"gemma2-tiny", "gemma3-tiny"};

Expected gradients_of(const std::string& name) { return Expected(name, "gradients.safetensors"); }

struct Run {
  double loss = 0;
  std::vector<float> gradients;
};

struct GoldenBatch {
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths;
  TrainingBatch batch() const { return {ids, lengths}; }
};

GoldenBatch golden_batch(const Expected& expected) {
  const Tensor& ids = expected.view("grad.ids");
  return {expected.ids("grad.ids"), std::vector<int64_t>(static_cast<size_t>(ids.shape[0]), ids.shape[1])};
}

// Sequences of unequal length, one longer than the window.
GoldenBatch uneven_batch(const ModelConfig& config) {
  GoldenBatch data{{}, {45, 1, 20}};
  for (int i = 0; i < 66; ++i) data.ids.push_back(static_cast<int32_t>((7 + 31 * i + i * i) % config.vocab));
  return data;
}

Run differentiate(Backend& backend, const ModelWeights& host, const GoldenBatch& data, StepShape shape) {
  ParameterSet parameters = copy_parameters(backend, host);
  ParameterSet gradients(backend, host.config);
  shape.max_tokens = static_cast<int64_t>(data.ids.size());
  TrainingStep step(backend, host.config, shape);
  StepInput input;
  input.batch = data.batch();
  const Loss loss = token_loss(next_tokens(input.batch));
  input.loss = &loss;
  const StepResult result = step.run(parameters, input, {&gradients, nullptr});
  return {result.loss, all_values(backend, gradients)};
}

TEST("train: golden gradients of every parameter") {
  for (const char* name : kGolden) {
    const Expected expected = gradients_of(name);
    const auto host = host_weights(name);
    const GoldenBatch data = golden_batch(expected);
    for (const char* backend_name : {"reference", "cpu"}) {
      const auto backend = training_backend(backend_name);
      ParameterSet parameters = copy_parameters(*backend, *host);
      ParameterSet gradients(*backend, host->config);
      TrainingStep step(*backend, host->config, {static_cast<int64_t>(data.ids.size())});
      StepInput input;
      input.batch = data.batch();
      const Loss loss = token_loss(next_tokens(input.batch));
      input.loss = &loss;
      const StepResult result = step.run(parameters, input, {&gradients, nullptr});
      const double want = expected.floats("grad.loss")[0];
      CHECK_MSG(std::abs(result.loss - want) <= 1e-5 * want, name << " on " << backend_name << ": loss " << result.loss << ", " << want);
      CHECK(result.quant_error.empty() && result.quant_loss == 0);
      for (const ParameterSet::Entry& entry : gradients.entries()) {
        REQUIRE(expected.has("grad." + entry.name));
        const double error = relative_error(values_on(*backend, entry.tensor), expected.floats("grad." + entry.name));
        CHECK_MSG(error <= 1e-4, name << " on " << backend_name << ": " << entry.name << " relative error " << error);
      }
    }
  }
}

TEST("train: checkpointing, threads and instruction sets do not change a bit") {
  for (const char* name : kModels) {
    const auto host = host_weights(name);
    const GoldenBatch data = uneven_batch(host->config);
    const Run first = differentiate(*make_cpu_backend(1), *host, data, {});
    REQUIRE(!first.gradients.empty());
    const auto check = [&](const std::string& what, const Run& run) {
      CHECK_MSG(run.loss == first.loss && same_bits(run.gradients, first.gradients), name << ": " << what);
    };
    check("without checkpointing", differentiate(*make_cpu_backend(1), *host, data, {0, false}));
    for (int threads : {2, 3}) check("threads", differentiate(*make_cpu_backend(threads), *host, data, {}));
    std::unique_ptr<Backend> scalar;
    {
      const ForcedCpu forced("scalar");
      scalar = make_cpu_backend(2);
    }
    check("instruction sets", differentiate(*scalar, *host, data, {}));
    const auto reference = make_reference_backend();
    const Run plain = differentiate(*reference, *host, data, {}), kept = differentiate(*reference, *host, data, {0, false});
    CHECK_MSG(plain.loss == kept.loss && same_bits(plain.gradients, kept.gradients), name << ": reference");
  }
}

TEST("train: chunks of logits, and weights widened a layer at a time") {
  for (const char* name : kModels) {
    const auto host = host_weights(name);
    const GoldenBatch data = uneven_batch(host->config);
    const auto backend = make_cpu_backend(2);
    const Run whole = differentiate(*backend, *host, data, {});
    for (int64_t rows : {1, 7, 48}) {
      const Run chunked = differentiate(*backend, *host, data, {0, true, rows * host->config.vocab});
      CHECK_MSG(std::abs(chunked.loss - whole.loss) <= 1e-9 * whole.loss, name << ": loss in chunks of " << rows);
      CHECK(relative_error(chunked.gradients, whole.gradients) <= 1e-6);
    }
    ParameterSet gradients(*backend, host->config);
    WidenedWeights widened(*backend, *host);
    TrainingStep step(*backend, host->config, {static_cast<int64_t>(data.ids.size())});
    StepInput input;
    input.batch = data.batch();
    const Loss loss = token_loss(next_tokens(input.batch));
    input.loss = &loss;
    CHECK(step.run(widened, input, {&gradients, nullptr}).loss == whole.loss);
    CHECK_MSG(same_bits(all_values(*backend, gradients), whole.gradients), name << ": widened weights");
    // The forward pass alone has the same loss, and a second backward pass adds.
    CHECK(step.run(widened, input, {}).loss == whole.loss);
    step.run(widened, input, {&gradients, nullptr});
    std::vector<float> twice = whole.gradients;
    for (float& g : twice) g *= 2;
    CHECK(relative_error(all_values(*backend, gradients), twice) <= 1e-6);
  }
}

TEST("train: a subset of the gradients is the same as in the whole") {
  const char* name = "gemma3-tiny";
  const Expected expected = gradients_of(name);
  const auto host = host_weights(name);
  const GoldenBatch data = golden_batch(expected);
  const auto backend = make_cpu_backend(2);
  ParameterSet parameters = copy_parameters(*backend, *host);
  ParameterSet some(*backend, host->config, [](const TensorSlot& slot) { return slot.layer == 2 && slot.role == TensorRole::k; });
  REQUIRE(some.entries().size() == 1);
  TrainingStep step(*backend, host->config, {static_cast<int64_t>(data.ids.size())});
  StepInput input;
  input.batch = data.batch();
  const Loss loss = token_loss(next_tokens(input.batch));
  input.loss = &loss;
  step.run(parameters, input, {&some, nullptr});
  CHECK(relative_error(all_values(*backend, some), expected.floats("grad." + some.entries()[0].name)) <= 1e-4);
}

TEST("train: a step refuses what does not fit, and takes the memory it says") {
  const auto host = host_weights("gemma3-tiny");
  const auto backend = make_reference_backend();
  ParameterSet parameters = copy_parameters(*backend, *host);
  TrainingStep step(*backend, host->config, {8});
  const std::vector<int32_t> ids = {2, 5, 7}, wrong = {2, 512, 7};
  const std::vector<int64_t> lengths = {3}, other = {2}, empty = {3, 0};
  const auto run = [&](std::span<const int32_t> with_ids, std::span<const int64_t> with_lengths) {
    StepInput input;
    input.batch = {with_ids, with_lengths};
    return step.run(parameters, input, {});
  };
  CHECK_THROWS(run(wrong, lengths), ErrorCode::invalid_argument, "512");
  CHECK_THROWS(run(ids, other), ErrorCode::invalid_argument, "2 tokens");
  CHECK_THROWS(run(ids, empty), ErrorCode::invalid_argument, "0 tokens");
  const std::vector<int32_t> long_ids(9, 2);
  const std::vector<int64_t> long_lengths = {9};
  CHECK_THROWS(run(long_ids, long_lengths), ErrorCode::invalid_argument, "9 tokens");
  StepInput stopped;
  stopped.batch = {ids, lengths};
  stopped.stop = [polls = 0]() mutable { return ++polls == 3; };
  CHECK_THROWS(step.run(parameters, stopped, {}), ErrorCode::aborted, "layer 2");
  Loss loss = token_loss({{0}, {600}, {}, 1, {1}});
  StepInput bad_target;
  bad_target.batch = {ids, lengths};
  bad_target.loss = &loss;
  CHECK_THROWS(step.run(parameters, bad_target, {}), ErrorCode::invalid_argument, "600");
  CHECK_THROWS(token_loss({{0, 1}, {1}, {}, 1, {1, 1}}), ErrorCode::invalid_argument, "2 rows");
  CHECK(TrainingStep::bytes(host->config, {8, false}) > TrainingStep::bytes(host->config, {8, true}));
}

}  // namespace
}  // namespace lapidary::test
