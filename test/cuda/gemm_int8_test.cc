// Tiled int8 products: exact sums for every tile and every split of k, every epilogue.
#include "cuda/gemm_data.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::Epilogue;
using cuda::OutType;

const Shape kShapes[] = {{1, 8, 16},    {17, 24, 48},   {31, 100, 64},  {63, 136, 80},   {64, 64, 128},
                         {65, 72, 144}, {127, 40, 272}, {128, 264, 96}, {129, 130, 176}, {257, 56, 1152}};

TEST("cuda gemm_int8: sums are exact for every tile") {
  for (const Shape s : kShapes) {
    const Int8Case c(s);
    const std::vector<int> want = c.sums();
    for (const cuda::GemmPlan& plan : every_plan(s, true)) check_equal(run_raw(c, plan), want, s.n, text(s, ", ", plan));
  }
}

TEST("cuda gemm_int8: sums of extreme values and of zeros are exact") {
  for (const Fill fill : {Fill::extreme, Fill::sparse_rows}) {
    const Shape s = {66, 72, 1040};
    const Int8Case c(s, fill);
    const std::vector<int> want = c.sums();
    for (const cuda::GemmPlan& plan : every_plan(s, true)) check_equal(run_raw(c, plan), want, s.n, text(s, ", ", plan));
  }
}

TEST("cuda gemm_int8: a split of k gives the same sums and leaves the counters at zero") {
  for (const Shape s : {Shape{33, 72, 1152}, Shape{129, 136, 400}}) {
    const Int8Case c(s, Fill::random, 8 << 20);
    const std::vector<int> want = c.sums();
    for (const cuda::GemmPlan& plan : every_split(s, true)) {
      check_equal(run_raw(c, plan), want, s.n, text(s, ", ", plan));
      const std::vector<uint8_t> left = c.workspace.download();
      size_t not_zero = 0;
      for (int64_t i = 0; i < cuda::kCounterBytes; ++i) not_zero += left[static_cast<size_t>(i)] != 0;
      CHECK_MSG(not_zero == 0, s << ", " << plan << ": " << not_zero << " bytes of the counters are not zero");
    }
  }
}

// n = 136: groups of eight columns, wide stores; n = 100: single elements.
const Shape kEpilogueShapes[] = {{37, 136, 80}, {70, 100, 48}};

TEST("cuda gemm_int8: per-token and static scales, f32 and bf16 and int8") {
  for (const Shape s : kEpilogueShapes) {
    const Int8Case c(s);
    const std::vector<int> sums = c.sums();
    for (const bool per_token : {true, false}) {
      std::vector<float> f32;
      std::vector<bf16> half;
      std::vector<int8_t> quantized;
      const float inverse = 1.7f;
      for (size_t i = 0; i < sums.size(); ++i) {
        const int row = static_cast<int>(i) / s.n, column = static_cast<int>(i) % s.n;
        const float x_scale = per_token ? c.x_scales[static_cast<size_t>(row)] : 0.0123f;
        const float y = static_cast<float>(sums[i]) * (x_scale * c.w_scales[static_cast<size_t>(column)]);
        f32.push_back(y);
        half.push_back(to_bf16(y));
        quantized.push_back(static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, std::nearbyintf(y * inverse)))));
      }
      for (cuda::GemmPlan plan : every_plan(s, true)) {
        cuda::GemmInt8Params p = c.params();
        p.plan = plan;
        if (!per_token) p.product.x_scales = nullptr, p.product.x_scale = 0.0123f;
        const auto call = [&] { return api().gemm_int8(p, context()); };
        const std::string what = text(s, ", ", plan);
        p.product.output.out_type = OutType::f32;
        check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), f32, s.n, what + ", f32");
        p.product.output.out_type = OutType::bf16;
        check_equal(run_into<bf16>(s.m, s.n, c.out_stride, bf16{0x1234}, p.product.output, call), half, s.n, what + ", bf16");
        p.product.output.out_type = OutType::int8;
        p.product.output.inverse_scale = inverse;
        check_equal(run_into<int8_t>(s.m, s.n, s.n % 8 == 0 ? s.n + 24 : s.n + 3, int8_t{99}, p.product.output, call), quantized, s.n,
                    what + ", int8");
      }
    }
  }
}

