// wgmma in every form and for every N against plain products, operands brought by TMA in every swizzle; and the mistakes that the emulator
// must find.
#include <random>
#include <string>
#include <utility>

#include "cuda/launch/tensor_map.h"
#include "cuda/support.h"
#include "cuda/tensor_kernels.cuh"
#include "emulator/control.h"

namespace lapidary::test {

using namespace cuda;

namespace {

float bf16(uint16_t bits) { return to_f32(BFloat16{bits}); }

bool available() { return context().device->has_wgmma(); }

// A [64, k], B [n, k] (or [k, n] when transposed) as bytes in rows of 16-byte multiples, and the accumulator before.
struct Problem {
  WgmmaForm form;
  int n, k;  // k in elements
  std::vector<uint8_t> a, b;
  int64_t b_stride;
  std::vector<uint32_t> c;  // bits of float or int, [64][n]

  double a_at(int row, int x) const { return value(a, row * kWgmmaK, x); }
  double b_at(int x, int column) const { return is_transposed(form) ? value(b, x * b_stride, column) : value(b, column * b_stride, x); }
  double value(const std::vector<uint8_t>& m, int64_t row, int x) const {
    if (is_s8(form)) return static_cast<int8_t>(m[row + x]);
    uint16_t bits;
    std::memcpy(&bits, &m[row + 2 * x], 2);
    return bf16(bits);
  }
};

std::vector<uint8_t> random_elements(bool s8, size_t bytes, std::mt19937& random) {
  std::vector<uint8_t> out(bytes);
  if (s8) {
    for (uint8_t& v : out) v = static_cast<uint8_t>(random());
    return out;
  }
  std::normal_distribution<float> normal;
  for (size_t i = 0; i + 1 < bytes; i += 2) {
    const uint32_t kind = random() % 64;
    const uint16_t bits = kind == 0 ? 0x8000 : kind == 1 ? 0x0005 : cuda::to_bf16(normal(random) * (kind == 2 ? 300.0f : 1.0f)).bits;
    std::memcpy(&out[i], &bits, 2);
  }
  return out;
}

Problem make_problem(WgmmaForm form, int n, std::mt19937& random) {
  Problem p;
  p.form = form;
  p.n = n;
  p.k = is_s8(form) ? kWgmmaK : kWgmmaK / 2;
  p.a = random_elements(is_s8(form), 64 * kWgmmaK, random);
  p.b_stride = is_transposed(form) ? round_up(2 * n, 16) : kWgmmaK;
  p.b = random_elements(is_s8(form), static_cast<size_t>(p.b_stride) * (is_transposed(form) ? p.k : n), random);
  p.c.resize(static_cast<size_t>(64) * n);
  for (uint32_t& v : p.c) {
    v = is_s8(form) ? static_cast<uint32_t>(random())
                    : bits_as<uint32_t>(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 100);
  }
  return p;
}

// Elements of `got` that are not c (if accumulate) + a · b. A step adds 16 products and rounds; the hardware truncates below 23 bits of the
// largest term. int8 is exact.
size_t count_wrong(const Problem& p, bool accumulate, const std::vector<uint32_t>& got) {
  size_t wrong = 0;
  std::vector<double> a(static_cast<size_t>(64) * p.k), b(static_cast<size_t>(p.k) * p.n);
  for (int i = 0; i < 64; ++i) {
    for (int x = 0; x < p.k; ++x) a[i * p.k + x] = p.a_at(i, x);
  }
  for (int x = 0; x < p.k; ++x) {
    for (int j = 0; j < p.n; ++j) b[x * p.n + j] = p.b_at(x, j);
  }
  std::vector<double> sum(p.n), magnitude(p.n);
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < p.n; ++j) {
      const uint32_t c = p.c[i * p.n + j];
      sum[j] = !accumulate ? 0.0 : is_s8(p.form) ? static_cast<double>(static_cast<int32_t>(c)) : static_cast<double>(bits_as<float>(c));
      magnitude[j] = std::abs(sum[j]);
    }
    for (int x = 0; x < p.k; ++x) {
      for (int j = 0; j < p.n; ++j) {
        const double product = a[i * p.k + x] * b[x * p.n + j];
        sum[j] += product;
        magnitude[j] += std::abs(product);
      }
    }
    for (int j = 0; j < p.n; ++j) {
      const uint32_t bits = got[i * p.n + j];
      if (is_s8(p.form)) {
        wrong += bits != static_cast<uint32_t>(static_cast<int64_t>(sum[j]));
      } else {
        wrong += !(std::abs(bits_as<float>(bits) - sum[j]) <= 4e-6 * magnitude[j]);
      }
    }
  }
  return wrong;
}

