// The pool: every index once, exceptions carried over, nested and concurrent calls, sleep and wake, shared ownership.
#include "base/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <mutex>
#include <numeric>

#include "check.h"

namespace lapidary {

namespace {

// How often each index of [0, n) was visited.
std::vector<int> visits(ThreadPool& pool, int64_t n, int64_t grain) {
  std::vector<int> seen(static_cast<size_t>(n), 0);
  pool.parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  return seen;
}

bool all_once(const std::vector<int>& seen) {
  for (int count : seen) {
    if (count != 1) return false;
  }
  return true;
}

}  // namespace

TEST("thread_pool: every index once, at awkward sizes") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {0, 1, 3, 64, 5000}) CHECK(all_once(visits(pool, n, grain)));
    }
  }
}

TEST("thread_pool: shrinking ranges cover every index once, none shorter than asked for but the last") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t least : {0, 1, 3, 64, 5000}) {
        std::vector<int> seen(static_cast<size_t>(n), 0);
        std::atomic<int> shorter{0};
        pool.parallel_shrinking(n, least, [&](int64_t begin, int64_t end) {
          if (end - begin < least && end < n) ++shorter;
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        CHECK(all_once(seen));
        CHECK(shorter == 0);
      }
    }
  }
}

TEST("thread_pool: shrinking ranges begin long and end short") {
  ThreadPool pool(2);
  std::mutex mutex;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  pool.parallel_shrinking(1000, 10, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    ranges.push_back({begin, end - begin});
  });
  std::sort(ranges.begin(), ranges.end());
  CHECK(ranges.front().second == 250);
  for (size_t i = 1; i < ranges.size(); ++i) CHECK(ranges[i].second <= ranges[i - 1].second);
  CHECK(ranges.back().second <= 10);
}

TEST("thread_pool: many small loops in a row") {
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  for (int loop = 0; loop < 3000; ++loop) {
    pool.parallel_for(7, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  }
  CHECK(sum == 3000 * 7);
}

TEST("thread_pool: ranges respect the grain") {
  ThreadPool pool(3);
  std::atomic<int64_t> longest{0};
  pool.parallel_for(100, 8, [&](int64_t begin, int64_t end) {
    int64_t seen = longest.load();
    while (end - begin > seen && !longest.compare_exchange_weak(seen, end - begin)) {
    }
  });
  CHECK(longest == 8);
}

TEST("thread_pool: an exception reaches the caller and the pool goes on") {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    CHECK_THROWS(pool.parallel_for(100, 1,
                                   [&](int64_t begin, int64_t) {
                                     if (begin == 37) fail(ErrorCode::internal, "thirty-seven");
                                   }),
                 ErrorCode::internal, "thirty-seven");
    CHECK(all_once(visits(pool, 100, 1)));
  }
}

TEST("thread_pool: nested loops run on the calling thread") {
  ThreadPool pool(3);
  std::atomic<int> total{0}, elsewhere{0};
  pool.parallel_for(20, 1, [&](int64_t, int64_t) {
    const std::thread::id outer = std::this_thread::get_id();
    pool.parallel_for(10, 1, [&](int64_t, int64_t) {
      ++total;
      if (std::this_thread::get_id() != outer) ++elsewhere;
    });
  });
  CHECK(total == 200);
  CHECK(elsewhere == 0);
}

TEST("thread_pool: several callers at once") {
  ThreadPool pool(3);
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) good += all_once(visits(pool, 50, 3)) ? 1 : 0;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(good == 4 * 200);
}

TEST("thread_pool: workers sleep when idle and wake again") {
  ThreadPool pool(4);
  visits(pool, 100, 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double burnt = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK_MSG(burnt < 0.05, burnt << " s of processor time in 0.2 s of idling");
  CHECK(all_once(visits(pool, 100, 1)));
}

TEST("thread_pool: one pool per size, gone with its last owner") {
  std::shared_ptr<ThreadPool> a = ThreadPool::shared(6), b = ThreadPool::shared(6), c = ThreadPool::shared(7);
  CHECK(a == b);
  CHECK(a != c);
  const std::weak_ptr<ThreadPool> watch = a;
  a.reset();
  CHECK(!watch.expired());
  b.reset();
  CHECK(watch.expired());
  CHECK(ThreadPool::shared(0)->threads() == 1);
}

}  // namespace lapidary
