// Packed products of one kernel, called as products.cc does, without threads; and what they should be.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "check.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/kernels/arm64.h"
#include "cpu/packed.h"
#include "ops/ops_data.h"

namespace lapidary::cpu {

struct NamedKernel {
  std::string name;
  const PackedKernel* kernel;
};

// The tables that this processor has, the best first, without those of further features.
inline std::vector<const Kernels*> base_tables() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__) && defined(__GNUC__)
  const auto has = [](const char* name) {
    const std::string names = " " + cpu_instruction_sets() + " ";
    return names.find(" " + std::string(name) + " ") != std::string::npos;
  };
#ifndef LAPIDARY_AVX2_ONLY
  if (has(kAvx512Kernels.name)) found.push_back(&kAvx512Kernels);
#endif
  if (has(kAvx2Kernels.name)) found.push_back(&kAvx2Kernels);
#endif
  for (int i = 0; arm64_table(i) != nullptr; ++i) found.push_back(arm64_table(i));
  found.push_back(&kScalarKernels);
  return found;
}

inline Linear packed(const Linear& host) { return pack_linear(*packed_layout(host.weight.dtype), host, *ThreadPool::shared(1)); }

// x [tokens, k] -> [tokens, n], panels [p0, p1) in each call `panels_at_once` apart. What the kernel may not write stays as it is.
inline std::vector<float> run_packed(const PackedKernel& kernel, const Linear& w, const float* x, int64_t tokens,
                                     const InputRule& rule = {}, int64_t panels_at_once = 1 << 20) {
  const PackedMatrix& m = *packed_matrix(w);
  const int64_t bytes = kernel.input_bytes(m.k), stride = m.n + 3;
  CHECK(bytes % 64 == 0);
  const Buffer rows = allocate_host(static_cast<size_t>(tokens * bytes));
  std::memset(rows.memory.get(), 0xff, static_cast<size_t>(tokens * bytes));
  for (int64_t t = 0; t < tokens; ++t) kernel.prepare(x + t * m.k, m.k, rule, rows.memory.get() + t * bytes);
  const Buffer scratch = allocate_host(kernel.scratch_floats(tokens, m.k) * sizeof(float) + 64);
  std::vector<float> wide(static_cast<size_t>(tokens * stride), -1234);
  const PackedTask task{rows.memory.get(), tokens, m.panel(0), m.panel_bytes, m.n, m.k, w.scale.as<float>(), wide.data(), stride, 0};
  for (int64_t p = 0; p < m.panels(); p += panels_at_once)
    kernel.multiply(task, p, std::min(p + panels_at_once, m.panels()), reinterpret_cast<float*>(scratch.memory.get()));
  std::vector<float> out;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = wide.data() + t * stride;
    out.insert(out.end(), row, row + m.n);
    for (int64_t i = m.n; i < stride; ++i) CHECK_MSG(row[i] == -1234, "column " << i << " of " << m.n << " is written");
  }
  return out;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Every row of the batch has the bits of that row alone, and of the same rows panel by panel.
inline void check_rows_alone(const NamedKernel& named, const Linear& w, const std::vector<float>& x, int64_t tokens,
                             const std::vector<float>& batch, const InputRule& rule) {
  const PackedMatrix& m = *packed_matrix(w);
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<float> alone = run_packed(*named.kernel, w, x.data() + t * m.k, 1, rule);
    CHECK_MSG(same_bits(alone, std::span(batch).subspan(static_cast<size_t>(t * m.n), static_cast<size_t>(m.n))),
              named.name << ": row " << t << " of " << tokens << " differs from that row alone, k " << m.k << ", n " << m.n);
  }
  CHECK_MSG(same_bits(run_packed(*named.kernel, w, x.data(), tokens, rule, 1), batch), named.name << ": panels one by one, n " << m.n);
}

}  // namespace lapidary::cpu
