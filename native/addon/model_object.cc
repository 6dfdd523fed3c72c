// Loading a model, and the methods of NativeModel.
#include "addon/model_object.h"

#include <filesystem>

#include "addon/promise_worker.h"
#include "addon/results.h"
#include "addon/run_object.h"
#include "addon/sequence_object.h"
#include "addon/tokenizer_object.h"
#include "cpu/backend.h"
#include "cuda/backend.h"
#include "formats/gguf.h"
#include "formats/mapped_file.h"

namespace lapidary::addon {

namespace {

std::shared_ptr<Backend> make_backend(const LoadOptions& options) {
  if (options.device == "reference") return make_reference_backend();
  if (options.device == "cuda") return make_cuda_backend();
  return make_cpu_backend(options.threads);
}

// nullptr when the model brings none; a damaged one is an error.
std::shared_ptr<const Tokenizer> load_optional_tokenizer(const std::string& path) {
  const std::filesystem::path model(path);
  if (model.extension() == ".gguf") {
    return GgufFile::open(path)->find("tokenizer.ggml.tokens") ? Tokenizer::load(path) : nullptr;
  }
  const std::filesystem::path folder = is_directory(path) ? model : model.parent_path();
  const std::string file = (folder / "tokenizer.json").string();
  return is_file(file) ? Tokenizer::load(file) : nullptr;
}

}  // namespace

LoadedModel load_model(const std::string& path, const LoadOptions& options, const LoadProgress& progress, WeightsTransform* transform,
                       std::shared_ptr<const ModelWeights> original) {
  std::shared_ptr<Backend> backend = make_backend(options);
  LoadedModel out;
  out.device = std::string(backend->name());
  const int threads = options.threads > 0 ? options.threads : physical_cores();
  out.weights = load_weights(path, *backend, progress,
                             {.kind = options.weights,
                              .threads = threads,
                              .transform = transform,
                              .original = std::move(original),
                              .long_spans = wants_long_spans(options)});
  const EngineOptions engine_options = complete_engine(options, has_long_spans(*out.weights));
  out.precision = precision_name(engine_options.precision);
  std::shared_ptr<const Tokenizer> tokenizer = load_optional_tokenizer(path);
  std::unique_ptr<Engine> engine = Engine::start(std::move(backend), out.weights, tokenizer, engine_options);
  out.state = std::make_shared<ModelState>(std::move(engine), std::move(tokenizer));
  return out;
}

Napi::Object make_model(Napi::Env env, LoadedModel model) {
  Environment& environment = Environment::of(env);
  const int64_t scratch_bytes = model.state->engine()->memory().scratch_bytes;
  environment.add_closable(model.state);
  Napi::Object object = make_handle(env, std::make_unique<ModelObject>(environment, model.state, scratch_bytes));
  environment.report_bytes(scratch_bytes);

  Napi::Object info = model_info(env, model.weights->config, model.weights->file_bytes);
  info.Freeze();
  std::shared_ptr<const Tokenizer> vocabulary = model.state->take_tokenizer();
  const Napi::Value tokenizer = vocabulary ? Napi::Value(make_tokenizer(env, std::move(vocabulary))) : Napi::Value(env.Null());
  object.DefineProperties({Napi::PropertyDescriptor::Value("info", info, napi_enumerable),
                           Napi::PropertyDescriptor::Value("tokenizer", tokenizer, napi_enumerable),
                           Napi::PropertyDescriptor::Value("device", text(env, model.device), napi_enumerable),
                           Napi::PropertyDescriptor::Value("precision", text(env, model.precision), napi_enumerable)});
  return object;
}

std::vector<Method> ModelObject::methods() {
  return {{"generate", call_member<ModelObject, &ModelObject::generate>},
          {"logits", call_member<ModelObject, &ModelObject::logits>},
          {"logProbabilities", call_member<ModelObject, &ModelObject::log_probabilities>},
          {"hiddenStates", call_member<ModelObject, &ModelObject::hidden_states>},
          {"textLikelihood", call_member<ModelObject, &ModelObject::text_likelihood>},
          {"divergence", call_member<ModelObject, &ModelObject::divergence>},
          {"choiceLikelihoods", call_member<ModelObject, &ModelObject::choice_likelihoods>},
          {"activations", call_member<ModelObject, &ModelObject::activations>},
          {"quantize", call_member<ModelObject, &ModelObject::quantize>},
          {"searchCushion", call_member<ModelObject, &ModelObject::search_cushion>},
          {"tuneCushion", call_member<ModelObject, &ModelObject::tune_cushion>},
          {"readCushion", call_member<ModelObject, &ModelObject::read_cushion>},
          {"newSequence", call_member<ModelObject, &ModelObject::new_sequence>},
          {"restore", call_member<ModelObject, &ModelObject::restore>},
          {"memory", call_member<ModelObject, &ModelObject::memory>},
          {"close", call_member<ModelObject, &ModelObject::close>}};
}

ModelObject::~ModelObject() {
  report_bytes_gone();
  environment_->release_elsewhere(std::move(state_));
}

void ModelObject::report_bytes_gone() { environment_->report_bytes(-std::exchange(reported_bytes_, 0)); }

void ModelObject::dispose_tokenizer(const Napi::CallbackInfo& info) {
  TokenizerObject* tokenizer = find_handle<TokenizerObject>(info.Env(), info.This().As<Napi::Object>().Get("tokenizer"));
  if (tokenizer) tokenizer->dispose();
}

napi_value ModelObject::generate(const Napi::CallbackInfo& info) {
  const Fields fields(info[0], "request");
  RunRequest request = to_run_request(fields);
  const Napi::Value sequence = fields.get("sequence");
  if (!sequence.IsNull()) {
    const SequenceObject& object = to_handle<SequenceObject>(info.Env(), sequence, fields.name("sequence"));
    request.sequence = object.sequence();
    expect(object.model() == state_.get(), ErrorCode::invalid_argument, "request.sequence belongs to another model");
  }
  return start_run(info.Env(), state_, std::move(request), to_function(info[1], "onEvent"));
}

napi_value ModelObject::score(const Napi::CallbackInfo& info, RunKind kind) {
  const Napi::Array list = to_array(info[0], "sequences");
  std::vector<std::vector<int32_t>> prompts;
  for (uint32_t i = 0; i < list.Length(); ++i) prompts.push_back(to_int32s(list.Get(i), "sequences[" + std::to_string(i) + "]"));
  return start_scores(info.Env(), state_, kind, std::move(prompts));
}

napi_value ModelObject::logits(const Napi::CallbackInfo& info) { return score(info, RunKind::logits); }

napi_value ModelObject::log_probabilities(const Napi::CallbackInfo& info) { return score(info, RunKind::logprobs); }

napi_value ModelObject::hidden_states(const Napi::CallbackInfo& info) {
  std::vector<std::vector<int32_t>> prompts;
  prompts.push_back(to_int32s(info[0], "ids"));
  return start_scores(info.Env(), state_, RunKind::hidden, std::move(prompts));
}

napi_value ModelObject::new_sequence(const Napi::CallbackInfo& info) {
  return make_handle(info.Env(), std::make_unique<SequenceObject>(*environment_, state_, state_->engine()->new_sequence()));
}

napi_value ModelObject::restore(const Napi::CallbackInfo& info) {
  state_->engine();
  auto read = [state = state_, path = to_text(info[0], "path")] { return state->engine()->restore(path); };
  auto wrap = [state = state_](Napi::Env env, std::shared_ptr<Sequence> sequence) -> napi_value {
    return make_handle(env, std::make_unique<SequenceObject>(Environment::of(env), state, std::move(sequence)));
  };
  return promise_work(info.Env(), "lapidary restore", std::move(read), std::move(wrap));
}

napi_value ModelObject::memory(const Napi::CallbackInfo& info) { return memory_object(info.Env(), state_->engine()->memory()); }

napi_value ModelObject::close(const Napi::CallbackInfo& info) {
  state_->mark_closed();
  report_bytes_gone();
  dispose_tokenizer(info);
  auto stop = [state = state_] {
    state->close_now();
    return Nothing{};
  };
  // The last events of its runs were posted before the work ended, and are delivered before the promise resolves.
  auto after = [](Napi::Env env, Nothing) -> napi_value {
    Environment::of(env).drain();
    return env.Undefined();
  };
  return promise_work(info.Env(), "lapidary close", std::move(stop), std::move(after));
}

}  // namespace lapidary::addon
