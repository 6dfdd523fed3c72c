// Products over int8 panels, kernel by kernel, against plain loops: equal bits, with int8 inputs and with f32 ones.
#include <algorithm>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__linux__) && !defined(LAPIDARY_AVX2_ONLY)
#include <csetjmp>
#include <csignal>
#endif

#include "check.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/packed.h"
#include "ops/int8.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;
using namespace cpu;

namespace {

struct Listed {
  std::string label;
  const PackedKernel* kernel;
};

#if defined(__x86_64__) && defined(__linux__) && !defined(LAPIDARY_AVX2_ONLY)
sigjmp_buf after_illegal;
void on_illegal(int) { siglongjmp(after_illegal, 1); }

// Whether AVX-VNNI runs, whatever cpuid says: a virtual machine may hide it.
bool runs_avx_vnni() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return false;
  struct sigaction action = {}, before;
  action.sa_handler = on_illegal;
  sigaction(SIGILL, &action, &before);
  volatile bool runs = false;
  if (sigsetjmp(after_illegal, 1) == 0) {
    asm volatile(".byte 0xc4, 0xe2, 0x75, 0x50, 0xc2" ::: "xmm0");  // {vex} vpdpbusd ymm0, ymm1, ymm2
    runs = true;
  }
  sigaction(SIGILL, &before, nullptr);
  return runs;
}
#endif

std::vector<Listed> kernels_for(DType input) {
  std::vector<Listed> all;
  for (const std::string& name : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(name);
    all.push_back({name, find_packed(select_kernels(), DType::i8, input)});
  }
#if defined(__x86_64__) && defined(__linux__) && !defined(LAPIDARY_AVX2_ONLY)
  if (input == DType::i8 && runs_avx_vnni()) all.push_back({"avxvnni, by hand", kAvxVnniPacked.list[0]});
#endif
  return all;
}

// Panels at 64 bytes, as backends have them.
struct Panels {
  Buffer memory;
  int64_t bytes, count;

  Panels(const Tensor& rows) : bytes(kPackedInt8.panel_bytes(rows.shape[1])), count((rows.shape[0] + kPackedRows - 1) / kPackedRows) {
    memory = allocate_host(static_cast<size_t>(count * bytes));
    const int64_t k = rows.shape[1];
    for (int64_t p = 0; p < count; ++p)
      kPackedInt8.pack(rows.data + p * kPackedRows * k, k, std::min(kPackedRows, rows.shape[0] - p * kPackedRows), k,
                       memory.memory.get() + p * bytes);
  }
};

// Of panels [p0, count), whose columns begin at column 3 of `out`; the others stay NaN.
std::vector<uint8_t> product(const PackedKernel& kernel, const Panels& panels, const Int8Weight& w, const Buffer& input, int64_t tokens,
                             int64_t p0) {
  const int64_t n = w.linear.out(), k = w.linear.in();
  Owned out(DType::f32, {tokens, n + 5});
  const size_t scratch_bytes = kernel.scratch_floats(tokens, k) * 4;
  const Buffer scratch = allocate_host(scratch_bytes + 64);
  const std::vector<std::byte> behind(64, std::byte{0x3c});
  std::memcpy(scratch.memory.get() + scratch_bytes, behind.data(), 64);
  const PackedTask task{
      input.memory.get(), tokens, panels.memory.memory.get(), panels.bytes, n, k, w.scale.t.as<float>(), out.t.as<float>() + 3, n + 5, 0};
  kernel.multiply(task, p0, panels.count, reinterpret_cast<float*>(scratch.memory.get()));
  CHECK(std::memcmp(scratch.memory.get() + scratch_bytes, behind.data(), 64) == 0);
  return bits_of(out.t);
}

// value(t, n), placed as `product` places it.
template <typename Value>
std::vector<uint8_t> expected(int64_t tokens, int64_t n, int64_t p0, const Value& value) {
  Owned out(DType::f32, {tokens, n + 5});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = p0 * kPackedRows; i < n; ++i) out.t.as<float>()[t * (n + 5) + 3 + i] = value(t, i);
  }
  return bits_of(out.t);
}

