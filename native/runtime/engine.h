// The engine: one thread per model that runs the step loop. Requests come in from any thread; events go out through
// observers on the engine thread. Continuous batching: each step mixes the decode token of every running sequence with chunks of
// prompts, fairly. Results do not depend on what else is in the batch.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/forward.h"
#include "ops/sampling.h"
#include "runtime/tokenizer.h"
#include "runtime/turn_lock.h"

namespace lapidary {

struct EngineOptions {
  Precision precision = Precision::bf16;
  std::optional<DType> kv{};       // of cached keys and values: f32, bf16 or i8 (a cushion's are never i8); empty: the precision's
  int64_t context = 0;             // most tokens of one sequence; 0: the model's max_positions
  int64_t prefill_chunk = 256;     // most prompt tokens of one sequence in one step
  int64_t max_batch_tokens = 512;  // rows of one step; prefill_chunk where that is more
  int64_t max_running = 64;        // sequences stepping at once; more wait their turn
  int64_t kv_limit_bytes = 0;      // 0: no limit but the machine's
  int64_t prefix_cache = 2;        // finished sequences kept for reuse of a common prefix; 0: none
  int64_t unread_tokens = 256;     // a run whose observer has this many unacknowledged tokens pauses (back-pressure)
};

enum class FinishReason { stop, length, stop_sequence, aborted };
const char* finish_reason_name(FinishReason reason);  // "stop", "length", "stop-sequence", "aborted"

// End tokens and stop_ids are not told: they end the run and stay in its sequence, so that the next turn follows them.
struct TokenEvent {
  int32_t id = -1;   // -1: only the text that was still held back when the run ended
  std::string text;  // whole characters that became certain with this token; may be empty
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

struct Usage {
  int64_t prompt_tokens = 0;  // of this request
  int64_t cached_tokens = 0;  // of those, found in a cache
  int64_t generated_tokens = 0;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
};

struct Outcome {
  FinishReason reason = FinishReason::stop;
  std::string stop_sequence;  // the one met, when reason is stop_sequence
  Usage usage;
};

// A conversation: tokens and their KV cache. Made by the engine; at most one run uses it at a time: submit, fork, rewind and save
// are Error(invalid_argument) "busy" until that run has ended, the others tell the state of the moment. Thread-safe; outliving its
// engine is allowed, use then is Error(disposed).
// After a run that was aborted or failed: if its prompt was not computed to the end, the sequence holds what was cached of it,
// else the whole prompt and every token that was told.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual int64_t length() const = 0;               // tokens whose keys are cached
  virtual std::vector<int32_t> tokens() const = 0;  // all; the last one generated is cached by the next run only
  virtual std::shared_ptr<Sequence> fork() = 0;
  // Forgets tokens from `length` on. Where a ring has already forgotten what is needed, the cache is dropped and the kept tokens
  // are computed again by the next run: same results, more time.
  virtual void rewind(int64_t length) = 0;         // at most tokens().size()
  virtual void save(const std::string& path) = 0;  // atomic; see runtime/session_file.h
  virtual int64_t bytes() const = 0;
};

// Events of one run, called on the engine thread, never concurrently for one run. Must not block or throw.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void on_tokens(std::span<TokenEvent> events) = 0;
  virtual void on_mask_wanted(std::span<const int32_t> generated) { (void)generated; }  // only when RunRequest::masked
  virtual void on_scores(std::vector<std::vector<float>> rows) { (void)rows; }          // only for score requests
  virtual void on_finish(const Outcome& outcome) = 0;
  virtual void on_error(std::exception_ptr error) = 0;  // instead of on_finish
};

enum class RunKind {
  generate,
  logits,    // on_scores: one [prompt tokens * vocab] row block
  logprobs,  // on_scores: one [prompt tokens - 1] block: the log-probability of each token but the first, given all before it
  hidden,    // on_scores: num_layers + 1 blocks [prompt tokens * hidden], see HiddenObserver
};

struct RunRequest {
  RunKind kind = RunKind::generate;
  std::vector<int32_t> prompt;         // appended to the sequence; never empty
  std::shared_ptr<Sequence> sequence;  // null: one of the run's own; always null for logits and hidden
  SamplingSettings sampling;
  uint64_t seed = 0;
  int64_t max_tokens = -1;  // -1: until the context is full
  bool ignore_eos = false;
  std::vector<int32_t> stop_ids;  // besides the model's end tokens; these stop even with ignore_eos
  std::vector<std::string> stop_strings;
  int32_t top_logprobs = -1;  // see SampleRequest
  bool masked = false;        // every token waits for Run::provide_mask
  std::shared_ptr<RunObserver> observer;
};

class Run {
 public:
  virtual ~Run() = default;
  virtual void abort() = 0;                                   // from any thread; takes effect within one step
  virtual void acknowledge(int64_t tokens) = 0;               // the consumer took that many: back-pressure credit
  virtual void provide_mask(std::vector<uint32_t> bits) = 0;  // empty: all tokens allowed
};

struct MemoryUse {
  int64_t kv_bytes = 0, kv_limit_bytes = 0, scratch_bytes = 0, weight_bytes = 0;
};

// For work on the model beside its engine, in turns with it (TextPassOptions::turns). What is shared outlives the engine.
struct EngineShare {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
  std::shared_ptr<TurnLock> turns;
};

class Engine {
 public:
  // `tokenizer` may be null: no text, no stop strings then.
  static std::unique_ptr<Engine> start(std::shared_ptr<Backend> backend, std::shared_ptr<const ModelWeights> weights,
                                       std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options);
  virtual ~Engine() = default;  // close()

  // Checks everything checkable here (Error(invalid_argument): ids out of range, prompt longer than the context, settings) and queues.
  virtual std::shared_ptr<Run> submit(RunRequest request) = 0;
  virtual std::shared_ptr<Sequence> new_sequence() = 0;
  virtual std::shared_ptr<Sequence> restore(const std::string& path) = 0;  // Error(bad_file): damaged, or of another model
  virtual MemoryUse memory() const = 0;
  virtual EngineShare share() const = 0;             // Error(disposed) once closing
  virtual const EngineOptions& options() const = 0;  // complete: what 0 left to the model is filled in
  // Aborts every run (their observers get on_finish(aborted)), joins the thread. Idempotent.
  // Called by an observer, it returns at once and the thread ends by itself.
  virtual void close() = 0;
};

// What a model will take before any of it is allocated.
struct MemoryEstimate {
  int64_t weight_bytes = 0;                         // mapped from the file
  int64_t kv_bytes_per_sequence = 0, kv_bytes = 0;  // at the given context; times the batch
  int64_t scratch_bytes = 0;
  int64_t total_bytes = 0;
};
MemoryEstimate estimate_memory(const ModelConfig& config, int64_t weight_bytes, const EngineOptions& options, int64_t sequences);

}  // namespace lapidary
