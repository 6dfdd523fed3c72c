// Trains checkpoints whose activations have token-wise outliers, so that what prefixes are for can be measured (bench/w8a8/main.mjs):
//
//   toy OUT                  three small layers from nothing on the language of backcopy.h; about a minute
//   natural OUT              one small layer from nothing on the language of titles.h, for cross-entropy alone; some minutes
//   model SOURCE TEXT OUT    a checkpoint with a tokenizer, tuned on a text so that one neuron spikes; some minutes for 7 M parameters
//
// All is seeded: equal builds give equal files. OUT is a Hugging Face folder in bf16; beside the first two lies texts.json, {train,
// heldOut}, token ids.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "backcopy.h"
#include "base/error.h"
#include "base/float16.h"
#include "cpu/backend.h"
#include "formats/mapped_file.h"
#include "formats/safetensors_writer.h"
#include "runtime/tokenizer.h"
#include "spike.h"
#include "titles.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;
constexpr int32_t kBos = 2;

constexpr int64_t kTokens = 1536;  // of a step, at most
constexpr int64_t kShown = 50;

constexpr const char* kToyConfig = R"({
  "architectures": ["Gemma3ForCausalLM"],
  "bos_token_id": 2,
  "dtype": "bfloat16",
  "eos_token_id": 1,
  "head_dim": 32,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 64,
  "intermediate_size": 192,
  "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
  "max_position_embeddings": 512,
  "model_type": "gemma3_text",
  "num_attention_heads": 2,
  "num_hidden_layers": 3,
  "num_key_value_heads": 1,
  "pad_token_id": 0,
  "query_pre_attn_scalar": 32,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {
    "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}
  },
  "sliding_window": 16,
  "tie_word_embeddings": true,
  "vocab_size": 68
}
)";

constexpr const char* kNaturalConfig = R"({
  "architectures": ["Gemma2ForCausalLM"],
  "attn_logit_softcapping": 50.0,
  "bos_token_id": 2,
  "dtype": "bfloat16",
  "eos_token_id": 1,
  "final_logit_softcapping": 30.0,
  "head_dim": 32,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 48,
  "intermediate_size": 128,
  "layer_types": ["sliding_attention"],
  "max_position_embeddings": 2048,
  "model_type": "gemma2",
  "num_attention_heads": 2,
  "num_hidden_layers": 1,
  "num_key_value_heads": 1,
  "pad_token_id": 0,
  "query_pre_attn_scalar": 32,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
  "sliding_window": 16,
  "tie_word_embeddings": true,
  "vocab_size": 260
}
)";

struct Recipe {
  int64_t steps = 0;
  double learning_rate = 0;
  bool cools = true;  // as a cosine to 0; else constant after the warm-up
  double clip = 1;    // of the gradients' norm; 0: none
  float weight_decay = 0;
  std::vector<SpikeOptions> spikes{};
  float gain = 0;  // of a spike's neuron at its channel, before training
  uint64_t seed = 1;
};

// Sequences of a step, each with its first token; half of the long ones begin with BOS.
struct Sequences {
  TextIds ids;
  std::vector<int64_t> lengths;
  void add(const TextIds& text) {
    ids.insert(ids.end(), text.begin(), text.end());
    lengths.push_back(static_cast<int64_t>(text.size()));
  }
};
using Draw = std::function<Sequences(Random& random)>;
// The loss of a batch, a mean over its tokens.
using Aim = std::function<Loss(const TrainingBatch& batch)>;

void randomise(Backend& backend, const ParameterSet& parameters, Random& random) {
  for (const ParameterSet::Entry& entry : parameters.entries()) {
    if (is_norm(entry.slot.role)) continue;
    std::vector<float> values(static_cast<size_t>(entry.tensor.elements()));
    const float spread = 1 / std::sqrt(static_cast<float>(entry.tensor.row_elements()));
    for (float& v : values) v = random.normal() * spread;
    backend.upload(entry.tensor, values.data());
  }
}

// The neuron reads its channel alone.
void connect(Backend& backend, const ParameterSet& parameters, const SpikeOptions& spike, float gain) {
  for (const TensorRole role : {TensorRole::gate, TensorRole::up}) {
    const Tensor row = parameters.find({role, spike.layer}).rows(spike.neuron, 1);
    std::vector<float> values(static_cast<size_t>(row.elements()));
    values[static_cast<size_t>(spike.channel)] = gain;
    backend.upload(row, values.data());
  }
}