void check_int8(const Int8Weight& w, const Tensor& x, std::initializer_list<int64_t> token_counts) {
  const int64_t n = w.linear.out(), k = w.linear.in(), most = x.shape[0];
  const Panels panels(w.q.t);
  const Owned scales = activations(DType::f32, {most}, static_cast<uint64_t>(n + k));
  std::vector<float> products(static_cast<size_t>(most * n));
  for (int64_t t = 0; t < most; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      int64_t sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += int64_t{x.as<int8_t>()[t * k + j]} * w.q.t.as<int8_t>()[i * k + j];
      products[static_cast<size_t>(t * n + i)] = static_cast<float>(sum) * (scales.t.as<float>()[t] * w.scale.t.as<float>()[i]);
    }
  }
  for (const auto& [label, kernel] : kernels_for(DType::i8)) {
    const int64_t bytes = kernel->input_bytes(k);
    const Buffer input = allocate_host(static_cast<size_t>(most * bytes));
    std::memset(input.memory.get(), 0x5a, static_cast<size_t>(most * bytes));
    for (int64_t t = 0; t < most; ++t)
      kernel->prepare_quantized(x.as<int8_t>() + t * k, scales.t.as<float>()[t], k, input.memory.get() + t * bytes);
    for (int64_t tokens : token_counts) {
      const int64_t p0 = tokens % 2 == 0 && panels.count > 1 ? 1 : 0;
      const auto want = expected(tokens, n, p0, [&](int64_t t, int64_t i) { return products[static_cast<size_t>(t * n + i)]; });
      CHECK_MSG(product(*kernel, panels, w, input, tokens, p0) == want, label << ": [" << tokens << ", " << k << "] x " << n);
    }
  }
}

}  // namespace

TEST("packed int8: exact for every instruction set and size") {
  uint64_t seed = 1;
  for (int64_t k : {1, 63, 64, 65, 200, 640, 1152}) {
    for (int64_t n : {1, 15, 16, 17, 47, 48, 49, 100}) {
      if (k > 100 && n != 17 && n != 100) continue;
      const Int8Weight w = int8_weight(n, k, ++seed);
      const Owned x = int8_numbers({130, k}, ++seed);
      check_int8(w, x.t, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 33, 64, 65, 130});
    }
  }
}

// More than kCachedInputBytes of inputs; the units of 12 panels, of 11 without the first, make several groups, not all as large.
TEST("packed int8: exact where units are joined") {
  const int64_t k = 1600, most = 701;
  const Int8Weight w = int8_weight(11 * kPackedRows + 5, k, 1);
  const Owned x = int8_numbers({most, k}, 2);
  check_int8(w, x.t, {most, most - 1});
}

// A caller's scratch is for the most tokens, its last block of tokens may be smaller.
TEST("packed int8: fewer tokens need no more scratch") {
  for (const auto& [label, kernel] : kernels_for(DType::i8)) {
    for (int64_t k : {64, 1152, 6912}) {
      size_t before = 0;
      for (int64_t tokens = 1; tokens <= 1030; ++tokens) {
        const size_t floats = kernel->scratch_floats(tokens, k);
        CHECK_MSG(floats >= before, label << ": " << tokens << " tokens of " << k);
        before = floats;
      }
    }
  }
}

TEST("packed int8: the largest sums are exact") {
  for (int8_t a : {int8_t{127}, int8_t{-127}, int8_t{-128}}) {
    for (int8_t b : {int8_t{127}, int8_t{-127}, int8_t{-128}}) {
      const int64_t k = 36864;
      Int8Weight w = int8_weight(18, k, 1);
      Owned x = int8_numbers({20, k}, 2);
      std::memset(w.q.t.data, a, static_cast<size_t>(w.q.t.bytes()));
      std::memset(x.t.data, b, static_cast<size_t>(x.t.bytes()));
      check_int8(w, x.t, {1, 5, 16, 20});
    }
  }
}

TEST("packed int8: f32 inputs keep their order for every instruction set, size and batch") {
  uint64_t seed = 1;
  for (int64_t k : {1, 3, 63, 64, 65, 1152, 2500}) {
    for (int64_t n : {1, 16, 17, 49}) {
      const Int8Weight w = int8_weight(n, k, ++seed);
      const Panels panels(w.q.t);
      for (bool round : {false, true}) {
        const int64_t most = 33;
        const Owned x = activations(DType::f32, {most, k}, ++seed);
        std::vector<float> products(static_cast<size_t>(most * n));
        for (int64_t t = 0; t < most; ++t) {
          for (int64_t i = 0; i < n; ++i) {
            float chains[4] = {};
            for (int64_t j = 0; j < k; ++j) {
              const float a = x.t.as<float>()[t * k + j];
              chains[j % 4] = std::fma(static_cast<float>(w.q.t.as<int8_t>()[i * k + j]), round ? to_f32(to_bf16(a)) : a, chains[j % 4]);
            }
            products[static_cast<size_t>(t * n + i)] = ((chains[0] + chains[1]) + (chains[2] + chains[3])) * w.scale.t.as<float>()[i];
          }
        }
        for (const auto& [label, kernel] : kernels_for(DType::f32)) {
          const int64_t bytes = kernel->input_bytes(k);
          const Buffer input = allocate_host(static_cast<size_t>(most * bytes));
          std::memset(input.memory.get(), 0xff, static_cast<size_t>(most * bytes));
          for (int64_t t = 0; t < most; ++t) kernel->prepare(x.t.as<float>() + t * k, k, {0, round}, input.memory.get() + t * bytes);
          for (int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 13, 33}) {
            const auto want = expected(tokens, n, 0, [&](int64_t t, int64_t i) { return products[static_cast<size_t>(t * n + i)]; });
            CHECK_MSG(product(*kernel, panels, w, input, tokens, 0) == want, label << ": f32 [" << tokens << ", " << k << "] x " << n);
          }
        }
      }
    }
  }
}

