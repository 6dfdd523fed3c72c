// Where a tuning stands: between steps, in memory and as a safetensors file that it goes on from.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "compress/cushion_state.h"
#include "model/cushion.h"
#include "train/cushion_tuning.h"
#include "train/optimizer.h"

namespace lapidary {

struct TuningState {
  std::string identity;  // of model, options, texts and the cushion it began with
  int64_t step = 0;
  Cushion current, best;
  std::vector<HeldOut> measured;
  int64_t best_at = 0, without_better = 0, skipped = 0;
  double error_at_start = 1;  // HeldOut::error is relative to it
  double loss_sum = 0;        // since the last measurement
};

// Written right after a measurement.
void save_tuning_state(const std::string& path, const TuningState& state, const Optimizer& optimizer);
// Does nothing where there is no file. The cushions' and the moments' memory stays the same. Error(invalid_argument): the state of another
// tuning; Error(bad_file).
void load_tuning_state(const std::string& path, TuningState& state, Optimizer& optimizer);

Cushion copy_cushion(const Cushion& cushion);
// A JSON list, or its only element.
std::string held_out_json(std::span<const HeldOut> measured, bool only);

}  // namespace lapidary
