// The tokens of a cushion, found greedily over the whole vocabulary (CushionCache, arXiv 2406.12016, step 1): token after token, the one
// behind which texts cost least under one int8 scale per tensor, for as long as each at least halves that cost.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "compress/prefix_error.h"

namespace lapidary {

// Candidates are tried on `texts` pieces of `tokens` tokens, those that cost most as things stand, through the first `layers` layers (0:
// all), by the surrogate; the best `keep` go on.
struct ScreenStage {
  int64_t tokens = 0, texts = 0, layers = 0, keep = 0;
};

struct CushionSearchOptions {
  CushionWindow window = CushionWindow::pinned;
  std::vector<int32_t> init;        // the cushion begins with these
  int64_t max_tokens = 8;           // init included; all must fit in the model's shortest window
  double tau = 0.5;                 // a token is kept when the error is at most tau times the one without it, and falls on held-out texts
  int64_t text_tokens = 512;        // of a text; to see a pinned cushion beyond a window, more than that
  int64_t texts = 8, held_out = 8;  // drawn anew for each token; the same throughout
  std::vector<ScreenStage> stages = {{64, 2, 0, 1024}, {512, 2, 0, 32}};  // what is left then is measured exactly, on all texts
  int64_t rows = 2048;                                                    // tokens of a step
  std::vector<int32_t> candidates;                                        // empty: the vocabulary
  uint64_t seed = 0;
  std::string model_id;    // of the model, for the state file
  std::string state_file;  // written every state_seconds and after each stage; there already: the search goes on from it
  double state_seconds = 30;
};

struct CushionProgress {
  int64_t step = 0, stage = 0;      // from 0; stage == stages.size(): exact errors
  int64_t done = 0, total = 0;      // work of this step: tokens times layers
  double seconds_left = 0;          // of this step
  std::span<const int32_t> tokens;  // the cushion so far
};

struct CushionWatch {
  std::function<void(const CushionProgress&)> progress{};  // on the calling thread
  std::function<bool()> stop{};                            // true ends the search with Error(aborted), within one layer
};

struct CushionCandidate {
  int32_t token = 0;
  double error = 0;  // exact
};

struct CushionSearchStep {
  std::vector<CushionCandidate> best;  // at most 8, best first
  double before = 0, after = 0;        // on the step's texts
  double held_out_before = 0, held_out_after = 0;
  bool accepted = false;
  int64_t tried = 0;  // candidates
};

struct CushionSearchResult {
  Cushion cushion;  // without tokens when none helps
  std::vector<CushionSearchStep> steps;
  SiteErrors none, init, found;  // on the held-out texts: no cushion, that of options.init (none where it is empty), the result
};

// The texts' pieces of options.text_tokens tokens in the order that the seed gives them: `held_out` are the first ones, at most half.
struct SearchTexts {
  std::vector<TextIds> held_out, pool;
};
SearchTexts split_texts(std::span<const TextIds> texts, const CushionSearchOptions& options);

// `subject`: unquantised; its cushion is not looked at. Equal inputs give equal results, interrupted or not. Error(invalid_argument):
// options out of range, fewer than two pieces of text, a state file of another search; Error(bad_file): a damaged one; Error(aborted).
CushionSearchResult search_cushion(const Subject& subject, std::span<const TextIds> texts, const CushionSearchOptions& options,
                                   const CushionWatch& watch = {});

// As JSON: { tokens, window, steps, sites: [{ layer, site, none, init, found }] }.
std::string search_report(const CushionSearchResult& result);

}  // namespace lapidary
