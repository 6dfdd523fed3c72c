// State per JavaScript environment (main thread or worker): the mailbox through which other threads reach the JavaScript
// thread, runs still under way, live models. Nothing here is process-wide, and the clean-up hook ends all of it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "addon/errors.h"

namespace lapidary::addon {

// Something that other threads ask the JavaScript thread to look at.
class Listener {
 public:
  virtual ~Listener() = default;
  // On the JavaScript thread, in a handle scope.
  virtual void deliver(napi_env env) = 0;
  // On the JavaScript thread, when the environment ends with this one still active: let go of every JavaScript reference.
  virtual void abandon() = 0;
};

// A model as the environment sees it: something to be stopped before the environment goes.
class Closable {
 public:
  virtual ~Closable() = default;
  virtual void close_now() noexcept = 0;  // blocks until native work has stopped; any thread, idempotent
};

class Environment : public std::enable_shared_from_this<Environment> {
 public:
  // Makes the state of `env`, its thread-safe function and its clean-up hook.
  static void install(napi_env env);
  static Environment& of(napi_env env);
  ~Environment();

  // From any thread: deliver() will be called soon. Does nothing once the environment ends.
  void post(std::shared_ptr<Listener> listener);
  // On the JavaScript thread: delivers what has been posted, now. Work that must come after events calls this first.
  void drain();

  // JavaScript thread only, from here on. While any listener is active the process stays alive.
  void activate(std::shared_ptr<Listener> listener);
  void deactivate(const std::shared_ptr<Listener>& listener);
  void add_closable(const std::shared_ptr<Closable>& closable);
  // Lets go of `owned` on another thread, because its destructor may join a thread or free much memory.
  void release_elsewhere(std::shared_ptr<void> owned);

  // Native memory that the garbage collector cannot see has come (or gone, when negative).
  void report_bytes(int64_t bytes);

  bool ending() const { return ending_; }
  napi_env env() const { return env_; }

  // Constructors of the handle classes, see handles.h.
  std::map<const void*, napi_ref> constructors;

 private:
  explicit Environment(napi_env env) : env_(env) {}
  static void on_wake(napi_env env, napi_value, void* context, void*);
  static void on_cleanup(void* self);
  void keep_alive(bool alive);
  void end();

  napi_env env_;
  bool ending_ = false;
  std::unordered_set<std::shared_ptr<Listener>> active_;
  std::vector<std::weak_ptr<Closable>> closables_;

  std::mutex mutex_;  // of the two below, and of every call of wake_
  napi_threadsafe_function wake_ = nullptr;
  std::vector<std::shared_ptr<Listener>> posted_;
};

}  // namespace lapidary::addon
