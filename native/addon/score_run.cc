// Runs that score whole prompts: their rows are collected on the engine thread and handed over, uncopied, through one promise.
#include "addon/promise_worker.h"
#include "addon/results.h"
#include "addon/run_object.h"

namespace lapidary::addon {

namespace {

// All prompts of one logits() or hiddenStates() call.
class ScoreJob final : public Listener, public std::enable_shared_from_this<ScoreJob> {
 public:
  ScoreJob(Environment& environment, std::shared_ptr<ModelState> model, RunKind kind, size_t prompts)
      : environment_(environment.shared_from_this()), kind_(kind), waiting_(prompts), rows_(prompts), model_(std::move(model)) {}

  // Engine thread.
  void scored(size_t prompt, std::vector<std::vector<float>> rows) {
    std::lock_guard lock(mutex_);
    rows_[prompt] = std::move(rows);
  }
  void ended(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    if (error && !error_) error_ = std::move(error);
    if (--waiting_ == 0) environment_->post(shared_from_this());
  }

  // JavaScript thread.
  napi_value make_promise(napi_env env) { return deferred_.emplace(env).promise(); }
  void add_run(std::shared_ptr<Run> run) { runs_.push_back(std::move(run)); }
  void abort() {
    for (const std::shared_ptr<Run>& run : runs_) run->abort();
  }
  void deliver(napi_env env) override {
    const std::shared_ptr<ScoreJob> self = shared_from_this();
    environment_->deactivate(self);
    runs_.clear();
    environment_->release_elsewhere(std::move(model_));
    if (!deferred_) return;  // a later prompt of the call was refused
    try {
      if (error_) std::rethrow_exception(error_);
      std::vector<std::vector<float>> results;
      for (std::vector<std::vector<float>>& rows : rows_) {
        expect(!rows.empty() && (kind_ == RunKind::hidden || rows.size() == 1), ErrorCode::internal, "a score run gave ", rows.size(),
               " results");
        for (std::vector<float>& row : rows) results.push_back(std::move(row));
      }
      deferred_->resolve(env, float_arrays(env, std::move(results)));
    } catch (...) {
      deferred_->reject(env, std::current_exception());
    }
  }
  void abandon() override {
    runs_.clear();
    model_.reset();
  }

 private:
  const std::shared_ptr<Environment> environment_;
  std::optional<Deferred> deferred_;
  const RunKind kind_;
  std::mutex mutex_;  // of the next three
  size_t waiting_;
  std::vector<std::vector<std::vector<float>>> rows_;  // by prompt
  std::exception_ptr error_;
  std::shared_ptr<ModelState> model_;
  std::vector<std::shared_ptr<Run>> runs_;
};

class ScoreObserver final : public RunObserver {
 public:
  ScoreObserver(std::shared_ptr<ScoreJob> job, size_t prompt) : job_(std::move(job)), prompt_(prompt) {}
  void on_tokens(std::span<TokenEvent>) override {}
  void on_scores(std::vector<std::vector<float>> rows) override { job_->scored(prompt_, std::move(rows)); }
  void on_finish(const Outcome& outcome) override {
    std::exception_ptr error;
    if (outcome.reason == FinishReason::aborted) error = std::make_exception_ptr(Error(ErrorCode::aborted, "the run was aborted"));
    job_->ended(std::move(error));
  }
  void on_error(std::exception_ptr error) override { job_->ended(std::move(error)); }

 private:
  const std::shared_ptr<ScoreJob> job_;
  const size_t prompt_;
};

}  // namespace

Napi::Object start_scores(Napi::Env env, std::shared_ptr<ModelState> model, RunKind kind, std::vector<std::vector<int32_t>> prompts) {
  Environment& environment = Environment::of(env);
  const std::shared_ptr<Engine> engine = model->engine();
  const auto job = std::make_shared<ScoreJob>(environment, std::move(model), kind, prompts.size());
  environment.activate(job);
  try {
    for (size_t i = 0; i < prompts.size(); ++i) {
      RunRequest request;
      request.kind = kind;
      request.prompt = std::move(prompts[i]);
      request.observer = std::make_shared<ScoreObserver>(job, i);
      job->add_run(engine->submit(std::move(request)));
    }
  } catch (...) {
    job->abort();
    environment.deactivate(job);
    throw;
  }
  if (prompts.empty()) environment.post(job);
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("result", Napi::Value(env, job->make_promise(env)));
  handle.Set("abort", Napi::Function::New(
                          env,
                          [job](const Napi::CallbackInfo& info) {
                            job->abort();
                            return info.Env().Undefined();
                          },
                          "abort"));
  return handle;
}

}  // namespace lapidary::addon
