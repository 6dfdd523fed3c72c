// Every operation of training against central differences of its forward formula in double, on the reference and the CPU backend.
#include "ops/training.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "ops/ops_data.h"
#include "ops/training_data.h"

namespace lapidary {

using namespace test;

namespace {

using Doubles = std::vector<double>;

// Sums of a few hundred f32 products in another order, against the norm of the whole derivative.
constexpr double kTolerance = 1e-5;

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = [] {
    std::vector<NamedBackend> list = cpu_backends();
    list.push_back({"reference", make_reference_backend()});
    return list;
  }();
  return all;
}

Doubles doubles(const Tensor& t) { return Doubles(t.as<float>(), t.as<float>() + t.elements()); }

// The derivative of f at x, element by element.
Doubles differences(Doubles x, const std::function<double(const Doubles&)>& f) {
  Doubles g(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i], step = 1e-5 * std::max(1.0, std::abs(at));
    x[i] = at + step;
    const double above = f(x);
    x[i] = at - step;
    g[i] = (above - f(x)) / (2 * step);
    x[i] = at;
  }
  return g;
}

double error_of(const Tensor& got, const Doubles& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = got.as<float>()[i] - want[i];
    difference += d * d, norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

void check_error(const std::string& what, const Tensor& got, const Doubles& want, double tolerance = kTolerance) {
  const double error = error_of(got, want);
  CHECK_MSG(error <= tolerance, what << ": relative error " << error);
}

double weighted(const Doubles& y, const Doubles& weights) {
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * weights[i];
  return sum;
}

}  // namespace

TEST("training: matmul in its three forms") {
  for (int64_t m : {1, 7, 59, 60, 61}) {
    for (int64_t n : {1, 31, 32, 33}) {
      for (int64_t k : {1, 17, 255, 256, 257, 600}) {
        const MatmulForm form = static_cast<MatmulForm>((m + n + k) % 3);
        const bool a_turned = form == MatmulForm::tn, b_turned = form == MatmulForm::nt;
        const Owned a = plain_numbers({a_turned ? k : m, a_turned ? m : k}, 1), b = plain_numbers({b_turned ? n : k, b_turned ? k : n}, 2);
        for (bool add : {false, true}) {
          const Owned before = plain_numbers({m, n}, 3);
          Doubles want(static_cast<size_t>(m * n));
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              double sum = add ? before.t.as<float>()[i * n + j] : 0;
              for (int64_t l = 0; l < k; ++l)
                sum += double{a.t.as<float>()[a_turned ? l * m + i : i * k + l]} * b.t.as<float>()[b_turned ? j * k + l : l * n + j];
              want[static_cast<size_t>(i * n + j)] = sum;
            }
          }
          for (NamedBackend& backend : backends()) {
            Owned c(DType::f32, {m, n});
            if (add) std::memcpy(c.t.data, before.t.data, static_cast<size_t>(c.t.bytes()));
            backend.backend->training().matmul(form, a.t, b.t, c.t, add);
            check_error(backend.label + ", matmul " + std::to_string(static_cast<int>(form)) + c.t.shape_text(), c.t, want, 3e-6);
          }
        }
      }
    }
  }
  Owned a(DType::f32, {3, 4}), b(DType::f32, {3, 4}), c(DType::f32, {3, 3});
  for (NamedBackend& backend : backends())
    CHECK_THROWS(backend.backend->training().matmul(MatmulForm::nn, a.t, b.t, c.t, false), ErrorCode::internal, "[3, 4]");
}

