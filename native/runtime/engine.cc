// The engine as other threads see it: checks requests, hands them to the loop's thread, starts and joins that thread.
#include "runtime/engine.h"

#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "runtime/engine_loop.h"

namespace lapidary {

namespace {

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::shared_ptr<EngineCore> core, std::shared_ptr<EngineLoop> loop, bool has_tokenizer,
             const std::shared_ptr<Backend>& backend, const std::shared_ptr<const ModelWeights>& weights)
      : core_(std::move(core)),
        backend_(backend),
        weights_(weights),
        has_tokenizer_(has_tokenizer),
        thread_([loop = std::move(loop)] { loop->main(); }),
        thread_id_(thread_.get_id()) {}

  // On the engine thread itself (an observer held the last reference) the thread cannot be joined: it owns all it needs and ends alone.
  ~EngineImpl() override {
    close();
    if (thread_.joinable()) thread_.detach();
  }

  std::shared_ptr<Run> submit(RunRequest request) override;

  std::shared_ptr<Sequence> new_sequence() override { return std::make_shared<SequenceImpl>(core_); }

  std::shared_ptr<Sequence> restore(const std::string& path) override { return SequenceImpl::restore(core_, path); }

  MemoryUse memory() const override {
    const std::lock_guard lock(core_->memory);
    if (!core_->pool) return {};
    return {core_->pool->used_bytes(), core_->pool->limit_bytes(), core_->scratch_bytes, core_->weight_bytes};
  }

  EngineShare share() const override {
    EngineShare share = {backend_.lock(), weights_.lock(), std::shared_ptr<TurnLock>(core_, &core_->turns)};
    expect(share.backend && share.weights && !core_->closing, ErrorCode::disposed, "the model is closed");
    return share;
  }

  const EngineOptions& options() const override { return core_->options; }

  void close() override {
    core_->request_close();
    if (std::this_thread::get_id() == thread_id_) return;
    const std::lock_guard lock(joining_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void check(const RunRequest& request) const;
  void check_ids(const char* what, std::span<const int32_t> ids) const;

  const std::shared_ptr<EngineCore> core_;
  const std::weak_ptr<Backend> backend_;  // the loop owns them, and lets go of them when it ends
  const std::weak_ptr<const ModelWeights> weights_;
  const bool has_tokenizer_;
  std::mutex joining_;
  std::thread thread_;
  const std::thread::id thread_id_;
};

void EngineImpl::check_ids(const char* what, std::span<const int32_t> ids) const {
  const int64_t vocab = core_->config.vocab;
  for (size_t i = 0; i < ids.size(); ++i) {
    expect(ids[i] >= 0 && ids[i] < vocab, ErrorCode::invalid_argument, what, " ", i, " is id ", ids[i], ", the vocabulary has ", vocab,
           " (0 to ", vocab - 1, ")");
  }
}

void EngineImpl::check(const RunRequest& r) const {
  const bool scores = r.kind != RunKind::generate;
  expect(r.observer != nullptr, ErrorCode::invalid_argument, "a run needs an observer");
  expect(!r.prompt.empty(), ErrorCode::invalid_argument, "the prompt has no tokens: give at least the beginning-of-text token");
  check_ids("prompt token", r.prompt);
  expect(!scores || !r.sequence, ErrorCode::invalid_argument, "logits and hidden states are computed on a sequence of their own");
  check_settings(r.sampling, core_->config.vocab);
  expect(r.max_tokens >= -1, ErrorCode::invalid_argument, "max tokens is ", r.max_tokens, ", must be 0 or more, or -1 for no limit");
  expect(r.top_logprobs >= -1 && r.top_logprobs <= core_->config.vocab, ErrorCode::invalid_argument, "top logprobs is ", r.top_logprobs,
         ", must be from 0 to ", core_->config.vocab, ", or -1 for none");
  check_ids("stop token", r.stop_ids);
  expect(r.stop_strings.empty() || has_tokenizer_, ErrorCode::invalid_argument,
         "stop strings need a tokenizer, the model was loaded without one");
  for (const std::string& stop : r.stop_strings) expect(!stop.empty(), ErrorCode::invalid_argument, "a stop string is empty: leave it out");
}

std::shared_ptr<Run> EngineImpl::submit(RunRequest request) {
  expect(!core_->closing, ErrorCode::disposed, "the model is closed");
  check(request);
  std::shared_ptr<SequenceImpl> sequence;
  if (request.sequence) {
    sequence = std::dynamic_pointer_cast<SequenceImpl>(request.sequence);
    expect(sequence && sequence->core() == core_.get(), ErrorCode::invalid_argument, "the sequence belongs to another model");
  } else {
    sequence = std::make_shared<SequenceImpl>(core_);
  }
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  auto run = std::make_shared<RunImpl>(core_, std::move(request), sequence);
  sequence->claim(prompt);
  bool accepted = false;
  try {
    const std::lock_guard lock(core_->inbox);
    accepted = !core_->closing;
    if (accepted) core_->incoming.push_back(run);
  } catch (...) {
    sequence->end_run();
    throw;
  }
  if (!accepted) {
    sequence->end_run();
    fail(ErrorCode::disposed, "the model is closed");
  }
  core_->news.notify_one();
  return run;
}

}  // namespace

std::unique_ptr<Engine> Engine::start(std::shared_ptr<Backend> backend, std::shared_ptr<const ModelWeights> weights,
                                      std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options) {
  const EngineOptions complete = complete_options(weights->config, options, weights->cushion ? weights->cushion->size() : 0);
  const bool has_tokenizer = tokenizer != nullptr;
  auto core = std::make_shared<EngineCore>(backend, *weights, complete);
  auto loop = std::make_shared<EngineLoop>(core, backend, weights, std::move(tokenizer));
  return std::make_unique<EngineImpl>(std::move(core), std::move(loop), has_tokenizer, backend, weights);
}

}  // namespace lapidary
