// One text at a time through the model, beside the engine: what measuring, calibration and search are made of. Chunks and caches are those
// of the engine, so the logits are the engine's too.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "model/forward.h"
#include "runtime/kv_cache.h"
#include "runtime/turn_lock.h"

namespace lapidary {

struct TextPassOptions {
  Precision precision = Precision::f32;
  int64_t chunk = 512;               // tokens of a step at most
  const Cushion* cushion = nullptr;  // stands before every text; the weights' own is not looked at
  TurnLock* turns = nullptr;         // of a backend that an engine uses too: taken for a chunk at a time
  std::optional<DType> kv{};         // of cached keys and values; empty: the precision's
};

// Called for rows [first, first + logits.shape[0]) of the text, in order; logits: f32 [rows, vocab] on the host, valid during the call. No
// turn is held then.
using LogitsSink = std::function<void(int64_t first, const Tensor& logits)>;

class TextPass {
 public:
  // Backend, weights, cushion and turns outlive this.
  TextPass(Backend& backend, const ModelWeights& weights, const TextPassOptions& options);

  // The whole text from its beginning; no sink: logits are not computed. Error(invalid_argument): no tokens, an id outside the vocabulary,
  // longer than the model's positions.
  void run(std::span<const int32_t> ids, const LogitsSink& sink, const StepWatch& watch = {}) {
    begin();
    append(ids, sink, watch);
  }

  // The same piece by piece: an empty text, then more of it, any number of times. Only rows from `wanted` on, counted from the beginning of
  // the text, have logits. After an exception the text must be begun again. Errors as for run(); Error(disposed): the engine whose turns
  // these are is closing.
  void begin();
  void append(std::span<const int32_t> ids, const LogitsSink& sink, const StepWatch& watch = {}, int64_t wanted = 0);
  // The logits of rows of the last step, at most max_logit_rows(), counted from the beginning of the text: f32 on the host, valid until
  // this pass is used again. For who appended without a sink.
  Tensor logits(int64_t first, int64_t rows);
  int64_t max_logit_rows() const { return scratch_.max_logit_rows; }
  int64_t length() const { return static_cast<int64_t>(ids_.size()); }

  // Remembers the text as it stands; back() returns to it, as often as wanted. A new text forgets it.
  void mark();
  void back();

  // Another cushion from now on; null: none.
  void use_cushion(const Cushion* cushion);

  // The keys before RoPE and the values that the last text left in the cache, as a cushion of its tokens: a hard prompt turned into one.
  // The text must have been run with no cushion in f32, cache included, and be no longer than the shortest window.
  Cushion to_cushion(CushionWindow window) const;

 private:
  Backend& backend_;
  const ModelWeights& weights_;
  const TextPassOptions options_;
  StepScratch scratch_;
  PagePool pool_;
  void check_open() const;  // in a turn
  void step(std::span<const int32_t> ids, int64_t first, const StepWatch& watch);
  int64_t part_rows(int64_t left) const;

  std::unique_ptr<KvCache> cache_, marked_;
  std::vector<int32_t> ids_;  // of the last text
  size_t marked_tokens_ = 0;
  int64_t step_first_ = 0;          // of the scratch's last step
  std::vector<float> host_logits_;  // of a device's
};

}  // namespace lapidary
