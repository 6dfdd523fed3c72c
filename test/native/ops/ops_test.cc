// Every primitive of the CPU backend, on every instruction set of this machine, against the reference backend.
#include <cmath>

#include "check.h"
#include "cpu/backend.h"
#include "ops/int8.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;

namespace {

constexpr DType kWeightTypes[] = {DType::f32,  DType::bf16, DType::f16,  DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                                  DType::q5_1, DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k};

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = cpu_backends();
  return all;
}

// |x| · |w|: what a dot product's rounding errors are measured by.
std::vector<float> magnitudes(const Tensor& x, const Tensor& w) {
  const int64_t tokens = x.shape[0], in = w.shape[1], out = w.shape[0];
  const std::vector<float> inputs = values_of(x);
  std::vector<float> row(static_cast<size_t>(in)), sums(static_cast<size_t>(tokens * out));
  for (int64_t n = 0; n < out; ++n) {
    dequantize_row(w.dtype, w.rows(n, 1).data, in, row.data());
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < in; ++i)
        sum += std::abs(static_cast<double>(inputs[static_cast<size_t>(t * in + i)]) * row[static_cast<size_t>(i)]);
      sums[static_cast<size_t>(t * out + n)] = static_cast<float>(sum);
    }
  }
  return sums;
}

void check_linear(DType type, DType act, int64_t tokens, int64_t in, int64_t out) {
  const Owned x = activations(act, {tokens, in}, static_cast<uint64_t>(tokens * 1000 + in)),
              w = weights(type, out, in, static_cast<uint64_t>(out + in));
  const Linear linear{w.t, nullptr};
  Owned want(DType::f32, {tokens, out}), got(DType::f32, {tokens, out});
  make_reference_backend()->linear(x.t, linear, want.t);
  const std::vector<float> scale = magnitudes(x.t, w.t);
  for (NamedBackend& b : backends()) {
    b.backend->linear(x.t, linear, got.t);
    for (int64_t i = 0; i < tokens * out; ++i) {
      const float g = got.t.as<float>()[i], r = want.t.as<float>()[i], bound = 1e-6f * scale[static_cast<size_t>(i)] + 1e-38f;
      if (std::abs(g - r) <= bound) continue;
      CHECK_MSG(false, dtype_info(type).name << " act " << dtype_info(act).name << " [" << tokens << ", " << in << "] x " << out << ", "
                                             << b.label << ": element " << i << " is " << g << ", reference " << r);
      return;
    }
  }
}

// cpu and reference, one tensor out, over all backends.
template <typename Op>
void check_same(const char* what, std::initializer_list<int64_t> dims, DType dtype, double rtol, double atol, const Op& op) {
  Owned want(dtype, dims);
  const std::unique_ptr<Backend> reference = make_reference_backend();
  op(*reference, want.t);
  for (NamedBackend& b : backends()) {
    Owned got(dtype, dims);
    op(*b.backend, got.t);
    const std::vector<float> g = values_of(got.t), w = values_of(want.t);
    for (size_t i = 0; i < w.size(); ++i) {
      if (std::abs(g[i] - w[i]) <= rtol * std::abs(w[i]) + atol) continue;
      CHECK_MSG(false, what << ", " << b.label << ": element " << i << " is " << g[i] << ", reference " << w[i]);
      break;
    }
  }
}

}  // namespace

TEST("ops: linear, plain weights, awkward sizes") {
  for (DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t in : {1, 7, 15, 16, 17, 32, 96, 100}) {
      for (int64_t tokens : {1, 2, 3, 4, 5, 8, 17, 33}) check_linear(type, DType::f32, tokens, in, 1 + (tokens * in) % 41);
    }
  }
}

TEST("ops: linear, every weight kind, f32 and bf16 inputs") {
  for (DType type : kWeightTypes) {
    const int64_t block = std::max(dtype_info(type).block_elements, 32);
    for (DType act : {DType::f32, DType::bf16}) {
      for (int64_t blocks : {1, 3}) {
        for (int64_t tokens : {1, 2, 3, 4, 5, 17}) check_linear(type, act, tokens, blocks * block, 13);
      }
    }
  }
}