TEST("training: rms_norm") {
  for (int64_t dim : {1, 15, 16, 33, 72}) {
    for (float offset : {0.0f, 1.0f}) {
      const int64_t rows = dim == 33 ? 70 : 3;
      const Owned x = plain_numbers({rows, dim}, 1), w = plain_numbers({dim}, 2), gy = plain_numbers({rows, dim}, 3);
      const Norm norm{w.t, offset, 1e-6f};
      const auto forward = [&](const Doubles& in, const Doubles& weight) {
        Doubles y(in.size());
        for (int64_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (int64_t i = 0; i < dim; ++i) squares += in[static_cast<size_t>(r * dim + i)] * in[static_cast<size_t>(r * dim + i)];
          for (int64_t i = 0; i < dim; ++i) {
            const auto at = static_cast<size_t>(r * dim + i);
            y[at] = in[at] / std::sqrt(squares / static_cast<double>(dim) + 1e-6) * (offset + weight[static_cast<size_t>(i)]);
          }
        }
        return weighted(y, doubles(gy.t));
      };
      const Doubles gx = differences(doubles(x.t), [&](const Doubles& in) { return forward(in, doubles(w.t)); });
      Doubles gw = differences(doubles(w.t), [&](const Doubles& weight) { return forward(doubles(x.t), weight); });
      for (NamedBackend& b : backends()) {
        Owned got(DType::f32, {rows, dim}), got_w = plain_numbers({dim}, 9);
        Doubles want_w = doubles(got_w.t);
        for (size_t i = 0; i < gw.size(); ++i) want_w[i] += gw[i];
        b.backend->training().rms_norm_backward(x.t, norm, gy.t, got.t, false, got_w.t);
        // One element: y does not depend on x but for epsilon, so the derivative is what cancellation leaves.
        if (dim > 1) check_error(b.label + ", rms_norm gx " + std::to_string(dim), got.t, gx);
        check_error(b.label + ", rms_norm gw " + std::to_string(dim), got_w.t, want_w);
        Owned sum = plain_numbers({rows, dim}, 4);
        Doubles want = doubles(sum.t);
        for (size_t i = 0; i < gx.size(); ++i) want[i] += gx[i];
        b.backend->training().rms_norm_backward(x.t, norm, gy.t, sum.t, true, {});
        check_error(b.label + ", rms_norm added gx", sum.t, want);
        Owned in_place(DType::f32, {rows, dim});
        std::memcpy(in_place.t.data, gy.t.data, static_cast<size_t>(gy.t.bytes()));
        b.backend->training().rms_norm_backward(x.t, norm, in_place.t, in_place.t, false, {});
        CHECK_MSG(bits_of(in_place.t) == bits_of(got.t), b.label << ": in place differs");
      }
    }
  }
}

TEST("training: rope is undone by its backward") {
  const std::vector<int32_t> positions = {0, 1, 63, 1000};
  for (int64_t half : {1, 15, 16, 20}) {
    std::vector<float> inv_freq;
    for (int64_t j = 0; j < half; ++j) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(j) / static_cast<float>(half)));
    const Owned x = plain_numbers({4, 3, 2 * half}, 1);
    for (NamedBackend& b : backends()) {
      Owned cos(DType::f32, {4, half}), sin(DType::f32, {4, half}), y(DType::f32, {4, 3, 2 * half});
      b.backend->rope_angles(positions, inv_freq, cos.t, sin.t);
      std::memcpy(y.t.data, x.t.data, static_cast<size_t>(y.t.bytes()));
      b.backend->rope(y.t, cos.t, sin.t);
      CHECK(error_of(y.t, doubles(x.t)) > 0.1);
      b.backend->training().rope_backward(y.t, cos.t, sin.t);
      check_error(b.label + ", rope", y.t, doubles(x.t), 1e-6);
    }
  }
}

TEST("training: geglu and soft_cap") {
  for (int64_t n : {1, 15, 16, 100}) {
    const Owned gate = plain_numbers({1, n}, 1), up = plain_numbers({1, n}, 2), g = plain_numbers({1, n}, 3);
    const auto forward = [&](const Doubles& a, const Doubles& u) {
      Doubles y(a.size());
      for (size_t i = 0; i < a.size(); ++i)
        y[i] = 0.5 * a[i] * (1 + std::tanh(0.7978845608028654 * (a[i] + 0.044715 * a[i] * a[i] * a[i]))) * u[i];
      return weighted(y, doubles(g.t));
    };
    const Doubles want_gate = differences(doubles(gate.t), [&](const Doubles& a) { return forward(a, doubles(up.t)); });
    const Doubles want_up = differences(doubles(up.t), [&](const Doubles& u) { return forward(doubles(gate.t), u); });
    const auto capped = [](double x) { return 2.5 * std::tanh(x / 2.5); };
    const Doubles want_cap = differences(doubles(gate.t), [&](const Doubles& x) {
      Doubles y(x.size());
      std::transform(x.begin(), x.end(), y.begin(), capped);
      return weighted(y, doubles(g.t));
    });
    for (NamedBackend& b : backends()) {
      Owned ggate(DType::f32, {1, n}), gup(DType::f32, {1, n}), y(DType::f32, {1, n});
      std::memcpy(ggate.t.data, g.t.data, static_cast<size_t>(g.t.bytes()));
      b.backend->training().geglu_backward(gate.t, up.t, ggate.t, ggate.t, gup.t);
      check_error(b.label + ", geglu gate", ggate.t, want_gate);
      check_error(b.label + ", geglu up", gup.t, want_up);
      std::memcpy(y.t.data, gate.t.data, static_cast<size_t>(y.t.bytes()));
      std::memcpy(gup.t.data, g.t.data, static_cast<size_t>(y.t.bytes()));
      b.backend->soft_cap(y.t, 2.5f);
      b.backend->training().soft_cap_backward(y.t, 2.5f, gup.t);
      check_error(b.label + ", soft_cap", gup.t, want_cap);
    }
  }
  // Far out the slope is 1 or 0, not NaN.
  const float far[] = {1e3f, -1e3f, 1e20f, -1e20f}, ones[] = {1, 1, 1, 1};
  for (NamedBackend& b : backends()) {
    Owned ggate(DType::f32, {1, 4}), gup(DType::f32, {1, 4});
    const Tensor gate(far, DType::f32, {1, 4}), one(ones, DType::f32, {1, 4});
    b.backend->training().geglu_backward(gate, one, one, ggate.t, gup.t);
    for (int i = 0; i < 4; ++i) CHECK_MSG(ggate.t.as<float>()[i] == (far[i] > 0 ? 1 : 0), b.label << ": " << ggate.t.as<float>()[i]);
  }
}

