// Work off the JavaScript thread. Plain values go in, the work runs on Node's pool, its result becomes a JavaScript value
// back home and settles a promise. Never for whole generations: the pool has four threads and is shared with fs.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "addon/environment.h"

namespace lapidary::addon {

// One piece of work on Node's thread pool.
class Work {
 public:
  virtual ~Work() = default;
  virtual void execute() noexcept = 0;               // on a pool thread: touches no JavaScript
  virtual void complete(napi_env env) noexcept = 0;  // on the JavaScript thread, in a handle scope
  // Runs `work` at once, here, when the environment takes no more work.
  static void queue(napi_env env, const char* name, std::unique_ptr<Work> work);

 private:
  napi_async_work work_ = nullptr;
};

// A promise to be settled on the JavaScript thread. Settling twice, or in an ending environment, does nothing.
class Deferred {
 public:
  explicit Deferred(napi_env env);
  napi_value promise() const { return promise_; }  // valid in the handle scope it was made in
  void resolve(napi_env env, napi_value value) noexcept;
  void reject(napi_env env, std::exception_ptr error) noexcept;

 private:
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr;
};

template <typename Make, typename Convert>
class PromiseWorker final : public Work {
 public:
  using Result = std::invoke_result_t<Make&>;

  PromiseWorker(napi_env env, Make make, Convert convert)
      : environment_(Environment::of(env).shared_from_this()), deferred_(env), make_(std::move(make)), convert_(std::move(convert)) {}

  napi_value promise() const { return deferred_.promise(); }

  void execute() noexcept override {
    try {
      result_.emplace((*make_)());
    } catch (...) {
      error_ = std::current_exception();
    }
    make_.reset();  // what the work held is let go off the JavaScript thread
  }

  void complete(napi_env env) noexcept override {
    if (environment_->ending()) return;
    try {
      if (error_) std::rethrow_exception(error_);
      deferred_.resolve(env, convert_(Napi::Env(env), std::move(*result_)));
    } catch (...) {
      deferred_.reject(env, std::current_exception());
    }
  }

 private:
  std::shared_ptr<Environment> environment_;
  Deferred deferred_;
  std::optional<Make> make_;
  Convert convert_;
  std::optional<Result> result_;
  std::exception_ptr error_;
};

// make() -> T on a pool thread, convert(Napi::Env, T&&) -> napi_value on the JavaScript thread; the promise of that.
// `make` and `convert` own what they use: capture by value.
template <typename Make, typename Convert>
napi_value promise_work(napi_env env, const char* name, Make make, Convert convert) {
  auto worker = std::make_unique<PromiseWorker<Make, Convert>>(env, std::move(make), std::move(convert));
  const napi_value promise = worker->promise();
  Work::queue(env, name, std::move(worker));
  return promise;
}

// The result of work that has none; becomes undefined.
struct Nothing {};
inline napi_value to_undefined(Napi::Env env, Nothing) { return env.Undefined(); }

}  // namespace lapidary::addon