TEST("ops: linear, long rows (several passes), many rows and many tokens") {
  for (DType type : {DType::f32, DType::bf16, DType::q8_0, DType::q4_k}) {
    check_linear(type, DType::f32, 1, 1792, 70);
    check_linear(type, DType::f32, 6, 1792, 35);
    check_linear(type, DType::bf16, 9, 3328, 3);
    check_linear(type, DType::f32, 67, 256, 67);
    check_linear(type, DType::f32, 131, 1792, 5);
  }
  check_linear(DType::bf16, DType::f32, 7, 1603, 33);
}

TEST("ops: embed") {
  for (DType type : kWeightTypes) {
    const int64_t hidden = is_block_type(type) ? 256 : 49;
    const Owned table = weights(type, 11, hidden, 5);
    const std::vector<int32_t> ids = {3, 0, 10, 3};
    check_same("embed", {4, hidden}, DType::f32, 0, 0, [&](Backend& b, const Tensor& out) { b.embed(ids, {table.t, nullptr}, 7.3f, out); });
  }
}

TEST("ops: rms_norm") {
  for (int64_t dim : {1, 15, 16, 33, 128, 1152}) {
    const Owned weight = activations(DType::f32, {dim}, 3);
    for (DType out : {DType::f32, DType::bf16}) {
      for (float offset : {0.0f, 1.0f}) {
        const Owned x = activations(DType::f32, {5, dim}, static_cast<uint64_t>(dim));
        const Norm norm{weight.t, offset, 1e-6f};
        check_same("rms_norm", {5, dim}, out, out == DType::bf16 ? 8e-3 : 1e-6, 1e-30,
                   [&](Backend& b, const Tensor& t) { b.rms_norm(x.t, norm, t); });
      }
    }
  }
  const Owned zeros(DType::f32, {1, 20}), weight = activations(DType::f32, {20}, 3);
  std::memset(zeros.t.data, 0, 80);
  check_same("rms_norm of zeros", {1, 20}, DType::f32, 0, 0,
             [&](Backend& b, const Tensor& t) { b.rms_norm(zeros.t, {weight.t, 1, 1e-6f}, t); });
}

TEST("ops: rope_angles and rope") {
  const std::vector<int32_t> positions = {0, 1, 63, 64, 32767, 131071};
  for (int64_t half : {1, 8, 20, 32, 128}) {
    std::vector<float> inv_freq;
    for (int64_t j = 0; j < half; ++j) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(j) / static_cast<float>(half)));
    Owned cos(DType::f32, {6, half}), sin(DType::f32, {6, half});
    make_reference_backend()->rope_angles(positions, inv_freq, cos.t, sin.t);
    check_same("rope_angles", {2, 6, half}, DType::f32, 0, 0, [&](Backend& b, const Tensor& t) {
      b.rope_angles(positions, inv_freq, Tensor(t.data, DType::f32, {6, half}), Tensor(t.data + t.row_bytes(), DType::f32, {6, half}));
    });
    const Owned x = activations(DType::f32, {6, 3, 2 * half}, 9);
    check_same("rope", {6, 3, 2 * half}, DType::f32, 0, 0, [&](Backend& b, const Tensor& t) {
      std::memcpy(t.data, x.t.data, static_cast<size_t>(t.bytes()));
      b.rope(t, cos.t, sin.t);
    });
  }
}

