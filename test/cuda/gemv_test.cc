// Skinny products: int8 exactly, bf16 and block formats against double, the same bits however rows are grouped and work is spread.
#include "cuda/gemv_problem.h"

namespace lapidary::test {
namespace {

constexpr int64_t kRoom = cuda::kGemvZeroBytes + (4 << 20);

TEST("cuda gemv int8: exact for 1 to 16 rows and awkward shapes") {
  const GemvWorkspace workspace(kRoom);
  for (const int n : {1, 8, 16, 17, 100, 136}) {
    for (const int k : {16, 32, 48, 64, 80, 640, 1152}) {
      const Int8Problem full(16, n, k, static_cast<uint32_t>(n * 31 + k));
      const std::vector<int32_t> want = full.sums();
      for (const int m : {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16}) {
        if (n * k > 20000 && m % 8 > 1) continue;
        cuda::GemvInt8Params p = full.params(workspace);
        p.product.m = m;
        const std::vector<int32_t> got = run_gemv<int32_t>(p, workspace, output_of(Epilogue::raw, OutType::int32));
        expect_same(got, {want.begin(), want.begin() + static_cast<std::ptrdiff_t>(m) * n}, shape_text(m, n, k, 0));
      }
    }
  }
  CHECK(workspace.is_clean());
}

TEST("cuda gemv int8: exact however the work is split") {
  const GemvWorkspace workspace(kRoom);
  for (const auto& [m, n, k] : {std::tuple{1, 136, 640}, {3, 17, 1152}, {16, 40, 1168}, {9, 16, 4112}}) {
    const Int8Problem problem(m, n, k);
    const std::vector<int32_t> want = problem.sums();
    for (const int blocks : {1, 2, 3, 4, 5, 7, 9, 11, 16, 23, 31, 46, 1000}) {
      const std::vector<int32_t> got =
          run_gemv<int32_t>(problem.params(workspace), workspace, output_of(Epilogue::raw, OutType::int32), blocks);
      expect_same(got, want, shape_text(m, n, k, blocks));
    }
  }
  CHECK(workspace.is_clean());
}

TEST("cuda gemv: cp.async and bulk copies give the same bits") {
  if (context().device->major < 9) return;
  const GemvWorkspace workspace(kRoom);
  for (const auto& [m, n, k] : {std::tuple{1, 16, 64}, {1, 96, 640}, {4, 32, 1152}, {16, 48, 1216}, {9, 16, 4096}}) {
    const Int8Problem int8(m, n, k);
    const Bf16Problem bf16(m, n, k / 2 / 32 * 32);
    const std::vector<int32_t> want = int8.sums();
    for (const int blocks : {0, 1, 2, 3, 5, 8}) {
      const std::string what = shape_text(m, n, k, blocks);
      for (const cuda::GemvPath path : {cuda::GemvPath::async, cuda::GemvPath::bulk}) {
        cuda::GemvInt8Params p = int8.params(workspace);
        p.path = path;
        expect_same(run_gemv<int32_t>(p, workspace, output_of(Epilogue::raw, OutType::int32), blocks), want, what);
      }
      cuda::GemvBf16Params p = bf16.params(workspace);
      p.path = cuda::GemvPath::async;
      const std::vector<float> async = run_gemv<float>(p, workspace, f32_output(), blocks);
      p.path = cuda::GemvPath::bulk;
      expect_same(run_gemv<float>(p, workspace, f32_output(), blocks), async, what + ", bf16");
      CHECK(relative_error(async, float_products(widen(bf16.x), widen(bf16.w), m, n, bf16.k)) <= 1e-5);
    }
  }
  CHECK(workspace.is_clean());
  const Int8Problem narrow(1, 24, 64), ragged(1, 32, 80);
  for (cuda::GemvInt8Params p : {narrow.params(workspace), ragged.params(workspace)}) {
    p.path = cuda::GemvPath::bulk;
    p.product.output.out = workspace.get();
    CHECK(api().gemv_int8(p, context()).kind == cuda::Status::Kind::refused);
  }
}

TEST("cuda gemv int8: a wide matrix") {
  const GemvWorkspace workspace(kRoom);
  const Int8Problem problem(2, 1536, 1152);
  const std::vector<int32_t> want = problem.sums();
  for (const int blocks : {0, 132}) {
    expect_same(run_gemv<int32_t>(problem.params(workspace), workspace, output_of(Epilogue::raw, OutType::int32), blocks), want,
                shape_text(2, 1536, 1152, blocks));
  }
  CHECK(workspace.is_clean());
}

TEST("cuda gemv int8: rows may be apart") {
  const GemvWorkspace workspace(kRoom);
  const int m = 3, n = 21, k = 80, x_stride = 112, w_stride = 96;
  const std::vector<int8_t> x = random_int8(m * x_stride, 5), w = random_int8(n * w_stride, 6);
  std::vector<int8_t> x_rows, w_rows;
  for (int r = 0; r < m; ++r) x_rows.insert(x_rows.end(), x.begin() + r * x_stride, x.begin() + r * x_stride + k);
  for (int r = 0; r < n; ++r) w_rows.insert(w_rows.end(), w.begin() + r * w_stride, w.begin() + r * w_stride + k);
  const DeviceArray<int8_t> x_device(x), w_device(w);
  cuda::GemvInt8Params p;
  p.product.x = x_device.get(), p.product.w = w_device.get();
  p.product.x_stride = x_stride, p.product.w_stride = w_stride;
  p.product.m = m, p.product.n = n, p.product.k = k;
  expect_same(run_gemv<int32_t>(p, workspace, output_of(Epilogue::raw, OutType::int32)), int8_sums(x_rows, w_rows, m, n, k), "strided");
}

TEST("cuda gemv int8: epilogues") {
  const GemvWorkspace workspace(kRoom);
  for (const auto& [m, n, k] : {std::tuple{1, 48, 80}, {7, 112, 640}, {16, 16, 1152}, {11, 37, 64}}) {
    const Int8Problem problem(m, n, k);
    const std::vector<int32_t> sums = problem.sums();
    for (const int blocks : {0, 3, 5}) {
      const std::string what = shape_text(m, n, k, blocks);
      std::vector<float> y(sums.size());
      for (int r = 0; r < m; ++r)
        for (int c = 0; c < n; ++c) y[static_cast<size_t>(r) * n + c] = problem.scaled(sums, r, c);
      expect_same(run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks), y, what + ", f32");

      std::vector<uint16_t> rounded;
      for (const float v : y) rounded.push_back(to_bf16(v).bits);
      expect_same(run_gemv<uint16_t>(problem.params(workspace), workspace, output_of(Epilogue::store, OutType::bf16), blocks), rounded,
                  what + ", bf16");

      cuda::GemvInt8Params fixed = problem.params(workspace);
      fixed.product.x_scales = nullptr;
      fixed.product.x_scale = 0.037f;
      std::vector<float> y_fixed(sums.size());
      for (size_t i = 0; i < sums.size(); ++i)
        y_fixed[i] = static_cast<float>(sums[i]) * (0.037f * problem.w_scales[i % static_cast<size_t>(n)]);
      expect_same(run_gemv<float>(fixed, workspace, f32_output(), blocks), y_fixed, what + ", one scale");

      const std::vector<float> residual = random_floats(y.size(), 9);
      const DeviceArray<float> residual_device(residual);
      std::vector<float> added(y.size());
      for (size_t i = 0; i < y.size(); ++i) added[i] = residual[i] + y[i];
      cuda::ProductOutput add = output_of(Epilogue::add, OutType::f32);
      add.residual = residual_device.get();
      add.residual_stride = n;
      expect_same(run_gemv<float>(problem.params(workspace), workspace, add, blocks), added, what + ", add");
      if (n % 16 != 0) continue;

      std::vector<float> gated;
      for (int r = 0; r < m; ++r) {
        for (int c = 0; c < n / 2; ++c)
          gated.push_back(static_cast<float>(geglu_value(problem.scaled(sums, r, gate_row(c)), problem.scaled(sums, r, up_row(c)))));
      }
      // 1e-5 relative: gelu_tanh uses the fast exponential and reciprocal.
      CHECK_CLOSE(run_gemv<float>(problem.params(workspace), workspace, output_of(Epilogue::geglu, OutType::f32), blocks), gated, 1e-5,
                  1e-6);
      const std::vector<float> gated_bf16 =
          widen(run_gemv<uint16_t>(problem.params(workspace), workspace, output_of(Epilogue::geglu, OutType::bf16), blocks));
      CHECK_CLOSE(gated_bf16, gated, 4e-3, 1e-6);
      const float inverse = 30.0f;
      const std::vector<int8_t> q =
          run_gemv<int8_t>(problem.params(workspace), workspace, output_of(Epilogue::geglu, OutType::int8, inverse), blocks);
      for (size_t i = 0; i < gated.size(); ++i) {
        const double want = std::clamp(double{gated[i]} * inverse, -127.0, 127.0);
        CHECK_MSG(std::abs(want - q[i]) <= 0.501 + 1e-5 * std::abs(want),
                  what << ", geglu int8 element " << i << " is " << +q[i] << ", want " << want);
      }
    }
  }
  CHECK(workspace.is_clean());
}

// The unfused way: the add_norm launcher, then the product.
template <class Problem>
void check_prologue(const Problem& problem, bool with_branch, bool with_post_norm, float inverse_scale, int blocks) {
  const GemvWorkspace workspace(kRoom);
  const int m = problem.m, k = problem.k;
  constexpr bool kInt8 = std::is_same_v<Problem, Int8Problem>;
  const size_t count = static_cast<size_t>(m) * k;
  const std::vector<float> x = random_floats(count, 11), branch = random_floats(count, 12, 0.7f);
  const DeviceArray<float> post(random_floats(static_cast<size_t>(k), 13, 0.2f)), next(random_floats(static_cast<size_t>(k), 14, 0.2f));
  const DeviceArray<float> x_device(x), x_apart(x), branch_device(branch), x_out(std::vector<float>(count, 0)),
      scales(static_cast<size_t>(m));
  DeviceArray<int8_t> normed_int8(count);
  DeviceArray<uint16_t> normed_bf16(count);
  const std::string what = shape_text(m, problem.n, k, blocks) + (with_branch ? ", branch" : "") + (with_post_norm ? ", post norm" : "");

  cuda::ActOut act = cuda::act_bf16(normed_bf16.get());
  if (kInt8)
    act = inverse_scale > 0 ? cuda::ActOut{normed_int8.get(), cuda::ActType::int8, cuda::ActScaling::fixed, nullptr, inverse_scale}
                            : cuda::act_int8_per_row(normed_int8.get(), scales.get());
  if (with_branch) {
    require_ok(api().add_norm(
        {x_apart.get(), branch_device.get(), with_post_norm ? post.get() : nullptr, next.get(), act, m, k, 1.0f, 1e-6f}, context()));
  } else {
    require_ok(api().rms_norm({x_apart.get(), next.get(), act, m, k, 1.0f, 1e-6f}, context()));
  }
  auto p = problem.params(workspace);
  if constexpr (kInt8) {
    p.product.x = normed_int8.get();
    p.product.x_scales = inverse_scale > 0 ? nullptr : scales.get();
    p.product.x_scale = inverse_scale > 0 ? 1 / inverse_scale : 1;
  } else {
    p.product.x = normed_bf16.get();
  }
  const std::vector<float> want = run_gemv<float>(p, workspace, f32_output(), blocks);

  p.product.x = nullptr;
  if constexpr (kInt8) p.product.x_scales = nullptr;
  p.prologue.x = x_device.get();
  p.prologue.branch = with_branch ? branch_device.get() : nullptr;
  p.prologue.post_weight = with_branch && with_post_norm ? post.get() : nullptr;
  p.prologue.next_weight = next.get();
  p.prologue.x_out = x_out.get();
  p.prologue.offset = 1;
  p.prologue.eps = 1e-6f;
  p.prologue.inverse_scale = inverse_scale;
  expect_same(run_gemv<float>(p, workspace, f32_output(), blocks), want, what + ", product");
  expect_same(x_out.download(), x_apart.download(), what + ", residual stream");
  expect_same(x_device.download(), x, what + ", input");
  CHECK(workspace.is_clean());
}

TEST("cuda gemv: the prologue has the bits of the row kernels") {
  check_prologue(Int8Problem(1, 40, 640), true, true, 0, 0);
  check_prologue(Int8Problem(3, 24, 1152), true, true, 0, 3);
  check_prologue(Int8Problem(2, 16, 80), true, false, 0, 0);
  check_prologue(Int8Problem(2, 33, 144), false, false, 17.5f, 2);
  check_prologue(Int8Problem(9, 16, 272), true, true, 23.0f, 0);
  check_prologue(Bf16Problem(1, 40, 640), true, true, 0, 0);
  check_prologue(Bf16Problem(4, 24, 1160), true, true, 0, 2);
  check_prologue(Bf16Problem(10, 17, 72), false, false, 0, 0);
  check_prologue(PlanesProblem(cuda::PlaneKind::q8_0, 2, 24, 544), true, true, 0, 0);
  check_prologue(PlanesProblem(cuda::PlaneKind::q4_0, 3, 24, 544), true, true, 0, 0);
  check_prologue(Int8Problem(4, 48, 768), true, true, 0, 4);  // bulk copies
  check_prologue(Bf16Problem(3, 32, 1152), true, true, 0, 0);
}

// 4e-3 in norm is the bar of bf16 products; sums are f32, so what is left is their order: 1e-5 holds with room.
template <class Problem>
void check_against_double(const Problem& problem, const std::vector<float>& w, int blocks) {
  const GemvWorkspace workspace(kRoom);
  const std::vector<float> want = float_products(widen(problem.x), w, problem.m, problem.n, problem.k);
  const std::vector<float> got = run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks);
  const double error = relative_error(got, want);
  CHECK_MSG(error <= 1e-5, shape_text(problem.m, problem.n, problem.k, blocks) << ": error " << error);
  CHECK(workspace.is_clean());
}
// The bits do not depend on the spread, nor on the rows beside.
template <class Problem>
void check_same_bits(const Problem& problem) {
  const GemvWorkspace workspace(kRoom);
  const std::vector<float> together = run_gemv<float>(problem.params(workspace), workspace, f32_output());
  for (const int blocks : {1, 2, 3, 4, 5, 7, 13}) {
    expect_same(run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks), together,
                shape_text(problem.m, problem.n, problem.k, blocks));
  }
  for (int r = 0; r < problem.m; r += problem.m > 8 ? 3 : 1) {
    auto p = problem.params(workspace);
    p.product.x += static_cast<int64_t>(r) * problem.k;
    p.product.m = 1;
    const std::vector<float> alone = run_gemv<float>(p, workspace, f32_output(), r % 4);
    const auto row = together.begin() + static_cast<std::ptrdiff_t>(r) * problem.n;
    expect_same(alone, {row, row + problem.n}, shape_text(problem.m, problem.n, problem.k, 0) + ", row " + std::to_string(r) + " alone");
  }
  CHECK(workspace.is_clean());
}

