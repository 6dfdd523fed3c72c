// The panels of GGUF blocks and the kernels that quantise their inputs to 15 bits: what is exact, what is near, and the numbers at the
// ends. packed_kernels_test.cc compares tables, batches and f32 kernels.
#include <cmath>
#include <limits>

#include "check.h"
#include "cpu/backend.h"
#include "cpu/packed.h"
#include "cpu/products.h"
#include "ops/ops_data.h"

namespace lapidary::cpu {

using namespace test;

namespace {

constexpr DType kBlockTypes[] = {DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k};

std::vector<int64_t> columns_of(DType type) {
  const int64_t block = dtype_info(type).block_elements;
  return block == 256  ? std::vector<int64_t>{256, 768, 2048}
         : block == 32 ? std::vector<int64_t>{32, 96, 640, 1152}
                       : std::vector<int64_t>{1, 2, 31, 33, 640};
}

Linear packed(const Tensor& w) { return pack_linear(*packed_layout(w.dtype), {w, nullptr}, *ThreadPool::shared(2)); }

std::vector<float> widened(const Tensor& w) {
  std::vector<float> all(static_cast<size_t>(w.elements()));
  for (int64_t n = 0; n < w.shape[0]; ++n) dequantize_row(w.dtype, w.data + n * w.row_bytes(), w.shape[1], all.data() + n * w.shape[1]);
  return all;
}

// fn(label, out f32 [tokens, n]) of every table's kernel for bf16 precision.
template <typename Fn>
void each_product(const Tensor& x, const Linear& w, const Fn& fn) {
  for (const std::string& name : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(name);
    const PackedKernel* kernel = find_packed(select_kernels(), w.weight.dtype, DType::bf16);
    REQUIRE(kernel != nullptr);
    const PackedMatrix& m = *packed_matrix(w);
    const int64_t tokens = x.shape[0], row_bytes = kernel->input_bytes(m.k);
    const Owned rows(DType::u8, {tokens, row_bytes}), out(DType::f32, {tokens, m.n});
    const Owned scratch(DType::f32, {static_cast<int64_t>(kernel->scratch_floats(tokens, m.k)) + 1});
    for (int64_t t = 0; t < tokens; ++t) kernel->prepare(x.as<float>() + t * m.k, m.k, {}, rows.t.data + t * row_bytes);
    const PackedTask task{rows.t.data, tokens, m.panel(0), m.panel_bytes, m.n, m.k, nullptr, out.t.as<float>(), m.n, 0};
    kernel->multiply(task, 0, m.panels(), scratch.t.as<float>());
    fn(name + ", " + std::string(dtype_info(w.weight.dtype).name) + " [" + std::to_string(tokens) + ", " + std::to_string(m.k) + "] x " +
           std::to_string(m.n),
       out.t);
  }
}

// An input is off by half a step, 2^-15 of its block's largest; as much again for the f32 steps, whose terms (d · Σ, m · Σ) may be larger
// than their sum.
void check_near_f64(const Tensor& x, const Tensor& w) {
  const std::vector<float> rows = widened(w);
  const int64_t k = w.shape[1];
  each_product(x, packed(w), [&](const std::string& what, const Tensor& out) {
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      for (int64_t n = 0; n < w.shape[0]; ++n) {
        double sum = 0, bound = 1e-30;
        for (int64_t b = 0; b < k; b += 32) {
          double largest = 0, weights = 0;
          for (int64_t i = b; i < b + 32; ++i) {
            const double row = rows[static_cast<size_t>(n * k + i)], input = x.as<float>()[t * k + i];
            sum += row * input, weights += std::abs(row), largest = std::max(largest, std::abs(input));
          }
          bound += 0x1p-14 * largest * weights;
        }
        const double got = out.as<float>()[t * w.shape[0] + n];
        CHECK_MSG(std::abs(got - sum) <= bound, what << ", token " << t << ", row " << n << ": " << got << ", in f64 " << sum);
      }
    }
  });
}

}  // namespace