TEST("ops: geglu, add, soft_cap, gather_rows") {
  for (int64_t n : {1, 15, 16, 100, 70000}) {
    const Owned a = activations(DType::f32, {1, n}, 1), b = activations(DType::f32, {1, n}, 2);
    check_same("geglu", {1, n}, DType::f32, 2e-6, 5e-5, [&](Backend& k, const Tensor& t) { k.geglu(a.t, b.t, t); });
    check_same("geglu", {1, n}, DType::bf16, 8e-3, 5e-5, [&](Backend& k, const Tensor& t) { k.geglu(a.t, b.t, t); });
    check_same("add", {1, n}, DType::f32, 0, 0, [&](Backend& k, const Tensor& t) {
      std::memcpy(t.data, a.t.data, static_cast<size_t>(t.bytes()));
      k.add(t, b.t);
    });
    check_same("soft_cap", {1, n}, DType::f32, 1e-6, 0, [&](Backend& k, const Tensor& t) {
      std::memcpy(t.data, a.t.data, static_cast<size_t>(t.bytes()));
      k.soft_cap(t, 30);
    });
  }
  const Owned x = activations(DType::f32, {9, 37}, 4);
  const std::vector<int32_t> rows = {8, 0, 3, 3};
  check_same("gather_rows", {4, 37}, DType::f32, 0, 0, [&](Backend& k, const Tensor& t) { k.gather_rows(x.t, rows, t); });
}

// tanh and gelu over their whole range against double precision, through the primitives that use them.
TEST("ops: tanh and exp to the last bits, and at the edges") {
  std::vector<float> xs = {0.0f, -0.0f, 1e-45f, -1e-39f, 1e-20f, 9.9f, 20, -88, 3e38f, INFINITY, -INFINITY, NAN};
  for (float x = -12; x < 12; x += 0.00137f) xs.push_back(x);
  const int64_t n = static_cast<int64_t>(xs.size());
  const std::vector<float> ones(xs.size(), 1.0f);
  for (NamedBackend& b : backends()) {
    std::vector<float> capped = xs, gelu(xs.size());
    b.backend->soft_cap(Tensor(capped.data(), DType::f32, {1, n}), 1);
    b.backend->geglu(Tensor(xs.data(), DType::f32, {1, n}), Tensor(ones.data(), DType::f32, {1, n}),
                     Tensor(gelu.data(), DType::f32, {1, n}));
    double worst_tanh = 0, worst_gelu = 0;
    for (size_t i = 0; i < xs.size(); ++i) {
      const double x = xs[i];
      if (std::isnan(x)) {
        CHECK(std::isnan(capped[i]) && std::isnan(gelu[i]));
        continue;
      }
      const double t = std::tanh(x), u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), g = x / (1 + std::exp(-2 * u));
      CHECK(std::signbit(capped[i]) == std::signbit(xs[i]));
      if (std::abs(x) > 1e-37) worst_tanh = std::max(worst_tanh, std::abs(capped[i] - t) / std::abs(t));
      // u is rounded before the exponential, which then magnifies its error by |u|.
      if (std::abs(g) > 1e-37 && std::abs(x) < 1e30)
        worst_gelu = std::max(worst_gelu, std::abs(gelu[i] - g) / std::abs(g) / (1 + std::min(std::abs(u), 50.0)));
      if (x == INFINITY) CHECK(gelu[i] == INFINITY);
      if (x == -88) CHECK(gelu[i] == 0);
    }
    CHECK_MSG(worst_tanh <= 3e-7, b.label << ": tanh relative error " << worst_tanh);
    CHECK_MSG(worst_gelu <= 3e-7, b.label << ": gelu relative error " << worst_gelu);
  }
}

TEST("ops: append_kv writes what the reference writes, nothing else") {
  for (DType kv : {DType::f32, DType::bf16}) {
    const int64_t heads = 2, dim = 20;
    const Owned k = activations(DType::f32, {70, heads * dim}, 1), v = activations(DType::f32, {70, heads * dim}, 2);
    const AttentionShape shape{4, heads, dim, 1, 0, 64};
    check_same("append_kv", {3, 2 * heads * kPageTokens * dim}, kv, 0, 0, [&](Backend& b, const Tensor& t) {
      std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
      void* pages[] = {t.rows(0, 1).data, t.rows(1, 1).data, t.rows(2, 1).data};
      const AttentionSpan spans[] = {{1, 66, 127, {kv, pages, 2}}, {67, 3, 5, {kv, pages + 2, 1}}};
      b.append_kv(k.t, v.t, spans, shape);
    });
  }
}

