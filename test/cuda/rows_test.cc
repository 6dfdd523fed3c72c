// Row and elementwise kernels: against the reference backend, int8 against the shared rule bit by bit, and sums against their documented
// order.
#include <cmath>
#include <limits>

#include "base/float16.h"
#include "cuda/support.h"
#include "ops/int8.h"
#include "ops/ops.h"
#include "ops/ops_data.h"
#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::ActOut;
using cuda::ActType;

constexpr int kDims[] = {1, 2, 7, 20, 64, 127, 128, 129, 256, 1152, 1023, 1025, 2048, 5376, 12273, 21504};

// Bell-shaped, with what hurts: large and tiny outliers, zeros of both signs, a subnormal.
std::vector<float> row_data(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = random.bell();
    if (i % 61 == 5) x[i] *= 300;
    if (i % 67 == 11) x[i] *= 1e-6f;
    if (i % 71 == 13) x[i] = i % 2 ? -0.0f : 0.0f;
    if (i % 401 == 17) x[i] = 1e-41f;
  }
  return x;
}

// The documented order of a sum over a row (cuda/kernels/row_ops.cuh): chunks of 128, 4 per lane, chunk c in slot c % 16, butterflies.
float sum_of_squares(const float* x, int dim) {
  float lanes[16][32] = {};
  for (int i = 0; i < dim; ++i) {
    float& sum = lanes[i / 128 % 16][i % 128 / 4];
    sum = std::fma(x[i], x[i], sum);
  }
  float slots[16];
  for (int s = 0; s < 16; ++s) {
    for (int step = 16; step > 0; step /= 2)
      for (int l = 0; l < step; ++l) lanes[s][l] += lanes[s][l + step];
    slots[s] = lanes[s][0];
  }
  for (int step = 8; step > 0; step /= 2)
    for (int s = 0; s < step; ++s) slots[s] += slots[s + step];
  return slots[0];
}

std::vector<float> norm_rows(const std::vector<float>& x, const std::vector<float>& w, float offset, float eps) {
  const int dim = static_cast<int>(w.size());
  std::vector<float> y(x.size());
  for (size_t row = 0; row < x.size(); row += w.size()) {
    const float inverse = 1.0f / std::sqrt(sum_of_squares(&x[row], dim) / static_cast<float>(dim) + eps);
    for (size_t i = 0; i < w.size(); ++i) y[row + i] = x[row + i] * inverse * (offset + w[i]);
  }
  return y;
}

template <typename T>
void check_bits(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) == 0) continue;
    CHECK_MSG(false, what << ": element " << i << " is " << +got[i] << ", want " << +want[i]);
    return;
  }
}

// Runs an operation with every form of output and checks each bit by bit against its f32 values. run(out) starts it afresh.
template <class Run>
void check_outputs(const std::vector<float>& want, int rows, int dim, const std::string& what, const Run& run) {
  const size_t count = want.size();
  const float unwritten = std::numeric_limits<float>::quiet_NaN();
  DeviceArray<float> f32(std::vector<float>(count, unwritten));
  run(cuda::act_f32(f32.get()));
  check_bits(f32.download(), want, what + " f32");

  DeviceArray<uint16_t> b16(std::vector<uint16_t>(count, 0x7fff));
  run(cuda::act_bf16(b16.get()));
  std::vector<uint16_t> rounded(count);
  for (size_t i = 0; i < count; ++i) rounded[i] = to_bf16(want[i]).bits;
  check_bits(b16.download(), rounded, what + " bf16");

  std::vector<int8_t> q(count);
  std::vector<float> scales(static_cast<size_t>(rows));
  for (int r = 0; r < rows; ++r) {
    const float* row = &want[static_cast<size_t>(r) * dim];
    scales[static_cast<size_t>(r)] = int8_scale(absolute_max(row, dim));
    quantize_int8(row, dim, scales[static_cast<size_t>(r)], &q[static_cast<size_t>(r) * dim]);
  }
  DeviceArray<int8_t> q8(std::vector<int8_t>(count, -128));
  DeviceArray<float> s(std::vector<float>(scales.size(), unwritten));
  run(cuda::act_int8_per_row(q8.get(), s.get()));
  check_bits(s.download(), scales, what + " scales");
  check_bits(q8.download(), q, what + " int8 per row");

  for (size_t r = 0; r < scales.size(); ++r) {
    scales[r] = 0.013f * static_cast<float>(r + 1);
    quantize_int8(&want[r * dim], dim, scales[r], &q[r * dim]);
  }
  s.upload(scales);
  q8.upload(std::vector<int8_t>(count, -128));
  run(cuda::act_int8_given(q8.get(), s.get()));
  check_bits(q8.download(), q, what + " int8 given");
  check_bits(s.download(), scales, what + " given scales");

  quantize_int8(want.data(), static_cast<int64_t>(count), 0.02f, q.data());
  q8.upload(std::vector<int8_t>(count, -128));
  run(cuda::act_int8_fixed(q8.get(), 0.02f));
  check_bits(q8.download(), q, what + " int8 fixed");
}

}  // namespace

