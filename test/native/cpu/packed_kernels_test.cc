// The kernels of packed weights, called as they are, of every table of this processor: near the products in f64, equal bits in every table
// where the order is the documented one, and the same whatever the rows and panels beside them.
#include <cmath>

#include "check.h"
#include "cpu/backend.h"
#include "cpu/packed.h"
#include "cpu/products.h"
#include "ops/int8.h"
#include "ops/ops_data.h"

namespace lapidary::cpu {

using namespace test;

namespace {

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> found;
  for (const std::string& name : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(name);
    found.push_back(&select_kernels());
  }
  return found;
}

// Not inlined: gcc 12 then sees a fifth dimension of a tensor that has two.
[[gnu::noinline]] Owned numbers_of(DType dtype, int64_t n, int64_t k) {
  if (dtype == DType::i8) return int8_numbers({n, k}, 5);
  return weights(dtype, n, k, 5);
}

struct Weight {
  Owned numbers, scales;
  Linear packed;

  Weight(DType dtype, int64_t n, int64_t k) : numbers(numbers_of(dtype, n, k)), scales(activations(DType::f32, {n}, 6)) {
    Linear plain{numbers.t, nullptr};
    if (dtype == DType::i8) plain.scale = scales.t;
    packed = pack_linear(*packed_layout(dtype), plain, *ThreadPool::shared(1));
  }
  const PackedMatrix& matrix() const { return *packed_matrix(packed); }
};

// Columns of the output behind the last row of the weight, which nothing may write to, and what `out` is moved by.
constexpr int64_t kBehind = 3, kMoved = 5;

// x f32 [tokens, k], or i8 with x_scales. Panels `step` at a time.
Owned product(const PackedKernel& kernel, const Weight& w, const Tensor& x, const float* x_scales, int64_t step) {
  const PackedMatrix& m = w.matrix();
  const int64_t tokens = x.shape[0], row_bytes = kernel.input_bytes(m.k), stride = m.n + kBehind;
  Owned rows(DType::u8, {tokens, row_bytes}), out(DType::f32, {tokens, stride});
  for (int64_t t = 0; t < tokens; ++t) {
    std::byte* row = rows.t.data + t * row_bytes;
    if (x.dtype == DType::i8) {
      kernel.prepare_quantized(x.as<int8_t>() + t * m.k, x_scales[t], m.k, row);
    } else {
      kernel.prepare(x.as<float>() + t * m.k, m.k, {}, row);
    }
  }
  const Owned scratch(DType::f32, {static_cast<int64_t>(kernel.scratch_floats(tokens, m.k)) + 1});
  const PackedTask task{rows.t.data, tokens, m.panel(0), m.panel_bytes, m.n, m.k, w.packed.scale.as<float>(), out.t.as<float>() + kMoved,
                        stride,      kMoved};
  for (int64_t p = 0; p < m.panels(); p += step) kernel.multiply(task, p, std::min(p + step, m.panels()), scratch.t.as<float>());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < kBehind; ++i) CHECK_MSG(std::isnan(out.t.as<float>()[t * stride + m.n + i]), "written behind the last row");
  }
  return out;
}

// Error of f32 sums of k products: their magnitudes' sum times a few roundings, which add up like steps of a random walk.
void check_near_f64(const std::string& what, const Owned& out, const Weight& w, const Tensor& x) {
  const PackedMatrix& m = w.matrix();
  std::vector<float> row(static_cast<size_t>(m.k));
  for (int64_t n = 0; n < m.n; ++n) {
    m.layout->unpack_row(m.panel(n / kPackedRows), n % kPackedRows, m.k, row.data());
    const double scale = w.packed.scale ? w.packed.scale.as<float>()[n] : 1;
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      double sum = 0, magnitudes = 0;
      for (int64_t i = 0; i < m.k; ++i) {
        const double term = scale * row[static_cast<size_t>(i)] * x.as<float>()[t * m.k + i];
        sum += term, magnitudes += std::abs(term);
      }
      const double got = out.t.as<float>()[t * (m.n + kBehind) + n], bound = (8 + std::sqrt(double(m.k))) * 0x1p-23 * magnitudes + 1e-37;
      CHECK_MSG(std::abs(got - sum) <= bound, what << ", token " << t << ", row " << n << ": " << got << ", in f64 " << sum);
    }
  }
}

