// Drawing tokens on the device: what the sampler takes and gives. Token for token what native/ops/sampling.cc draws from the same logits,
// settings, seed and counter; no row looks at another.
#pragma once

#include "cuda/api/status.h"

namespace lapidary::cuda {

// Settings of one row, as in SamplingSettings and SampleRequest (native/ops/sampling.h), already checked by the host.
struct SampleRow {
  float temperature, top_p, min_p;  // 0: greedy; 1: off; 0: off
  int32_t top_k;                    // 0: off
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_logprobs;    // -1: none wanted; n: the chosen token's and the n likeliest
  const int32_t* history;  // device i32 [history_tokens]: prompt, then generated tokens
  const uint32_t* mask;    // device u32 [ceil(vocab / 32)]: bit i % 32 of word i / 32 set: token i allowed; null: all are
  uint64_t seed, counter;
  int32_t history_tokens, prompt_tokens;
  int32_t first_bias, num_bias;  // of bias_ids and bias_values
};

enum class SampleError : int32_t {
  none,
  bad_logit,     // a logit is NaN or +infinity; `id` is the first such token
  beyond_range,  // bias and penalties made one NaN or +infinity
  no_token,      // mask or bias exclude all
  unplanned,     // SampleParams::needs did not cover this row
};

struct SampledToken {
  int32_t id;
  SampleError error;
  float logprob;  // of softmax over the raw logits, where top_logprobs >= 0
};

// What the rows of a call need between them; decides the launches and the workspace. Made by note_row() over the rows.
struct SampleNeeds {
  bool adjusts = false;  // bias, penalties or mask
  bool draws = false;    // temperature > 0
  bool nucleus = false;  // top-p without top-k
  int32_t most_top = 0;  // the largest top_logprobs
};

struct SampleParams {
  const float* logits;        // f32 [rows, vocab], rows `stride` elements apart
  const SampleRow* settings;  // device [rows]
  const int32_t* bias_ids;    // device i32: of each row ascending, equal ids in the order of adding
  const float* bias_values;   // device f32, beside them: added to the raw logit; -infinity excludes
  SampledToken* out;          // device [rows]
  int32_t* top_ids;           // device i32 [rows, top_stride], likeliest first; null when no row wants any
  float* top_logprobs;        // device f32 [rows, top_stride]
  void* workspace;            // sample_workspace_bytes, 256-byte aligned, all zero at first use; keeps to one max_rows and vocab
  int64_t stride;
  int32_t rows, vocab, max_rows, top_stride;
  SampleNeeds needs;
};

inline constexpr int kSampleChunk = 2048;      // logits of a block: one 16-byte load for each of 512 threads
inline constexpr int kSampleBins = 2048;       // of one radix step, and of the coarse histograms
inline constexpr int kSampleListRoom = 16384;  // candidates of a row that are listed; with more, one block goes over the whole row instead
inline constexpr int kSampleMaxTop = 128;      // top_logprobs of a row
inline constexpr int kSampleCounters = 8;

inline void note_row(SampleNeeds& needs, const SampleRow& row, int32_t vocab) {
  const bool draws = row.temperature != 0, top_k = row.top_k > 0 && row.top_k < vocab;
  const bool penalties = row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0;
  needs.adjusts |= row.num_bias > 0 || row.mask || (penalties && row.history_tokens > 0);
  needs.draws |= draws;
  needs.nucleus |= draws && !top_k && row.top_p < 1;
  if (row.top_logprobs > needs.most_top) needs.most_top = row.top_logprobs;
}

inline bool supports_sample(const SampleParams& p, const DeviceFacts&) {
  return p.vocab > 0 && p.vocab <= (1 << 30) && p.rows <= p.max_rows && p.max_rows <= 65535 && p.stride >= p.vocab &&
         p.needs.most_top <= kSampleMaxTop && (p.needs.most_top <= 0 || (p.top_ids && p.top_logprobs && p.top_stride >= p.needs.most_top));
}

// Where the parts of the workspace lie, bytes from its start. The zeroed parts come first and lie at the same place in every call.
struct SampleLayout {
  int64_t counters, bins, state, best, bad, stats, mass, list, top_list, adjusted, end;
  int64_t chunks, room;
};
inline SampleLayout sample_layout(int64_t max_rows, int64_t vocab) {
  SampleLayout l = {};
  l.chunks = (vocab + kSampleChunk - 1) / kSampleChunk;
  l.room = vocab < kSampleListRoom ? vocab : kSampleListRoom;
  int64_t at = 0;
  const auto part = [&](int64_t bytes) {
    const int64_t start = at;
    at += (bytes + 255) / 256 * 256;
    return start;
  };
  l.counters = part(max_rows * kSampleCounters * 4);
  l.bins = part(max_rows * 4 * kSampleBins * 4);
  l.state = part(max_rows * 64);
  l.best = part(max_rows * l.chunks * 8);
  l.bad = part(max_rows * l.chunks * 8);
  l.stats = part(max_rows * l.chunks * 8);
  l.mass = part(max_rows * l.chunks * 8);
  l.list = part(max_rows * l.room * 8);
  l.top_list = part(max_rows * l.room * 8);
  l.adjusted = part(max_rows * ((vocab + 3) / 4 * 4) * 4);
  l.end = at;
  return l;
}
// `adjusts`: whether any call will have rows with bias, penalties or a mask (4 bytes per logit more).
inline size_t sample_workspace_bytes(int64_t max_rows, int64_t vocab, bool adjusts) {
  const SampleLayout l = sample_layout(max_rows, vocab);
  return static_cast<size_t>(adjusts ? l.end : l.adjusted);
}

}  // namespace lapidary::cuda
