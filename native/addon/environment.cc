// Set-up, mailbox and end of one JavaScript environment.
#include "addon/environment.h"

#include <algorithm>

#include "addon/promise_worker.h"

namespace lapidary::addon {

namespace {

using Holder = std::shared_ptr<Environment>;

void check(napi_status status, const char* what) {
  expect(status == napi_ok, ErrorCode::internal, what, " failed with Node-API status ", static_cast<int>(status));
}

// Nothing but the destruction of what it owns.
class ReleaseWork final : public Work {
 public:
  explicit ReleaseWork(std::shared_ptr<void> owned) : owned_(std::move(owned)) {}
  void execute() noexcept override { owned_.reset(); }
  void complete(napi_env) noexcept override {}

 private:
  std::shared_ptr<void> owned_;
};

}  // namespace

void Environment::install(napi_env env) {
  auto holder = std::make_unique<Holder>(new Environment(env));
  Environment& self = **holder;
  napi_value name = nullptr;
  check(napi_create_string_utf8(env, "lapidary events", NAPI_AUTO_LENGTH, &name), "napi_create_string_utf8");
  check(napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, &self, on_wake, &self.wake_),
        "napi_create_threadsafe_function");
  check(napi_unref_threadsafe_function(env, self.wake_), "napi_unref_threadsafe_function");
  // After the thread-safe function, whose own hook then runs later than this one: hooks run last in, first out.
  check(napi_add_env_cleanup_hook(env, on_cleanup, &self), "napi_add_env_cleanup_hook");
  check(napi_set_instance_data(
            env, holder.release(), [](napi_env, void* data, void*) { delete static_cast<Holder*>(data); }, nullptr),
        "napi_set_instance_data");
}

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  check(napi_get_instance_data(env, &data), "napi_get_instance_data");
  expect(data != nullptr, ErrorCode::disposed, "this JavaScript environment has ended");
  return **static_cast<Holder*>(data);
}

Environment::~Environment() = default;

void Environment::post(std::shared_ptr<Listener> listener) {
  std::lock_guard lock(mutex_);
  if (!wake_) return;
  posted_.push_back(std::move(listener));
  if (posted_.size() == 1 && napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking) == napi_closing) wake_ = nullptr;
}

void Environment::on_wake(napi_env env, napi_value, void* context, void*) {
  if (env) static_cast<Environment*>(context)->drain();
}

void Environment::drain() {
  std::vector<std::shared_ptr<Listener>> now;
  {
    std::lock_guard lock(mutex_);
    now.swap(posted_);
  }
  for (const std::shared_ptr<Listener>& listener : now) {
    napi_handle_scope scope = nullptr;
    if (ending_ || napi_open_handle_scope(env_, &scope) != napi_ok) return;
    try {
      listener->deliver(env_);
    } catch (...) {
      // Only an environment that is being torn down refuses what deliver() does; nobody is left to tell.
    }
    napi_close_handle_scope(env_, scope);
  }
}

void Environment::activate(std::shared_ptr<Listener> listener) {
  if (active_.empty()) keep_alive(true);
  active_.insert(std::move(listener));
}

void Environment::deactivate(const std::shared_ptr<Listener>& listener) {
  if (active_.erase(listener) && active_.empty()) keep_alive(false);
}

void Environment::keep_alive(bool alive) {
  std::lock_guard lock(mutex_);
  if (!wake_) return;
  alive ? napi_ref_threadsafe_function(env_, wake_) : napi_unref_threadsafe_function(env_, wake_);
}

void Environment::add_closable(const std::shared_ptr<Closable>& closable) {
  std::erase_if(closables_, [](const auto& old) { return old.expired(); });
  closables_.push_back(closable);
}

void Environment::release_elsewhere(std::shared_ptr<void> owned) {
  if (!owned || ending_) return;
  Work::queue(env_, "lapidary release", std::make_unique<ReleaseWork>(std::move(owned)));
}

void Environment::report_bytes(int64_t bytes) {
  int64_t total = 0;
  if (bytes != 0 && !ending_) napi_adjust_external_memory(env_, bytes, &total);
}

void Environment::on_cleanup(void* self) { static_cast<Environment*>(self)->end(); }

void Environment::end() {
  ending_ = true;
  napi_threadsafe_function wake = nullptr;
  {
    std::lock_guard lock(mutex_);
    std::swap(wake, wake_);
    posted_.clear();
  }
  if (wake) napi_release_threadsafe_function(wake, napi_tsfn_abort);
  for (const std::weak_ptr<Closable>& weak : closables_) {
    if (const std::shared_ptr<Closable> closable = weak.lock()) closable->close_now();
  }
  closables_.clear();
  for (const std::shared_ptr<Listener>& listener : active_) listener->abandon();
  active_.clear();
  for (const auto& [key, constructor] : constructors) napi_delete_reference(env_, constructor);
  constructors.clear();
}

}  // namespace lapidary::addon