TEST("cuda gemv bf16: against double") {
  for (const int n : {1, 16, 17, 100}) {
    for (const int k : {8, 16, 64, 72, 512, 520, 1152}) {
      for (const int m : {1, 3, 8, 9, 16}) {
        if (n * k > 10000 && m != 3) continue;
        const Bf16Problem problem(m, n, k, static_cast<uint32_t>(n + k + m));
        check_against_double(problem, widen(problem.w), 0);
      }
    }
  }
}

TEST("cuda gemv bf16: the same bits alone, together and however split") {
  check_same_bits(Bf16Problem(16, 40, 2056));
  check_same_bits(Bf16Problem(5, 33, 1152));
  check_same_bits(Bf16Problem(1, 16, 8192));
  check_same_bits(Bf16Problem(2, 64, 5120));  // on one block more slices are carried than shared memory holds
}

// Slices of 512 from zero, added in rising order: what the order contract says, in plain code around whole-slice products.
TEST("cuda gemv bf16: slices of 512 are added in rising order") {
  const GemvWorkspace workspace(kRoom);
  const int m = 2, n = 24, k = 1800;
  const Bf16Problem problem(m, n, k);
  std::vector<float> want(static_cast<size_t>(m) * n, 0.0f);
  for (int k0 = 0; k0 < k; k0 += cuda::kBf16SliceK) {
    cuda::GemvBf16Params p = problem.params(workspace);
    p.product.x += k0;
    p.product.w += k0;
    p.product.k = std::min(cuda::kBf16SliceK, k - k0);
    const std::vector<float> slice = run_gemv<float>(p, workspace, f32_output());
    for (size_t i = 0; i < want.size(); ++i) want[i] += slice[i];
  }
  for (const int blocks : {0, 3, 8})
    expect_same(run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks), want, shape_text(m, n, k, blocks));
}