TEST("cuda rows: rms_norm is its documented order bit by bit, and the reference's within 1e-6") {
  for (const int dim : kDims) {
    for (const float offset : {1.0f, 0.0f}) {
      const int rows = dim > 6000 ? 1 : 3;
      const std::vector<float> x = row_data(int64_t{rows} * dim, 3 + static_cast<uint64_t>(dim)), w = row_data(dim, 5);
      const std::vector<float> want = norm_rows(x, w, offset, 1e-6f);
      std::vector<float> reference(x.size());
      make_reference_backend()->rms_norm(Tensor(x.data(), DType::f32, {rows, dim}), {Tensor(w.data(), DType::f32, {dim}), offset, 1e-6f},
                                         Tensor(reference.data(), DType::f32, {rows, dim}));
      CHECK_CLOSE(want, reference, 1e-6, 1e-30);
      const DeviceArray<float> dx(x), dw(w);
      check_outputs(want, rows, dim, "rms_norm of " + std::to_string(dim),
                    [&](const ActOut& out) { require_ok(api().rms_norm({dx.get(), dw.get(), out, rows, dim, offset, 1e-6f}, context())); });
      // In place, and with nothing aligned.
      require_ok(api().rms_norm({dx.get(), dw.get(), cuda::act_f32(dx.get()), rows, dim, offset, 1e-6f}, context()));
      check_bits(dx.download(), want, "rms_norm in place of " + std::to_string(dim));
      std::vector<float> shifted(1, 0.0f), shifted_w(1, 0.0f);
      shifted.insert(shifted.end(), x.begin(), x.end());
      shifted_w.insert(shifted_w.end(), w.begin(), w.end());
      const DeviceArray<float> odd(shifted), odd_w(shifted_w), out(x.size() + 1);
      require_ok(api().rms_norm({odd.get() + 1, odd_w.get() + 1, cuda::act_f32(out.get() + 1), rows, dim, offset, 1e-6f}, context()));
      std::vector<float> got = out.download();
      got.erase(got.begin());
      check_bits(got, want, "rms_norm unaligned of " + std::to_string(dim));
    }
  }
}

TEST("cuda rows: add_norm is post-norm, add, next norm") {
  for (const int dim : kDims) {
    const int rows = dim > 6000 ? 1 : 2;
    const float offset = 1, eps = 1e-6f;
    const std::vector<float> x = row_data(int64_t{rows} * dim, 7), branch = row_data(int64_t{rows} * dim, 8), post = row_data(dim, 9),
                             next = row_data(dim, 10);
    DeviceArray<float> dx(x);
    const DeviceArray<float> db(branch), dp(post), dn(next);
    for (const bool with_post : {true, false}) {
      const std::string what = "add_norm of " + std::to_string(dim) + (with_post ? "" : " without post-norm");
      std::vector<float> sum = with_post ? norm_rows(branch, post, offset, eps) : branch;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = x[i] + sum[i];
      check_outputs(norm_rows(sum, next, offset, eps), rows, dim, what, [&](const ActOut& out) {
        dx.upload(x);
        require_ok(api().add_norm({dx.get(), db.get(), with_post ? dp.get() : nullptr, dn.get(), out, rows, dim, offset, eps}, context()));
        check_bits(dx.download(), sum, what + " x");
      });
      dx.upload(x);
      require_ok(api().add_norm({dx.get(), db.get(), with_post ? dp.get() : nullptr, nullptr, {}, rows, dim, offset, eps}, context()));
      check_bits(dx.download(), sum, what + " x alone");
    }
  }
}

