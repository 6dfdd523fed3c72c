// Products of bf16 panels: every kernel against plain sums in f64 on awkward sizes; bits that depend on neither batch, cut nor, for f32
// inputs, instruction set.
#include <csetjmp>
#include <csignal>

#include "cpu/packed_data.h"

namespace lapidary::cpu {

using namespace test;

extern const PackedKernel kEmulatedAmxBf16;  // amx_test.cc

namespace {

constexpr int64_t kAwkwardColumns[] = {1, 31, 32, 33, 63, 64, 65, 640, 1152}, kAwkwardRows[] = {1, 15, 16, 17, 31, 32, 33, 100};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(LAPIDARY_AVX2_ONLY)
sigjmp_buf after_illegal;
void on_illegal(int) { siglongjmp(after_illegal, 1); }

// Whether vdpbf16ps runs here: some hypervisors hide it and leave it working.
bool runs_avx512_bf16() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bw")) return false;
  if (has_feature(Feature::avx512_bf16)) return true;
  struct sigaction action = {}, before = {};
  action.sa_handler = on_illegal;
  sigaction(SIGILL, &action, &before);
  volatile bool runs = false;
  if (sigsetjmp(after_illegal, 1) == 0) {
    asm volatile(".byte 0x62, 0xf2, 0x7e, 0x48, 0x52, 0xc0" : : : "memory");  // vdpbf16ps zmm0, zmm0, zmm0
    runs = true;
  }
  sigaction(SIGILL, &before, nullptr);
  return runs;
}
#endif

std::vector<NamedKernel> f32_kernels() {
  std::vector<NamedKernel> all;
  for (const Kernels* table : base_tables())
    all.push_back({std::string(table->name) + " bf16 x f32", find_packed(*table, DType::bf16, DType::f32)});
  return all;
}

std::vector<NamedKernel> bf16_kernels() {
  std::vector<NamedKernel> all = {{"emulated amx", &kEmulatedAmxBf16}};
#if defined(__x86_64__) && defined(__GNUC__) && !defined(LAPIDARY_AVX2_ONLY)
  if (runs_avx512_bf16()) all.push_back({"avx512bf16", kAvx512Bf16Packed.list[0]});
  if (has_feature(Feature::amx)) all.push_back({"amx", kAmxPacked.list[0]});
#endif
  return all;
}

std::vector<NamedKernel> all_kernels() {
  std::vector<NamedKernel> all = f32_kernels();
  for (const NamedKernel& k : bf16_kernels()) all.push_back(k);
  return all;
}

float seen(float x, const PackedKernel& kernel, const InputRule& rule) {
  return kernel.input == DType::bf16 || rule.round_to_bf16 ? round_to_bf16(x) : x;
}

// Within what rounding every partial sum can do: (k + 2) · 2^-24 · Σ |x w|; and where subnormal numbers count as zeros, k of them.
void check_product(const NamedKernel& named, const Owned& weight, const std::vector<float>& x, int64_t tokens, const InputRule& rule,
                   const std::vector<float>& got) {
  const int64_t n = weight.t.shape[0], k = weight.t.shape[1];
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      double want = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        bf16 w;
        std::memcpy(&w, weight.t.data + 2 * (r * k + i), 2);
        const double product = static_cast<double>(seen(x[static_cast<size_t>(t * k + i)], *named.kernel, rule)) * to_f32(w);
        want += product, magnitude += std::abs(product);
      }
      const double bound = static_cast<double>(k + 2) * (0x1p-24 * magnitude + 0x1p-126),
                   error = std::abs(got[static_cast<size_t>(t * n + r)] - want);
      CHECK_MSG(error <= bound, named.name << " [" << tokens << ", " << k << "] x " << n << ": (" << t << ", " << r << ") is "
                                           << got[static_cast<size_t>(t * n + r)] << ", want " << want << " within " << bound);
    }
  }
}

void check_sizes(int64_t n, int64_t k, const std::vector<int64_t>& token_counts) {
  const Owned weight = weights(DType::bf16, n, k, static_cast<uint64_t>(n * k));
  const Linear w = packed({weight.t, nullptr});
  for (int64_t tokens : token_counts) {
    const Owned input = activations(DType::f32, {tokens, k}, static_cast<uint64_t>(n + k + tokens));
    const std::vector<float> x = values_of(input.t);
    std::vector<float> first;
    for (const NamedKernel& named : all_kernels()) {
      for (bool round : {false, true}) {
        if (named.kernel->input == DType::bf16 && !round) continue;
        const std::vector<float> got = run_packed(*named.kernel, w, x.data(), tokens, {0, round});
        check_product(named, weight, x, tokens, {0, round}, got);
        if (named.kernel->input != DType::f32 || !round) continue;
        if (first.empty()) first = got;
        CHECK_MSG(same_bits(first, got), named.name << " differs from " << f32_kernels()[0].name);
      }
    }
  }
}

}  // namespace

TEST("packed bf16: panels lie as the picture says, and give back what went in") {
  for (int64_t n : kAwkwardRows) {
    for (int64_t k : kAwkwardColumns) {
      const Owned weight = weights(DType::bf16, n, k, 1);
      const PackedMatrix m = *packed_matrix(packed({weight.t, nullptr}));
      const int64_t columns = (k + 31) / 32 * 32;
      CHECK(m.panel_bytes == 32 * columns);
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t r = 0; r < m.panels() * 16; ++r) {
        m.layout->unpack_row(m.panel(r / 16), r % 16, k, row.data());
        for (int64_t i = 0; i < columns; ++i) {
          bf16 want{0}, got;
          if (r < n && i < k) std::memcpy(&want, weight.t.data + 2 * (r * k + i), 2);
          std::memcpy(&got, m.panel(r / 16) + 2 * (i / 2 * 32 + r % 16 * 2 + i % 2), 2);
          CHECK_MSG(got.bits == want.bits, "row " << r << ", column " << i << " of [" << n << ", " << k << "]");
          if (i < k) CHECK(row[static_cast<size_t>(i)] == to_f32(want));
        }
      }
    }
  }
}

