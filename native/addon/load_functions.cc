// loadModel, loadTokenizer, inspect and estimateMemory: everything that reads a model's files.
#include <algorithm>

#include "addon/functions.h"
#include "addon/model_object.h"
#include "addon/promise_worker.h"
#include "addon/results.h"
#include "addon/tokenizer_object.h"

namespace lapidary::addon {

namespace {

// Calls back with the newest progress; what came in between is skipped.
class ProgressChannel final : public Listener, public std::enable_shared_from_this<ProgressChannel> {
 public:
  ProgressChannel(Environment& environment, Napi::Function callback)
      : environment_(environment.shared_from_this()), callback_(Napi::Persistent(callback)) {}

  void report(int64_t done, int64_t total) {
    std::lock_guard lock(mutex_);
    done_ = done;
    total_ = total;
    if (!std::exchange(pending_, true)) environment_->post(shared_from_this());
  }

  void deliver(napi_env env) override {
    double done = 0, total = 0;
    {
      std::lock_guard lock(mutex_);
      if (!std::exchange(pending_, false)) return;
      done = static_cast<double>(done_);
      total = static_cast<double>(total_);
    }
    if (callback_.IsEmpty()) return;
    const napi_value arguments[] = {Napi::Number::New(env, done), Napi::Number::New(env, total)};
    if (napi_call_function(env, Napi::Env(env).Undefined(), callback_.Value(), 2, arguments, nullptr) == napi_ok) return;
    napi_value ignored = nullptr;  // progress is no reason to stop loading
    napi_get_and_clear_last_exception(env, &ignored);
  }

  void finish() {
    callback_.Reset();
    environment_->deactivate(shared_from_this());
  }
  void abandon() override { callback_.Reset(); }

 private:
  const std::shared_ptr<Environment> environment_;
  std::mutex mutex_;
  int64_t done_ = 0, total_ = 0;
  bool pending_ = false;
  Napi::FunctionReference callback_;
};

int64_t total_bytes(const std::vector<TensorFact>& tensors, WeightsKind kind = WeightsKind::as_is) {
  int64_t bytes = 0;
  for (const TensorFact& fact : tensors) {
    // Matrices that are int8 in the file stay so, and their scales [rows, 1] are no matrices.
    const bool converts = fact.shape.size() == 2 && fact.shape[1] > 1 && fact.dtype != "i8" && fact.dtype != "i32";
    bytes += converts ? converted_bytes(fact.shape[0], fact.shape[1], fact.bytes, kind) : fact.bytes;
  }
  return bytes;
}

}  // namespace

napi_value load_model_async(const Napi::CallbackInfo& info) {
  std::string path = to_text(info[0], "path");
  LoadOptions options = to_load_options(info[1]);
  std::shared_ptr<ProgressChannel> channel;
  if (!info[2].IsNull() && !info[2].IsUndefined()) {
    Environment& environment = Environment::of(info.Env());
    channel = std::make_shared<ProgressChannel>(environment, to_function(info[2], "onProgress"));
    environment.activate(channel);
  }
  // Loading ends before its promise settles, on either way out; so does the channel.
  struct Outcome {
    LoadedModel model;
    std::exception_ptr error;
  };
  auto load = [path = std::move(path), options, channel] {
    Outcome out;
    try {
      LoadProgress progress;
      if (channel) progress = [&channel](int64_t done, int64_t total) { channel->report(done, total); };
      out.model = load_model(path, options, progress);
    } catch (...) {
      out.error = std::current_exception();
    }
    return out;
  };
  auto wrap = [channel](Napi::Env env, Outcome out) -> napi_value {
    if (channel) {
      channel->deliver(env);
      channel->finish();
    }
    if (out.error) std::rethrow_exception(out.error);
    return make_model(env, std::move(out.model));
  };
  return promise_work(info.Env(), "lapidary load", std::move(load), std::move(wrap));
}

napi_value load_tokenizer(const Napi::CallbackInfo& info) {
  auto load = [path = to_text(info[0], "path")] { return Tokenizer::load(path); };
  auto wrap = [](Napi::Env env, std::shared_ptr<const Tokenizer> tokenizer) -> napi_value {
    return make_tokenizer(env, std::move(tokenizer));
  };
  return promise_work(info.Env(), "lapidary load tokenizer", std::move(load), std::move(wrap));
}

napi_value inspect(const Napi::CallbackInfo& info) {
  struct Facts {
    ModelConfig config;
    std::vector<TensorFact> tensors;
  };
  auto read = [path = to_text(info[0], "path")] { return Facts{load_config(path), list_tensors(path)}; };
  auto wrap = [](Napi::Env env, Facts facts) -> napi_value {
    Napi::Array tensors = Napi::Array::New(env, facts.tensors.size());
    for (size_t i = 0; i < facts.tensors.size(); ++i) tensors.Set(static_cast<uint32_t>(i), tensor_fact(env, facts.tensors[i]));
    Napi::Object out = Napi::Object::New(env);
    out.Set("info", model_info(env, facts.config, total_bytes(facts.tensors)));
    out.Set("tensors", tensors);
    return out;
  };
  return promise_work(info.Env(), "lapidary inspect", std::move(read), std::move(wrap));
}

napi_value estimate(const Napi::CallbackInfo& info) {
  auto compute = [path = to_text(info[0], "path"), options = to_load_options(info[1]),
                  sequences = to_integer(info[2], "sequences", 1, kMaxSafeInteger)] {
    const std::vector<TensorFact> tensors = list_tensors(path);
    const bool converts = wants_long_spans(options) && options.device != "cuda" && options.weights == WeightsKind::as_is &&
                          std::any_of(tensors.begin(), tensors.end(), [](const TensorFact& t) { return takes_long_spans(t.dtype); });
    return estimate_memory(load_config(path), total_bytes(tensors, options.weights), complete_engine(options, converts), sequences);
  };
  auto wrap = [](Napi::Env env, MemoryEstimate result) -> napi_value { return estimate_object(env, result); };
  return promise_work(info.Env(), "lapidary estimate", std::move(compute), std::move(wrap));
}

}  // namespace lapidary::addon