using Launcher = Status (*)(const Grid&, const WgmmaParams&, const LaunchContext&);

// The kernel that this launches on the problem. The maps place tiles with `map_swizzle`, the kernel reads them with `swizzle`.
Status run_with(Launcher launcher, const Problem& p, Swizzle swizzle, Swizzle map_swizzle, bool accumulate, std::vector<uint32_t>* out) {
  const DeviceArray<uint8_t> a(p.a), b(p.b);
  const DeviceArray<uint32_t> d(p.c);
  WgmmaParams params = {};
  const int span = swizzle_span(swizzle);
  const auto type = is_s8(p.form) ? TensorMapSpec::Type::u8 : TensorMapSpec::Type::bf16;
  const int columns = static_cast<int>(span / element_bytes(type));
  require_ok(make_tensor_map(&params.a, matrix_map(a.get(), type, 64, p.k, kWgmmaK, 64, columns, map_swizzle)));
  require_ok(make_tensor_map(&params.b, is_transposed(p.form)
                                            ? matrix_map(b.get(), type, p.k, p.n, p.b_stride, p.k, columns, map_swizzle)
                                            : matrix_map(b.get(), type, p.n, p.k, p.b_stride, p.n, columns, map_swizzle)));
  params.rows = reinterpret_cast<const uint32_t*>(a.get());
  params.d = d.get();
  params.swizzle = swizzle;
  params.accumulate = accumulate;
  Grid grid;
  grid.smem_bytes = kWgmmaSmemBytes;
  const Status s = launcher(grid, params, context());
  if (s.ok()) *out = d.download();
  return s;
}
template <int N, WgmmaForm kForm, Mistake kMistake = Mistake::none>
Status run(const Problem& p, Swizzle swizzle, Swizzle map_swizzle, bool accumulate, std::vector<uint32_t>* out) {
  return run_with(launch<WgmmaKernel<N, kForm, kMistake>>, p, swizzle, map_swizzle, accumulate, out);
}

// Every swizzle for some n, and the usual one for all.
void check_size(Launcher launcher, WgmmaForm form, int n, std::mt19937& random) {
  const Problem p = make_problem(form, n, random);
  for (const Swizzle swizzle : {Swizzle::bytes128, Swizzle::bytes64, Swizzle::bytes32, Swizzle::none}) {
    if (swizzle != Swizzle::bytes128 && n % 40 != 0 && n != 8 && n != 64 && n != 128 && n != 256) continue;
    for (const bool accumulate : {false, true}) {
      std::vector<uint32_t> got;
      require_ok(run_with(launcher, p, swizzle, swizzle, accumulate, &got));
      const size_t wrong = count_wrong(p, accumulate, got);
      CHECK_MSG(wrong == 0, wrong << " wrong elements, n " << n << ", form " << static_cast<int>(form) << ", swizzle "
                                  << static_cast<int>(swizzle) << (accumulate ? ", accumulated" : ""));
    }
  }
}
template <WgmmaForm kForm, int N>
void check_one(std::mt19937& random) {
  if constexpr (is_s8(kForm) ? wgmma_s8_size(N) : wgmma_bf16_size(N)) check_size(launch<WgmmaKernel<N, kForm>>, kForm, N, random);
}
template <WgmmaForm kForm, int... kI>
void check_sizes(std::integer_sequence<int, kI...>) {
  if (!available()) return;
  std::mt19937 random(static_cast<int>(kForm) + 1);
  (check_one<kForm, 8 * (kI + 1)>(random), ...);
}
using EverySize = std::make_integer_sequence<int, 32>;

TEST("cuda wgmma: bf16, both operands by descriptor") { check_sizes<WgmmaForm::bf16>(EverySize()); }
TEST("cuda wgmma: bf16, B with contiguous n") { check_sizes<WgmmaForm::bf16_transposed>(EverySize()); }
TEST("cuda wgmma: bf16, A in registers") { check_sizes<WgmmaForm::bf16_registers>(EverySize()); }
TEST("cuda wgmma: bf16, A in registers, B with contiguous n") { check_sizes<WgmmaForm::bf16_registers_transposed>(EverySize()); }
TEST("cuda wgmma: int8, both operands by descriptor") { check_sizes<WgmmaForm::s8>(EverySize()); }
TEST("cuda wgmma: int8, A in registers") { check_sizes<WgmmaForm::s8_registers>(EverySize()); }