// The order contract of cuda/api/gemm.h: a row has the same bits in a skinny product and in a tiled one.
TEST("cuda gemv bf16: the same bits as the tiled kernel") {
  const GemvWorkspace workspace(kRoom);
  for (const auto& [m, n, k] : {std::tuple{1, 64, 1152}, {5, 136, 640}, {16, 100, 2056}}) {
    const Bf16Problem problem(m, n, k);
    const DeviceArray<float> out(static_cast<size_t>(m) * n);
    cuda::GemmBf16Params tiled;
    tiled.product = problem.params(workspace).product;
    tiled.product.output.out = out.get();
    tiled.product.output.stride = n;
    require_ok(api().gemm_bf16(tiled, context()));
    expect_same(run_gemv<float>(problem.params(workspace), workspace, f32_output()), out.download(), shape_text(m, n, k, 0));
  }
}

TEST("cuda gemv bf16: epilogues") {
  const GemvWorkspace workspace(kRoom);
  const Bf16Problem problem(5, 48, 584);
  const std::vector<float> y = run_gemv<float>(problem.params(workspace), workspace, f32_output());
  for (const int blocks : {0, 4}) {
    std::vector<uint16_t> rounded;
    for (const float v : y) rounded.push_back(to_bf16(v).bits);
    expect_same(run_gemv<uint16_t>(problem.params(workspace), workspace, output_of(Epilogue::store, OutType::bf16), blocks), rounded,
                "bf16 out");
    const DeviceArray<float> residual(y);
    cuda::ProductOutput add = output_of(Epilogue::add, OutType::f32);
    add.residual = residual.get();
    add.residual_stride = problem.n;
    std::vector<float> twice;
    for (const float v : y) twice.push_back(v + v);
    expect_same(run_gemv<float>(problem.params(workspace), workspace, add, blocks), twice, "add");
    std::vector<float> gated;
    for (int r = 0; r < problem.m; ++r) {
      const float* row = y.data() + static_cast<size_t>(r) * problem.n;
      for (int c = 0; c < problem.n / 2; ++c) gated.push_back(static_cast<float>(geglu_value(row[gate_row(c)], row[up_row(c)])));
    }
    CHECK_CLOSE(run_gemv<float>(problem.params(workspace), workspace, output_of(Epilogue::geglu, OutType::f32), blocks), gated, 1e-5, 1e-6);
  }
}