TEST("packed int8: f32 inputs keep their order where units are joined") {
  const int64_t n = 11 * kPackedRows + 5, k = 1400, tokens = 200;
  const Int8Weight w = int8_weight(n, k, 1);
  const Panels panels(w.q.t);
  const Owned x = activations(DType::f32, {tokens, k}, 2);
  for (const auto& [label, kernel] : kernels_for(DType::f32)) {
    const int64_t bytes = kernel->input_bytes(k);
    const Buffer input = allocate_host(static_cast<size_t>(tokens * bytes));
    for (int64_t t = 0; t < tokens; ++t) kernel->prepare(x.t.as<float>() + t * k, k, {}, input.memory.get() + t * bytes);
    const std::vector<uint8_t> all = product(*kernel, panels, w, input, tokens, 0);
    // The same rows in batches whose inputs are small enough for one unit after another.
    for (int64_t t = 0; t < tokens; t += 50) {
      const Buffer part = allocate_host(static_cast<size_t>(50 * bytes));
      std::memcpy(part.memory.get(), input.memory.get() + t * bytes, static_cast<size_t>(50 * bytes));
      const std::vector<uint8_t> want = product(*kernel, panels, w, part, 50, 0);
      const bool same = std::memcmp(all.data() + static_cast<size_t>(t * (n + 5)) * 4, want.data(), want.size()) == 0;
      CHECK_MSG(same, label << ": rows from " << t << " on");
    }
  }
}

TEST("packed int8: a prepared row is the row quantised by the rule") {
  const int64_t k = 1003, n = 7;
  const Int8Weight w = int8_weight(n, k, 1);
  const Panels panels(w.q.t);
  const Owned x = activations(DType::f32, {1, k}, 2);
  for (float fixed : {0.0f, 0.02f}) {
    const float scale = fixed > 0 ? fixed : int8_scale(absolute_max(x.t.as<float>(), k));
    std::vector<int8_t> q(static_cast<size_t>(k));
    quantize_int8(x.t.as<float>(), k, scale, q.data());
    for (const auto& [label, kernel] : kernels_for(DType::i8)) {
      const Buffer got = allocate_host(static_cast<size_t>(kernel->input_bytes(k))), want = allocate_host(got.bytes);
      kernel->prepare(x.t.as<float>(), k, {fixed, false}, got.memory.get());
      kernel->prepare_quantized(q.data(), scale, k, want.memory.get());
      CHECK_MSG(product(*kernel, panels, w, got, 1, 0) == product(*kernel, panels, w, want, 1, 0), label << ", fixed scale " << fixed);
    }
  }
}

// Packed at load, or row by row as callers bring them: one product.
TEST("packed int8: plain rows are packed on the way") {
  for (ActScheme scheme : {ActScheme::none, ActScheme::token, ActScheme::fixed}) {
    Int8Weight gate = int8_weight(100, 130, 1), up = int8_weight(100, 130, 2);
    for (Linear* w : {&gate.linear, &up.linear}) w->activations = scheme, w->input_scale = 0.05f;
    for (int64_t tokens : {1, 17, 130}) {
      const Owned x = activations(DType::f32, {tokens, 130}, 3);
      for (NamedBackend& b : cpu_backends()) {
        Owned plain(DType::f32, {tokens, 100}), packed(DType::f32, {tokens, 100});
        b.backend->linear(x.t, gate.linear, plain.t);
        b.backend->linear(x.t, b.backend->make_linear(gate.linear), packed.t);
        CHECK_MSG(bits_of(plain.t) == bits_of(packed.t), b.label << ", " << tokens << " tokens, scheme " << static_cast<int>(scheme));
      }
    }
  }
}

}  // namespace lapidary