TEST("packed bf16: every kernel is right on awkward sizes") {
  for (int64_t n : kAwkwardRows) {
    for (int64_t k : kAwkwardColumns) check_sizes(n, k, {1, 17});
  }
  check_sizes(33, 65, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 33, 64, 65});
  check_sizes(17, 1152, {2, 5, 7, 12, 13, 33, 65});
}

TEST("packed bf16: pairs of panels that are joined have the bits of each alone") {
  const int64_t n = 100, k = 530, tokens = 1090;  // more than kCachedInputBytes of inputs
  const Linear w = packed({weights(DType::bf16, n, k, 1).t, nullptr});
  const std::vector<float> x = values_of(activations(DType::f32, {tokens, k}, 2).t);
  for (const NamedKernel& named : bf16_kernels()) {
    const std::vector<float> joined = run_packed(*named.kernel, w, x.data(), tokens),
                             alone = run_packed(*named.kernel, w, x.data(), tokens, {}, 2);
    CHECK_MSG(same_bits(joined, alone), named.name);
  }
}

TEST("packed bf16: a row's bits do not depend on the rows beside it, nor on the cut") {
  for (int64_t k : {33, 640, 1152}) {
    const Owned weight = weights(DType::bf16, 49, k, 5);
    const Linear w = packed({weight.t, nullptr});
    for (int64_t tokens : {2, 3, 7, 12, 13, 16, 17, 20, 33, 65}) {
      const std::vector<float> x = values_of(activations(DType::f32, {tokens, k}, 7).t);
      for (const NamedKernel& named : all_kernels())
        check_rows_alone(named, w, x, tokens, run_packed(*named.kernel, w, x.data(), tokens), {});
    }
  }
}

TEST("packed bf16: NaN and infinity stay in their row or column") {
  const int64_t n = 33, k = 70, tokens = 20;
  Owned weight = weights(DType::bf16, n, k, 9);
  std::vector<float> x = values_of(activations(DType::f32, {tokens, k}, 11).t);
  for (int64_t r = 0; r < n; ++r) set_value(weight.t, r * k + 3, r % 2 ? -0.5f : 0.5f);
  for (const NamedKernel& named : all_kernels()) {
    const std::vector<float> clean = run_packed(*named.kernel, packed({weight.t, nullptr}), x.data(), tokens);
    std::vector<float> dirty = x;
    dirty[1 * k + 0] = NAN;
    dirty[2 * k + 3] = INFINITY;
    Owned spoilt = weights(DType::bf16, n, k, 9);
    std::memcpy(spoilt.t.data, weight.t.data, static_cast<size_t>(weight.t.bytes()));
    set_value(spoilt.t, 5 * k + k - 1, NAN);
    const std::vector<float> got = run_packed(*named.kernel, packed({spoilt.t, nullptr}), dirty.data(), tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < n; ++r) {
        const float y = got[static_cast<size_t>(t * n + r)], before = clean[static_cast<size_t>(t * n + r)];
        const bool fits = t == 1 || r == 5 ? std::isnan(y)
                          : t == 2         ? y == (r % 2 ? -INFINITY : INFINITY)
                                           : same_bits({&y, 1}, {&before, 1});
        CHECK_MSG(fits, named.name << ": (" << t << ", " << r << ") is " << y << ", without " << before);
      }
    }
  }
}

TEST("packed bf16: the order of additions is the one of docs/numerics.md") {
  const int64_t n = 20, k = 1152;
  const Owned weight = weights(DType::bf16, n, k, 21);
  Random random(22);
  std::vector<float> x(static_cast<size_t>(k));
  for (float& v : x) v = round_to_bf16(random.bell());
  const Linear w = packed({weight.t, nullptr});
  std::vector<float> plain, pairs, steps;
  for (int64_t r = 0; r < n; ++r) {
    std::vector<float> of_row(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
      bf16 q;
      std::memcpy(&q, weight.t.data + 2 * (r * k + i), 2);
      of_row[static_cast<size_t>(i)] = to_f32(q);
    }
    const auto product = [&](int64_t i, float sum) { return std::fma(x[static_cast<size_t>(i)], of_row[static_cast<size_t>(i)], sum); };
    float by_slices = 0, by_pairs = 0, by_steps = 0;
    for (int64_t s = 0; s < k; s += 512) {
      float one = 0, two = 0;
      for (int64_t i = s; i < std::min(s + 512, k); i += 2) one = product(i + 1, product(i, one)), two = product(i, product(i + 1, two));
      by_slices += one, by_pairs += two;
    }
    for (int64_t s = 0; s < k; s += 32) {
      float even = 0, odd = 0;
      for (int64_t i = s; i < s + 32; i += 2) even = product(i, even), odd = product(i + 1, odd);
      by_steps += even + odd;
    }
    plain.push_back(by_slices), pairs.push_back(by_pairs), steps.push_back(by_steps);
  }
  for (const NamedKernel& named : f32_kernels()) CHECK_MSG(same_bits(run_packed(*named.kernel, w, x.data(), 1), plain), named.name);
  for (const NamedKernel& named : bf16_kernels())
    CHECK_MSG(same_bits(run_packed(*named.kernel, w, x.data(), 1), named.name == "avx512bf16" ? pairs : steps), named.name);
}

}  // namespace lapidary::cpu
