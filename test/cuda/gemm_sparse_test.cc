// 2:4 sparse int8 products: the packed layout holds what it was given, and the product is that of the unpacked weight, exactly.
#include "cuda/gemm_data.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::Epilogue;
using cuda::OutType;

// Every four has none, one or two non-zeros at every possible pair of places.
std::vector<int8_t> sparse_matrix(int n, int k, bool extreme) {
  std::mt19937 random(11);
  std::vector<int8_t> w(static_cast<size_t>(n) * k, 0);
  for (size_t chunk = 0; chunk < w.size() / 4; ++chunk) {
    const uint32_t first = random() % 4, second = random() % 4, kind = extreme ? 7 : random() % 8;
    const auto value = [&] { return extreme ? (random() % 2 ? 127 : -127) : static_cast<int>(random() % 255) - 127; };
    if (kind > 0) w[chunk * 4 + first] = static_cast<int8_t>(value());
    if (kind > 2) w[chunk * 4 + second] = static_cast<int8_t>(value());
  }
  return w;
}

struct SparseCase {
  Shape s;
  int x_stride, out_stride;
  std::vector<int8_t> x, w;
  cuda::PackedSparseWeight packed;
  std::vector<float> x_scales, w_scales;
  DeviceArray<int8_t> x_device, values;
  DeviceArray<uint32_t> metadata;
  DeviceArray<float> x_scales_device, w_scales_device;

  static cuda::PackedSparseWeight pack(const std::vector<int8_t>& w, Shape s) {
    cuda::PackedSparseWeight packed;
    REQUIRE(cuda::pack_sparse_weight(w.data(), s.n, s.k, &packed));
    return packed;
  }
  explicit SparseCase(Shape shape, bool extreme = false)
      : s(shape),
        x_stride(s.k + 16),
        out_stride(s.n + 5),
        x(int8_matrix(s.m, x_stride, extreme ? Fill::extreme : Fill::random, 1)),
        w(sparse_matrix(s.n, s.k, extreme)),
        packed(pack(w, s)),
        x_scales(scales(s.m, 3)),
        w_scales(scales(s.n, 4)),
        x_device(x),
        values(packed.values),
        metadata(packed.metadata),
        x_scales_device(x_scales),
        w_scales_device(w_scales) {}

  cuda::GemmSparseInt8Params params(const cuda::GemmPlan& plan) const {
    cuda::GemmSparseInt8Params p;
    p.plan = plan;
    p.product.x = x_device.get(), p.product.values = values.get(), p.product.metadata = metadata.get();
    p.product.x_scales = x_scales_device.get(), p.product.w_scales = w_scales_device.get();
    p.product.x_stride = x_stride;
    p.product.m = s.m, p.product.n = s.n, p.product.k = s.k;
    return p;
  }
  std::vector<int> raw(const cuda::GemmPlan& plan) const {
    cuda::GemmSparseInt8Params p = params(plan);
    p.product.output.epilogue = Epilogue::raw;
    p.product.output.out_type = OutType::int32;
    return run_into<int>(s.m, s.n, out_stride, -123456789, p.product.output, [&] { return api().gemm_sparse_int8(p, context()); });
  }
};

std::vector<cuda::GemmPlan> sparse_plans() {
  std::vector<cuda::GemmPlan> plans;
  for (int i = 0; i < cuda::kSparseTileCount; ++i) {
    cuda::GemmPlan p;
    p.tile = i;
    p.blocks = 1;  // of whole tiles it starts as many as there are
    p.group_m = 2;
    plans.push_back(p);
  }
  return plans;
}

TEST("cuda sparse weight: pack and unpack give the matrix back, and more than two of four are refused") {
  for (const Shape s : {Shape{1, 1, 4}, Shape{1, 17, 64}, Shape{1, 100, 272}}) {
    const std::vector<int8_t> w = sparse_matrix(s.n, s.k, false);
    cuda::PackedSparseWeight packed;
    REQUIRE(cuda::pack_sparse_weight(w.data(), s.n, s.k, &packed));
    CHECK(static_cast<int64_t>(packed.values.size()) == cuda::sparse_values_bytes(s.n, s.k) &&
          static_cast<int64_t>(packed.metadata.size()) == cuda::sparse_metadata_words(s.n, s.k));
    std::vector<int8_t> back(w.size(), 1);
    cuda::unpack_sparse_weight(packed.values.data(), packed.metadata.data(), s.n, s.k, back.data());
    check_equal(back, w, s.k, text(s));
    size_t falling = 0;  // the tensor cores want rising places in every chunk
    for (const uint32_t word : packed.metadata) {
      for (int chunk = 0; chunk < 8; ++chunk) falling += (word >> (4 * chunk) & 3) >= (word >> (4 * chunk + 2) & 3);
    }
    CHECK_MSG(falling == 0, falling << " chunks whose places do not rise");
  }
  const int8_t dense[8] = {1, 0, 2, 0, 1, 2, 3, 0};
  cuda::PackedSparseWeight packed;
  CHECK(!cuda::pack_sparse_weight(dense, 1, 8, &packed));
}