TEST("cuda gemm_int8: residual added, also in place") {
  for (const Shape s : kEpilogueShapes) {
    const Int8Case c(s);
    const std::vector<int> sums = c.sums();
    const int stride = s.n + 4;
    std::vector<float> residual(static_cast<size_t>(s.m) * stride), want;
    for (size_t i = 0; i < residual.size(); ++i) residual[i] = static_cast<float>(static_cast<int>(i % 1001) - 500) * 0.37f;
    for (size_t i = 0; i < sums.size(); ++i) {
      const int row = static_cast<int>(i) / s.n, column = static_cast<int>(i) % s.n;
      want.push_back(residual[static_cast<size_t>(row) * stride + column] + static_cast<float>(sums[i]) * c.scale(row, column));
    }
    const DeviceArray<float> residual_device(residual);
    for (const cuda::GemmPlan& plan : every_plan(s, true)) {
      cuda::GemmInt8Params p = c.params();
      p.plan = plan;
      p.product.output.epilogue = Epilogue::add;
      p.product.output.residual = residual_device.get();
      p.product.output.residual_stride = stride;
      check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, [&] { return api().gemm_int8(p, context()); }), want,
                  s.n, text(s, ", ", plan));

      const DeviceArray<float> both(residual);
      p.product.output.out = both.get();
      p.product.output.residual = both.get();
      p.product.output.stride = stride;
      require_ok(api().gemm_int8(p, context()));
      const std::vector<float> all = both.download();
      std::vector<float> got;
      for (size_t i = 0; i < all.size(); ++i) {
        if (i % stride < static_cast<size_t>(s.n)) got.push_back(all[i]);
      }
      check_equal(got, want, s.n, text(s, ", ", plan, ", in place"));
    }
  }
}

TEST("cuda gemm_int8: interleaved GeGLU to f32, bf16 and int8") {
  for (const Shape s : {Shape{37, 160, 80}, Shape{70, 208, 48}}) {
    const Int8Case c(s);
    const std::vector<int> sums = c.sums();
    const int channels = s.n / 2;
    const float inverse = 0.9f;
    std::vector<double> want;
    for (int r = 0; r < s.m; ++r) {
      for (int h = 0; h < channels; ++h) {
        const int gate = h / 8 * 16 + h % 8, up = gate + 8;
        const auto y = [&](int column) {
          return static_cast<double>(static_cast<float>(sums[static_cast<size_t>(r) * s.n + column]) * c.scale(r, column));
        };
        want.push_back(exact_gelu(y(gate)) * y(up));
      }
    }
    for (const cuda::GemmPlan& plan : every_plan(s, true)) {
      cuda::GemmInt8Params p = c.params();
      p.plan = plan;
      p.product.output.epilogue = Epilogue::geglu;
      p.product.output.inverse_scale = inverse;
      const auto call = [&] { return api().gemm_int8(p, context()); };
      // Of f32 a few ulp, or of the gate's smallest steps where gelu underflows; of bf16 half a step; of int8 half a step.
      const auto check = [&](const auto& got, auto value, double relative, double absolute, const char* type) {
        double worst = 0;
        size_t at = 0;
        for (size_t i = 0; i < want.size(); ++i) {
          const double error = std::abs(value(got[i]) - want[i]) / (absolute + relative * std::abs(want[i]));
          if (!(error <= worst)) worst = error, at = i;
        }
        CHECK_MSG(worst <= 1, s << ", " << plan << ", " << type << ": " << value(got[at]) << ", want " << want[at] << " at row "
                                << at / static_cast<size_t>(channels) << " channel " << at % static_cast<size_t>(channels));
      };
      for (const int pad : {8, 3}) {  // wide stores and single elements
        p.product.output.out_type = OutType::f32;
        check(
            run_into<float>(s.m, channels, channels + pad, -7.5f, p.product.output, call), [](float v) { return static_cast<double>(v); },
            2e-6, 1e-6, "f32");
        p.product.output.out_type = OutType::bf16;
        check(
            run_into<bf16>(s.m, channels, channels + pad, bf16{0x1234}, p.product.output, call),
            [](bf16 v) { return static_cast<double>(to_f32(v)); }, 0.004, 1e-6, "bf16");
        p.product.output.out_type = OutType::int8;
        const auto quantized = run_into<int8_t>(s.m, channels, channels + 2 * pad, int8_t{99}, p.product.output, call);
        size_t wrong = 0;
        for (size_t i = 0; i < want.size(); ++i) {
          const double v = std::min(127.0, std::max(-127.0, want[i] * inverse));
          wrong += !(std::abs(quantized[i] - v) <= 0.5001);
        }
        CHECK_MSG(wrong == 0, s << ", " << plan << ": " << wrong << " int8 values are not the nearest");
      }
    }
  }
}

