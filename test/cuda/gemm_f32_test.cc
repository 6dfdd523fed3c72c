// Tiled f32 products: the documented order of operations, bit for bit, for every tile, split, weight type and alignment; and so the same
// for a row alone as for a row among others.
#include <bit>

#include "cuda/gemm_data.h"

namespace lapidary::test {

namespace {

using cuda::Epilogue;
using cuda::OutType;
using cuda::WeightType;

struct F32Case {
  Shape s;
  WeightType type;
  int x_stride, w_stride, out_stride;  // elements
  std::vector<float> x, w;             // w as the device widens it
  DeviceArray<float> x_device;
  DeviceArray<uint8_t> w_device, workspace;

  static std::vector<float> values(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> v(count);
    for (float& f : v) f = normal(random) * (random() % 89 == 0 ? 300.0f : 1.0f);
    v[0] = -0.0f;
    v[count / 2] = 1e-40f;  // a denormal
    return v;
  }
  // Not the nearest: any f16 of ordinary size, or a denormal, drawn by the value's bits.
  static f16 some_f16(float v) {
    const uint32_t u = std::bit_cast<uint32_t>(v), exponent = u % 61 == 0 ? 0 : 10 + u % 8;
    return f16{static_cast<uint16_t>((u >> 16 & 0x83ff) | exponent << 10)};
  }
  static std::vector<uint8_t> stored(std::vector<float>& w, WeightType type) {
    std::vector<uint8_t> bytes;
    const auto put = [&](auto v) { bytes.insert(bytes.end(), reinterpret_cast<uint8_t*>(&v), reinterpret_cast<uint8_t*>(&v) + sizeof v); };
    for (float& f : w) {
      if (type == WeightType::f32) put(f);
      if (type == WeightType::bf16) put(to_bf16(f)), f = round_to_bf16(f);
      if (type == WeightType::f16) put(some_f16(f)), f = to_f32(some_f16(f));
    }
    return bytes;
  }
  F32Case(Shape shape, WeightType w_type, int padding, size_t workspace_bytes = 1)
      : s(shape),
        type(w_type),
        x_stride(s.k + padding),
        w_stride(s.k + 2 * padding),
        out_stride(s.n + 3),
        x(values(static_cast<size_t>(s.m) * x_stride, 7)),
        w(values(static_cast<size_t>(s.n) * w_stride, 8)),
        x_device(x),
        w_device(stored(w, type)),
        workspace(std::vector<uint8_t>(workspace_bytes, 0)) {}

  cuda::GemmF32Params params(int first_row, int rows) const {
    cuda::GemmF32Params p;
    p.product.x = x_device.get() + static_cast<int64_t>(first_row) * x_stride;
    p.product.w = w_device.get();
    p.product.w_type = type;
    p.product.x_stride = 4 * x_stride;
    p.product.w_stride = cuda::weight_bytes(type) * w_stride;
    p.product.m = rows, p.product.n = s.n, p.product.k = s.k;
    p.workspace = workspace.get();
    p.workspace_bytes = static_cast<int64_t>(workspace.size());
    return p;
  }
  std::vector<float> run(const cuda::GemmPlan& plan, int first_row, int rows) const {
    cuda::GemmF32Params p = params(first_row, rows);
    p.plan = plan;
    return run_into<float>(rows, s.n, out_stride, -7.5f, p.product.output, [&] { return api().gemm_f32(p, context()); });
  }
  // Rows [first, first + count) by the documented order.
  std::vector<float> in_order(int first, int count) const {
    std::vector<float> y;
    for (int r = first; r < first + count; ++r) {
      for (int c = 0; c < s.n; ++c) {
        float sum = 0;
        for (int slice = 0; slice < s.k; slice += cuda::kBf16SliceK) {
          float part = 0;
          for (int k = slice; k < std::min(s.k, slice + cuda::kBf16SliceK); ++k)
            part = std::fma(x[static_cast<size_t>(r) * x_stride + k], w[static_cast<size_t>(c) * w_stride + k], part);
          sum += part;
        }
        y.push_back(sum);
      }
    }
    return y;
  }
};

std::vector<cuda::GemmPlan> f32_plans(Shape s, bool split) {
  std::vector<cuda::GemmPlan> plans;
  for (int i = 0; i < cuda::kF32TileCount; ++i) {
    const cuda::F32Tile& t = cuda::kF32Tiles[i];
    const int64_t tiles = cuda::gemm_ceil_div(s.m, t.m) * cuda::gemm_ceil_div(s.n, t.n), units = cuda::slice_units(s.k);
    cuda::GemmPlan p;
    p.tile = i;
    p.split = split;
    p.group_m = 2;
    for (const int64_t blocks : split ? std::vector<int64_t>{1, tiles + 1, tiles * units} : std::vector<int64_t>{2, tiles}) {
      if (split && blocks > tiles * units) continue;
      p.blocks = static_cast<int32_t>(blocks);
      plans.push_back(p);
    }
  }
  return plans;
}

TEST("cuda gemm_f32: the documented order for every tile, weight type, size and alignment") {
  for (const Shape s : {Shape{1, 1, 1}, Shape{1, 77, 515}, Shape{15, 64, 16}, Shape{17, 65, 17}, Shape{64, 63, 512}, Shape{65, 70, 530}}) {
    for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::f16}) {
      for (const int padding : {s.k % 4 == 0 ? 0 : 4 - s.k % 4, 1}) {
        const F32Case c(s, type, padding);
        const std::vector<float> want = c.in_order(0, s.m);
        for (const cuda::GemmPlan& plan : f32_plans(s, false))
          check_equal(c.run(plan, 0, s.m), want, s.n, text(s, ", weights ", static_cast<int>(type), ", ", plan));
      }
    }
  }
}

