// Tiled bf16 products: close to the exact product, and a row's bits depend on nothing but the row and the weights: not on the rows beside
// it, the tile, the split of k or the kernel.
#include "cuda/gemm_data.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::Epilogue;
using cuda::OutType;

struct Bf16Case {
  Shape s;
  int x_stride, w_stride, out_stride;
  std::vector<bf16> x, w;
  DeviceArray<bf16> x_device, w_device;
  DeviceArray<uint8_t> workspace;

  explicit Bf16Case(Shape shape, size_t workspace_bytes = 1)
      : s(shape),
        x_stride(s.k + 8),
        w_stride((s.k + 23) / 8 * 8),
        out_stride(s.n + 8),
        x(bf16_matrix(s.m, x_stride, 5)),
        w(bf16_matrix(s.n, w_stride, 6)),
        x_device(x),
        w_device(w),
        workspace(std::vector<uint8_t>(workspace_bytes, 0)) {}

  // Of rows [first_row, first_row + rows).
  cuda::GemmBf16Params params(int first_row, int rows) const {
    cuda::GemmBf16Params p;
    p.product.x = reinterpret_cast<const uint16_t*>(x_device.get()) + static_cast<int64_t>(first_row) * x_stride;
    p.product.w = reinterpret_cast<const uint16_t*>(w_device.get());
    p.product.x_stride = 2 * x_stride;
    p.product.w_stride = 2 * w_stride;
    p.product.m = rows, p.product.n = s.n, p.product.k = s.k;
    p.workspace = workspace.get();
    p.workspace_bytes = static_cast<int64_t>(workspace.size());
    return p;
  }
  std::vector<float> run(const cuda::GemmPlan& plan) const { return run(plan, 0, s.m); }
  std::vector<float> run(const cuda::GemmPlan& plan, int first_row, int rows) const {
    cuda::GemmBf16Params p = params(first_row, rows);
    p.plan = plan;
    return run_into<float>(rows, s.n, out_stride, -7.5f, p.product.output, [&] { return api().gemm_bf16(p, context()); });
  }
  std::vector<double> exact() const {
    std::vector<double> y(static_cast<size_t>(s.m) * s.n);
    for (int r = 0; r < s.m; ++r) {
      for (int c = 0; c < s.n; ++c) {
        double sum = 0;
        for (int k = 0; k < s.k; ++k)
          sum += static_cast<double>(to_f32(x[static_cast<size_t>(r) * x_stride + k])) * to_f32(w[static_cast<size_t>(c) * w_stride + k]);
        y[static_cast<size_t>(r) * s.n + c] = sum;
      }
    }
    return y;
  }
};

// Errors against the largest value and in norm. The bars of a bf16 product are 2e-2 and 4e-3; inputs here are rounded beforehand, so only
// the f32 sums' rounding is left.
void check_close(const std::vector<float>& got, const std::vector<double>& want, double relative_max, double relative_norm,
                 const std::string& what) {
  REQUIRE(got.size() == want.size());
  double largest = 0, worst = 0, difference = 0, norm = 0;
  size_t at = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    largest = std::max(largest, std::abs(want[i]));
    if (!(error <= worst)) worst = error, at = i;
    difference += error * error;
    norm += want[i] * want[i];
  }
  CHECK_MSG(worst <= relative_max * largest, what << ": " << got[at] << ", want " << want[at] << " at " << at << ", largest " << largest);
  CHECK_MSG(std::sqrt(difference) <= relative_norm * std::sqrt(norm), what << ": relative error in norm " << std::sqrt(difference / norm));
}

const Shape kShapes[] = {{1, 8, 8},     {17, 24, 48},   {31, 100, 72},    {63, 136, 80},  {64, 64, 512},
                         {65, 72, 520}, {127, 40, 144}, {129, 130, 1032}, {257, 56, 1152}};

TEST("cuda gemm_bf16: close to the exact product, equal bits for every tile") {
  for (const Shape s : kShapes) {
    const Bf16Case c(s);
    const std::vector<double> want = c.exact();
    std::vector<float> first;
    for (const cuda::GemmPlan& plan : every_plan(s, false)) {
      const std::vector<float> got = c.run(plan);
      check_close(got, want, 2e-6, 1e-6, text(s, ", ", plan));
      if (first.empty()) first = got;
      check_equal(got, first, s.n, text(s, ", ", plan, " against the first tile"));
    }
  }
}

TEST("cuda gemm_bf16: a split of k gives equal bits and leaves the counters at zero") {
  for (const Shape s : {Shape{33, 72, 1544}, Shape{130, 136, 1024}}) {
    const Bf16Case c(s, 8 << 20);
    const std::vector<float> want = c.run(every_plan(s, false)[0]);
    for (const cuda::GemmPlan& plan : every_split(s, false)) {
      check_equal(c.run(plan), want, s.n, text(s, ", ", plan));
      const std::vector<uint8_t> left = c.workspace.download();
      size_t not_zero = 0;
      for (int64_t i = 0; i < cuda::kCounterBytes; ++i) not_zero += left[static_cast<size_t>(i)] != 0;
      CHECK_MSG(not_zero == 0, s << ", " << plan << ": " << not_zero << " bytes of the counters are not zero");
    }
  }
}