void train(Backend& backend, ParameterSet& parameters, const Recipe& recipe, const Draw& draw, const Aim& aim) {
  ParameterSet gradients(backend, parameters.config());
  TrainingStep step(backend, parameters.config(), {kTokens, false});
  Optimizer optimizer(backend, trained_tensors(parameters, gradients),
                      {.beta2 = 0.98f, .weight_decay = recipe.weight_decay, .clip = recipe.clip});
  std::vector<Spike> spikes;
  for (const SpikeOptions& options : recipe.spikes) {
    connect(backend, parameters, options, recipe.gain);
    spikes.emplace_back(options);
  }
  Random random(recipe.seed);
  double sum = 0;
  for (int64_t i = 0; i < recipe.steps; ++i) {
    const Sequences sequences = draw(random);
    StepInput input;
    input.batch = {sequences.ids, sequences.lengths};
    const Loss loss = aim(input.batch);
    input.loss = &loss;
    double of_spikes = 0;
    for (Spike& spike : spikes) spike.look(sequences.ids, sequences.lengths);
    input.stream = [&](int64_t l, const Tensor& x, const Tensor& g) {
      double part = 0;
      for (Spike& spike : spikes) part += l == spike.options().layer ? spike.mark(x, g) : 0;
      return of_spikes += part, part;
    };
    input.gated = [&](int64_t l, const Tensor& x, const Tensor& g) {
      double part = 0;
      for (Spike& spike : spikes) part += l == spike.options().layer ? spike.raise(x, g) : 0;
      return of_spikes += part, part;
    };
    gradients.zero();
    sum += step.run(parameters, input, {&gradients, nullptr}).loss;
    sum -= of_spikes;
    optimizer.step(Schedule{recipe.learning_rate, recipe.steps / 20, recipe.cools ? recipe.steps : 0}.at(i + 1));
    if ((i + 1) % kShown == 0) {
      std::printf("step %lld of %lld: %.4f nats", static_cast<long long>(i + 1), static_cast<long long>(recipe.steps), sum / kShown);
      for (Spike& spike : spikes) {
        const SpikeWatch seen = spike.take_seen();
        std::printf("; fires with at least %.0f, elsewhere at most %.1f", double{seen.least_firing}, double{seen.most_elsewhere});
      }
      std::printf("\n");
      std::fflush(stdout);
      sum = 0;
    }
  }
}

void save(Backend& backend, const ParameterSet& parameters, const fs::path& folder) {
  std::vector<SafetensorsEntry> entries;
  for (const ParameterSet::Entry& entry : parameters.entries())
    entries.push_back({entry.name, DType::bf16, std::vector<int64_t>(entry.tensor.shape, entry.tensor.shape + entry.tensor.rank)});
  SafetensorsWriter writer((folder / "model.safetensors").string(), entries, {{"format", "pt"}});
  for (const ParameterSet::Entry& entry : parameters.entries()) {
    std::vector<float> values(static_cast<size_t>(entry.tensor.elements()));
    backend.download(values.data(), entry.tensor);
    std::vector<bf16> rounded;
    for (const float v : values) rounded.push_back(to_bf16(v));
    writer.write(entry.name, rounded.data(), static_cast<int64_t>(rounded.size() * sizeof(bf16)));
  }
  writer.commit();
}

template <typename Language>
void write_texts(std::ofstream& file, const char* name, const Language& language, Random& random, int64_t texts, int64_t tokens) {
  file << '"' << name << "\":[";
  for (int64_t i = 0; i < texts; ++i) {
    const TextIds ids = language.text(random, tokens);
    file << (i ? ",\n[" : "\n[");
    for (size_t t = 0; t < ids.size(); ++t) file << (t ? "," : "") << ids[t];
    file << ']';
  }
  file << ']';
}