TEST("cuda gemv planes: packing and unpacking give the blocks back") {
  for (const cuda::PlaneKind kind : {cuda::PlaneKind::q8_0, cuda::PlaneKind::q4_0}) {
    for (const auto& [n, k] : {std::pair{1, 32}, {3, 64}, {17, 288}, {5, 512}}) {
      const std::vector<std::byte> blocks = PlanesProblem::make_blocks(kind, n, k, 3);
      std::vector<std::byte> planes(static_cast<size_t>(cuda::plane_layout(kind, n, k).bytes)), back(blocks.size());
      cuda::pack_planes(kind, blocks.data(), n, k, planes.data());
      cuda::unpack_planes(kind, planes.data(), n, k, back.data());
      CHECK_MSG(back == blocks, "n " << n << ", k " << k);
    }
  }
}

TEST("cuda gemv planes: against the values of the blocks") {
  for (const cuda::PlaneKind kind : {cuda::PlaneKind::q8_0, cuda::PlaneKind::q4_0}) {
    for (const int n : {1, 16, 17, 40}) {
      for (const int k : {32, 64, 128, 160, 256, 512, 544, 1152}) {
        for (const int m : {1, 2, 8, 9, 16}) {
          if (n * k > 10000 && m != 2 && m != 9) continue;
          const PlanesProblem problem(kind, m, n, k, static_cast<uint32_t>(n + k + m));
          check_against_double(problem, problem.w, 0);
        }
      }
    }
  }
}

