// One run: its request, what other threads tell it, and what becomes of the tokens drawn for it (text, stops, limits, events).
// Internal to runtime/; knows nothing of steps or memory.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/sequence.h"
#include "runtime/stop_strings.h"

namespace lapidary {

class RunImpl final : public Run {
 public:
  using Clock = std::chrono::steady_clock;

  RunImpl(std::shared_ptr<EngineCore> core, RunRequest request, std::shared_ptr<SequenceImpl> sequence);

  // --- any thread -----------------------------------------------------------------------------------------------------
  void abort() override;
  void acknowledge(int64_t tokens) override;
  void provide_mask(std::vector<uint32_t> bits) override;
  bool aborted() const { return aborted_; }

  // --- engine thread --------------------------------------------------------------------------------------------------
  const RunRequest& request() const { return request_; }
  SequenceImpl& sequence() const { return *sequence_; }
  bool own_sequence() const { return own_sequence_; }
  bool scores() const { return request_.kind != RunKind::generate; }
  bool wants_every_row() const { return request_.kind == RunKind::logits || request_.kind == RunKind::logprobs; }

  // Admission: the prompt enters the sequence, `cache` holding the beginning of it or null; the first mask is asked for.
  void begin(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<KvCache> cache);
  int64_t rows_left() const;
  bool decoding() const { return generated_ > 0; }
  bool draws() const { return !scores() && limit_ > 0; }
  bool paused() const;
  bool waiting();  // for a mask; takes one that has come
  SampleRequest sample_request() const;
  std::vector<std::vector<float>>& score_rows() { return score_rows_; }

  // A token was drawn: it enters the sequence and is told. True when the run has ended by it, finish() is next.
  bool accept(SampleResult&& result);
  // The prompt is computed and nothing is to be drawn: score rows or an empty generation.
  void complete();
  // The last word to the observer, one of the two. The sequence is free by then; both are let go of, whoever keeps the run.
  void finish();  // as accept() or complete() decided, else aborted
  void fail(std::exception_ptr error);

  uint64_t last_served = 0;  // the scheduler's

 private:
  struct Text {
    int64_t pieces;  // some models have more embeddings than their tokenizer has pieces; the rest have no text
    Tokenizer::Stream stream;
    StopMatcher stops;
  };

  void ask_mask();
  bool is_stop(int32_t id) const;
  std::string rest_of_text();
  void tell(TokenEvent&& event);
  void measure_end();
  std::shared_ptr<RunObserver> release();
  template <typename Call>
  void notify(RunObserver& observer, const Call& call) noexcept;

  const std::shared_ptr<EngineCore> core_;
  RunRequest request_;
  std::shared_ptr<SequenceImpl> sequence_;
  const bool own_sequence_;
  const Clock::time_point submitted_ = Clock::now();
  Clock::time_point admitted_{}, first_token_{};

  std::atomic<bool> aborted_{false};
  std::atomic<int64_t> acknowledged_{0};
  bool mask_offered_ = false;  // these two under core_->inbox
  std::vector<uint32_t> offered_mask_;

  std::optional<Text> text_;  // no tokenizer, no text
  std::vector<uint32_t> mask_;
  bool waiting_ = false;
  int64_t generated_ = 0, limit_ = 0;  // tokens drawn and told; the most there may be
  std::vector<std::vector<float>> score_rows_;
  Outcome outcome_{FinishReason::aborted, {}, {}};
};

}  // namespace lapidary
