// The families of benchmarks over the launchers, one file each.
#pragma once

#include "harness.h"

namespace lapidary::bench {

void run_gemm_int8(Session& session);
void run_gemm_bf16(Session& session);
void run_gemv(Session& session);
void run_attention_prefill(Session& session);
void run_attention_decode(Session& session);
void run_rows(Session& session);
void run_sampling(Session& session);

// A weight matrix of a Gemma.
struct Matrix {
  const char* name;
  int64_t n, k;
};
// From 1B to 27B: the ones where tiles, waves and sizes differ most. Tiny: one that the emulator can do.
const std::vector<Matrix>& gemma_matrices(bool tiny);

}  // namespace lapidary::bench