TEST("cuda gemv planes: the same bits alone, together and however split") {
  for (const cuda::PlaneKind kind : {cuda::PlaneKind::q8_0, cuda::PlaneKind::q4_0}) {
    check_same_bits(PlanesProblem(kind, 16, 40, 2080));
    check_same_bits(PlanesProblem(kind, 5, 33, 1152));
  }
}

TEST("cuda gemv planes: more than 16 rows have the bits of single ones") {
  const GemvWorkspace workspace(kRoom);
  for (const cuda::PlaneKind kind : {cuda::PlaneKind::q8_0, cuda::PlaneKind::q4_0}) {
    const PlanesProblem problem(kind, 37, 32, 544);
    for (const auto& [epilogue, columns] : {std::pair{Epilogue::store, 32}, {Epilogue::add, 32}, {Epilogue::geglu, 16}}) {
      const DeviceArray<float> residual(random_floats(size_t{37} * 32, 3));
      cuda::ProductOutput o = output_of(epilogue, OutType::f32);
      o.residual = residual.get();
      o.residual_stride = 32;
      const std::vector<float> all = run_gemv<float>(problem.params(workspace), workspace, o);
      for (const int r : {0, 15, 16, 31, 32, 36}) {
        cuda::GemvPlanesParams p = problem.params(workspace);
        p.product.x += static_cast<int64_t>(r) * problem.k;
        p.product.m = 1;
        o.residual = residual.get() + r * 32;
        const auto row = all.begin() + r * columns;
        expect_same(run_gemv<float>(p, workspace, o), {row, row + columns}, "row " + std::to_string(r));
      }
    }
  }
  CHECK(workspace.is_clean());
}

