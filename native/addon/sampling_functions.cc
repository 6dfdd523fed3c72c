// probabilities and draw: the sampler's distribution and its draws, for tests and for callers with logits of their own.
#include "addon/args.h"
#include "addon/functions.h"
#include "addon/results.h"

namespace lapidary::addon {

namespace {

// The arguments that probabilities() and draw() share: logits, settings, history, and how much of it is the prompt.
struct DrawArguments {
  std::vector<float> logits;
  SamplingSettings settings;
  std::vector<int32_t> history;
  SampleRequest request;

  explicit DrawArguments(const Napi::CallbackInfo& info)
      : logits(to_floats(info[0], "logits")), settings(to_sampling(info[1], "sampling")), history(to_int32s(info[2], "history")) {
    expect(!logits.empty(), ErrorCode::invalid_argument, "logits: expected at least one");
    const auto vocab = static_cast<int64_t>(logits.size());
    check_settings(settings, vocab);
    for (const int32_t id : history) {
      expect(id >= 0 && id < vocab, ErrorCode::invalid_argument, "history: id ", id, " is outside the vocabulary of ", vocab);
    }
    request.settings = &settings;
    request.history = history;
    request.prompt_tokens = to_integer(info[3], "promptTokens", 0, static_cast<int64_t>(history.size()));
  }
  DrawArguments(const DrawArguments&) = delete;
};

}  // namespace

napi_value probabilities(const Napi::CallbackInfo& info) {
  const DrawArguments arguments(info);
  std::vector<float> out(arguments.logits.size());
  sampling_distribution(arguments.logits, arguments.request, out);
  return float_array(info.Env(), std::move(out));
}

napi_value draw(const Napi::CallbackInfo& info) {
  DrawArguments arguments(info);
  arguments.request.seed = to_seed(info[4], "seed");
  std::vector<int32_t> ids(static_cast<size_t>(to_integer(info[5], "count", 0, 100'000'000)));
  for (size_t i = 0; i < ids.size(); ++i) {
    arguments.request.counter = i;
    ids[i] = sample_token(arguments.logits, arguments.request).id;
  }
  return int32_array(info.Env(), ids);
}

}  // namespace lapidary::addon
