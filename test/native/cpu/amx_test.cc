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

void check_int8(int64_t n, int64_t k, int64_t tokens, float fixed_scale) {
  check_int8_product({"emulated amx", &kEmulatedInt8}, n, k, tokens, fixed_scale);
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
  check_int8(100, 1100, 1090, 0);  // more than kCachedInputBytes of inputs, two slices: pairs of panels are joined, two and two
}

TEST("emulated amx: int8 rows that are quantised already, sums that fill 32 bits") {
  check_int8_extremes({"emulated amx", &kEmulatedInt8});
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