// Copies early or late, blocks, warps and lanes in any order.
template <class Problem>
void check_modes(const Problem& problem, int blocks) {
  const GemvWorkspace workspace(kRoom);
  const std::vector<float> want = run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks);
  each_mode([&] {
    const std::vector<float> got = run_gemv<float>(problem.params(workspace), workspace, f32_output(), blocks);
    expect_same(got, want, shape_text(problem.m, problem.n, problem.k, blocks));
  });
  CHECK(workspace.is_clean());
}
TEST("cuda gemv: any schedule gives the same bits") {
  check_modes(Int8Problem(3, 40, 1168), 0);
  check_modes(Int8Problem(9, 40, 1168), 5);
  check_modes(Int8Problem(2, 48, 1216), 0);  // bulk copies
  check_modes(Int8Problem(2, 48, 1216), 5);
  check_modes(Bf16Problem(2, 24, 1544), 0);
  check_modes(Bf16Problem(12, 40, 2056), 4);
  check_modes(Bf16Problem(3, 32, 2080), 4);  // bulk copies
  check_modes(PlanesProblem(cuda::PlaneKind::q8_0, 4, 40, 1184), 3);
  check_modes(PlanesProblem(cuda::PlaneKind::q4_0, 4, 40, 2080), 3);
  each_mode([] { check_prologue(Int8Problem(2, 40, 640), true, true, 0, 5); });
}

