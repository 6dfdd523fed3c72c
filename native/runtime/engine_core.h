// What engine, runs and sequences share and what outlives the engine: the memory of conversations with its lock, and the inbox
// through which other threads reach the engine thread. Internal to runtime/.
//
// Two locks, never held together with a call to an observer. `memory` guards the pool, every cache and every sequence's tokens;
// the engine thread takes it around reserve and advance, not around the computation itself. `inbox` guards what comes in.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "model/config.h"
#include "runtime/engine.h"
#include "runtime/kv_cache.h"
#include "runtime/turn_lock.h"

namespace lapidary {

class RunImpl;
class SequenceImpl;

// Fills in what the options leave to the model; Error(invalid_argument) names an option out of range.
EngineOptions complete_options(const ModelConfig& config, const EngineOptions& options, int64_t cushion_tokens = 0);

// Logit rows of one step: enough for every running sequence, and for long score requests as many as 64 MiB hold.
int64_t step_logit_rows(const ModelConfig& config, const EngineOptions& complete);

// Tells models apart that share a config: the config's numbers, a hash of some weights, and the cushion.
std::string model_fingerprint(const ModelWeights& weights);

struct EngineCore {
  EngineCore(std::shared_ptr<Backend> backend, const ModelWeights& weights, const EngineOptions& complete);
  ~EngineCore();

  const ModelConfig config;
  const EngineOptions options;
  const std::string fingerprint;
  const int64_t weight_bytes, scratch_bytes;

  // --- guarded by `memory`
  mutable std::mutex memory;
  std::unique_ptr<PagePool> pool;               // null once shut
  std::unordered_set<SequenceImpl*> sequences;  // alive
  void check_open() const;                      // Error(disposed) once shut
  void shut();                                  // takes the lock: frees every cache, then pool and backend

  TurnLock turns;  // at the backend: held for a step; no other lock is asked for before it

  // --- guarded by `inbox`
  std::mutex inbox;
  std::condition_variable news;
  bool signalled = false;  // some run has something to tell
  std::vector<std::shared_ptr<RunImpl>> incoming;
  std::atomic<bool> closing{false};  // set under the lock, read anywhere
  void signal();
  void request_close();

 private:
  std::shared_ptr<Backend> backend_;
};

}  // namespace lapidary
