// A pool of threads for loops over independent work. Pools are shared by the whole process, one per size; the last owner
// of a pool joins its threads. Knows nothing of what the loops compute.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lapidary {

class ThreadPool {
 public:
  // The process's pool of that many threads (at least 1), the caller of parallel_for being one of them.
  static std::shared_ptr<ThreadPool> shared(int threads);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end) on ranges of at most `grain` that cover [0, n) once, on any thread and in any order, and returns when
  // all are done. What fn throws first is thrown here; ranges not yet begun are then left out. A call from within fn, or while
  // another thread uses the pool, runs on the calling thread alone: results may not depend on which.
  template <typename Fn>
  void parallel_for(int64_t n, int64_t grain, const Fn& fn) {
    run({call<Fn>, &fn, n, grain, false});
  }

  // The same in ranges that shrink towards the end, down to `least`: long ones first, and still all threads end together.
  template <typename Fn>
  void parallel_shrinking(int64_t n, int64_t least, const Fn& fn) {
    run({call<Fn>, &fn, n, least, true});
  }

 private:
  using RangeFn = void (*)(const void* context, int64_t begin, int64_t end);

  // Written by the caller between two loops, when no worker is inside.
  struct Loop {
    RangeFn fn = nullptr;
    const void* context = nullptr;
    int64_t n = 0, grain = 1;  // shrinking: of the shortest range
    bool shrinking = false;
  };

  template <typename Fn>
  static void call(const void* fn, int64_t begin, int64_t end) {
    (*static_cast<const Fn*>(fn))(begin, end);
  }

  struct Range {
    int64_t begin, end;  // empty: none is left
  };

  void run(Loop loop);
  void work();  // takes ranges until none is left
  Range take(const Loop& loop);
  void worker_main();
  bool try_join(uint64_t& seen);  // enters the open loop unless `seen` already was in it
  void leave();
  bool wait_for_news(uint64_t seen);
  void wait_until_empty();

  std::vector<std::thread> workers_;
  std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
  Loop loop_;
  std::exception_ptr error_;  // first of this loop; guarded by mutex_
  alignas(64) std::atomic<int64_t> next_{0};
  // The loop's number << 32 | kOpen | kCallerWaits | workers inside. One word, so that a late worker cannot enter a closed loop.
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable news_, empty_;
  int64_t process_ = 0;  // threads do not survive fork()
};

}  // namespace lapidary