// Grids that may start before the one before them has ended: each waits before it reads what that wrote, or writes what that reads.
TEST("cuda gemv: a chain of dependent launches") {
  const GemvWorkspace workspace(kRoom);
  const int m = 2, k = 640, n = 640;
  const Bf16Problem problem(m, n, k);
  DeviceArray<uint16_t> ping(problem.x), pong(problem.x.size());
  const auto chain = [&](bool dependent) {
    ping.upload(problem.x);
    cuda::LaunchContext c = context();
    c.dependent = dependent;
    for (int step = 0; step < 4; ++step) {
      cuda::GemvBf16Params p = problem.params(workspace);
      p.product.x = step % 2 ? pong.get() : ping.get();
      p.product.output = output_of(Epilogue::store, OutType::bf16);
      p.product.output.out = step % 2 ? ping.get() : pong.get();
      p.product.output.stride = n;
      p.blocks = step + 1;
      require_ok(api().gemv_bf16(p, c));
    }
    return ping.download();
  };
  const std::vector<uint16_t> want = chain(false);
  each_mode([&] { expect_same(chain(true), want, "dependent launches"); });
  CHECK(workspace.is_clean());
}

// The rows of a vocabulary: many row blocks per block, more outputs than a 16-bit anything.
TEST("cuda gemv int8: as many rows as a vocabulary") {
  const GemvWorkspace workspace(kRoom);
  const Int8Problem problem(1, 262144, 32);
  expect_same(run_gemv<int32_t>(problem.params(workspace), workspace, output_of(Epilogue::raw, OutType::int32)), problem.sums(),
              shape_text(1, 262144, 32, 0));
  CHECK(workspace.is_clean());
}

// Half rings where x takes the room; no bulk copies before sm_90.
TEST("cuda gemv: on every architecture") {
  each_device({Capability::sm80, Capability::sm86, Capability::sm89, Capability::sm90, Capability::sm120}, [] {
    const GemvWorkspace workspace(kRoom);
    for (const auto& [m, n, k] : {std::tuple{2, 144, 640}, {16, 48, 3072}, {1, 32, 36864}}) {
      const Int8Problem int8(m, n, k);
      expect_same(run_gemv<int32_t>(int8.params(workspace), workspace, output_of(Epilogue::raw, OutType::int32)), int8.sums(),
                  shape_text(m, n, k, 0));
    }
    check_against_double(Bf16Problem(8, 32, 2304), widen(Bf16Problem(8, 32, 2304).w), 0);
    const PlanesProblem q8(cuda::PlaneKind::q8_0, 8, 16, 2304), q4(cuda::PlaneKind::q4_0, 8, 16, 2304);
    check_against_double(q8, q8.w, 0);
    check_against_double(q4, q4.w, 3);
    const PlanesProblem long_rows(cuda::PlaneKind::q4_0, 16, 16, 8192);  // on 99 KB of shared memory a few rows at a time
    check_against_double(long_rows, long_rows.w, 0);
  });
}