TEST("cuda rows: geglu within 1e-6 of the function, the same interleaved by eight, and rounded or quantised from the same values") {
  for (const int ffn : {1, 7, 8, 20, 24, 1000, 4096, 4104, 6912, 21504}) {
    const int rows = ffn > 6000 ? 1 : 3;
    const std::vector<float> gate = row_data(int64_t{rows} * ffn, 11), up = row_data(int64_t{rows} * ffn, 12);
    const DeviceArray<float> dg(gate), du(up), out(gate.size());
    require_ok(api().geglu({dg.get(), du.get(), cuda::act_f32(out.get()), rows, ffn, false}, context()));
    const std::vector<float> got = out.download();
    for (size_t i = 0; i < got.size(); ++i) {
      const double g = gate[i], u = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g), want = g / (1 + std::exp(-2 * u)) * up[i];
      const double bound = 3e-7 * std::abs(want) * (1 + std::min(std::abs(u), 50.0)) + 1e-37;
      CHECK_MSG(std::abs(got[i] - want) <= bound, "geglu of " << ffn << ": element " << i << " is " << got[i] << ", want " << want);
    }
    check_outputs(got, rows, ffn, "geglu of " + std::to_string(ffn),
                  [&](const ActOut& o) { require_ok(api().geglu({dg.get(), du.get(), o, rows, ffn, false}, context())); });
    if (ffn % 8 != 0) continue;
    std::vector<float> both(gate.size() * 2);
    for (size_t i = 0; i < gate.size(); ++i) {
      both[i / 8 * 16 + i % 8] = gate[i];
      both[i / 8 * 16 + 8 + i % 8] = up[i];
    }
    const DeviceArray<float> interleaved(both);
    check_outputs(got, rows, ffn, "interleaved geglu of " + std::to_string(ffn),
                  [&](const ActOut& o) { require_ok(api().geglu({interleaved.get(), nullptr, o, rows, ffn, true}, context())); });
  }
}

TEST("cuda rows: tanh and gelu to the last bits, and at the edges") {
  std::vector<float> xs = {0.0f, -0.0f, 1e-45f, -1e-39f, 1e-20f, 9.9f, 20, -88, 3e38f, INFINITY, -INFINITY, NAN};
  for (float x = -12; x < 12; x += 0.00137f) xs.push_back(x);
  const DeviceArray<float> capped(xs), gate(xs), ones(std::vector<float>(xs.size(), 1.0f)), out(xs.size());
  require_ok(api().soft_cap({capped.get(), static_cast<int64_t>(xs.size()), 1}, context()));
  require_ok(api().geglu({gate.get(), ones.get(), cuda::act_f32(out.get()), 1, static_cast<int32_t>(xs.size()), false}, context()));
  const std::vector<float> tanh = capped.download(), gelu = out.download();
  double worst_tanh = 0, worst_gelu = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const double x = xs[i];
    if (std::isnan(x)) {
      CHECK(std::isnan(tanh[i]) && std::isnan(gelu[i]));
      continue;
    }
    const double t = std::tanh(x), u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), g = x / (1 + std::exp(-2 * u));
    CHECK(std::signbit(tanh[i]) == std::signbit(xs[i]));
    if (std::abs(x) > 1e-37) worst_tanh = std::max(worst_tanh, std::abs(tanh[i] - t) / std::abs(t));
    if (std::abs(g) > 1e-37 && std::abs(x) < 1e30)
      worst_gelu = std::max(worst_gelu, std::abs(gelu[i] - g) / std::abs(g) / (1 + std::min(std::abs(u), 50.0)));
    if (x == INFINITY) CHECK(gelu[i] == INFINITY);
    if (x == -88) CHECK(gelu[i] == 0);
  }
  CHECK_MSG(worst_tanh <= 3e-7, "tanh relative error " << worst_tanh);
  CHECK_MSG(worst_gelu <= 3e-7, "gelu relative error " << worst_gelu);
}

TEST("cuda rows: soft_cap, add and fill on awkward counts, nothing beyond the end") {
  for (const int count : {1, 3, 4, 5, 1023, 4095, 4096, 4097, 10007}) {
    std::vector<float> x = row_data(count, 21), y = row_data(count, 22);
    x.push_back(77), y.push_back(1);
    for (const int shift : {0, 1}) {
      if (shift >= count) continue;
      const int64_t n = count - shift;
      const DeviceArray<float> dx(x), dy(y);
      std::vector<float> want = x;
      require_ok(api().add({dx.get() + shift, dy.get() + shift, n}, context()));
      for (int64_t i = shift; i < count; ++i) want[static_cast<size_t>(i)] += y[static_cast<size_t>(i)];
      check_bits(dx.download(), want, "add of " + std::to_string(count));
      require_ok(api().soft_cap({dx.get() + shift, n, 30}, context()));
      for (int64_t i = shift; i < count; ++i)
        want[static_cast<size_t>(i)] = static_cast<float>(30 * std::tanh(double(want[static_cast<size_t>(i)]) / 30));
      CHECK_CLOSE(dx.download(), want, 4e-7, 1e-40);
      require_ok(api().fill({dx.get() + shift, n, -2.5f}, context()));
      std::fill(want.begin() + shift, want.begin() + count, -2.5f);
      check_bits(dx.download(), want, "fill of " + std::to_string(count));
    }
  }
  const DeviceArray<float> x(std::vector<float>{1, 2});
  require_ok(api().add({x.get(), x.get(), 0}, context()));
  CHECK((x.download() == std::vector<float>{1, 2}));
}

