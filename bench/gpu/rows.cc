// Row kernels: norms with and without quantisation, GeGLU. All are bound by memory, or by their launch where rows are few.
#include "cuda/api/rows.h"

#include <string>

#include "checks.h"
#include "families.h"

namespace lapidary::bench {

namespace {

constexpr float kEps = 1e-6f;

// Largest relative deviation that a bf16 or int8 output may have from the value in double.
std::string compare_value(double got, double want, double step, int64_t row, int64_t column) {
  return std::abs(got - want) <= step ? "" : mismatch(row, column, got, want);
}

double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

}  // namespace

void run_rows(Session& session) {
  const Pattern<float> x_values = random_f32(31, -4, 4), branch_values = random_f32(32, -2, 2), weights = random_f32(33, -0.5f, 0.5f);
  const std::vector<std::pair<int64_t, int64_t>> shapes =
      session.tiny() ? std::vector<std::pair<int64_t, int64_t>>{{3, 96}}
                     : std::vector<std::pair<int64_t, int64_t>>{{1, 1152},    {1, 5376},    {16, 2560},  {512, 2560},
                                                                {2048, 2560}, {2048, 5376}, {8192, 5376}};
  for (const auto& [rows, dim] : shapes) {
    const std::string size = " " + std::to_string(rows) + "x" + std::to_string(dim);
    const int rotation = std::min(session.rotation(8.0 * static_cast<double>(rows * dim)), 64);
    std::vector<DeviceMemory> x, branch;
    for (int i = 0; i < rotation; ++i) {
      x.push_back(session.filled(x_values, rows * dim));
      branch.push_back(session.filled(branch_values, rows * dim));
    }
    const DeviceMemory weight = session.filled(weights, dim), next = session.filled(weights, dim, 5);
    const DeviceMemory out = session.memory(static_cast<size_t>(rows * dim) * 4), scales = session.memory(static_cast<size_t>(rows) * 4);
    const int32_t m = static_cast<int32_t>(rows), n = static_cast<int32_t>(dim);
    const auto inverse_norm = [&](const auto& value) {
      double sum = 0;
      for (int64_t i = 0; i < dim; ++i) sum += value(i) * value(i);
      return 1 / std::sqrt(sum / static_cast<double>(dim) + kEps);
    };
    const double cells = static_cast<double>(rows * dim);

    const auto normed = [&, row_count = rows, columns = dim](int64_t row, int64_t column) {
      (void)row_count;
      const auto value = [&](int64_t i) { return static_cast<double>(x_values.at(row * columns + i)); };
      return value(column) * inverse_norm(value) * (1 + weights.at(column));
    };
    if (session.wants("rms_norm to bf16" + size)) {
      const auto work = [&](int i) {
        return session.api().rms_norm({x[static_cast<size_t>(i)].as<float>(), weight.as<float>(), cuda::act_bf16(out.get()), m, n, 1, kEps},
                                      session.context());
      };
      const auto check = [&, row_count = rows, columns = dim] {
        return spot_check(row_count, columns, [&](int64_t row, int64_t column) {
          const double want = normed(row, column);
          return compare_value(from_bf16(device_element<uint16_t>(session, out, row * columns + column)), want,
                               0.005 * std::abs(want) + 1e-6, row, column);
        });
      };
      session.run({"rms_norm to bf16" + size, 6 * cells, 0, Bound::copy, {{"m", rows}, {"n", dim}}}, rotation, work, check);
    }
    if (session.wants("rms_norm to int8" + size)) {
      const auto work = [&](int i) {
        const cuda::ActOut to = cuda::act_int8_per_row(out.as<int8_t>(), scales.as<float>());
        return session.api().rms_norm({x[static_cast<size_t>(i)].as<float>(), weight.as<float>(), to, m, n, 1, kEps}, session.context());
      };
      const auto check = [&, row_count = rows, columns = dim] {
        return spot_check(row_count, columns, [&](int64_t row, int64_t column) {
          const double scale = device_element<float>(session, scales, row);
          const double got = device_element<int8_t>(session, out, row * columns + column) * scale;
          return compare_value(got, normed(row, column), 0.51 * scale, row, column);
        });
      };
      session.run({"rms_norm to int8" + size, 5 * cells, 0, Bound::copy, {{"m", rows}, {"n", dim}}}, rotation, work, check);
    }
    if (session.wants("add_norm to bf16" + size)) {
      const auto work = [&](int i) {
        cuda::AddNormParams p = {};
        p.x = x[static_cast<size_t>(i)].as<float>();
        p.branch = branch[static_cast<size_t>(i)].as<float>();
        p.post_weight = weight.as<float>();
        p.next_weight = next.as<float>();
        p.out = cuda::act_bf16(out.get());
        p.rows = m;
        p.dim = n;
        p.offset = 1;
        p.eps = kEps;
        return session.api().add_norm(p, session.context());
      };
      const auto check = [&, row_count = rows, columns = dim] {
        return spot_check(row_count, columns, [&](int64_t row, int64_t column) {
          const auto added = [&](int64_t i) { return static_cast<double>(branch_values.at(row * columns + i)); };
          const double branch_inverse = inverse_norm(added);
          const auto sum = [&](int64_t i) { return x_values.at(row * columns + i) + added(i) * branch_inverse * (1 + weights.at(i)); };
          const double want = sum(column) * inverse_norm(sum) * (1 + weights.at(column + 5));
          return compare_value(from_bf16(device_element<uint16_t>(session, out, row * columns + column)), want,
                               0.005 * std::abs(want) + 1e-5, row, column);
        });
      };
      session.run({"add_norm to bf16" + size, 14 * cells, 0, Bound::copy, {{"m", rows}, {"n", dim}}}, rotation, work, check);
    }
    if (session.wants("geglu to bf16" + size)) {
      const auto work = [&](int i) {
        return session.api().geglu(
            {x[static_cast<size_t>(i)].as<float>(), branch[static_cast<size_t>(i)].as<float>(), cuda::act_bf16(out.get()), m, n, false},
            session.context());
      };
      // add_norm has changed x: the gate is read back.
      const auto check = [&, row_count = rows, columns = dim] {
        return spot_check(row_count, columns, [&](int64_t row, int64_t column) {
          const double gate = device_element<float>(session, x[0], row * columns + column),
                       want = gelu_tanh(gate) * branch_values.at(row * columns + column);
          return compare_value(from_bf16(device_element<uint16_t>(session, out, row * columns + column)), want,
                               0.005 * std::abs(want) + 1e-4, row, column);
        });
      };
      session.run({"geglu to bf16" + size, 10 * cells, 0, Bound::copy, {{"m", rows}, {"n", dim}}}, rotation, work, check);
    }
  }
}

}  // namespace lapidary::bench