TEST("cuda gemm_sparse_int8: sums are those of the dense weight for every tile") {
  for (const Shape s : {Shape{1, 8, 16}, Shape{17, 24, 48}, Shape{31, 100, 64}, Shape{33, 136, 80}, Shape{64, 64, 128}, Shape{65, 130, 144},
                        Shape{129, 40, 1152}}) {
    for (const bool extreme : {false, true}) {
      const SparseCase c(s, extreme);
      const std::vector<int> want = naive_sums(c.x, c.w, s, c.x_stride, s.k);
      for (const cuda::GemmPlan& plan : sparse_plans()) check_equal(c.raw(plan), want, s.n, text(s, ", ", plan));
      check_equal(c.raw({}), want, s.n, text(s, ", own choice"));
    }
  }
}

TEST("cuda gemm_sparse_int8: scales, residual, GeGLU") {
  const Shape s = {37, 112, 272};
  const SparseCase c(s);
  const std::vector<int> sums = naive_sums(c.x, c.w, s, c.x_stride, s.k);
  std::vector<float> y, residual, added;
  std::vector<bf16> rounded;
  for (size_t i = 0; i < sums.size(); ++i) {
    y.push_back(static_cast<float>(sums[i]) * (c.x_scales[i / static_cast<size_t>(s.n)] * c.w_scales[i % static_cast<size_t>(s.n)]));
    residual.push_back(static_cast<float>(i % 17) * 0.3f);
    added.push_back(residual[i] + y[i]);
    rounded.push_back(to_bf16(y[i]));
  }
  const DeviceArray<float> residual_device(residual);
  for (const cuda::GemmPlan& plan : sparse_plans()) {
    cuda::GemmSparseInt8Params p = c.params(plan);
    const auto call = [&] { return api().gemm_sparse_int8(p, context()); };
    check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), y, s.n, text(plan));
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
    check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), added, s.n, text(plan, ", residual"));
    p.product.x_scales = nullptr;
    p.product.x_scale = 0.25f;
    p.product.output.epilogue = Epilogue::store;
    std::vector<float> fixed;
    for (size_t i = 0; i < sums.size(); ++i)
      fixed.push_back(static_cast<float>(sums[i]) * (0.25f * c.w_scales[i % static_cast<size_t>(s.n)]));
    check_equal(run_into<float>(s.m, s.n, c.out_stride, -7.5f, p.product.output, call), fixed, s.n, text(plan, ", static scale"));
  }
}

TEST("cuda gemm_sparse_int8: what it cannot do is refused with a reason") {
  const SparseCase c({5, 24, 48});
  const DeviceArray<float> out(5 * 24);
  const auto refused = [&](auto change) {
    cuda::GemmSparseInt8Params p = c.params({});
    p.product.output.out = out.get();
    p.product.output.stride = 24;
    change(p);
    const cuda::Status s = api().gemm_sparse_int8(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused && s.what != nullptr && s.what[0] != 0);
    CHECK(p.plan.tile >= 0 || !cuda::supports_gemm_sparse_int8(p.product, *context().device));
  };
  using P = cuda::GemmSparseInt8Params&;
  refused([](P p) { p.product.k = 40; });
  refused([](P p) { p.product.metadata = nullptr; });
  refused([](P p) { p.product.metadata += 1; });
  refused([](P p) { p.product.w_scales = nullptr; });
  refused([](P p) { p.product.output.epilogue = Epilogue::geglu; });
  refused([](P p) { p.plan.tile = 0, p.plan.blocks = 1, p.plan.split = 1; });
}

#ifdef LAPIDARY_EMULATED
TEST("cuda gemm_sparse_int8: the order of threads and copies does not matter, and ldmatrix meets no bank conflict") {
  const Shape s = {70, 136, 400};
  const SparseCase c(s);
  const std::vector<int> want = naive_sums(c.x, c.w, s, c.x_stride, s.k);
  for (const cuda::GemmPlan& plan : sparse_plans()) {
    for (const auto mode : {emulator::AsyncMode::lazy, emulator::AsyncMode::random}) {
      emulator::set_async_mode(mode);
      emulator::set_schedule(mode == emulator::AsyncMode::lazy ? 0 : 31 + static_cast<uint64_t>(plan.tile));
      check_equal(c.raw(plan), want, s.n, text(s, ", ", plan, ", mode ", static_cast<int>(mode)));
      const emulator::LaunchStatistics& statistics = emulator::last_launch();
      CHECK_MSG(statistics.matrix_wavefronts == statistics.matrix_wavefronts_ideal,
                plan << ": " << statistics.matrix_wavefronts << " passes of ldmatrix, ideally " << statistics.matrix_wavefronts_ideal);
    }
  }
  emulator::set_async_mode(emulator::AsyncMode::eager);
  emulator::set_schedule(0);
}
#endif

}  // namespace

}  // namespace lapidary::test