TEST("cuda wgmma: a tile placed with another swizzle gives wrong products") {
  if (!available()) return;
  std::mt19937 random(20);
  const Problem p = make_problem(WgmmaForm::s8, 64, random);
  for (const Swizzle swizzle : {Swizzle::bytes128, Swizzle::bytes64, Swizzle::bytes32}) {
    std::vector<uint32_t> got;
    require_ok(run<64, WgmmaForm::s8>(p, swizzle, Swizzle::none, false, &got));
    CHECK(count_wrong(p, false, got) >
          64 * 64 / 4);  // A and B are both permuted: where their rows agree in the pattern, the product is right
  }
}

TEST("cuda wgmma: the accumulators of one product are the A registers of the next") {
  if (!available()) return;
  constexpr int kKeys = TwoProductsKernel::kKeys;
  std::mt19937 random(21);
  const auto matrix = [&](int rows) {
    std::vector<uint16_t> out(static_cast<size_t>(rows) * 64);
    std::normal_distribution<float> normal;
    for (uint16_t& v : out) v = cuda::to_bf16(normal(random)).bits;
    return out;
  };
  const std::vector<uint16_t> q = matrix(64), k = matrix(kKeys), v = matrix(kKeys);
  const DeviceArray<uint16_t> device_q(q), device_k(k), device_v(v);
  const DeviceArray<float> o(std::vector<float>(64 * 64, 0)), s(std::vector<float>(64 * kKeys, 0));
  TwoProductsParams params = {};
  const auto map = [](TensorMap* m, const uint16_t* base, int rows) {
    require_ok(make_tensor_map(m, matrix_map(base, TensorMapSpec::Type::bf16, rows, 64, 128, rows, 64, Swizzle::bytes128)));
  };
  map(&params.q, device_q.get(), 64);
  map(&params.k, device_k.get(), kKeys);
  map(&params.v, device_v.get(), kKeys);
  params.o = o.get();
  params.s = s.get();
  Grid grid;
  grid.smem_bytes = TwoProductsKernel::kSmemBytes;
  require_ok(launch<TwoProductsKernel>(grid, params, context()));
  const std::vector<float> got_o = o.download(), got_s = s.download();
  double worst_s = 0, worst_o = 0;
  for (int i = 0; i < 64; ++i) {
    double want[64] = {}, magnitude[64] = {};
    for (int j = 0; j < kKeys; ++j) {
      double score = 0;
      for (int x = 0; x < 64; ++x) score += static_cast<double>(bf16(q[i * 64 + x])) * bf16(k[j * 64 + x]);
      worst_s = std::max(worst_s, std::abs(got_s[i * kKeys + j] - score));
      const double packed = to_f32(cuda::to_bf16(got_s[i * kKeys + j] * 0.125f));  // the same accumulator, rounded the same way
      for (int x = 0; x < 64; ++x) {
        want[x] += packed * bf16(v[j * 64 + x]);
        magnitude[x] += std::abs(packed * bf16(v[j * 64 + x]));
      }
    }
    for (int x = 0; x < 64; ++x) worst_o = std::max(worst_o, std::abs(got_o[i * 64 + x] - want[x]) / magnitude[x]);
  }
  CHECK_MSG(worst_s <= 1e-4, "scores: " << worst_s);
  CHECK_MSG(worst_o <= 4e-6, "output: " << worst_o);
}

#ifdef LAPIDARY_EMULATED

void expect_finding(const Status& s, const char* part) {
  CHECK_MSG(!s.ok() && std::string(s.what).find(part) != std::string::npos, part << " not in: " << (s.ok() ? "ok" : s.what));
}

TEST("cuda wgmma: operations give the same bits whenever they run") {
  std::mt19937 random(22);
  const Problem p = make_problem(WgmmaForm::bf16, 96, random);
  std::vector<uint32_t> first;
  each_mode([&] {
    std::vector<uint32_t> got;
    require_ok(run<96, WgmmaForm::bf16>(p, Swizzle::bytes128, Swizzle::bytes128, true, &got));
    if (first.empty()) first = got;
    CHECK(got == first && count_wrong(p, true, got) == 0);
  });
}