TEST("ops: append_kv to an int8 cache has the reference's bits") {
  const int64_t heads = 2, dim = 20;
  const Owned k = activations(DType::f32, {70, heads * dim}, 1), v = activations(DType::f32, {70, heads * dim}, 2);
  const AttentionShape shape{4, heads, dim, 1, 0, 64};
  const auto append = [&](Backend& b) {
    Owned memory(DType::u8, {2, kv_page_bytes(DType::i8, heads, dim)});
    void* pages[] = {memory.t.rows(0, 1).data, memory.t.rows(1, 1).data};
    const AttentionSpan span{1, 66, 127, {DType::i8, pages, 2}};
    b.append_kv(k.t, v.t, {&span, 1}, shape);
    return bits_of(memory.t);
  };
  const std::vector<uint8_t> want = append(*make_reference_backend());
  for (NamedBackend& b : backends()) CHECK_MSG(append(*b.backend) == want, b.label);
}

TEST("ops: attention against the reference, over windows, groups, head sizes and rings") {
  std::vector<AttentionProblem> problems;
  const int64_t w = 40;
  for (int64_t window : {int64_t{1}, int64_t{2}, w, int64_t{64}, int64_t{65}, kNoWindow}) {
    for (int64_t tokens : {int64_t{1}, w - 1, w, w + 1, 5 * w + 3}) problems.push_back({2, 1, 32, tokens, window});
  }
  for (int64_t group : {1, 2, 3, 4}) problems.push_back({2 * group, 2, 24, 130, 70});
  problems.push_back({20, 1, 8, 70, 9});
  for (int64_t dim : {2, 14, 32, 64, 72, 128, 256}) problems.push_back({4, 2, dim, 90, 50});
  problems.push_back({2, 1, 10, 1100, kNoWindow});
  problems.push_back({1, 1, 10, 1100, 600});
  for (AttentionProblem p : problems) {
    for (int variant = 0; variant < (p.tokens > 1000 ? 1 : 3); ++variant) {
      p.kv = variant == 1 ? DType::bf16 : DType::f32;
      p.softcap = variant == 2 ? 0.5f : 0;
      const std::vector<float> want = values_of(attend_in_chunks(*make_reference_backend(), p, {p.tokens}, /*ring=*/false).t);
      for (NamedBackend& b : backends()) {
        const std::vector<float> got = values_of(attend_in_chunks(*b.backend, p, {p.tokens}, /*ring=*/true).t);
        const double error = relative_error(got, want);
        CHECK_MSG(error <= 1e-6, b.label << ", heads " << p.heads << "/" << p.kv_heads << ", dim " << p.dim << ", tokens " << p.tokens
                                         << ", window " << p.window << ", variant " << variant << ": relative error " << error);
      }
    }
  }
}

// --- int8 ---------------------------------------------------------------------------------------------------------------

TEST("ops: quantize_rows follows the int8 rule") {
  // By hand: scale 2 / 127; 1 / scale = 63.5 exactly; ties go to even.
  const float row[] = {2, -2, 0, -0.0f, 1, 1.5f / 63.5f, 2.5f / 63.5f, -0.5f / 63.5f, NAN};
  const int8_t want[] = {127, -127, 0, 0, 64, 2, 2, 0, 0};
  const Tensor x(row, DType::f32, {1, 9});
  for (NamedBackend& b : backends()) {
    Owned q(DType::i8, {1, 9}), scales(DType::f32, {1});
    b.backend->quantize_rows(x, 0, q.t, scales.t);
    CHECK(scales.t.as<float>()[0] == 2.0f / 127);
    for (int i = 0; i < 9; ++i) CHECK_MSG(q.t.as<int8_t>()[i] == want[i], b.label << ", element " << i << ": " << int{q.t.as<int8_t>()[i]});
  }
  for (DType act : {DType::f32, DType::bf16}) {
    for (float fixed : {0.0f, 0.02f}) {
      const Owned data = activations(act, {5, 137}, 3);
      check_same("quantize_rows", {5, 137 / 4 + 2}, DType::f32, 0, 0, [&](Backend& b, const Tensor& t) {
        std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
        Owned q(DType::i8, {5, 137}), scales(DType::f32, {5});
        b.quantize_rows(data.t, fixed, q.t, scales.t);
        for (int64_t i = 0; i < 5 * 34; ++i)
          t.as<float>()[i / 34 * 36 + i % 34] = static_cast<float>(q.t.as<int8_t>()[i / 34 * 137 + i % 34]);
        for (int64_t r = 0; r < 5; ++r) t.as<float>()[r * t.shape[1] + 34] = scales.t.as<float>()[r];
      });
    }
  }
}