TEST("cuda gemm_f32: within 1e-5 of the exact product") {
  const Shape s = {9, 40, 4000};
  const F32Case c(s, WeightType::f32, 0);
  const std::vector<float> got = c.run({}, 0, s.m);
  double difference = 0, norm = 0;
  for (int r = 0; r < s.m; ++r) {
    for (int n = 0; n < s.n; ++n) {
      double exact = 0;
      for (int k = 0; k < s.k; ++k)
        exact += static_cast<double>(c.x[static_cast<size_t>(r) * c.x_stride + k]) * c.w[static_cast<size_t>(n) * c.w_stride + k];
      const double error = got[static_cast<size_t>(r) * s.n + n] - exact;
      difference += error * error;
      norm += exact * exact;
    }
  }
  CHECK_MSG(std::sqrt(difference / norm) <= 1e-5, "relative error " << std::sqrt(difference / norm));
}

TEST("cuda gemm_f32: a split of k and rows alone give equal bits") {
  const Shape s = {70, 72, 1544};
  const F32Case c(s, WeightType::bf16, 0, 16 << 20);
  const std::vector<float> want = c.in_order(0, s.m);
  for (const cuda::GemmPlan& plan : f32_plans(s, true)) check_equal(c.run(plan, 0, s.m), want, s.n, text(s, ", ", plan));
  check_equal(c.run({}, 0, s.m), want, s.n, "own choice");
  for (const auto& [first, count] : std::vector<std::pair<int, int>>{{0, 1}, {69, 1}, {3, 18}}) {
    check_equal(c.run({}, first, count), std::vector<float>(want.begin() + first * s.n, want.begin() + (first + count) * s.n), s.n,
                text("rows ", first, " + ", count));
  }
}

TEST("cuda gemm_f32: residual, GeGLU, bf16 output") {
  const Shape s = {19, 96, 40};
  const F32Case c(s, WeightType::f32, 0);
  const std::vector<float> y = c.in_order(0, s.m);
  std::vector<float> residual(y.size()), sums;
  std::vector<bf16> rounded;
  for (size_t i = 0; i < y.size(); ++i) {
    residual[i] = static_cast<float>(static_cast<int>(i % 13) - 6);
    sums.push_back(residual[i] + y[i]);
    rounded.push_back(to_bf16(y[i]));
  }
  const DeviceArray<float> residual_device(residual);
  for (const cuda::GemmPlan& plan : f32_plans(s, false)) {
    cuda::GemmF32Params p = c.params(0, s.m);
    p.plan = plan;
    const auto call = [&] { return api().gemm_f32(p, context()); };
    p.product.output.out_type = OutType::bf16;
    check_equal(run_into<bf16>(s.m, s.n, c.out_stride, bf16{0x1234}, p.product.output, call), rounded, s.n, text(plan, ", bf16"));
    p.product.output.out_type = OutType::f32;
    p.product.output.epilogue = Epilogue::geglu;
    const std::vector<float> gated = run_into<float>(s.m, s.n / 2, c.out_stride, -7.5f, p.product.output, call);
    size_t wrong = 0;
    for (int r = 0; r < s.m; ++r) {
      for (int h = 0; h < s.n / 2; ++h) {
        const size_t gate = static_cast<size_t>(r) * s.n + h / 8 * 16 + h % 8;
        const double want = exact_gelu(y[gate]) * y[gate + 8];
        wrong += !(std::abs(gated[static_cast<size_t>(r) * (s.n / 2) + h] - want) <= 1e-6 + 2e-6 * std::abs(want));
      }
    }
    CHECK_MSG(wrong == 0, plan << ": " << wrong << " gated values are off");
    p.product.output.epilogue = Epilogue::add;
    p.product.output.residual = residual_device.get();
    p.product.output.residual_stride = s.n;
    check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), sums, s.n, text(plan, ", residual"));
  }
}

TEST("cuda gemm_f32: what it cannot do is refused with a reason") {
  const F32Case c({5, 24, 9}, WeightType::bf16, 1);
  const DeviceArray<float> out(5 * 24);
  const auto refused = [&](auto change) {
    cuda::GemmF32Params p = c.params(0, 5);
    p.product.output.out = out.get();
    p.product.output.stride = 24;
    change(p);
    const cuda::Status s = api().gemm_f32(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused && s.what != nullptr && s.what[0] != 0);
    CHECK(!cuda::supports_gemm_f32(p.product, *context().device));
  };
  using P = cuda::GemmF32Params&;
  refused([](P p) { p.product.w_stride = 21; });
  refused([](P p) { p.product.x_stride = 32; });
  refused([](P p) { p.product.k = 0; });
  refused([](P p) { p.product.output.epilogue = Epilogue::geglu; });
}

}  // namespace

}  // namespace lapidary::test
