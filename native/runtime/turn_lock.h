// Taking turns at a backend: the engine and whatever works beside it on the same model (runtime/text_pass.h) hold the lock for one step at
// a time, in the order in which they asked, so that neither starves the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace lapidary {

class TurnLock {
 public:
  void take() {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_++;
    news_.wait(lock, [&] { return serving_ == ticket; });
  }
  void give() {
    {
      const std::lock_guard lock(mutex_);
      ++serving_;
    }
    news_.notify_all();
  }

  // The engine is closing: others end their turn early, and touch nothing of the model in a later one.
  void announce_end() { ending_ = true; }
  bool ending() const { return ending_; }

  // A turn; null: no lock, no turns.
  class Hold {
   public:
    explicit Hold(TurnLock* turns) : turns_(turns) {
      if (turns_) turns_->take();
    }
    ~Hold() {
      if (turns_) turns_->give();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    TurnLock* turns_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable news_;
  uint64_t next_ = 0, serving_ = 0;
  std::atomic<bool> ending_{false};
};

}  // namespace lapidary
