// Whole training runs against the golden trajectories: losses, norms, learning rates, weights after 1, 5 and 20 steps.
#include "formats/json.h"
#include "train/train_data.h"

namespace lapidary::test {
namespace {

// The library reads no F64 tensors, so this test takes them from the file itself.
std::vector<double> read_doubles(const std::string& path, const std::string& name) {
  const auto file = MappedFile::open(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file->slice(0, 8).data(), 8);
  const auto header = file->slice(8, header_bytes);
  const JsonValue json = JsonValue::parse({reinterpret_cast<const char*>(header.data()), header.size()}, path);
  const auto& offsets = json.find(name)->find("data_offsets")->array();
  const auto begin = static_cast<uint64_t>(offsets[0].integer()), end = static_cast<uint64_t>(offsets[1].integer());
  std::vector<double> values((end - begin) / sizeof(double));
  std::memcpy(values.data(), file->slice(8 + header_bytes + begin, end - begin).data(), end - begin);
  return values;
}

// The change of a weight since the start, which is what was trained, not the weight.
std::vector<float> minus(std::vector<float> a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

struct Tolerances {
  double loss, norm;  // relative
  double change[3];   // relative, of weights' changes after 1, 5 and 20 steps
};

void check_trajectory(const std::string& name, const std::string& backend_name, int64_t steps, const Tolerances& tolerances) {
  const std::string base = golden("optimizer") + "/" + name;
  const JsonValue settings = JsonValue::parse(read_text_file(base + ".json"), base);
  const auto number = [&](const char* key) { return settings.find(key)->number(); };
  const TensorFile file = open_safetensors(base + ".safetensors");
  const std::vector<double> losses = read_doubles(base + ".safetensors", "losses"),
                            norms = read_doubles(base + ".safetensors", "gradient_norms"),
                            rates = read_doubles(base + ".safetensors", "learning_rates");
  const Tensor& batches = file.tensors.at("batches").view;
  const int64_t batch = batches.shape[1], length = batches.shape[2];
  REQUIRE(batches.shape[0] == 20 && losses.size() == 20 && steps <= 20);

  const auto host = host_weights(std::string(settings.find("checkpoint")->string()));
  const auto backend = training_backend(backend_name);
  ParameterSet start = copy_parameters(*backend, *host), parameters = copy_parameters(*backend, *host);
  ParameterSet gradients(*backend, host->config);
  OptimizerOptions options;
  if (settings.find("optimizer")->string() == "adamw") {
    options.beta1 = static_cast<float>(settings.find("betas")->array()[0].number());
    options.beta2 = static_cast<float>(settings.find("betas")->array()[1].number());
    options.eps = static_cast<float>(number("eps"));
  } else {
    options.kind = OptimizerKind::sgd;
    options.momentum = static_cast<float>(number("momentum"));
  }
  options.weight_decay = static_cast<float>(number("weight_decay"));
  options.clip = number("clip");
  Optimizer optimizer(*backend, trained_tensors(parameters, gradients), options);
  const Schedule schedule{number("lr"), static_cast<int64_t>(number("warmup")), static_cast<int64_t>(number("steps"))};
  TrainingStep step(*backend, host->config, {batch * length});
  const std::vector<int64_t> lengths(static_cast<size_t>(batch), length);

  for (int64_t s = 0; s < steps; ++s) {
    const auto at = static_cast<size_t>(s);
    std::vector<int32_t> ids(static_cast<size_t>(batch * length));
    std::memcpy(ids.data(), batches.rows(s, 1).data, ids.size() * sizeof(int32_t));
    StepInput input;
    input.batch = {ids, lengths};
    const Loss loss = token_loss(next_tokens(input.batch));
    input.loss = &loss;
    gradients.zero();
    const StepResult result = step.run(parameters, input, {&gradients, nullptr});
    CHECK_MSG(std::abs(schedule.at(s) - rates[at]) <= 1e-12, "rate of step " << s << ": " << schedule.at(s) << ", " << rates[at]);
    const double norm = optimizer.step(schedule.at(s));
    CHECK_MSG(std::abs(result.loss - losses[at]) <= tolerances.loss * losses[at],
              name << " on " << backend_name << ", step " << s << ": loss " << result.loss << ", " << losses[at]);
    CHECK_MSG(std::abs(norm - norms[at]) <= tolerances.norm * norms[at],
              name << " on " << backend_name << ", step " << s << ": norm " << norm << ", " << norms[at]);
    const int mark = s == 0 ? 0 : s == 4 ? 1 : s == 19 ? 2 : -1;
    if (mark < 0) continue;
    int compared = 0;
    for (const ParameterSet::Entry& entry : parameters.entries()) {
      const auto found = file.tensors.find("step" + std::to_string(s + 1) + "." + entry.name);
      if (found == file.tensors.end()) continue;
      ++compared;
      const std::vector<float> before = values_on(*backend, start.find(entry.slot)), after = values_on(*backend, entry.tensor);
      std::vector<float> want(after.size());
      dequantize_row(DType::f32, found->second.view.data, static_cast<int64_t>(want.size()), want.data());
      if (s == 0) {
        // The first learning rate is 0.
        CHECK_MSG(same_bits(after, want) && same_bits(after, before), name << ": " << entry.name << " moved in step 1");
        continue;
      }
      const double error = relative_error(minus(after, before), minus(want, before));
      CHECK_MSG(error <= tolerances.change[mark],
                name << " on " << backend_name << ", step " << s + 1 << ": " << entry.name << " change off by " << error);
    }
    CHECK(compared >= 4);
  }
  CHECK(optimizer.steps() == steps);
}

constexpr int64_t kReferenceSteps = 5;  // plain loops are slow

// SGD carries rounding errors on as they are. AdamW divides by the gradient's own size, so where a gradient is near 0 its rounding error
// moves the weight like any other: the bound is on the whole tensor's change.
TEST("train: golden SGD trajectory") {
  const Tolerances tolerances{1e-5, 1e-4, {0, 1e-4, 1e-3}};
  check_trajectory("gemma2-tiny-sgd", "reference", kReferenceSteps, tolerances);
  check_trajectory("gemma2-tiny-sgd", "cpu", 20, tolerances);
}
TEST("train: golden AdamW trajectory") {
  const Tolerances tolerances{1e-5, 1e-4, {0, 1e-3, 1e-3}};
  check_trajectory("gemma3-tiny-adamw", "reference", kReferenceSteps, tolerances);
  check_trajectory("gemma3-tiny-adamw", "cpu", 20, tolerances);
}

TEST("train: schedule") {
  const Schedule s{2, 4, 20};
  CHECK(s.at(0) == 0 && s.at(2) == 1 && s.at(4) == 2 && std::abs(s.at(12) - 1) < 1e-12 && s.at(20) == 0 && s.at(100) == 0);
  const Schedule constant{3, 0, 0};
  CHECK(constant.at(0) == 3 && constant.at(1000) == 3);
}

TEST("train: masks, clipping, decay, and steps that are not finite") {
  for (const char* name : {"reference", "cpu"}) {
    const auto backend = training_backend(name);
    std::vector<float> value = {1, 2, 3, 4}, gradient = {3, 4, 1e6f, 0}, mask = {1, 1, 0, 1};
    const Tensor v(value.data(), DType::f32, {2, 2}), g(gradient.data(), DType::f32, {2, 2}), m(mask.data(), DType::f32, {2, 2});
    OptimizerOptions options;
    options.kind = OptimizerKind::sgd;
    options.clip = 1;
    Optimizer masked(*backend, {{"w", v, g, false, m, true}}, options);
    CHECK_MSG(std::abs(masked.step(1) - 5) < 1e-6, "the masked gradient's norm");
    CHECK(std::abs(value[0] - 0.4f) < 1e-5f && std::abs(value[1] - 1.2f) < 1e-5f && value[2] == 0 && value[3] == 4);

    gradient = {NAN, 0, 0, 0};
    const std::vector<float> before = value;
    CHECK(std::isnan(masked.step(1)) && value == before && masked.steps() == 1);

    gradient = {0, 0, 0, 0}, value = {1, 1, 1, 1};
    std::vector<float> bias = {1}, bias_gradient = {0};
    options = {};
    options.weight_decay = 0.5f;
    Optimizer decaying(
        *backend, {{"w", v, g, true}, {"b", Tensor(bias.data(), DType::f32, {1}), Tensor(bias_gradient.data(), DType::f32, {1})}}, options);
    decaying.step(0.1);
    CHECK_MSG(std::abs(value[0] - 0.95f) < 1e-6f && bias[0] == 1, value[0]);
    CHECK(decaying.state().size() == 4 && decaying.state()[0].first == "m.w");
    std::vector<float> short_gradient = {1};
    CHECK_THROWS(Optimizer(*backend, {{"w", v, Tensor(short_gradient.data(), DType::f32, {1})}}, options), ErrorCode::invalid_argument,
                 "w is");
  }
}

}  // namespace
}  // namespace lapidary::test
