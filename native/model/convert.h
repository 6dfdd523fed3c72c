// Weights in another form than the file's: rounded to bf16, or quantised to int8 with a scale per output channel (docs/numerics.md,
// "int8").
#pragma once

#include "ops/ops.h"

namespace lapidary {

enum class WeightsKind {
  as_is,  // what the file holds
  bf16,   // f32, f16 and block weights rounded to bf16
  int8,   // every matrix int8 per output channel, its inputs quantised per token; the embedding's rows too
};

// `host` in host memory. The result owns its memory, or is `host` itself where nothing changes. `threads` >= 1.
Linear convert_linear(const Linear& host, WeightsKind kind, int threads);

// The matrix in int8, a scale per row or one for all (written for every row), inputs per token. Owns its memory; int8 already: `host`
// itself.
Linear int8_linear(const Linear& host, bool per_channel, int threads);

// What a weight of `bytes` in the file takes after that.
int64_t converted_bytes(int64_t out, int64_t in, int64_t bytes, WeightsKind kind);

}  // namespace lapidary