TEST("cuda rows: quantize, row_absmax and per-sequence scales are the shared int8 rule") {
  for (const int dim : {1, 7, 20, 129, 1152, 4096, 4097, 21504}) {
    const int rows = 5;
    std::vector<float> x = row_data(int64_t{rows} * dim, 31);
    std::fill(x.begin() + 2 * dim, x.begin() + 3 * dim, 0.0f);  // a row of zeros: the smallest scale
    for (int i = 0; i < dim; ++i) x[static_cast<size_t>(3 * dim + i)] = static_cast<float>(i % 255 - 127) + 0.5f;  // ties
    std::vector<uint16_t> narrow(x.size());
    std::vector<float> widened(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      narrow[i] = to_bf16(x[i]).bits;
      widened[i] = to_f32(bf16{narrow[i]});
    }
    const DeviceArray<float> dx(x);
    const DeviceArray<uint16_t> dn(narrow);
    check_outputs(x, rows, dim, "quantize f32 of " + std::to_string(dim),
                  [&](const ActOut& o) { require_ok(api().quantize({dx.get(), ActType::f32, o, rows, dim}, context())); });
    check_outputs(widened, rows, dim, "quantize bf16 of " + std::to_string(dim),
                  [&](const ActOut& o) { require_ok(api().quantize({dn.get(), ActType::bf16, o, rows, dim}, context())); });

    const DeviceArray<float> absmax(rows), scales(rows);
    const DeviceArray<int32_t> starts(std::vector<int32_t>{0, 2, 2, 5});
    for (const bool wide : {true, false}) {
      const std::vector<float>& values = wide ? x : widened;
      require_ok(api().row_absmax(
          {wide ? static_cast<const void*>(dx.get()) : dn.get(), wide ? ActType::f32 : ActType::bf16, absmax.get(), rows, dim}, context()));
      std::vector<float> most(rows), of_sequence(rows);
      for (int r = 0; r < rows; ++r) {
        most[static_cast<size_t>(r)] = absolute_max(&values[static_cast<size_t>(r) * dim], dim);
        const int first = r < 2 ? 0 : 2, end = r < 2 ? 2 : 5;
        of_sequence[static_cast<size_t>(r)] =
            int8_scale(absolute_max(&values[static_cast<size_t>(first) * dim], int64_t{end - first} * dim));
      }
      check_bits(absmax.download(), most, "row_absmax");
      require_ok(api().sequence_scales({absmax.get(), starts.get(), scales.get(), 3}, context()));
      check_bits(scales.download(), of_sequence, "sequence_scales");
    }
  }
}

TEST("cuda rows: gather_rows copies rows as they are") {
  for (const int dim : {1, 20, 129, 5376}) {
    const std::vector<float> x = row_data(int64_t{9} * dim, 41);
    const std::vector<int32_t> rows = {8, 0, 0, 5};
    std::vector<float> want;
    for (const int32_t r : rows) want.insert(want.end(), x.begin() + r * dim, x.begin() + (r + 1) * dim);
    const DeviceArray<float> dx(x), out(want.size());
    const DeviceArray<int32_t> dr(rows);
    require_ok(api().gather_rows({dx.get(), dr.get(), out.get(), 4, dim}, context()));
    check_bits(out.download(), want, "gather_rows of " + std::to_string(dim));
  }
}

