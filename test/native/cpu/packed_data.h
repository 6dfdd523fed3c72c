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
#include "ops/int8.h"
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

// float(Σ) · (sx · sw) of inputs quantised by the int8 rule.
inline std::vector<float> int8_products(const test::Int8Weight& weight, const std::vector<int8_t>& q, const std::vector<float>& scales) {
  const int64_t n = weight.linear.out(), k = weight.linear.in();
  std::vector<float> out;
  for (size_t t = 0; t < scales.size(); ++t) {
    for (int64_t r = 0; r < n; ++r) {
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += int64_t{q[t * static_cast<size_t>(k) + static_cast<size_t>(i)]} * weight.q.t.as<int8_t>()[r * k + i];
      out.push_back(static_cast<float>(sum) * (scales[t] * weight.scale.t.as<float>()[r]));
    }
  }
  return out;
}

// Equal bits with plain loops. fixed_scale 0: a scale per token.
inline void check_int8_product(const NamedKernel& named, int64_t n, int64_t k, int64_t tokens, float fixed_scale) {
  const test::Int8Weight weight = test::int8_weight(n, k, static_cast<uint64_t>(n + k));
  const Linear w = packed(weight.linear);
  const std::vector<float> x = test::values_of(test::activations(DType::f32, {tokens, k}, static_cast<uint64_t>(tokens)).t);
  std::vector<int8_t> q;
  std::vector<float> scales;
  for (int64_t t = 0; t < tokens; ++t) {
    float most = 0;
    for (int64_t i = 0; i < k; ++i) most = std::max(most, std::abs(x[static_cast<size_t>(t * k + i)]));
    scales.push_back(fixed_scale > 0 ? fixed_scale : int8_scale(most));
    for (int64_t i = 0; i < k; ++i) q.push_back(to_int8(x[static_cast<size_t>(t * k + i)] * (1.0f / scales.back())));
  }
  const std::vector<float> got = run_packed(*named.kernel, w, x.data(), tokens, {fixed_scale, false});
  CHECK_MSG(same_bits(got, int8_products(weight, q, scales)), named.name << ": int8 [" << tokens << ", " << k << "] x " << n);
}

// Rows that are quantised already, sums that fill 32 bits.
inline void check_int8_extremes(const NamedKernel& named) {
  const int64_t k = (int64_t{1} << 17) - 1, n = 17, tokens = 18;
  const int8_t extremes[] = {-128, 127, -127, 1, -1};
  test::Int8Weight weight = test::int8_weight(n, k, 1);
  for (int64_t r = 0; r < n; ++r) std::memset(weight.q.t.as<int8_t>() + r * k, extremes[r % 5], static_cast<size_t>(k));
  const Linear w = packed(weight.linear);
  std::vector<int8_t> q(static_cast<size_t>(tokens * k));
  std::vector<float> scales, got(static_cast<size_t>(tokens * n));
  const PackedKernel& kernel = *named.kernel;
  const int64_t bytes = kernel.input_bytes(k);
  const Buffer rows = allocate_host(static_cast<size_t>(tokens * bytes)),
               scratch = allocate_host(kernel.scratch_floats(tokens, k) * sizeof(float));
  for (int64_t t = 0; t < tokens; ++t) {
    std::memset(q.data() + t * k, extremes[t % 5], static_cast<size_t>(k));
    scales.push_back(0.001f * static_cast<float>(t + 1));
    kernel.prepare_quantized(q.data() + t * k, scales.back(), k, rows.memory.get() + t * bytes);
  }
  const PackedMatrix& m = *packed_matrix(w);
  kernel.multiply({rows.memory.get(), tokens, m.panel(0), m.panel_bytes, n, k, w.scale.as<float>(), got.data(), n, 0}, 0, m.panels(),
                  reinterpret_cast<float*>(scratch.memory.get()));
  CHECK_MSG(same_bits(got, int8_products(weight, q, scales)), named.name << ": int8 extremes");
}

}  // namespace lapidary::cpu
