// The step loop: admits runs, plans steps, runs the model, draws tokens. Lives on the engine thread and owns what only that
// thread touches. Internal to runtime/.
#pragma once

#include <deque>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "model/forward.h"
#include "runtime/engine_core.h"
#include "runtime/prefix_cache.h"
#include "runtime/run.h"
#include "runtime/scheduler.h"

namespace lapidary {

class EngineLoop {
 public:
  EngineLoop(std::shared_ptr<EngineCore> core, std::shared_ptr<Backend> backend, std::shared_ptr<const ModelWeights> weights,
             std::shared_ptr<const Tokenizer> tokenizer);

  // Until the core is asked to close; then every run is aborted and all memory is given back. Throws nothing.
  void main() noexcept;

 private:
  using RunPtr = std::shared_ptr<RunImpl>;

  // A run's part of the step at hand.
  struct Part {
    RunPtr run;
    int64_t first_pos = 0, rows = 0;
    bool draws = false;      // one logit row, a token is drawn
    bool every_row = false;  // a logit row per row
  };
  struct Step {
    std::vector<Part> parts;
    std::vector<int32_t> ids, positions, logit_rows;
    std::vector<StepSpan> spans;
    int64_t draws = 0;  // the first logit rows
  };

  bool wait_for_news();  // false: closing
  void admit();
  void start(const RunPtr& run);
  void sweep_aborted();
  void finish_all();

  bool step();  // false: nothing can go on
  std::vector<Share> plan();
  Step assemble(std::span<const Share> shares);
  bool compute(Step& step);  // false: the step came to nothing
  bool reserve(const RunPtr& run, int64_t rows);
  void collect_scores(const Step& step, const Tensor& logits);
  void append_logprobs(const Tensor& logits, const Part& part, std::vector<float>& logprobs);
  void draw(Step& step, const Tensor& logits);

  void end(const RunPtr& run);                            // finish()
  void end(const RunPtr& run, std::exception_ptr error);  // fail()
  void let_go(const RunPtr& run, bool keep_prefix);

  const std::shared_ptr<EngineCore> core_;
  std::shared_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<StepScratch> scratch_;
  PrefixCache prefixes_;
  std::deque<RunPtr> queue_;  // accepted, not yet begun
  std::vector<RunPtr> running_;
  uint64_t steps_ = 0;
  bool busy_ = false;  // the last step did something: look again without waiting
};

}  // namespace lapidary