TEST("training: embed_backward adds rows that occur more than once") {
  const std::vector<int32_t> ids = {3, 0, 3, 3, 7};
  const Owned gx = plain_numbers({5, 131}, 1);
  for (NamedBackend& b : backends()) {
    Owned table = plain_numbers({8, 131}, 2);
    Doubles want = doubles(table.t);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (size_t i = 0; i < 131; ++i) want[static_cast<size_t>(ids[t]) * 131 + i] += 11.3 * gx.t.as<float>()[t * 131 + i];
    }
    b.backend->training().embed_backward(ids, 11.3f, gx.t, table.t);
    check_error(b.label + ", embed", table.t, want, 1e-6);
  }
}

namespace {

Doubles log_softmax(const Doubles& z, double cap, double temperature) {
  Doubles l(z.size());
  double sum = 0;
  for (size_t i = 0; i < z.size(); ++i) l[i] = (cap != 0 ? cap * std::tanh(z[i] / cap) : z[i]) / temperature;
  const double most = *std::max_element(l.begin(), l.end());
  for (double v : l) sum += std::exp(v - most);
  for (double& v : l) v -= most + std::log(sum);
  return l;
}

Doubles row_of(const Doubles& x, size_t row, size_t columns) {
  return Doubles(x.begin() + static_cast<std::ptrdiff_t>(row * columns), x.begin() + static_cast<std::ptrdiff_t>((row + 1) * columns));
}

}  // namespace

TEST("training: cross_entropy, hard and soft targets, with and without a cap") {
  const int64_t rows = 4;
  for (int64_t vocab : {3, 16, 37, 515}) {
    for (float cap : {0.0f, 2.0f}) {
      for (int64_t per_row : {1, 3}) {
        const Owned logits = plain_numbers({rows, vocab}, 5);
        const std::vector<float> weights = {0.5f, 0, 2, 1};
        std::vector<int32_t> ids;
        std::vector<float> probabilities;
        Random random(3);
        for (int64_t i = 0; i < rows * per_row; ++i) {
          ids.push_back(static_cast<int32_t>(random.bits() % static_cast<uint32_t>(vocab)));
          if (per_row > 1) probabilities.push_back(0.1f + 0.2f * static_cast<float>(i % 3));
        }
        const auto loss_of = [&](const Doubles& z, size_t r) {
          const Doubles l = log_softmax(row_of(z, r, static_cast<size_t>(vocab)), cap, 1);
          double loss = 0;
          for (int64_t j = 0; j < per_row; ++j) {
            const size_t at = r * static_cast<size_t>(per_row) + static_cast<size_t>(j);
            loss -= (per_row > 1 ? probabilities[at] : 1) * l[static_cast<size_t>(ids[at])];
          }
          return loss * weights[r];
        };
        const auto total = [&](const Doubles& z) {
          double sum = 0;
          for (size_t r = 0; r < rows; ++r) sum += loss_of(z, r);
          return sum;
        };
        const Doubles want = differences(doubles(logits.t), total);
        for (NamedBackend& b : backends()) {
          Owned g(DType::f32, {rows, vocab});
          std::memcpy(g.t.data, logits.t.data, static_cast<size_t>(g.t.bytes()));
          Doubles losses(rows);
          b.backend->training().cross_entropy(g.t, cap, {ids, probabilities, per_row, weights}, losses);
          check_error(b.label + ", cross_entropy " + std::to_string(vocab), g.t, want);
          for (size_t r = 0; r < rows; ++r)
            CHECK_MSG(std::abs(losses[r] - loss_of(doubles(logits.t), r)) <= 1e-5, b.label << ": loss " << losses[r]);
          for (int64_t i = 0; i < vocab; ++i) CHECK(g.t.as<float>()[vocab + i] == 0);
        }
      }
    }
  }
}

