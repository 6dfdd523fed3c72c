// The plan of one step, as numbers.
#include "runtime/scheduler.h"

#include <algorithm>
#include <numeric>

namespace lapidary {

namespace {

// Rows that the run could use in one step with unlimited room.
int64_t wanted_rows(const RunState& run, int64_t chunk) {
  if (run.paused) return 0;
  const int64_t rows = std::min(run.rows_left, chunk);
  return run.waiting && rows == run.rows_left ? std::max<int64_t>(0, rows - 1) : rows;
}

bool draws(const RunState& run, int64_t rows) { return run.samples && !run.every_row && rows == run.rows_left; }

struct Room {
  int64_t rows, logit_rows;
};

// `rows` of the run's next ones, or fewer, so that neither they nor those left are a part of fewer than `least`; `room`: what the run would
// get if it were the first prompt of the step. 0: the run waits for its turn.
int64_t whole_part(const RunState& run, int64_t rows, int64_t least, int64_t room) {
  const int64_t all = run.rows_left, needed = all < 2 * least ? all : least;
  if (run.decoding || all < least || room < needed) return rows;  // as it comes: there is no other way
  if (rows < all && all - rows < least) rows = all - least;
  return rows < least ? 0 : rows;
}

// The rows the run gets of what is left, which shrinks accordingly. `at_first`: what was left before any prompt.
int64_t deal(const RunState& run, const StepLimits& limits, const Room& at_first, Room& room) {
  int64_t rows = std::min(wanted_rows(run, limits.chunk), room.rows);
  if (run.every_row) rows = std::min(rows, room.logit_rows);
  if (draws(run, rows) && room.logit_rows == 0) rows = run.decoding ? 0 : rows - 1;
  const int64_t most = std::min(limits.chunk, run.every_row ? std::min(at_first.rows, at_first.logit_rows) : at_first.rows);
  rows = whole_part(run, rows, limits.least_part, most);
  room.rows -= rows;
  room.logit_rows -= run.every_row ? rows : draws(run, rows) && rows > 0 ? 1 : 0;
  return rows;
}

}  // namespace

std::vector<Share> plan_step(std::span<const RunState> runs, const StepLimits& limits) {
  std::vector<size_t> order;
  for (size_t i = 0; i < runs.size(); ++i)
    if (wanted_rows(runs[i], limits.chunk) > 0) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return runs[a].last_served < runs[b].last_served; });
  if (order.empty()) return {};

  Room room{limits.rows, limits.logit_rows};
  if (runs[order.front()].alone) return {{order.front(), deal(runs[order.front()], limits, room, room)}};

  std::vector<Share> shares;
  for (const bool decoding : {true, false}) {
    const Room at_first = room;
    for (size_t i : order) {
      if (runs[i].decoding != decoding || runs[i].alone) continue;
      const int64_t rows = deal(runs[i], limits, at_first, room);
      if (rows > 0) shares.push_back({i, rows});
    }
  }
  std::stable_sort(shares.begin(), shares.end(), [&](const Share& a, const Share& b) {
    const auto rank = [&](const Share& s) { return runs[s.run].every_row ? 2 : draws(runs[s.run], s.rows) ? 0 : 1; };
    return rank(a) < rank(b);
  });
  return shares;
}

}  // namespace lapidary
