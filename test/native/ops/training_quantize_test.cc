// Fake quantisation: the int8 rule's values, straight-through masks, and the three derivatives of the quantisation error.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "ops/int8.h"
#include "ops/training_data.h"

namespace lapidary {

using namespace test;

namespace {

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = [] {
    std::vector<NamedBackend> list = cpu_backends();
    list.push_back({"reference", make_reference_backend()});
    return list;
  }();
  return all;
}

const std::vector<SequenceRows> kSequences = {{0, 2, 0}, {2, 0, 0}, {2, 5, 0}};
constexpr int64_t kRows = 7;

float scale_of(const FakeQuant& quant, const Tensor& x, int64_t row) {
  if (quant.scope == QuantScope::fixed) return quant.scale;
  const int64_t dim = x.shape[1];
  if (quant.scope == QuantScope::token) return int8_scale(absolute_max(x.as<float>() + row * dim, dim));
  return row < 2 ? int8_scale(absolute_max(x.as<float>(), 2 * dim)) : int8_scale(absolute_max(x.as<float>() + 2 * dim, 5 * dim));
}

}  // namespace

TEST("training: fake quantisation gives what the int8 rule gives") {
  for (int64_t dim : {1, 15, 16, 33, 5000}) {
    for (const FakeQuant& quant : {FakeQuant{QuantScope::fixed, 0.013f}, FakeQuant{QuantScope::token}, FakeQuant{QuantScope::sequence}}) {
      const Owned x = plain_numbers({kRows, dim}, static_cast<uint64_t>(dim));
      double want_error = 0;
      std::vector<float> want;
      for (int64_t i = 0; i < kRows * dim; ++i) {
        const float s = scale_of(quant, x.t, i / dim), value = x.t.as<float>()[i];
        want.push_back(static_cast<float>(to_int8(value * (1.0f / s))) * s);
        want_error += std::pow(double{value} - want.back(), 2);
      }
      for (NamedBackend& b : backends()) {
        Owned out(DType::f32, {kRows, dim}), scales(DType::f32, {kRows});
        const double error = b.backend->training().fake_quantize(x.t, quant, kSequences, out.t, scales.t);
        for (int64_t r = 0; r < kRows; ++r) CHECK(scales.t.as<float>()[r] == scale_of(quant, x.t, r));
        for (size_t i = 0; i < want.size(); ++i) CHECK_MSG(out.t.as<float>()[i] == want[i], b.label << ", element " << i);
        CHECK_MSG(std::abs(error - want_error) <= 1e-5 * want_error, b.label << ": error " << error << ", " << want_error);
      }
    }
  }
  Owned x = plain_numbers({1, 4}, 1), out(DType::f32, {1, 4}), scales(DType::f32, {1});
  for (NamedBackend& b : backends()) {
    CHECK_THROWS(b.backend->training().fake_quantize(x.t, {}, {}, out.t, scales.t), ErrorCode::internal, "scheme");
    CHECK_THROWS(b.backend->training().fake_quantize(x.t, {QuantScope::fixed, 0}, {}, out.t, scales.t), ErrorCode::internal, "scale");
  }
}

