// A cushion's keys and values trained while the model stays as it is, so that the text behind them loses less by quantisation
// (CushionCache, arXiv 2406.12016, step 2): AdamW on cross-entropy through int8 inputs plus what the rounding costs.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "compress/evaluate.h"
#include "model/cushion.h"
#include "ops/training.h"
#include "train/weights.h"

namespace lapidary {

struct CushionTuningOptions {
  int64_t steps = 160, batch = 4;  // texts of a step
  int64_t text_tokens = 512;       // of a text
  int64_t held_out = 8;            // texts, drawn by the seed, at most half of them
  // Every that many steps the scales of all sites are calibrated anew with the cushion as it is then, held-out texts are measured, and the
  // state is written.
  int64_t every = 20;
  int64_t patience = 4;            // measurements in a row without a better one, after which tuning ends; 0: it does not
  int64_t calibration_texts = 16;  // of the training texts, at most
  bool clip_scales = true;         // scales by least squared error, as mse_clip; false: the largest magnitude
  double lambda = 0.1;             // of the quantisation error, whose value is 1 at the start; 0: cross-entropy alone
  QuantErrorGradient gradient = QuantErrorGradient::straight_through;
  bool quantise = true;  // cross-entropy through rounded inputs; false: through exact ones
  double learning_rate = 2e-4;
  int64_t warmup = 10;
  double clip = 0.3;  // of the gradient's norm; 0: none
  uint64_t seed = 0;
  std::string model_id;    // of the model, for the state file
  std::string state_file;  // there already: tuning goes on from it
};

// Figures per held-out token, in nats.
struct HeldOut {
  int64_t step = 0;
  double quantised = 0;    // cross-entropy through rounded inputs
  double unquantised = 0;  // and through exact ones: what the cushion itself does to the model
  double error = 0;        // Σ over sites of the mean squared rounding error, 1 at step 0
  double training = 0;     // mean loss of the steps since the last measurement; 0 at step 0
};

struct CushionTuningResult {
  Cushion cushion;  // the best one measured, by `quantised`, of those whose `unquantised` is not above the start's
  HeldOut best, start;
  double no_cushion = 0;          // as HeldOut::unquantised, the model alone
  std::vector<HeldOut> measured;  // in order
  int64_t skipped = 0;            // steps whose gradient was not finite
};

struct CushionTuningWatch {
  std::function<void(int64_t step, int64_t steps, double seconds_left, const HeldOut& last)> progress{};  // on the calling thread
  std::function<bool()> stop{};                                                                           // Error(aborted)
};

// `subject`: the model on a backend that can train; its cushion is not looked at. `weights`: the same model's, as training reads them, on
// that backend; with quantised values where those shall be trained against. Equal inputs give equal results, interrupted or not.
// Error(invalid_argument): options out of range, no cushion, fewer than two texts, the state file of another tuning; Error(aborted).
CushionTuningResult tune_cushion(const Subject& subject, WeightSource& weights, const Cushion& start, std::span<const TextIds> texts,
                                 const CushionTuningOptions& options, const CushionTuningWatch& watch = {});

// As JSON: { steps, best, start, noCushion, measured, skipped }.
std::string tuning_report(const CushionTuningResult& result);

}  // namespace lapidary