TEST("cuda gemm_bf16: rows alone have the bits of rows in a batch, also from the skinny kernel") {
  const Shape s = {70, 72, 1096};
  const Bf16Case c(s);
  const std::vector<float> all = c.run({});
  const auto rows = [&](int first, int count) {
    return std::vector<float>(all.begin() + first * s.n, all.begin() + (first + count) * s.n);
  };
  for (const auto& [first, count] : std::vector<std::pair<int, int>>{{0, 1}, {69, 1}, {13, 5}, {3, 33}}) {
    for (const cuda::GemmPlan& plan : every_plan({count, s.n, s.k}, false))
      check_equal(c.run(plan, first, count), rows(first, count), s.n, text("rows ", first, " + ", count, ", ", plan));
    if (count > cuda::kGemvMaxRows) continue;
    cuda::GemvBf16Params p = {};
    p.product = c.params(first, count).product;
    const cuda::GemvProblem problem = {cuda::GemvFormat::bf16, count, s.n, s.k, false};
    cuda::GemvPlan gemv;
    REQUIRE(cuda::plan_gemv(problem, *context().device, 0, &gemv) == nullptr);
    const DeviceArray<uint8_t> workspace(
        std::vector<uint8_t>(static_cast<size_t>(std::max<int64_t>(gemv.workspace_bytes, cuda::kGemvZeroBytes)), 0));
    p.workspace = workspace.get();
    p.workspace_bytes = static_cast<int64_t>(workspace.size());
    check_equal(run_into<float>(count, s.n, c.out_stride, -7.5f, p.product.output, [&] { return api().gemv_bf16(p, context()); }),
                rows(first, count), s.n, text("skinny kernel, rows ", first, " + ", count));
  }
}

TEST("cuda gemm_bf16: bf16 output, residual, GeGLU") {
  const Shape s = {37, 160, 600};
  const Bf16Case c(s);
  const std::vector<float> y = c.run({});
  std::vector<float> residual(y.size()), sums;
  std::vector<bf16> rounded;
  std::vector<double> gated;
  for (size_t i = 0; i < y.size(); ++i) {
    residual[i] = static_cast<float>(static_cast<int>(i % 77) - 38) * 1.25f;
    sums.push_back(residual[i] + y[i]);
    rounded.push_back(to_bf16(y[i]));
  }
  for (int r = 0; r < s.m; ++r) {
    for (int h = 0; h < s.n / 2; ++h) {
      const size_t gate = static_cast<size_t>(r) * s.n + h / 8 * 16 + h % 8;
      gated.push_back(exact_gelu(y[gate]) * y[gate + 8]);
    }
  }
  const DeviceArray<float> residual_device(residual);
  for (const cuda::GemmPlan& plan : every_plan(s, false)) {
    cuda::GemmBf16Params p = c.params(0, s.m);
    p.plan = plan;
    const auto call = [&] { return api().gemm_bf16(p, context()); };
    p.product.output.out_type = OutType::bf16;
    check_equal(run_into<bf16>(s.m, s.n, c.out_stride, bf16{0x1234}, p.product.output, call), rounded, s.n, text(plan, ", bf16"));
    p.product.output.out_type = OutType::f32;
    p.product.output.epilogue = Epilogue::geglu;
    check_close(run_into<float>(s.m, s.n / 2, c.out_stride, -7.5f, p.product.output, call), gated, 2e-6, 1e-6, text(plan, ", GeGLU"));
    p.product.output.epilogue = Epilogue::add;
    p.product.output.residual = residual_device.get();
    p.product.output.residual_stride = s.n;
    check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), sums, s.n, text(plan, ", residual"));
  }
}

TEST("cuda gemm_bf16: what it cannot do is refused with a reason") {
  const Bf16Case c({16, 24, 48});
  const DeviceArray<float> out(16 * 24);
  const auto refused = [&](auto change) {
    cuda::GemmBf16Params p = c.params(0, 16);
    p.product.output.out = out.get();
    p.product.output.stride = 24;
    change(p);
    const cuda::Status s = api().gemm_bf16(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused && s.what != nullptr && s.what[0] != 0);
    CHECK(p.plan.tile >= 0 || !cuda::supports_gemm_bf16(p.product, *context().device));
  };
  using P = cuda::GemmBf16Params&;
  refused([](P p) { p.product.k = 44; });
  refused([](P p) { p.product.w_stride = 90; });
  refused([](P p) { p.product.output.epilogue = Epilogue::raw, p.product.output.out_type = OutType::int32; });
  refused([](P p) {
    p.product.output.epilogue = Epilogue::add, p.product.output.residual = static_cast<const float*>(p.product.output.out),
    p.product.output.residual_stride = 24, p.product.output.out_type = OutType::bf16;
  });
  refused([](P p) { p.plan.tile = 0, p.plan.blocks = 9, p.plan.split = 1; });
}

#ifdef LAPIDARY_EMULATED
TEST("cuda gemm_bf16: the order of threads and copies does not matter") {
  const Shape s = {70, 136, 1100 / 8 * 8};
  const Bf16Case c(s, 8 << 20);
  const std::vector<float> want = c.run(every_plan(s, false)[0]);
  std::vector<cuda::GemmPlan> plans = every_plan(s, false);
  const std::vector<cuda::GemmPlan> splits = every_split(s, false);
  plans.insert(plans.end(), splits.begin(), splits.end());
  for (const cuda::GemmPlan& plan : plans) {
    for (const auto mode : {emulator::AsyncMode::lazy, emulator::AsyncMode::random}) {
      emulator::set_async_mode(mode);
      emulator::set_schedule(mode == emulator::AsyncMode::lazy ? 0 : 4711 + static_cast<uint64_t>(plan.tile));
      check_equal(c.run(plan), want, s.n, text(s, ", ", plan, ", mode ", static_cast<int>(mode)));
      const emulator::LaunchStatistics& statistics = emulator::last_launch();
      CHECK(statistics.matrix_wavefronts == statistics.matrix_wavefronts_ideal);
    }
  }
  emulator::set_async_mode(emulator::AsyncMode::eager);
  emulator::set_schedule(0);
}
#endif

}  // namespace

}  // namespace lapidary::test
