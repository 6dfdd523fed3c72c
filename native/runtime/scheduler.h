// Which runs take part in the next step, with how many rows: decode first, prompts in fair turns. Pure logic on numbers; knows
// no tokens, no memory, no clock.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lapidary {

// What the plan needs to know of one run.
struct RunState {
  int64_t rows_left = 0;     // tokens not yet in its cache; 0: nothing to do
  bool decoding = false;     // its prompt is done: rows_left is the one token drawn last
  bool samples = true;       // a token is drawn after the last row, which takes one logit row
  bool every_row = false;    // wants the logits of all its rows instead
  bool alone = false;        // shares a step with nobody (hidden states)
  bool paused = false;       // nobody reads its tokens: no rows
  bool waiting = false;      // its next token cannot be drawn yet (mask): no last row
  uint64_t last_served = 0;  // number of the last step that had rows of it; 0: none yet
};

struct StepLimits {
  int64_t rows = 0;        // of the step
  int64_t chunk = 0;       // of one run in one step
  int64_t logit_rows = 0;  // of the step
  // A prompt of that many rows is cut into parts of no fewer, since those would be computed otherwise (ActScheme::long_spans): as far as
  // chunk and step have room for them. 0: cut anywhere.
  int64_t least_part = 0;
};

struct Share {
  size_t run = 0;  // index into the states
  int64_t rows = 0;
};

// Every decoding run that can go on gets its row; what is left of the step goes to prompts in chunks. Where there is not enough
// for all, those served longest ago go first, so nobody starves. A run that must be alone gets a step when its turn comes.
// Shares are ordered: those that draw a token first, then prompts that go on, then those that want every row's logits.
std::vector<Share> plan_step(std::span<const RunState> runs, const StepLimits& limits);

}  // namespace lapidary