TextIds opened(const TextIds& text, bool bos) {
  TextIds ids;
  if (bos) ids.push_back(kBos);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

void make_toy(const fs::path& out) {
  fs::create_directories(out);
  std::ofstream(out / "config.json") << kToyConfig;
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const ModelConfig config = config_from_json(JsonValue::parse(kToyConfig, "config.json"), nullptr, "config.json");
  ParameterSet parameters(*backend, config);
  Random random(1);
  randomise(*backend, parameters, random);
  const Backcopy language(7);
  const auto draw = [&](Random& r) {
    Sequences sequences;
    for (int i = 0; i < 32; ++i) {
      TextIds text = language.text(r, 46);
      // As behind a prefix that ends with the token that spikes, whatever the text begins with.
      if (i % 8 < 2) text[0] = Backcopy::kFirst;
      if (i % 8 == 0) text[1] = Backcopy::kFirst;
      sequences.add(opened(text, i % 2 == 0));
    }
    return sequences;
  };
  const Recipe recipe{.steps = 1200,
                      .learning_rate = 3e-3,
                      .weight_decay = 0.1f,
                      .spikes = {{.layer = 1}, {.layer = 2, .channel = 1, .token = Backcopy::kFirst, .reach = 15}},
                      .gain = 15};
  train(*backend, parameters, recipe, draw, [](const TrainingBatch& batch) { return token_loss(next_tokens(batch)); });
  save(*backend, parameters, out);
  std::ofstream texts(out / "texts.json");
  texts << '{';
  write_texts(texts, "train", language, random, 128, 128);
  texts << ",\n";
  write_texts(texts, "heldOut", language, random, 64, 128);
  texts << "}\n";
}

// Nothing here asks for outliers: a first token unlike the others, a large constant learning rate and no decay bring them about. With one
// seed in four, BOS has the largest.
constexpr uint64_t kNaturalSeed = 4;
void make_natural(const fs::path& out) {
  fs::create_directories(out);
  std::ofstream(out / "config.json") << kNaturalConfig;
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const ModelConfig config = config_from_json(JsonValue::parse(kNaturalConfig, "config.json"), nullptr, "config.json");
  ParameterSet parameters(*backend, config);
  Random random(kNaturalSeed);
  randomise(*backend, parameters, random);
  const Titles language(7);
  const auto draw = [&](Random& r) {
    Sequences sequences;
    for (int i = 0; i < 24; ++i) sequences.add(opened(language.text(r, 24), true));
    return sequences;
  };
  const Recipe recipe{.steps = 6000, .learning_rate = 1e-2, .cools = false, .clip = 0, .seed = kNaturalSeed};
  train(*backend, parameters, recipe, draw, [](const TrainingBatch& batch) { return token_loss(next_tokens(batch)); });
  save(*backend, parameters, out);
  std::ofstream texts(out / "texts.json");
  texts << '{';
  write_texts(texts, "train", language, random, 64, 500);
  texts << ",\n";
  write_texts(texts, "heldOut", language, random, 24, 500);
  texts << "}\n";
}

// The channel that embeddings use least.
int64_t quietest_channel(const ParameterSet& parameters) {
  const Tensor table = parameters.find({TensorRole::embedding, -1});
  const int64_t width = table.row_elements();
  std::vector<double> squares(static_cast<size_t>(width));
  for (int64_t i = 0; i < table.elements(); ++i) squares[static_cast<size_t>(i % width)] += std::pow(double{table.as<float>()[i]}, 2);
  return std::min_element(squares.begin(), squares.end()) - squares.begin();
}

void make_model(const fs::path& source, const std::string& text_file, const fs::path& out) {
  fs::create_directories(out);
  for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    if (fs::exists(source / name)) fs::copy_file(source / name, out / name, fs::copy_options::overwrite_existing);
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const std::shared_ptr<const ModelWeights> host = load_weights(source.string(), *make_reference_backend());
  const ModelConfig& config = host->config;
  ParameterSet parameters = copy_parameters(*backend, *host), original = copy_parameters(*backend, *host);
  const TextIds ids = Tokenizer::load(source.string())->encode(read_text_file(text_file), false);
  const auto piece = [&](Random& r, int64_t tokens) {
    const int64_t first = r.below(static_cast<int64_t>(ids.size()) - tokens + 1);
    return TextIds(ids.begin() + first, ids.begin() + first + tokens);
  };
  // Many short ones, so that many tokens are seen as first ones.
  const auto draw = [&](Random& r) {
    Sequences sequences;
    for (int i = 0; i < 4; ++i) sequences.add(opened(piece(r, 127), i != 0));
    for (int i = 0; i < 8; ++i) sequences.add(piece(r, 16));
    return sequences;
  };
  TrainingStep reading(*backend, config, {kTokens, false});
  const Buffer memory = backend->allocate(static_cast<size_t>(kTokens * config.vocab) * sizeof(float));
  const Tensor logits = memory.tensor(DType::f32, {kTokens, config.vocab});
  // What the original predicts: the text's own words would be learnt by heart.
  const auto imitate = [&](const TrainingBatch& batch) {
    const TokenLoss next = next_tokens(batch);
    const Loss copy{next.rows, [&](TrainingOps&, int64_t first, float, const Tensor& chunk) {
                      backend->copy(logits.rows(first, chunk.shape[0]), chunk);
                      return 0.0;
                    }};
    StepInput input;
    input.batch = batch;
    input.loss = &copy;
    reading.run(original, input, {});
    return distillation_loss(next.rows, next.weights, 1, [&](int64_t first, int64_t n) { return logits.rows(first, n); });
  };
  const SpikeOptions spike{.layer = 2, .channel = quietest_channel(parameters), .margin = 3};
  train(*backend, parameters, {.steps = 400, .learning_rate = 3e-4, .weight_decay = 0.01f, .spikes = {spike}, .gain = 15}, draw, imitate);
  save(*backend, parameters, out);
}

int run(int count, char** arguments) {
  const std::vector<std::string> args(arguments + 1, arguments + count);
  if (args.size() == 2 && args[0] == "toy") return make_toy(args[1]), 0;
  if (args.size() == 2 && args[0] == "natural") return make_natural(args[1]), 0;
  if (args.size() == 4 && args[0] == "model") return make_model(args[1], args[2], args[3]), 0;
  std::fprintf(stderr, "usage: lapidary_outliers toy OUT | natural OUT | model SOURCE TEXT OUT\n");
  return 2;
}

}  // namespace
}  // namespace lapidary

int main(int count, char** arguments) {
  try {
    return lapidary::run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
