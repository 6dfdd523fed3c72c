// Tiled matrix products at Gemma's shapes. Cold: weights and activations of a call are not those of the calls before it.
#include <cmath>
#include <string>

#include "checks.h"
#include "cuda/api/gemm_plan.h"
#include "families.h"

namespace lapidary::bench {

const std::vector<Matrix>& gemma_matrices(bool tiny) {
  static const std::vector<Matrix> full = {
      {"1B qkv", 1536, 1152},       {"1B gate_up", 13824, 1152}, {"1B down", 1152, 6912},  {"4B qkv", 4096, 2560},
      {"4B o", 2560, 2048},         {"4B gate_up", 20480, 2560}, {"4B down", 2560, 10240}, {"12B gate_up", 30720, 3840},
      {"27B gate_up", 43008, 5376}, {"27B down", 5376, 21504},
  };
  static const std::vector<Matrix> small = {{"tiny", 96, 128}};
  return tiny ? small : full;
}

namespace {

const std::vector<int64_t>& rows_of(const Session& session) {
  static const std::vector<int64_t> full = {128, 512, 2048, 8192}, small = {33};
  return session.tiny() ? small : full;
}

}  // namespace

void run_gemm_int8(Session& session) {
  const Pattern<int8_t> x_values = random_int8(1), w_values = random_int8(2);
  const Pattern<float> scales = random_f32(3, 0.001f, 0.01f);
  for (const Matrix& matrix : gemma_matrices(session.tiny())) {
    const auto [label, n, k] = matrix;
    const int rotation = session.rotation(static_cast<double>(n * k));
    std::vector<DeviceMemory> weights;
    for (int i = 0; i < rotation; ++i) weights.push_back(session.filled(w_values, n * k, i));
    const DeviceMemory w_scales = session.filled(scales, n);
    for (const int64_t m : rows_of(session)) {
      const std::string name = std::string(label) + " M=" + std::to_string(m);
      if (!session.wants(name)) continue;
      const DeviceMemory x = session.filled(x_values, m * k), x_scales = session.filled(scales, m, 17),
                         out = session.memory(static_cast<size_t>(m * n) * 2);
      cuda::GemmInt8Params p;
      p.product.x = x.as<int8_t>();
      p.product.w = weights[0].as<int8_t>();
      p.product.x_scales = x_scales.as<float>();
      p.product.w_scales = w_scales.as<float>();
      p.product.x_stride = p.product.w_stride = k;
      p.product.m = static_cast<int32_t>(m);
      p.product.n = static_cast<int32_t>(n);
      p.product.k = static_cast<int32_t>(k);
      p.product.output.out = out.get();
      p.product.output.stride = n;
      p.product.output.out_type = cuda::OutType::bf16;
      p.workspace_bytes = cuda::gemm_int8_workspace_bytes(p.product, session.facts());
      const DeviceMemory workspace = session.zeros(static_cast<size_t>(p.workspace_bytes));
      p.workspace = workspace.get();
      const auto work = [&, p](int i) {
        cuda::GemmInt8Params q = p;
        q.product.w = weights[static_cast<size_t>(i)].as<int8_t>();
        return session.api().gemm_int8(q, session.context());
      };
      const auto check = [&] {
        return spot_check(m, n, [&](int64_t row, int64_t column) -> std::string {
          int32_t sum = 0;
          for (int64_t i = 0; i < k; ++i) sum += x_values.at(row * k + i) * w_values.at(column * k + i);
          const double want = static_cast<double>(sum) * scales.at(17 + row) * scales.at(column);
          const double got = from_bf16(device_element<uint16_t>(session, out, row * n + column));
          return close(got, want, 0.005, 1e-6) ? "" : mismatch(row, column, got, want);
        });
      };
      Case c = {name, static_cast<double>(n * k + m * k + 2 * m * n), 2.0 * static_cast<double>(m * n * k), Bound::int8};
      c.sizes = {{"m", m}, {"n", n}, {"k", k}};
      c.note = cuda::plan_gemm_int8(p.product, session.facts(), p.workspace != nullptr).why;
      session.run(c, rotation, work, check);
    }
  }
}

void run_gemm_bf16(Session& session) {
  const Pattern<uint16_t> x_values = random_bf16(1, 1), w_values = random_bf16(2, 1);
  for (const Matrix& matrix : gemma_matrices(session.tiny())) {
    const auto [label, n, k] = matrix;
    const int rotation = session.rotation(2 * static_cast<double>(n * k));
    std::vector<DeviceMemory> weights;
    for (int i = 0; i < rotation; ++i) weights.push_back(session.filled(w_values, n * k, i));
    for (const int64_t m : rows_of(session)) {
      const std::string name = std::string(label) + " M=" + std::to_string(m);
      if (!session.wants(name)) continue;
      const DeviceMemory x = session.filled(x_values, m * k), out = session.memory(static_cast<size_t>(m * n) * 2);
      cuda::GemmBf16Params p;
      p.product.x = x.as<uint16_t>();
      p.product.w = weights[0].as<uint16_t>();
      p.product.x_stride = p.product.w_stride = 2 * k;
      p.product.m = static_cast<int32_t>(m);
      p.product.n = static_cast<int32_t>(n);
      p.product.k = static_cast<int32_t>(k);
      p.product.output.out = out.get();
      p.product.output.stride = n;
      p.product.output.out_type = cuda::OutType::bf16;
      p.workspace_bytes = cuda::gemm_bf16_workspace_bytes(p.product, session.facts());
      const DeviceMemory workspace = session.zeros(static_cast<size_t>(p.workspace_bytes));
      p.workspace = workspace.get();
      const auto work = [&, p](int i) {
        cuda::GemmBf16Params q = p;
        q.product.w = weights[static_cast<size_t>(i)].as<uint16_t>();
        return session.api().gemm_bf16(q, session.context());
      };
      const auto check = [&] {
        return spot_check(m, n, [&](int64_t row, int64_t column) -> std::string {
          double want = 0;
          for (int64_t i = 0; i < k; ++i)
            want += static_cast<double>(from_bf16(x_values.at(row * k + i))) * from_bf16(w_values.at(column * k + i));
          const double got = from_bf16(device_element<uint16_t>(session, out, row * n + column));
          return close(got, want, 0.005, 2e-5 * std::sqrt(static_cast<double>(k))) ? "" : mismatch(row, column, got, want);
        });
      };
      Case c = {name, 2.0 * static_cast<double>(n * k + m * k + m * n), 2.0 * static_cast<double>(m * n * k), Bound::bf16};
      c.sizes = {{"m", m}, {"n", n}, {"k", k}};
      c.note = cuda::plan_gemm_bf16(p.product, session.facts(), p.workspace != nullptr).why;
      session.run(c, rotation, work, check);
    }
  }
}

}  // namespace lapidary::bench