TEST("training: distillation, over temperatures") {
  const int64_t rows = 3;
  for (int64_t vocab : {5, 33}) {
    for (float temperature : {1.0f, 2.5f}) {
      for (float cap : {0.0f, 2.0f}) {
        const Owned logits = plain_numbers({rows, vocab}, 5), teacher = plain_numbers({rows, vocab}, 6);
        const std::vector<float> weights = {0.5f, 0, 2};
        const auto total = [&](const Doubles& z) {
          double sum = 0;
          for (size_t r = 0; r < rows; ++r) {
            const Doubles s = log_softmax(row_of(z, r, static_cast<size_t>(vocab)), cap, temperature),
                          q = log_softmax(row_of(doubles(teacher.t), r, static_cast<size_t>(vocab)), 0, temperature);
            for (size_t i = 0; i < s.size(); ++i) sum += weights[r] * temperature * temperature * std::exp(q[i]) * (q[i] - s[i]);
          }
          return sum;
        };
        const Doubles want = differences(doubles(logits.t), total);
        for (NamedBackend& b : backends()) {
          Owned g(DType::f32, {rows, vocab});
          std::memcpy(g.t.data, logits.t.data, static_cast<size_t>(g.t.bytes()));
          Doubles losses(rows);
          b.backend->training().distillation(g.t, cap, teacher.t, temperature, weights, losses);
          check_error(b.label + ", distillation", g.t, want);
          CHECK(std::abs(losses[0] + losses[1] + losses[2] - total(doubles(logits.t))) <= 1e-5 * (1 + total(doubles(logits.t))));
        }
      }
    }
  }
  // Probabilities too small for f32 on either side.
  const float student[] = {0, -500, 300, 0}, other[] = {-500, 0, 300, 0};
  for (NamedBackend& b : backends()) {
    Owned g(DType::f32, {1, 4});
    std::memcpy(g.t.data, student, sizeof student);
    Doubles losses(1);
    const std::vector<float> weights = {1};
    b.backend->training().distillation(g.t, 0, Tensor(other, DType::f32, {1, 4}), 1, weights, losses);
    CHECK_MSG(std::abs(losses[0]) < 1e-6, b.label << ": " << losses[0]);
    for (int i = 0; i < 4; ++i) CHECK(std::abs(g.t.as<float>()[i]) < 1e-6);
  }
}

TEST("training: optimiser arithmetic by hand") {
  for (NamedBackend& b : backends()) {
    TrainingOps& ops = b.backend->training();
    std::vector<float> p = {1, -2, 0.5f}, g = {0.1f, -4, 0}, m = {0, 0.2f, 0}, v = {0, 0.3f, 0}, mask = {1, 0, 1};
    const auto view = [](std::vector<float>& x) { return Tensor(x.data(), DType::f32, {static_cast<int64_t>(x.size())}); };
    CHECK(std::abs(ops.sum_of_squares(view(g)) - 16.01) < 1e-6);
    ops.adamw(view(p), view(g), view(m), view(v), {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 2, 0.5f});
    for (size_t i = 0; i < 3; ++i) {
      const double p0 = std::vector<double>{1, -2, 0.5}[i], g0 = std::vector<double>{0.05, -2, 0}[i], m0 = i == 1 ? 0.2 : 0,
                   v0 = i == 1 ? 0.3 : 0;
      const double m1 = 0.9 * m0 + 0.1 * g0, v1 = 0.95 * v0 + 0.05 * g0 * g0;
      const double want = p0 * (1 - 0.001) - 0.01 * (m1 / (1 - 0.81)) / (std::sqrt(v1 / (1 - 0.9025)) + 1e-8);
      CHECK_MSG(std::abs(p[i] - want) < 1e-6 && std::abs(m[i] - m1) < 1e-6 && std::abs(v[i] - v1) < 1e-6,
                b.label << ": " << p[i] << " " << want);
    }
    p = {1, -2, 0.5f}, g = {0.1f, -4, 0}, m = {9, 9, 9};
    ops.sgd(view(p), view(g), view(m), {0.1f, 0.9f, 0.01f, true, 1});
    ops.sgd(view(p), view(g), view(m), {0.1f, 0.9f, 0.01f, false, 1});
    double value = 1, momentum = 0;
    for (int i = 0; i < 2; ++i) momentum = (i ? 0.9 * momentum : 0) + 0.1 + 0.01 * value, value -= 0.1 * momentum;
    CHECK_MSG(std::abs(p[0] - value) < 1e-6, b.label << ": " << p[0] << " " << value);
    p = {1, -2, 0.5f};
    ops.sgd(view(p), view(g), {}, {0.1f, 0, 0, true, 1});
    CHECK(std::abs(p[1] + 1.6f) < 1e-6f);
    ops.multiply(view(p), view(mask));
    CHECK(p[1] == 0 && p[2] == 0.5f);
  }
}

}  // namespace lapidary