void check_kernel(const Kernels& table, const PackedKernel& kernel, const Weight& w, int64_t tokens) {
  const PackedMatrix& m = w.matrix();
  const DType type = kernel.weight;
  const std::string what = std::string(table.name) + ", " + std::string(dtype_info(type).name) + " by " +
                           std::string(dtype_info(kernel.input).name) + ", [" + std::to_string(tokens) + ", " + std::to_string(m.k) +
                           "] x " + std::to_string(m.n);
  Owned x = activations(DType::f32, {tokens, m.k}, static_cast<uint64_t>(tokens + m.k));
  if (kernel.input == DType::bf16) {
    for (int64_t i = 0; i < x.t.elements(); ++i) x.t.as<float>()[i] = round_to_bf16(x.t.as<float>()[i]);
  }
  const Owned out = product(kernel, w, x.t, nullptr, m.panels());
  const bool exact_weights = kernel.input == DType::f32 || (kernel.input == DType::bf16 && type == DType::bf16);
  if (exact_weights) check_near_f64(what, out, w, x.t);
  if (const PackedKernel* plain = find_packed(kScalarKernels, type, kernel.input))
    CHECK_MSG(bits_of(product(*plain, w, x.t, nullptr, 1).t) == bits_of(out.t), what << " differs from scalar");
  CHECK_MSG(bits_of(product(kernel, w, x.t, nullptr, 1).t) == bits_of(out.t), what << " depends on the panels beside");
  for (int64_t t : {int64_t{0}, tokens / 2, tokens - 1}) {
    const Owned alone = product(kernel, w, x.t.rows(t, 1), nullptr, m.panels());
    CHECK_MSG(bits_of(alone.t) == bits_of(out.t.rows(t, 1)), what << ": token " << t << " differs from that token alone");
  }
}

// fn(table, kernel) for each kernel of such weights that a table finds.
template <typename Fn>
void each_kernel(DType type, const Fn& fn) {
  for (const Kernels* table : tables()) {
    for (DType input : {DType::i8, DType::bf16, DType::f32}) {
      if (const PackedKernel* kernel = find_packed(*table, type, input)) fn(*table, *kernel);
    }
  }
}

constexpr int64_t kRows[] = {1, 7, 8, 9, 16, 17, 40, 77}, kTokens[] = {1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 21, 34};

}  // namespace

TEST("packed: kernels of every table and type agree, whatever the sizes") {
  for (DType type : {DType::i8, DType::bf16, DType::f16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q4_k,
                     DType::q5_k, DType::q6_k}) {
    const int64_t block = dtype_info(type).block_elements;
    const std::vector<int64_t> columns = block == 1     ? std::vector<int64_t>{1, 2, 3, 15, 16, 31, 33, 64, 65, 100, 1603}
                                         : block == 256 ? std::vector<int64_t>{256, 768, 1280}
                                                        : std::vector<int64_t>{32, 64, 96, 320, 1120};
    // Sizes take turns beside each other: all of them pass, not each with each.
    size_t turn = 0;
    for (int64_t k : columns) {
      for (int i = 0; i < 4; ++i, ++turn) {
        const Weight w(type, kRows[turn % std::size(kRows)], k);
        const int64_t tokens = kTokens[turn % std::size(kTokens)];
        each_kernel(type, [&](const Kernels& table, const PackedKernel& kernel) { check_kernel(table, kernel, w, tokens); });
      }
    }
  }
}

TEST("packed: int8 products are exact") {
  for (int64_t k : {1, 3, 4, 5, 63, 64, 65, 1023, 1025, 2500}) {
    for (int64_t tokens : {1, 2, 3, 7, 10, 11, 35}) {
      const Weight w(DType::i8, 25, k);
      const Owned x = int8_numbers({tokens, k}, static_cast<uint64_t>(tokens)), scales = activations(DType::f32, {tokens}, 3);
      each_kernel(DType::i8, [&](const Kernels& table, const PackedKernel& kernel) {
        if (kernel.input != DType::i8) return;
        const Owned out = product(kernel, w, x.t, scales.t.as<float>(), 2);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t n = 0; n < 25; ++n) {
            int64_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += int64_t{x.t.as<int8_t>()[t * k + i]} * w.numbers.t.as<int8_t>()[n * k + i];
            const float want = static_cast<float>(sum) * (scales.t.as<float>()[t] * w.scales.t.as<float>()[n]);
            const float got = out.t.as<float>()[t * (25 + kBehind) + n];
            CHECK_MSG(std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(want),
                      table.name << ", [" << tokens << ", " << k << "], token " << t << ", row " << n << ": " << got << ", not " << want);
          }
        }
      });
    }
  }
}

}  // namespace lapidary::cpu
