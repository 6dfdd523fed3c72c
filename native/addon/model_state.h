// What the handles of one loaded model share. Outlives any of them; closed explicitly, or with the last handle.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "addon/environment.h"
#include "runtime/engine.h"
#include "runtime/tokenizer.h"

namespace lapidary::addon {

class ModelState final : public Closable {
 public:
  ModelState(std::unique_ptr<Engine> engine, std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)), engine_(std::move(engine)) {}

  // Error(disposed) after close. The pointer keeps the engine's memory for the length of one call.
  std::shared_ptr<Engine> engine() const {
    std::lock_guard lock(mutex_);
    expect(engine_ != nullptr, ErrorCode::disposed, "the model is closed");
    return engine_;
  }
  // For the one handle made of it.
  std::shared_ptr<const Tokenizer> take_tokenizer() { return std::move(tokenizer_); }

  // From now on engine() fails; the native work goes on until close_now().
  void mark_closed() {
    std::lock_guard lock(mutex_);
    if (engine_) closing_ = std::move(engine_);
  }

  void close_now() noexcept override {
    mark_closed();
    std::lock_guard one_at_a_time(closing_mutex_);
    std::shared_ptr<Engine> engine;
    {
      std::lock_guard lock(mutex_);
      engine = closing_;
    }
    if (!engine) return;
    try {
      engine->close();
    } catch (...) {
      // Joining a thread that ended already: nothing is left to stop.
    }
    {
      std::lock_guard lock(mutex_);
      closing_.reset();
    }
    engine.reset();
    return_free_memory();
  }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  mutable std::mutex mutex_;  // of the two pointers
  std::mutex closing_mutex_;
  std::shared_ptr<Engine> engine_, closing_;
};

}  // namespace lapidary::addon