TEST("packed blocks: panels give every row back bit for bit") {
  std::vector<DType> types(std::begin(kBlockTypes), std::end(kBlockTypes));
  types.push_back(DType::f16);
  for (DType type : types) {
    for (int64_t k : columns_of(type)) {
      for (int64_t n : {1, 15, 16, 17, 33}) {
        const Owned w = weights(type, n, k, static_cast<uint64_t>(n + k));
        const Linear linear = packed(w.t);
        const PackedMatrix& m = *packed_matrix(linear);
        const std::vector<float> want = widened(w.t);
        std::vector<float> got(static_cast<size_t>(n * k), std::numeric_limits<float>::quiet_NaN());
        for (int64_t r = 0; r < n; ++r) m.layout->unpack_row(m.panel(r / kPackedRows), r % kPackedRows, k, got.data() + r * k);
        CHECK_MSG(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0,
                  dtype_info(type).name << " [" << n << ", " << k << "]");
      }
    }
  }
}

TEST("packed blocks: products of quantised inputs are near those in f64") {
  for (DType type : kBlockTypes) {
    for (int64_t k : columns_of(type)) {
      for (int64_t n : {1, 15, 16, 17, 33}) {
        for (int64_t tokens : {1, 3, 4, 5, 8, 16, 33, 65}) {
          if (tokens > 8 && n != 17) continue;
          check_near_f64(activations(DType::f32, {tokens, k}, static_cast<uint64_t>(k + tokens)).t, weights(type, n, k, 7).t);
        }
      }
    }
  }
}

TEST("packed blocks: sums of the largest numbers fit") {
  for (DType type : kBlockTypes) {
    const int64_t k = dtype_info(type).block_elements == 256 ? 256 : 96, tokens = 5;
    for (uint8_t fill : {0x00, 0x7f, 0x80, 0xff}) {
      Owned w = weights(type, 17, k, 1);
      const int64_t bytes = dtype_info(type).block_bytes;
      const Owned scales = weights(type, 17, k, 1);
      std::memset(w.t.data, fill, static_cast<size_t>(w.t.bytes()));
      // The f16 scales stay as they were: everything else is the same byte.
      const std::vector<int64_t> places = type == DType::q6_k                                                 ? std::vector<int64_t>{208}
                                          : type == DType::q8_0 || type == DType::q4_0 || type == DType::q5_0 ? std::vector<int64_t>{0}
                                                                                                              : std::vector<int64_t>{0, 2};
      for (int64_t at = 0; at < w.t.bytes(); at += bytes) {
        for (int64_t place : places) std::memcpy(w.t.data + at + place, scales.t.data + at + place, 2);
      }
      for (float x : {1.0f, -1.0f, 3e-29f, 1e30f}) {
        const Owned input(DType::f32, {tokens, k});
        for (int64_t i = 0; i < tokens * k; ++i) input.t.as<float>()[i] = x;
        check_near_f64(input.t, w.t);
      }
    }
  }
}

TEST("packed blocks: zeros give zeros; what is no finite number gives NaN, to its own token alone") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (DType type : kBlockTypes) {
    const int64_t k = dtype_info(type).block_elements == 256 ? 768 : 96, n = 17;
    const Linear w = packed(weights(type, n, k, 3).t);
    for (int64_t tokens : {3, 7}) {
      for (float strange : {nan, inf, -inf, 1e-36f}) {
        for (int64_t place : {int64_t{0}, int64_t{37}, k - 1}) {
          const Owned x(DType::f32, {tokens, k});
          for (int64_t i = 0; i < tokens * k; ++i) x.t.as<float>()[i] = i / k == 1 && i % k == place ? strange : 0;
          each_product(x.t, w, [&](const std::string& what, const Tensor& out) {
            for (int64_t i = 0; i < tokens * n; ++i) {
              const float got = out.as<float>()[i];
              const bool is_strange = i / n == 1 && !(std::abs(strange) < 1);
              CHECK_MSG(is_strange ? std::isnan(got) : got == 0, what << ", " << strange << " at " << place << ": " << got);
            }
          });
        }
      }
    }
  }
}

}  // namespace lapidary::cpu