TEST("ops: int8 products are equal bits on every backend, weight-only ones are close") {
  for (int64_t tokens : {1, 2, 17, 65}) {
    for (int64_t in : {1, 16, 33, 144}) {
      for (int64_t out : {1, 31, 32, 70}) {
        Int8Weight w = int8_weight(out, in, static_cast<uint64_t>(out * 1000 + in));
        const Owned x = activations(DType::bf16, {tokens, in}, static_cast<uint64_t>(tokens));
        for (ActScheme scheme : {ActScheme::token, ActScheme::fixed, ActScheme::sequence, ActScheme::none}) {
          w.linear.activations = scheme;
          w.linear.input_scale = 0.02f;
          const double bound = scheme == ActScheme::none ? 1e-5 : 0;
          Owned want(DType::f32, {tokens, out}), got(DType::f32, {tokens, out});
          make_reference_backend()->linear(x.t, w.linear, want.t);
          if (scheme == ActScheme::sequence) {  // a calibrated scale that happens to be that of all values
            const std::vector<float> values = values_of(x.t);
            Linear fixed = w.linear;
            fixed.activations = ActScheme::fixed;
            fixed.input_scale = int8_scale(absolute_max(values.data(), x.t.elements()));
            Owned same(DType::f32, {tokens, out});
            make_reference_backend()->linear(x.t, fixed, same.t);
            CHECK(bits_of(same.t) == bits_of(want.t));
          }
          for (NamedBackend& b : backends()) {
            b.backend->linear(x.t, w.linear, got.t);
            const double error = bound > 0 ? relative_error(values_of(got.t), values_of(want.t)) : bits_of(got.t) != bits_of(want.t);
            CHECK_MSG(error <= bound, b.label << ", tokens " << tokens << ", in " << in << ", out " << out << ": error " << error);
          }
        }
      }
    }
  }
}

TEST("ops: embedding rows of an int8 table") {
  const Int8Weight w = int8_weight(9, 33, 4);
  const std::vector<int32_t> ids = {8, 0, 5};
  check_same("embed", {3, 33}, DType::f32, 1e-7, 0, [&](Backend& b, const Tensor& t) { b.embed(ids, w.linear, 3.0f, t); });
}

// --- prefixes, image blocks, int8 caches ---------------------------------------------------------------------------------

namespace {

// Bell-shaped, no outliers.
Owned bells(std::initializer_list<int64_t> dims, uint64_t seed) {
  Owned a(DType::f32, dims);
  Random random(seed);
  for (int64_t i = 0; i < a.t.elements(); ++i) a.t.as<float>()[i] = random.bell();
  return a;
}

// One sequence of `tokens` in one step, with extras; pages in a row. Gives [tokens, heads * dim].
std::vector<float> attend_with(Backend& b, AttentionShape shape, int64_t tokens, DType kv, const AttentionExtras& extras) {
  const int64_t heads = shape.num_heads, kv_heads = shape.num_kv_heads, dim = shape.head_dim,
                count = (tokens + kPageTokens - 1) / kPageTokens;
  const Owned q = bells({tokens, heads * dim}, 1), k = bells({tokens, kv_heads * dim}, 2), v = bells({tokens, kv_heads * dim}, 3);
  Owned memory(DType::u8, {count, kv_page_bytes(kv, kv_heads, dim)}), out(DType::f32, {tokens, heads * dim});
  std::vector<void*> pages;
  for (int64_t p = 0; p < count; ++p) pages.push_back(memory.t.rows(p, 1).data);
  const AttentionSpan span{0, tokens, 0, {kv, pages.data(), count}};
  shape.extras = &extras;
  b.append_kv(k.t, v.t, {&span, 1}, shape);
  b.attention(q.t, {&span, 1}, shape, out.t);
  return values_of(out.t);
}

}  // namespace