TEST("cuda wgmma: mma and wgmma give equal bits") {
  std::mt19937 random(23);
  const Problem p = make_problem(WgmmaForm::bf16, 8, random);
  std::vector<uint32_t> got;
  require_ok(run<8, WgmmaForm::bf16>(p, Swizzle::bytes128, Swizzle::bytes128, true, &got));
  // Four steps of one warp's mma over rows 0..15.
  const auto pair = [](const std::vector<uint8_t>& m, int row, int k) {
    uint32_t r;
    std::memcpy(&r, &m[row * kWgmmaK + 2 * k], 4);
    return r;
  };
  std::vector<uint32_t> d(128);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) d[lane * 4 + i] = p.c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  }
  const DeviceArray<uint32_t> device_d(d);
  for (int step = 0; step < 4; ++step) {
    std::vector<uint32_t> a(128), b(64);
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) a[lane * 4 + i] = pair(p.a, lane / 4 + i % 2 * 8, 16 * step + lane % 4 * 2 + i / 2 * 8);
      for (int i = 0; i < 2; ++i) b[lane * 2 + i] = pair(p.b, lane / 4, 16 * step + lane % 4 * 2 + i * 8);
    }
    const DeviceArray<uint32_t> device_a(a), device_b(b);
    require_ok(launch<MmaKernel<MmaForm::bf16>>({}, {device_a.get(), device_b.get(), nullptr, device_d.get()}, context()));
  }
  d = device_d.download();
  size_t different = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) different += d[lane * 4 + i] != got[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  }
  CHECK(different == 0);
}

// Operations complete as late as they may: the mode that shows what nobody waited for.
struct Lazy {
  Lazy() { emulator::set_async_mode(emulator::AsyncMode::lazy); }
  ~Lazy() { emulator::set_async_mode(emulator::AsyncMode::eager); }
};

TEST("cuda wgmma: a missing wait shows") {
  std::mt19937 random(24);
  for (const WgmmaForm form : {WgmmaForm::bf16, WgmmaForm::s8}) {
    const Problem p = make_problem(form, 64, random);
    std::vector<uint32_t> got;
    const Lazy lazy;
    if (form == WgmmaForm::bf16) {
      require_ok(run<64, WgmmaForm::bf16, Mistake::no_wait>(p, Swizzle::bytes128, Swizzle::bytes128, false, &got));
    } else {
      require_ok(run<64, WgmmaForm::s8, Mistake::no_wait>(p, Swizzle::bytes128, Swizzle::bytes128, false, &got));
    }
    CHECK(count_wrong(p, false, got) == 64 * 64);
  }
}

TEST("cuda wgmma: mistakes are found") {
  std::mt19937 random(25);
  const Problem p = make_problem(WgmmaForm::s8, 64, random);
  std::vector<uint32_t> got;
  const Lazy lazy;
  constexpr Swizzle kS = Swizzle::bytes128;
  expect_finding(run<64, WgmmaForm::s8, Mistake::no_fence>(p, kS, kS, false, &got), "wgmma_fence");
  expect_finding(run<64, WgmmaForm::s8, Mistake::write_in_flight>(p, kS, kS, false, &got), "was written while");
  expect_finding(run<64, WgmmaForm::s8, Mistake::outside>(p, kS, kS, false, &got), "out of bounds");
  expect_finding(run<64, WgmmaForm::s8, Mistake::misplaced>(p, kS, kS, false, &got), "not on its swizzle atom");
  const Status without_a_warp = run<64, WgmmaForm::s8, Mistake::one_warp_missing>(p, kS, kS, false, &got);
  CHECK(!without_a_warp.ok());
}

TEST("cuda wgmma: tiles written by threads need the proxy fence") {
  std::mt19937 random(26);
  std::vector<uint8_t> rows = random_elements(true, 64 * 128, random), tile(rows.size());
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) std::memcpy(&tile[swizzled_chunk<128>(row, chunk)], &rows[row * 128 + chunk * 16], 16);
  }
  const DeviceArray<uint8_t> device_tile(tile);
  const DeviceArray<int> d(std::vector<int>(64 * 64, 0));
  Grid grid;
  grid.smem_bytes = 64 * 128;
  const auto start = [&](bool fence) {
    return launch<ThreadTileKernel>(grid, {reinterpret_cast<const U32x4*>(device_tile.get()), d.get(), fence}, context());
  };
  require_ok(start(true));
  const std::vector<int> got = d.download();
  size_t wrong = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < 64; ++j) {
      int want = 0;
      for (int x = 0; x < 128; ++x) want += static_cast<int8_t>(rows[i * 128 + x]) * static_cast<int8_t>(rows[j * 128 + x]);
      wrong += got[i * 64 + j] != want;
    }
  }
  CHECK(wrong == 0);
  expect_finding(start(false), "proxy fence");
}
#endif

}  // namespace

}  // namespace lapidary::test