TEST("training: straight-through masks and derivatives of the quantisation error") {
  for (int64_t dim : {1, 16, 37}) {
    for (const FakeQuant& quant : {FakeQuant{QuantScope::fixed, 0.01f}, FakeQuant{QuantScope::token}, FakeQuant{QuantScope::sequence}}) {
      for (const auto kind : {QuantErrorGradient::literal, QuantErrorGradient::straight_through, QuantErrorGradient::through_scale}) {
        const Owned x = plain_numbers({kRows, dim}, static_cast<uint64_t>(dim) + 7), g = plain_numbers({kRows, dim}, 8);
        const float weight = 0.3f;
        std::vector<double> want;
        for (int64_t i = 0; i < kRows * dim; ++i) {
          const double s = scale_of(quant, x.t, i / dim), value = x.t.as<float>()[i];
          const bool outside = quant.scope == QuantScope::fixed && std::abs(value) > double{127 * static_cast<float>(s)};
          const double q = to_int8(static_cast<float>(value) * (1.0f / static_cast<float>(s))) * s,
                       clip = outside ? std::copysign(127 * s, value) : value;
          want.push_back((outside ? 0 : g.t.as<float>()[i]) +
                         weight * 2 * (kind == QuantErrorGradient::literal ? value - q : value - clip));
        }
        if (kind == QuantErrorGradient::through_scale && quant.scope != QuantScope::fixed) {
          // The error of a domain scales as the square of its scale, which its largest element sets: 2 L / A there.
          for (int64_t row = 0; row < kRows;) {
            const int64_t rows = quant.scope == QuantScope::token ? 1 : row == 0 ? 2 : 5;
            const float* in = x.t.as<float>() + row * dim;
            const double s = scale_of(quant, x.t, row), most = absolute_max(in, rows * dim);
            double error = 0;
            for (int64_t i = 0; i < rows * dim; ++i) error += std::pow(in[i] - to_int8(in[i] * (1.0f / static_cast<float>(s))) * s, 2);
            const int64_t at = std::find_if(in, in + rows * dim, [&](float v) { return std::abs(v) == most; }) - in;
            want[static_cast<size_t>(row * dim + at)] += weight * std::copysign(2 * error / most, in[at]);
            row += rows;
          }
        }
        for (NamedBackend& b : backends()) {
          Owned out(DType::f32, {kRows, dim}), scales(DType::f32, {kRows}), got(DType::f32, {kRows, dim});
          b.backend->training().fake_quantize(x.t, quant, kSequences, out.t, scales.t);
          std::memcpy(got.t.data, g.t.data, static_cast<size_t>(g.t.bytes()));
          b.backend->training().fake_quantize_backward(x.t, quant, kSequences, scales.t, weight, kind, got.t);
          for (size_t i = 0; i < want.size(); ++i)
            CHECK_MSG(std::abs(got.t.as<float>()[i] - want[i]) <= 2e-6,
                      b.label << ", dim " << dim << ", scope " << static_cast<int>(quant.scope) << ", kind " << static_cast<int>(kind)
                              << ", element " << i << ": " << got.t.as<float>()[i] << ", " << want[i]);
        }
      }
    }
  }
}

// The literal derivative is the true one wherever no element stands at a rounding boundary.
TEST("training: the literal derivative of the quantisation error against central differences") {
  const FakeQuant quant{QuantScope::fixed, 0.25f};
  Owned x = plain_numbers({1, 64}, 3);
  for (NamedBackend& b : backends()) {
    Owned out(DType::f32, {1, 64}), scales(DType::f32, {1}), g(DType::f32, {1, 64});
    TrainingOps& ops = b.backend->training();
    ops.fake_quantize(x.t, quant, {}, out.t, scales.t);
    std::memset(g.t.data, 0, static_cast<size_t>(g.t.bytes()));
    ops.fake_quantize_backward(x.t, quant, {}, scales.t, 1, QuantErrorGradient::literal, g.t);
    for (int64_t i = 0; i < 64; ++i) {
      float& value = x.t.as<float>()[i];
      const float at = value, step = 1.0f / 1024, from_boundary = std::abs(at / 0.25f - std::floor(at / 0.25f) - 0.5f);
      if (from_boundary < 0.02f) continue;
      value = at + step;
      const double above = ops.fake_quantize(x.t, quant, {}, out.t, scales.t);
      value = at - step;
      const double below = ops.fake_quantize(x.t, quant, {}, out.t, scales.t);
      value = at;
      CHECK_MSG(std::abs((above - below) * 512 - g.t.as<float>()[i]) < 2e-3, b.label << ", element " << i);
    }
  }
}

}  // namespace lapidary
