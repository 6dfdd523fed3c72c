// The AMX kernels over tiles in plain C++: the emulated instructions, and the int8 products. bf16: packed_bf16_test.cc.
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/scalar.h and kernels/math.h
#endif
#define LAPIDARY_EMULATED_AMX
#define LAPIDARY_SIMD_HEADER "cpu/simd/scalar.h"
#include "cpu/backend.h"
#include "cpu/kernels/amx_probe.h"
#include "cpu/packed_data.h"
#include "cpu/probe.h"
#include "cpu/self_check.h"
#include "ops/int8.h"

namespace lapidary::cpu {

using namespace test;

extern const PackedKernel kEmulatedAmxBf16;
const PackedKernel kEmulatedAmxBf16 = kAmxBf16Kernel;

namespace {

struct NeverFew {
  static constexpr int64_t kTokens = 1;
  static void multiply(const PackedTask&, int64_t, int64_t, float*) { REQUIRE(false); }
  static size_t scratch_floats(int64_t, int64_t) { return 0; }
};
constexpr const PackedKernel& kEmulatedInt8 = kAmxInt8Kernel<NeverFew>;

// float(Σ) · (sx · sw) of inputs quantised by the int8 rule.
std::vector<float> int8_products(const Int8Weight& weight, const std::vector<int8_t>& q, const std::vector<float>& scales) {
  const int64_t n = weight.linear.out(), k = weight.linear.in();
  std::vector<float> out;
  for (size_t t = 0; t < scales.size(); ++t) {
    for (int64_t r = 0; r < n; ++r) {
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += int64_t{q[t * static_cast<size_t>(k) + static_cast<size_t>(i)]} * weight.q.t.as<int8_t>()[r * k + i];
      out.push_back(static_cast<float>(sum) * (scales[t] * weight.scale.t.as<float>()[r]));
    }
  }
  return out;
}

void check_int8(int64_t n, int64_t k, int64_t tokens, float fixed_scale) {
  const Int8Weight weight = int8_weight(n, k, static_cast<uint64_t>(n + k));
  const Linear w = packed(weight.linear);
  const std::vector<float> x = values_of(activations(DType::f32, {tokens, k}, static_cast<uint64_t>(tokens)).t);
  std::vector<int8_t> q;
  std::vector<float> scales;
  for (int64_t t = 0; t < tokens; ++t) {
    float most = 0;
    for (int64_t i = 0; i < k; ++i) most = std::max(most, std::abs(x[static_cast<size_t>(t * k + i)]));
    scales.push_back(fixed_scale > 0 ? fixed_scale : int8_scale(most));
    for (int64_t i = 0; i < k; ++i) q.push_back(to_int8(x[static_cast<size_t>(t * k + i)] * (1.0f / scales.back())));
  }
  const std::vector<float> got = run_packed(kEmulatedInt8, w, x.data(), tokens, {fixed_scale, false});
  CHECK_MSG(same_bits(got, int8_products(weight, q, scales)), "int8 [" << tokens << ", " << k << "] x " << n);
}

}  // namespace

TEST("emulated amx: int8 products are exact on awkward sizes") {
  for (int64_t n : {1, 15, 16, 17, 31, 32, 33, 100}) {
    for (int64_t k : {1, 31, 32, 33, 63, 64, 65, 640, 1152}) {
      for (int64_t tokens : {1, 17}) check_int8(n, k, tokens, k % 2 ? 0.02f : 0);
    }
  }
  for (int64_t tokens = 1; tokens <= 20; ++tokens) check_int8(33, 65, tokens, 0);
  for (int64_t tokens : {33, 64, 65}) check_int8(33, 1152, tokens, 0);
}

TEST("emulated amx: int8 rows that are quantised already, sums that fill 32 bits") {
  const int64_t k = (int64_t{1} << 17) - 1, n = 17, tokens = 18;
  const int8_t extremes[] = {-128, 127, -127, 1, -1};
  Int8Weight weight = int8_weight(n, k, 1);
  for (int64_t r = 0; r < n; ++r) std::memset(weight.q.t.as<int8_t>() + r * k, extremes[r % 5], static_cast<size_t>(k));
  const Linear w = packed(weight.linear);
  std::vector<int8_t> q(static_cast<size_t>(tokens * k));
  std::vector<float> scales, got(static_cast<size_t>(tokens * n));
  const PackedKernel& kernel = kEmulatedInt8;
  const int64_t bytes = kernel.input_bytes(k);
  const Buffer rows = allocate_host(static_cast<size_t>(tokens * bytes)),
               scratch = allocate_host(kernel.scratch_floats(tokens, k) * sizeof(float));
  for (int64_t t = 0; t < tokens; ++t) {
    std::memset(q.data() + t * k, extremes[t % 5], static_cast<size_t>(k));
    scales.push_back(0.001f * static_cast<float>(t + 1));
    kernel.prepare_quantized(q.data() + t * k, scales.back(), k, rows.memory.get() + t * bytes);
  }
  const PackedMatrix& m = *packed_matrix(w);
  kernel.multiply({rows.memory.get(), tokens, m.panel(0), m.panel_bytes, n, k, w.scale.as<float>(), got.data(), n, 0}, 0, m.panels(),
                  reinterpret_cast<float*>(scratch.memory.get()));
  CHECK(same_bits(got, int8_products(weight, q, scales)));
}

TEST("emulated amx: a step of bf16 sums even and odd elements apart, then both, then adds; subnormal numbers are zeros") {
  alignas(64) uint16_t a[2][32] = {}, b[16][32] = {};
  alignas(64) float c[2][16] = {};
  const auto bits = [](float x) { return to_bf16(x).bits; };
  // Row 0: 2^24 + 1 in the even chain loses the 1, and does so before the odd chain comes in.
  a[0][0] = bits(0x1p24f), a[0][2] = bits(1), a[0][1] = bits(1), a[0][3] = bits(1);
  for (auto& row : b) std::fill(row, row + 32, bits(1));
  // Row 1: the smallest normal number times a half, an input that is subnormal.
  a[1][0] = bits(0x1p-126f), a[1][3] = 1;
  b[0][0] = bits(0.5f), b[1][1] = bits(1);
  c[0][0] = 0.5f, c[1][1] = 0x1p-130f, c[1][2] = -0x1p-126f;
  TileConfig config;
  config.rows[0] = config.rows[1] = 2, config.rows[2] = 16;
  config.row_bytes[0] = config.row_bytes[1] = config.row_bytes[2] = 64;
  tile_configure(config);
  tile_load<0>(c, 64), tile_load<1>(a, 64), tile_load<2>(b, 64);
  tile_dot_bf16<0, 1, 2>();
  tile_store<0>(c, 64);
  tile_release();
  CHECK(c[0][1] == 0x1p24f + 2);                  // 2^24 even, 2 odd
  CHECK(c[0][0] == 0x1p23f + 4);                  // b[0][0] is a half: (2^23 + 1) + 2, then 0.5 more, to even
  CHECK(c[1][0] == 0 && !std::signbit(c[1][0]));  // the product underflows
  CHECK(c[1][1] == 0x1p-126f);                    // C was subnormal
  CHECK(c[1][2] == 0);                            // 2^-126 - 2^-126
  CHECK(c[1][3] == 0x1p-126f);                    // the subnormal input adds nothing
}

TEST("emulated amx: the probes do the operations they say") {
  for (const ProbeLoop& loop : {kAmxInt8Loop, kAmxBf16Loop}) {
    const ProbeData data(loop.dtype);
    for (int64_t rounds : {1, 3}) CHECK(2 * loop.run(data.bytes, rounds) == static_cast<double>(loop.operations * rounds));
  }
}

TEST("emulated amx: the check that decides whether a processor's tiles are used takes right kernels and refuses wrong ones") {
  CHECK(multiplies_rightly(kEmulatedAmxBf16));
  // More tokens than NeverFew has.
  CHECK(multiplies_rightly(kEmulatedInt8));
  PackedKernel wrong = kEmulatedAmxBf16;
  wrong.multiply = [](const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
    kEmulatedAmxBf16.multiply(task, p0, p1, scratch);
    task.out[task.tokens * task.out_stride - 1] += 1;
  };
  CHECK(!multiplies_rightly(wrong));
  wrong.multiply = [](const PackedTask&, int64_t, int64_t, float*) {};
  CHECK(!multiplies_rightly(wrong));
}

}  // namespace lapidary::cpu
