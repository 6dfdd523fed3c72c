// What one int8 scale per tensor costs the text that stands behind some prefix: the objective of the cushion search (docs/numerics.md,
// "cushions").
//
// Per text, layer and site, over the text's tokens alone: scales come from them, and the prefix passes through no quantised product.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "compress/evaluate.h"

namespace lapidary {

// Element layer * kNumSites + site; sums over texts.
struct SiteErrors {
  std::vector<double> sites;
  double total() const;
  void add(const SiteErrors& other);
};

// Σ (x - q(x))², exactly, of texts behind a cushion as it will be used, its window mode included.
class ExactError {
 public:
  // subject.cushion is not looked at. `longest`: tokens of a text at most.
  ExactError(const Subject& subject, int64_t longest);

  // Null: no cushion. Texts are opened by BOS unless the cushion holds it. Not finite where an input is not. Error(aborted).
  SiteErrors measure(const Cushion* cushion, std::span<const TextIds> texts, const std::function<bool()>& stop = {});

  // Tokens as a cushion of this model. They must fit in its shortest window.
  Cushion make(std::span<const int32_t> tokens, CushionWindow window);

 private:
  void gather(const std::vector<int32_t>& ids, const std::function<bool()>& stop);

  Subject subject_;
  const int64_t chunk_;
  TextPass pass_, maker_;
  std::vector<std::byte> raw_;
  std::vector<float> absmax_;
  std::vector<double> errors_;
};

// The surrogate min(N s² / 12, Σ x²) of many prefixes that differ in their last token, from the largest magnitude and the sum of squares of
// each tensor: rounding errors spread evenly over a step, unless the step is so wide that all rounds to 0. Prefixes are ordinary tokens
// here, so behind a pinned cushion's window the model is another; whoever wants that cushion measures it exactly.
class CandidatePass {
 public:
  // A step has at most `rows` tokens, or one candidate's.
  CandidatePass(const Subject& subject, int64_t longest, int64_t rows);
  ~CandidatePass();

  // What all candidates follow, computed once.
  void use_prefix(std::span<const int32_t> tokens);

  static constexpr int32_t kNone = -1;  // as a candidate: the prefix as it is
  // out[i]: of `text` behind the prefix and candidates[i], over the first `layers` layers; BOS opens the text unless it stands before.
  // Infinity where an input is not finite. Error(aborted).
  void score(std::span<const int32_t> candidates, std::span<const int32_t> text, int64_t layers, std::span<double> out,
             const std::function<bool()>& stop = {});
  // Candidates of a step.
  int64_t batch(int64_t text_tokens) const;

 private:
  void step(std::span<const int32_t> candidates, std::span<const int32_t> text, int64_t layers, std::span<double> out,
            const std::function<bool()>& stop);
  void run(const std::vector<int32_t>& ids, const std::vector<std::unique_ptr<KvCache>>& caches, std::span<const int64_t> lengths,
           const StepWatch& watch);

  Subject subject_;
  const int64_t longest_, rows_;
  StepScratch scratch_;
  PagePool pool_;
  std::vector<int32_t> prefix_;
  std::unique_ptr<KvCache> prefix_cache_;  // null: no prefix
  std::vector<std::byte> raw_;
};

}  // namespace lapidary
