#include "addon/evaluation_job.h"

#include <atomic>
#include <optional>
#include <thread>

#include "addon/args.h"
#include "addon/promise_worker.h"
#include "cpu/backend.h"

namespace lapidary::addon {

namespace {

class EvaluationJob final : public Listener, public Closable, public std::enable_shared_from_this<EvaluationJob> {
 public:
  EvaluationJob(Environment& environment, std::vector<std::shared_ptr<ModelState>> models)
      : environment_(environment.shared_from_this()), models_(std::move(models)) {}

  // JavaScript thread.
  napi_value begin(napi_env env, Napi::Value on_progress, std::function<Convert(const EvaluationWatch&)> work) {
    if (!on_progress.IsNull() && !on_progress.IsUndefined()) callback_ = Napi::Persistent(to_function(on_progress, "onProgress"));
    thread_ = std::thread([this, work = std::move(work)]() mutable { run(std::move(work)); });
    return deferred_.emplace(env).promise();
  }
  void abort() { stopped_ = true; }

  void deliver(napi_env env) override {
    int64_t done = 0, total = 0;
    bool told = false, ended = false;
    {
      std::lock_guard lock(mutex_);
      told = std::exchange(told_, false);
      done = done_, total = total_, ended = ended_;
    }
    if (told && !callback_.IsEmpty()) tell(env, done, total);
    if (ended && deferred_) finish(env);
  }
  void abandon() override {
    callback_.Reset();
    models_.clear();
  }
  void close_now() noexcept override {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run(std::function<Convert(const EvaluationWatch&)> work) {
    const EvaluationWatch watch = {[this](int64_t done, int64_t total) { report(done, total); }, [this] { return stopped_.load(); }};
    Convert convert;
    std::exception_ptr error;
    try {
      convert = work(watch);
    } catch (...) {
      error = std::current_exception();
    }
    work = nullptr;
    {
      std::lock_guard lock(mutex_);
      convert_ = std::move(convert);
      error_ = std::move(error);
      ended_ = true;
    }
    environment_->post(shared_from_this());
  }

  void report(int64_t done, int64_t total) {
    std::lock_guard lock(mutex_);
    done_ = done, total_ = total;
    if (!std::exchange(told_, true)) environment_->post(shared_from_this());
  }

  void tell(napi_env env, int64_t done, int64_t total) {
    const napi_value arguments[] = {Napi::Number::New(env, static_cast<double>(done)), Napi::Number::New(env, static_cast<double>(total))};
    if (napi_call_function(env, Napi::Env(env).Undefined(), callback_.Value(), 2, arguments, nullptr) == napi_ok) return;
    napi_value ignored = nullptr;  // what the callback throws is its caller's to keep (lib/evaluation.ts)
    napi_get_and_clear_last_exception(env, &ignored);
    stopped_ = true;
  }

  void finish(napi_env env) {
    const std::shared_ptr<EvaluationJob> self = shared_from_this();
    if (thread_.joinable()) thread_.join();
    callback_.Reset();
    environment_->deactivate(self);
    for (std::shared_ptr<ModelState>& model : models_) environment_->release_elsewhere(std::move(model));
    models_.clear();
    Deferred deferred = std::move(*deferred_);
    deferred_.reset();
    try {
      if (error_) std::rethrow_exception(error_);
      deferred.resolve(env, convert_(Napi::Env(env)));
    } catch (...) {
      deferred.reject(env, std::current_exception());
    }
  }

  const std::shared_ptr<Environment> environment_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;  // of the next five
  int64_t done_ = 0, total_ = 0;
  bool told_ = false, ended_ = false;
  Convert convert_;
  std::exception_ptr error_;
  // JavaScript thread only, from here on.
  std::vector<std::shared_ptr<ModelState>> models_;
  Napi::FunctionReference callback_;
  std::optional<Deferred> deferred_;
  std::thread thread_;
};

}  // namespace

Subject SharedSubject::subject() const {
  return {*share.backend, *share.weights, precision, share.weights->cushion.get(), share.turns.get(), physical_cores(), kv};
}

SharedSubject share_subject(const ModelState& model) {
  const std::shared_ptr<Engine> engine = model.engine();
  return {engine->share(), engine->options().precision, *engine->options().kv};
}

Napi::Object start_evaluation(Napi::Env env, std::vector<std::shared_ptr<ModelState>> models, Napi::Value on_progress,
                              std::function<Convert(const EvaluationWatch&)> work) {
  Environment& environment = Environment::of(env);
  const auto job = std::make_shared<EvaluationJob>(environment, std::move(models));
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("abort", Napi::Function::New(
                          env,
                          [job](const Napi::CallbackInfo& info) {
                            job->abort();
                            return info.Env().Undefined();
                          },
                          "abort"));
  handle.Set("result", Napi::Value(env, job->begin(env, on_progress, std::move(work))));
  environment.activate(job);
  environment.add_closable(job);
  return handle;
}

}  // namespace lapidary::addon