TEST("cuda gemv: what is refused, and why") {
  const GemvWorkspace workspace(kRoom);
  const Int8Problem problem(2, 32, 64);
  const DeviceArray<float> out(64);
  cuda::GemvInt8Params good = problem.params(workspace);
  good.product.output.out = out.get();
  good.product.output.stride = 32;
  CHECK(cuda::supports_gemv_int8(good, *context().device));
  const auto refused = [&](auto change, const char* part) {
    cuda::GemvInt8Params p = good;
    change(p);
    CHECK(!cuda::supports_gemv_int8(p, *context().device));
    const cuda::Status s = api().gemv_int8(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused);
    CHECK_MSG(s.what && std::string(s.what).find(part) != std::string::npos, "the reason was: " << (s.what ? s.what : ""));
  };
  refused([](auto& p) { p.product.m = 0; }, "1 to 16");
  refused([](auto& p) { p.product.m = 17; }, "1 to 16");
  refused([](auto& p) { p.product.k = 60; }, "multiple of 16");
  refused([](auto& p) { p.product.x_stride = 72; }, "16 bytes");
  refused([](auto& p) { p.product.w = reinterpret_cast<const int8_t*>(reinterpret_cast<intptr_t>(p.product.w) + 8); }, "16 bytes");
  refused([](auto& p) { p.product.w_scales = nullptr; }, "w_scales");
  refused(
      [](auto& p) {
        p.product.n = 24;
        p.product.output.epilogue = Epilogue::geglu;
      },
      "multiple of 16");
  refused([](auto& p) { p.product.output.out_type = OutType::int8; }, "store writes");
  refused([](auto& p) { p.product.output.epilogue = Epilogue::add; }, "residual");
  refused([](auto& p) { p.workspace_bytes = 100; }, "workspace");
  refused([&](auto& p) { p.prologue.x = out.get(); }, "next_weight");
  refused([&](auto& p) { p.prologue.x = p.prologue.x_out = out.get(), p.prologue.next_weight = out.get(); }, "x_out");
  refused([](auto& p) { p.product.m = 16, p.product.k = 1 << 16; }, "shared memory");
}

TEST("cuda gemv: plans of the shapes of Gemma") {
  cuda::DeviceFacts h200;
  h200.major = 9, h200.code = 90, h200.sm_count = 132, h200.smem_per_block = 227 << 10, h200.smem_per_sm = 228 << 10;
  cuda::DeviceFacts ada = h200;
  ada.major = 8, ada.minor = 9, ada.sm_count = 128, ada.smem_per_block = 99 << 10, ada.smem_per_sm = 100 << 10;
  using cuda::GemvFormat;
  for (const cuda::DeviceFacts& device : {h200, ada}) {
    for (const GemvFormat format : {GemvFormat::int8, GemvFormat::bf16, GemvFormat::q8_0, GemvFormat::q4_0}) {
      for (const auto& [n, k] : {std::pair{1536, 640},
                                 {640, 2048},
                                 {1536, 1152},
                                 {1152, 6912},
                                 {13824, 1152},
                                 {20480, 2560},
                                 {2560, 10240},
                                 {43008, 5376},
                                 {5376, 21504},
                                 {262144, 5376}}) {
        cuda::GemvPlan plan;
        const char* why = cuda::plan_gemv({format, 1, n, k, false}, device, 0, &plan);
        CHECK_MSG(!why, shape_text(1, n, k, 0) << ": " << why);
        if (why) continue;
        CHECK(plan.smem_bytes <= device.smem_per_block);
        CHECK(plan.blocks <= 2 * device.sm_count);
        CHECK(plan.workspace_bytes < 64 << 20);
        // Enough in flight for the memory (24 KB per SM on an H200, 5 KB on Ada), and no block with much more than its share.
        CHECK(plan.in_flight_bytes >= (device.major == 9 ? 24 << 10 : 12 << 10));
        const double units = double(plan.row_blocks) * plan.units;
        const double most =
            plan.whole_row_blocks ? double((plan.row_blocks + plan.blocks - 1) / plan.blocks) * plan.units : std::ceil(units / plan.blocks);
        if (units > 4 * plan.blocks && int64_t{n} * k > 50e6)
          CHECK_MSG(most <= 1.15 * units / plan.blocks, shape_text(1, n, k, plan.blocks) << ": " << most << " of " << units);
      }
    }
  }
}

}  // namespace
}  // namespace lapidary::test
