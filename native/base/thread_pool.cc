// How a loop runs: the caller publishes it in one atomic word, awake workers enter it, everyone takes ranges from one counter,
// the caller closes it when none is left and waits only for those inside. A sleeping worker is never waited for.
#include "base/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <system_error>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace lapidary {

namespace {

constexpr uint64_t kOpen = 1u << 31, kCallerWaits = 1u << 30, kInside = kCallerWaits - 1;

uint64_t loop_number(uint64_t state) { return state >> 32; }

// Between the loops of one step microseconds pass: workers stay awake for that long, and an idle model burns nothing.
constexpr std::chrono::microseconds kSpin{50};

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

int64_t process_id() {
#ifdef _WIN32
  return _getpid();
#else
  return getpid();
#endif
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
  // Never destroyed: threads of other libraries may still come here while the process ends.
  static std::mutex& mutex = *new std::mutex;
  static auto& pools = *new std::map<int, std::weak_ptr<ThreadPool>>;
  threads = std::max(threads, 1);
  std::lock_guard lock(mutex);
  std::weak_ptr<ThreadPool>& entry = pools[threads];
  std::shared_ptr<ThreadPool> pool = entry.lock();
  if (!pool || pool->process_ != process_id()) entry = pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

ThreadPool::ThreadPool(int threads) : process_(process_id()) {
  workers_.reserve(static_cast<size_t>(std::max(threads - 1, 0)));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker_main(); });
  } catch (const std::system_error&) {
    // The machine gives no more threads: fewer do.
  }
}

ThreadPool::~ThreadPool() {
  if (process_ != process_id()) {  // a forked child: there is nobody to join
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  news_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Loop loop) {
  if (loop.n <= 0) return;
  loop.grain = std::max<int64_t>(loop.grain, 1);
  if (loop.n <= loop.grain || workers_.empty() || in_use_.test_and_set(std::memory_order_acquire)) {
    for (int64_t begin = 0; begin < loop.n; begin += loop.grain) loop.fn(loop.context, begin, std::min(begin + loop.grain, loop.n));
    return;
  }
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  const uint64_t number = loop_number(state_.load(std::memory_order_relaxed)) + 1;
  state_.store((number << 32) | kOpen);
  // Sequential consistency of this pair with wait_for_news: either the sleeper sees the loop or we see the sleeper.
  if (sleepers_.load() > 0) {
    {
      std::lock_guard lock(mutex_);
    }
    news_.notify_all();
  }
  work();
  state_.fetch_and(~kOpen);
  wait_until_empty();
  const std::exception_ptr error = std::exchange(error_, nullptr);
  in_use_.clear(std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

ThreadPool::Range ThreadPool::take(const Loop& loop) {
  if (!loop.shrinking) {
    const int64_t begin = next_.fetch_add(loop.grain, std::memory_order_relaxed);
    return {begin, std::min(begin + loop.grain, loop.n)};
  }
  // Half of an even share of what is left.
  int64_t begin = next_.load(std::memory_order_relaxed), end = 0;
  do {
    if (begin >= loop.n) return {0, 0};
    end = std::min(begin + std::max((loop.n - begin) / (2 * threads()), loop.grain), loop.n);
  } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
  return {begin, end};
}

void ThreadPool::work() {
  const Loop loop = loop_;
  for (;;) {
    const auto [begin, end] = take(loop);
    if (begin >= end) return;
    try {
      loop.fn(loop.context, begin, end);
    } catch (...) {
      next_.store(loop.n, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

bool ThreadPool::try_join(uint64_t& seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) && loop_number(state) != seen) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
      seen = loop_number(state);
      return true;
    }
  }
  seen = loop_number(state);
  return false;
}

void ThreadPool::leave() {
  const uint64_t before = state_.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kCallerWaits) && (before & kInside) == 1) {
    {
      std::lock_guard lock(mutex_);
    }
    empty_.notify_one();
  }
}

void ThreadPool::worker_main() {
  uint64_t seen = 0;
  while (wait_for_news(seen)) {
    if (!try_join(seen)) continue;
    work();
    leave();
  }
}

// False: the pool ends.
bool ThreadPool::wait_for_news(uint64_t seen) {
  const auto news = [&] { return loop_number(state_.load()) != seen || stop_.load(std::memory_order_relaxed); };
  if (!spin_until(news)) {
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    news_.wait(lock, news);
    sleepers_.fetch_sub(1);
  }
  return !stop_.load(std::memory_order_relaxed);
}

void ThreadPool::wait_until_empty() {
  const auto empty = [&] { return (state_.load(std::memory_order_acquire) & kInside) == 0; };
  if (spin_until(empty)) return;
  std::unique_lock lock(mutex_);
  state_.fetch_or(kCallerWaits);
  empty_.wait(lock, empty);
  state_.fetch_and(~kCallerWaits);
}

}  // namespace lapidary