TEST("cuda gemm_int8: the launcher's own choice is right with and without workspace") {
  for (const Shape s : {Shape{1, 24, 48}, Shape{48, 640, 1024}, Shape{200, 392, 640}}) {
    Int8Case c(s);
    const std::vector<int> want = c.sums();
    check_equal(run_raw(c, {}), want, s.n, text(s, ", no workspace"));
    const int64_t bytes = cuda::gemm_int8_workspace_bytes(c.params().product, *context().device);
    c.workspace = DeviceArray<uint8_t>(std::vector<uint8_t>(static_cast<size_t>(std::max<int64_t>(bytes, 1)), 0));
    check_equal(run_raw(c, {}), want, s.n, text(s, ", with workspace"));
    CHECK(cuda::plan_gemm_int8(c.params().product, *context().device, true).why[0] != 0);
  }
}

TEST("cuda gemm_int8: what it cannot do is refused with a reason") {
  const Int8Case c({16, 24, 48});
  const DeviceArray<float> out(16 * 24);
  const auto refused = [&](auto change) {
    cuda::GemmInt8Params p = c.params();
    p.product.output.out = out.get();
    p.product.output.stride = 24;
    change(p);
    const cuda::Status s = api().gemm_int8(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused && s.what != nullptr && s.what[0] != 0);
    CHECK(p.plan.tile >= 0 || !cuda::supports_gemm_int8(p.product, *context().device));
  };
  using P = cuda::GemmInt8Params&;
  refused([](P p) { p.product.k = 40; });
  refused([](P p) { p.product.k = 0; });
  refused([](P p) { p.product.x_stride = 50; });
  refused([](P p) { p.product.x_stride = 32; });
  refused([](P p) { p.product.x += 8; });
  refused([](P p) { p.product.w_scales = nullptr; });
  refused([](P p) { p.product.output.out = nullptr; });
  refused([](P p) { p.product.output.stride = 20; });
  refused([](P p) { p.product.output.epilogue = Epilogue::geglu; });  // 24 is not a multiple of 16
  refused([](P p) { p.product.output.epilogue = Epilogue::add; });    // no residual
  refused([](P p) { p.product.output.epilogue = Epilogue::raw; });    // into f32
  refused([](P p) { p.product.output.out_type = OutType::int32; });
  refused([](P p) { p.plan.tile = 0, p.plan.blocks = 2, p.plan.split = 1; });  // no workspace
  refused([](P p) { p.plan.tile = 99, p.plan.blocks = 2; });
}

#ifdef LAPIDARY_EMULATED
TEST("cuda gemm_int8: the order of threads and copies does not matter, and ldmatrix meets no bank conflict") {
  const Shape s = {70, 136, 400};
  const Int8Case c(s, Fill::random, 4 << 20);
  const std::vector<int> want = c.sums();
  std::vector<cuda::GemmPlan> plans = every_plan(s, true);
  const std::vector<cuda::GemmPlan> splits = every_split(s, true);
  plans.insert(plans.end(), splits.begin(), splits.end());
  for (const cuda::GemmPlan& plan : plans) {
    for (const auto mode : {emulator::AsyncMode::lazy, emulator::AsyncMode::random}) {
      emulator::set_async_mode(mode);
      emulator::set_schedule(mode == emulator::AsyncMode::lazy ? 0 : 12345 + static_cast<uint64_t>(plan.tile));
      check_equal(run_raw(c, plan), want, s.n, text(s, ", ", plan, ", mode ", static_cast<int>(mode)));
      const emulator::LaunchStatistics& statistics = emulator::last_launch();
      CHECK_MSG(statistics.matrix_wavefronts == statistics.matrix_wavefronts_ideal,
                plan << ": " << statistics.matrix_wavefronts << " passes of ldmatrix, ideally " << statistics.matrix_wavefronts_ideal);
      CHECK(plan.wgmma ? statistics.wgmma_instructions > 0 : statistics.mma_instructions > 0);
    }
  }
  emulator::set_async_mode(emulator::AsyncMode::eager);
  emulator::set_schedule(0);
}
#endif

}  // namespace

}  // namespace lapidary::test
