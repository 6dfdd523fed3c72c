// Runs that generate: events queue up under a mutex on the engine thread and are delivered on the JavaScript thread.
#include "addon/run_object.h"

#include <iterator>
#include <limits>
#include <optional>
#include <variant>

#include "addon/args.h"
#include "addon/results.h"

namespace lapidary::addon {

namespace {

struct MaskWanted {
  std::vector<int32_t> generated;
};
using Event = std::variant<std::vector<TokenEvent>, MaskWanted, Outcome, std::exception_ptr>;

class RunChannel final : public RunObserver, public Listener, public std::enable_shared_from_this<RunChannel> {
 public:
  RunChannel(Environment& environment, std::shared_ptr<ModelState> model, Napi::Function callback)
      : environment_(environment.shared_from_this()), model_(std::move(model)), callback_(Napi::Persistent(callback)) {}

  void attach(std::shared_ptr<Run> run) { run_ = std::move(run); }

  void on_tokens(std::span<TokenEvent> events) override {
    const auto first = std::make_move_iterator(events.begin()), last = std::make_move_iterator(events.end());
    std::lock_guard lock(mutex_);
    if (!queue_.empty()) {
      if (auto* tokens = std::get_if<std::vector<TokenEvent>>(&queue_.back())) {
        tokens->insert(tokens->end(), first, last);
        return;
      }
    }
    push(std::vector<TokenEvent>(first, last));
  }
  void on_mask_wanted(std::span<const int32_t> generated) override { push_locked(MaskWanted{{generated.begin(), generated.end()}}); }
  void on_finish(const Outcome& outcome) override { push_locked(outcome); }
  void on_error(std::exception_ptr error) override { push_locked(std::move(error)); }

  void deliver(napi_env env) override {
    std::vector<Event> events;
    {
      std::lock_guard lock(mutex_);
      events.swap(queue_);
    }
    for (Event& event : events) {
      if (callback_.IsEmpty()) return;
      const Napi::HandleScope scope(env);
      const bool last = event.index() >= 2;
      if (last || !callback_failed_) call(env, event_object(env, event));
      if (last) finish();
    }
  }

  void abandon() override {
    callback_.Reset();
    run_.reset();
    model_.reset();  // its engine is closed already
  }

 private:
  void push_locked(Event event) {
    std::lock_guard lock(mutex_);
    push(std::move(event));
  }

  void push(Event event) {  // mutex_ held
    queue_.push_back(std::move(event));
    if (queue_.size() == 1) environment_->post(shared_from_this());
  }

  static napi_value event_object(Napi::Env env, Event& event) {
    Napi::Object object = Napi::Object::New(env);
    if (const auto* tokens = std::get_if<std::vector<TokenEvent>>(&event)) {
      Napi::Array list = Napi::Array::New(env, tokens->size());
      for (size_t i = 0; i < tokens->size(); ++i) list.Set(static_cast<uint32_t>(i), token_event(env, (*tokens)[i]));
      object.Set("kind", "tokens");
      object.Set("tokens", list);
    } else if (const auto* mask = std::get_if<MaskWanted>(&event)) {
      object.Set("kind", "mask");
      object.Set("generated", id_array(env, mask->generated));
    } else if (const auto* outcome = std::get_if<Outcome>(&event)) {
      object.Set("kind", "finish");
      object.Set("outcome", outcome_object(env, *outcome));
    } else {
      object.Set("kind", "error");
      object.Set("error", Napi::Value(env, error_value(env, std::get<std::exception_ptr>(event))));
    }
    return object;
  }

  void call(Napi::Env env, napi_value event) {
    const napi_status status = napi_call_function(env, env.Undefined(), callback_.Value(), 1, &event, nullptr);
    if (status == napi_ok) return;
    napi_value exception = nullptr;
    napi_get_and_clear_last_exception(env, &exception);
    callback_failed_ = true;
    if (run_) run_->abort();
  }

  void finish() {
    callback_.Reset();
    run_.reset();
    environment_->release_elsewhere(std::move(model_));
    environment_->deactivate(shared_from_this());
  }

  const std::shared_ptr<Environment> environment_;
  std::mutex mutex_;
  std::vector<Event> queue_;
  // JavaScript thread only, from here on.
  std::shared_ptr<ModelState> model_;  // a model whose handle was dropped finishes its runs
  std::shared_ptr<Run> run_;
  Napi::FunctionReference callback_;
  bool callback_failed_ = false;
};

}  // namespace

std::vector<Method> RunObject::methods() {
  return {{"abort", call_member<RunObject, &RunObject::abort>},
          {"acknowledge", call_member<RunObject, &RunObject::acknowledge>},
          {"provideMask", call_member<RunObject, &RunObject::provide_mask>}};
}

napi_value RunObject::abort(const Napi::CallbackInfo& info) {
  run_->abort();
  return info.Env().Undefined();
}

napi_value RunObject::acknowledge(const Napi::CallbackInfo& info) {
  run_->acknowledge(to_integer(info[0], "tokens", 0, kMaxSafeInteger));
  return info.Env().Undefined();
}

napi_value RunObject::provide_mask(const Napi::CallbackInfo& info) {
  run_->provide_mask(to_uint32s(info[0], "bits"));
  return info.Env().Undefined();
}

Napi::Object start_run(Napi::Env env, std::shared_ptr<ModelState> model, RunRequest request, Napi::Function on_event) {
  Environment& environment = Environment::of(env);
  const std::shared_ptr<Engine> engine = model->engine();
  const auto channel = std::make_shared<RunChannel>(environment, std::move(model), on_event);
  request.observer = channel;
  const std::shared_ptr<Run> run = engine->submit(std::move(request));
  channel->attach(run);
  environment.activate(channel);
  return make_handle(env, std::make_unique<RunObject>(run));
}

}  // namespace lapidary::addon