TEST("ops: a prefix is attended like earlier keys, whatever the window") {
  const int64_t heads = 4, kv_heads = 2, dim = 16, tokens = 40, slots = 3;
  const Owned pk = bells({kv_heads, slots, dim}, 11), pv = bells({kv_heads, slots, dim}, 12);
  AttentionExtras extras;
  extras.prefix_k = pk.t, extras.prefix_v = pv.t;
  const AttentionShape whole{heads, kv_heads, dim, 0.25f, 0, kNoWindow};
  const auto reference = make_reference_backend();

  // The same keys as ordinary tokens before the text.
  const Owned q = bells({tokens, heads * dim}, 1), k = bells({tokens, kv_heads * dim}, 2), v = bells({tokens, kv_heads * dim}, 3);
  Owned pages_memory(DType::f32, {1, 2 * kv_heads * kPageTokens * dim}), all_k(DType::f32, {tokens + slots, kv_heads * dim}),
      all_v(DType::f32, {tokens + slots, kv_heads * dim}), all_q(DType::f32, {tokens + slots, heads * dim}),
      out(DType::f32, {tokens + slots, heads * dim});
  std::memset(all_q.t.data, 0, static_cast<size_t>(all_q.t.bytes()));
  for (int64_t s = 0; s < slots; ++s) {
    for (int64_t h = 0; h < kv_heads; ++h) {
      std::memcpy(all_k.t.as<float>() + (s * kv_heads + h) * dim, pk.t.as<float>() + (h * slots + s) * dim, dim * 4);
      std::memcpy(all_v.t.as<float>() + (s * kv_heads + h) * dim, pv.t.as<float>() + (h * slots + s) * dim, dim * 4);
    }
  }
  std::memcpy(all_k.t.rows(slots, tokens).data, k.t.data, static_cast<size_t>(k.t.bytes()));
  std::memcpy(all_v.t.rows(slots, tokens).data, v.t.data, static_cast<size_t>(v.t.bytes()));
  std::memcpy(all_q.t.rows(slots, tokens).data, q.t.data, static_cast<size_t>(q.t.bytes()));
  void* page = pages_memory.t.data;
  const AttentionSpan span{0, tokens + slots, 0, {DType::f32, &page, 1}};
  reference->append_kv(all_k.t, all_v.t, {&span, 1}, whole);
  reference->attention(all_q.t, {&span, 1}, whole, out.t);
  CHECK_CLOSE(attend_with(*reference, whole, tokens, DType::f32, extras), values_of(out.t.rows(slots, tokens)), 1e-6, 1e-7);

  // A window of one sees itself and the prefix; a second query sees the prefix only.
  AttentionShape narrow = whole;
  narrow.window = 1;
  const std::vector<float> with = attend_with(*reference, narrow, tokens, DType::f32, extras);
  CHECK(relative_error(with, attend_with(*reference, narrow, tokens, DType::f32, {})) > 0.01);
  const Owned other = bells({tokens, heads * dim}, 9);
  extras.q_prefix = other.t;
  CHECK(relative_error(attend_with(*reference, narrow, tokens, DType::f32, extras), with) > 0.01);
  extras.q_prefix = q.t;
  CHECK(attend_with(*reference, narrow, tokens, DType::f32, extras) == with);

  for (NamedBackend& b : backends()) {
    for (DType kv : {DType::f32, DType::bf16, DType::i8})
      CHECK_MSG(
          relative_error(attend_with(*b.backend, narrow, tokens, kv, extras), attend_with(*reference, narrow, tokens, kv, extras)) <= 1e-6,
          b.label);
  }
}