TEST("cuda rows: rope_angles within one unit of the last place up to position 131072, and rope is two products and a sum") {
  const std::vector<int32_t> positions = {0, 1, 2, 63, 1000, 4097, 32768, 65537, 99999, 131071, 131072};
  for (const int half : {1, 10, 32, 128}) {
    std::vector<float> inv_freq(static_cast<size_t>(half));
    for (int j = 0; j < half; ++j) inv_freq[static_cast<size_t>(j)] = static_cast<float>(1 / std::pow(10000.0, double(j) / half));
    const int tokens = static_cast<int>(positions.size()), heads = 3;
    const DeviceArray<int32_t> dp(positions);
    const DeviceArray<float> df(inv_freq), cos(static_cast<size_t>(tokens * half)), sin(static_cast<size_t>(tokens * half));
    require_ok(api().rope_angles({dp.get(), df.get(), cos.get(), sin.get(), tokens, half}, context()));
    const std::vector<float> c = cos.download(), s = sin.download();
    const auto units = [](float got, double want) { return std::abs(got - want) / std::ldexp(1.0, std::max(std::ilogb(want), -126) - 23); };
    for (int i = 0; i < tokens * half; ++i) {
      const double angle = static_cast<float>(positions[static_cast<size_t>(i / half)]) * inv_freq[static_cast<size_t>(i % half)];
      const float got_c = c[static_cast<size_t>(i)], got_s = s[static_cast<size_t>(i)];
      CHECK_MSG(units(got_c, std::cos(angle)) <= 0.51, "cos(" << angle << ") is " << got_c << ", want " << std::cos(angle));
      CHECK_MSG(angle == 0 ? got_s == 0 : units(got_s, std::sin(angle)) <= 0.51,
                "sin(" << angle << ") is " << got_s << ", want " << std::sin(angle));
    }
    std::vector<float> x = row_data(int64_t{tokens} * heads * 2 * half, 51);
    const DeviceArray<float> dx(x);
    make_reference_backend()->rope(Tensor(x.data(), DType::f32, {tokens, heads, 2 * half}), Tensor(c.data(), DType::f32, {tokens, half}),
                                   Tensor(s.data(), DType::f32, {tokens, half}));
    require_ok(api().rope({dx.get(), cos.get(), sin.get(), tokens, heads, half}, context()));
    check_bits(dx.download(), x, "rope of half " + std::to_string(half));
  }
}

TEST("cuda rows: what a launcher cannot do is refused") {
  const DeviceArray<float> x(8);
  const auto refused = [](const cuda::Status& s) { return s.kind == cuda::Status::Kind::refused; };
  const ActOut no_scale = {x.get(), ActType::int8, cuda::ActScaling::per_row, nullptr, 0};
  CHECK(refused(api().rms_norm({x.get(), x.get(), no_scale, 1, 4, 1, 1e-6f}, context())));
  CHECK(refused(api().rms_norm({x.get(), x.get(), cuda::act_f32(x.get()), 1, 0, 1, 1e-6f}, context())));
  CHECK(refused(api().add_norm({x.get(), x.get(), x.get(), x.get(), no_scale, 1, 4, 1, 1e-6f}, context())));
  CHECK(refused(api().geglu({x.get(), nullptr, cuda::act_f32(x.get()), 1, 4, false}, context())));
  CHECK(refused(api().geglu({x.get(), nullptr, cuda::act_f32(x.get()), 1, 4, true}, context())));
  CHECK(refused(api().quantize({x.get(), ActType::int8, cuda::act_f32(x.get()), 1, 4}, context())));
  CHECK(refused(api().soft_cap({x.get(), 4, 0}, context())));
}

#ifdef LAPIDARY_EMULATED
TEST("cuda rows: any order of threads and blocks gives the same bits") {
  const int rows = 3, dim = 1300;
  const std::vector<float> x = row_data(rows * dim, 61), w = row_data(dim, 62);
  std::vector<float> first;
  for (const uint64_t seed : {0, 1, 2, 3}) {
    emulator::set_schedule(seed);
    const DeviceArray<float> dx(x), db(x), dw(w), scales(rows), out(x.size());
    const DeviceArray<int8_t> q(x.size());
    require_ok(api().add_norm({dx.get(), db.get(), dw.get(), dw.get(), cuda::act_int8_per_row(q.get(), scales.get()), rows, dim, 1, 1e-6f},
                              context()));
    require_ok(api().geglu({dx.get(), db.get(), cuda::act_f32(out.get()), rows, dim, false}, context()));
    std::vector<float> got = dx.download();
    for (const int8_t v : q.download()) got.push_back(v);
    for (const float v : scales.download()) got.push_back(v);
    for (const float v : out.download()) got.push_back(v);
    if (first.empty()) first = got;
    check_bits(got, first, "schedule " + std::to_string(seed));
  }
  emulator::set_schedule(0);
}
#endif

}  // namespace lapidary::test
