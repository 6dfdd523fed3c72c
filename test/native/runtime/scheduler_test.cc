// Plans by tables of numbers, and fairness over many steps.
#include "runtime/scheduler.h"

#include <algorithm>

#include "check.h"

using namespace lapidary;

namespace {

RunState prompt(int64_t rows, uint64_t served = 0) {
  RunState s;
  s.rows_left = rows;
  s.last_served = served;
  return s;
}

RunState decode(uint64_t served = 0) {
  RunState s = prompt(1, served);
  s.decoding = true;
  return s;
}

RunState with(RunState s, bool RunState::* flag, bool value = true) {
  s.*flag = value;
  return s;
}

// "run:rows run:rows"
std::string planned(const std::vector<RunState>& runs, const StepLimits& limits) {
  std::string text;
  for (const Share& s : plan_step(runs, limits)) text += (text.empty() ? "" : " ") + std::to_string(s.run) + ":" + std::to_string(s.rows);
  return text;
}

constexpr StepLimits kLimits{16, 6, 8};

}  // namespace

TEST("scheduler: tables of states and plans") {
  struct Row {
    const char* what;
    std::vector<RunState> runs;
    StepLimits limits;
    const char* plan;
  };
  const Row rows[] = {
      {"nothing to do", {}, kLimits, ""},
      {"all done", {prompt(0)}, kLimits, ""},
      {"a prompt in chunks", {prompt(20)}, kLimits, "0:6"},
      {"its last chunk", {prompt(5)}, kLimits, "0:5"},
      {"decode before prompts, prompts share the rest", {prompt(20), decode(3), prompt(20), prompt(20)}, kLimits, "1:1 0:6 2:6 3:3"},
      {"those that draw come first", {prompt(20), prompt(4)}, kLimits, "1:4 0:6"},
      {"served longest ago first", {prompt(20, 9), prompt(20, 7), prompt(20, 8)}, kLimits, "1:6 2:6 0:4"},
      {"more decoding than rows", {decode(5), decode(4), decode(6)}, {2, 6, 8}, "1:1 0:1"},
      {"more decoding than logit rows", {decode(5), decode(4), decode(6)}, {16, 6, 2}, "1:1 0:1"},
      {"a prompt waits with its last row for a logit row", {decode(), decode(), prompt(4)}, {16, 6, 2}, "0:1 1:1 2:3"},
      {"paused runs have no rows", {with(decode(), &RunState::paused), prompt(3)}, kLimits, "1:3"},
      {"a waiting prompt goes on but for its last row",
       {with(prompt(4), &RunState::waiting), with(prompt(9), &RunState::waiting)},
       kLimits,
       "0:3 1:6"},
      {"a waiting run of one row has none", {with(decode(), &RunState::waiting), with(prompt(1), &RunState::waiting)}, kLimits, ""},
      {"score rows are limited by logit rows and come last", {with(prompt(20), &RunState::every_row), decode(1)}, {16, 6, 4}, "1:1 0:3"},
      {"no draw, no logit row", {with(prompt(3), &RunState::samples, false), decode(1)}, {16, 6, 1}, "1:1 0:3"},
      {"alone when its turn has come", {prompt(20, 2), with(prompt(20, 1), &RunState::alone)}, kLimits, "1:6"},
      {"left out when not", {prompt(20, 2), with(prompt(20, 3), &RunState::alone), decode(4)}, kLimits, "2:1 0:6"},
  };
  for (const Row& row : rows) CHECK_MSG(planned(row.runs, row.limits) == row.plan, row.what << ": " << planned(row.runs, row.limits));
}

TEST("scheduler: parts of prompts that must not be too short") {
  struct Row {
    const char* what;
    std::vector<RunState> runs;
    StepLimits limits;
    const char* plan;
  };
  constexpr StepLimits kParts{40, 20, 30, 8};
  const Row rows[] = {
      {"room enough behind", {prompt(28)}, kParts, "0:20"},
      {"a chunk gives way to the last part", {prompt(27)}, kParts, "0:19"},
      {"and so it ends", {prompt(8)}, kParts, "0:8"},
      {"a short prompt is whole", {prompt(7)}, kParts, "0:7"},
      {"twice the least may be cut", {prompt(16)}, {40, 15, 30, 8}, "0:8"},
      {"a chunk too small for the rule", {prompt(15)}, {40, 14, 30, 8}, "0:14"},
      {"the third waits for a step with room", {prompt(20, 1), prompt(17, 2), prompt(9, 3)}, kParts, "0:20 1:17"},
      {"and comes first then", {prompt(20, 4), prompt(20, 4), prompt(9, 3)}, kParts, "2:9 0:20 1:11"},
      {"short prompts take what is left", {prompt(20, 1), prompt(17, 2), prompt(7, 3)}, kParts, "0:20 1:17 2:3"},
      {"decoding leaves no room: as it comes", {decode(), decode(), prompt(30)}, {8, 8, 30, 8}, "0:1 1:1 2:6"},
      {"a waiting prompt keeps its last part back", {with(prompt(20), &RunState::waiting)}, kParts, "0:12"},
      {"or all", {with(prompt(15), &RunState::waiting)}, kParts, ""},
      {"scores, by their logit rows", {with(prompt(20), &RunState::every_row)}, {40, 20, 15, 8}, "0:12"},
      {"scores beside decoding", {with(prompt(20), &RunState::every_row), decode()}, {40, 20, 8, 8}, "1:1 0:7"},
      {"alone", {with(prompt(27), &RunState::alone)}, kParts, "0:19"},
  };
  for (const Row& row : rows) CHECK_MSG(planned(row.runs, row.limits) == row.plan, row.what << ": " << planned(row.runs, row.limits));
}

TEST("scheduler: whatever the mix, limits hold, everyone gets on and the rows add up") {
  for (const StepLimits& limits : {StepLimits{10, 4, 3}, StepLimits{10, 4, 3, 2}, StepLimits{12, 8, 6, 4}}) {
    std::vector<RunState> runs = {
        prompt(50), prompt(7), with(prompt(23), &RunState::every_row), with(prompt(30), &RunState::alone), decode(), decode(), decode(),
        decode(),   prompt(90)};
    std::vector<int64_t> left;
    for (const RunState& r : runs) left.push_back(r.decoding ? 40 : r.rows_left);
    uint64_t step = 0;
    for (; step < 200; ++step) {
      const std::vector<Share> shares = plan_step(runs, limits);
      if (shares.empty()) break;
      int64_t rows = 0, logit_rows = 0;
      for (const Share& s : shares) {
        RunState& r = runs[s.run];
        CHECK(s.rows >= 1 && s.rows <= std::min(limits.chunk, r.rows_left) && (!r.alone || shares.size() == 1));
        rows += s.rows;
        logit_rows += r.every_row ? s.rows : s.rows == r.rows_left;
        r.last_served = step + 1;
        left[s.run] -= s.rows;
        if (!r.decoding || left[s.run] == 0) r.rows_left -= s.rows;
      }
      CHECK(rows <= limits.rows && logit_rows <= limits.logit_rows);
    }
    for (size_t i = 0; i < left.size(); ++i) CHECK_MSG(left[i] == 0, "run " << i << " has " << left[i] << " rows left");
    CHECK_MSG(step < 120, step << " steps");
  }
}