TEST("ops: tokens of one picture see each other") {
  const AttentionShape shape{2, 1, 8, 0.3f, 0, 4};
  std::vector<ImageBlock> blocks(30);
  for (int32_t t = 10; t < 22; ++t) blocks[static_cast<size_t>(t)] = {10, 22};
  AttentionExtras extras;
  extras.image_blocks = blocks;
  const auto reference = make_reference_backend();
  const std::vector<float> with = attend_with(*reference, shape, 30, DType::f32, extras),
                           without = attend_with(*reference, shape, 30, DType::f32, {});
  for (int64_t t = 0; t < 30; ++t) {
    const std::span<const float> a(with.data() + t * 16, 16), b(without.data() + t * 16, 16);
    CHECK_MSG((relative_error(a, b) > 1e-3) == (t >= 10 && t < 22), "token " << t);
  }
  for (NamedBackend& b : backends())
    CHECK_MSG(relative_error(attend_with(*b.backend, shape, 30, DType::f32, extras), with) <= 1e-6, b.label);
}

TEST("ops: prefixes, pictures and int8 caches on every backend, awkward sizes") {
  const auto reference = make_reference_backend();
  const DType types[] = {DType::f32, DType::bf16, DType::i8};
  size_t turn = 0;  // every pair of values of two loops meets, not every three
  for (int64_t group : {1, 2, 4, 8}) {
    for (int64_t dim : {7, 24, 72, 256}) {
      ++turn;
      for (int64_t slots : {1, 63, 65, 260}) {
        const DType kv = types[turn++ % 3];
        if (dim == 256 && slots != 65) continue;
        const int64_t tokens = 131;
        const AttentionShape shape{group, 1, dim, 1.0f / std::sqrt(static_cast<float>(dim)), slots == 63 ? 3.0f : 0.0f, 50};
        Owned pk = bells({1, slots, dim}, 11), pv = bells({1, slots, dim}, 12), other = bells({tokens, group * dim}, 9);
        Owned half_k(DType::bf16, {1, slots, dim}), half_v(DType::bf16, {1, slots, dim});
        for (int64_t i = 0; i < slots * dim; ++i) {
          set_value(half_k.t, i, pk.t.as<float>()[i]);
          set_value(half_v.t, i, pv.t.as<float>()[i]);
        }
        std::vector<ImageBlock> images(static_cast<size_t>(tokens));
        for (int32_t t = 30; t < 110; ++t) images[static_cast<size_t>(t)] = {30, 110};
        AttentionExtras extras;
        extras.prefix_k = slots == 65 ? half_k.t : pk.t, extras.prefix_v = slots == 65 ? half_v.t : pv.t;
        if (slots != 1) extras.q_prefix = other.t;
        extras.prefix_in_window = slots == 260 || dim == 24;
        if (slots != 63) extras.image_blocks = images;
        const std::vector<float> want = attend_with(*reference, shape, tokens, kv, extras);
        std::vector<float> first;
        for (NamedBackend& b : backends()) {
          const std::vector<float> got = attend_with(*b.backend, shape, tokens, kv, extras);
          if (first.empty()) first = got;
          CHECK_MSG(relative_error(got, want) <= 1e-6 && got == first,
                    b.label << ", group " << group << ", dim " << dim << ", slots " << slots << ", " << dtype_info(kv).name);
        }
      }
    }
  }
}

TEST("ops: an int8 cache is close to the f32 one") {
  const AttentionShape shape{4, 2, 32, 0.2f, 0, 50};
  const auto reference = make_reference_backend();
  const double error =
      relative_error(attend_with(*reference, shape, 130, DType::i8, {}), attend_with(*reference, shape, 130, DType::f32, {}));
  CHECK_MSG(error > 0 && error < 0.03, "relative error " << error);
}

}  // namespace lapidary
