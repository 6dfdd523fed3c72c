// The promise of the CPU backend: equal bits whatever the instruction set, thread count, batch, chunk or ring.
#include "cpu/backend.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "ops/int8.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;

namespace {

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = cpu_backends();
  return all;
}

// The op's output has the same bits on every backend.
template <typename Op>
void check_bits(const std::string& what, DType dtype, std::initializer_list<int64_t> dims, const Op& op) {
  std::vector<uint8_t> first;
  for (NamedBackend& b : backends()) {
    Owned out(dtype, dims);
    op(*b.backend, out.t);
    const std::vector<uint8_t> bits = bits_of(out.t);
    if (first.empty()) first = bits;
    CHECK_MSG(bits == first, what << " differs between " << backends()[0].label << " and " << b.label);
  }
}

void check_linear_bits(DType type, DType act, int64_t tokens, int64_t in, int64_t out) {
  const Owned x = activations(act, {tokens, in}, static_cast<uint64_t>(in)), w = weights(type, out, in, 3);
  const Linear linear{w.t, nullptr};
  const std::string what = "linear " + std::string(dtype_info(type).name) + " [" + std::to_string(tokens) + ", " + std::to_string(in) +
                           "] x " + std::to_string(out);
  check_bits(what, DType::f32, {tokens, out}, [&](Backend& b, const Tensor& t) { b.linear(x.t, linear, t); });
  Owned whole(DType::f32, {tokens, out}), alone(DType::f32, {1, out});
  Backend& b = *backends()[0].backend;
  b.linear(x.t, linear, whole.t);
  for (int64_t row = 0; row < tokens; ++row) {
    b.linear(x.t.rows(row, 1), linear, alone.t);
    CHECK_MSG(bits_of(alone.t) == bits_of(whole.t.rows(row, 1)), what << ": row " << row << " differs from that row alone");
  }
}

}  // namespace

TEST("cpu: the instruction set can be chosen, and a wrong one is refused") {
  CHECK(!cpu_instruction_sets().empty());
  for (const std::string& name : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(name);
    CHECK(cpu_instruction_set() == name);
  }
  const ForcedCpu forced("abacus");
  CHECK_THROWS(make_cpu_backend(1), ErrorCode::invalid_argument, "abacus");
  CHECK_THROWS(make_cpu_backend(1), ErrorCode::invalid_argument, "scalar");
}

TEST("cpu: threads") {
  CHECK(physical_cores() >= 1);
  CHECK(make_cpu_backend(0)->name() == "cpu");
  CHECK_THROWS(make_cpu_backend(-1), ErrorCode::invalid_argument, "-1");
}

TEST("cpu: linear refuses what it cannot do") {
  const Owned x = activations(DType::f32, {2, 32}, 1), w = weights(DType::f32, 4, 16, 1);
  Owned out(DType::f32, {2, 4}), int8(DType::i8, {4, 32}), bytes(DType::u8, {4, 32});
  CHECK_THROWS(make_cpu_backend(1)->linear(x.t, {w.t, nullptr}, out.t), ErrorCode::internal, "[4, 16]");
  CHECK_THROWS(make_cpu_backend(1)->linear(x.t, {bytes.t, nullptr}, out.t), ErrorCode::unsupported, "u8");
  CHECK_THROWS(make_cpu_backend(1)->linear(x.t, {int8.t, nullptr}, out.t), ErrorCode::internal, "scales []");
}

TEST("cpu: linear gives equal bits for every instruction set, thread count and batch") {
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q2_k,
                     DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k}) {
    for (int64_t tokens : {1, 2, 3, 5, 8, 17, 33, 70}) check_linear_bits(type, tokens % 2 ? DType::f32 : DType::bf16, tokens, 256, 45);
    check_linear_bits(type, DType::f32, 6, 3328, 37);
    check_linear_bits(type, DType::f32, 3, 1792, 300);
  }
  for (DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t in : {1, 15, 17, 100, 1603}) check_linear_bits(type, DType::f32, 7, in, 11);
  }
}

namespace {

// float(Σ) · (sx · sw), the sum in 64 bits: nothing of the backends' own.
std::vector<uint8_t> int8_product(const Tensor& x, const Tensor& x_scales, const Linear& w) {
  const int64_t tokens = x.shape[0], k = w.in(), rows = w.out();
  Owned out(DType::f32, {tokens, rows});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += int64_t{x.as<int8_t>()[t * k + i]} * w.weight.as<int8_t>()[n * k + i];
      out.t.as<float>()[t * rows + n] = static_cast<float>(sum) * (x_scales.as<float>()[t] * w.scale.as<float>()[n]);
    }
  }
  return bits_of(out.t);
}

void check_int8_product(const Tensor& x, const Linear& w) {
  const int64_t tokens = x.shape[0];
  const Owned scales = activations(DType::f32, {tokens}, static_cast<uint64_t>(tokens));
  const std::vector<uint8_t> want = int8_product(x, scales.t, w);
  for (NamedBackend& b : backends()) {
    Owned out(DType::f32, {tokens, w.out()});
    b.backend->matmul_int8(x, scales.t, w, out.t);
    CHECK_MSG(bits_of(out.t) == want, b.label << ": int8 [" << tokens << ", " << w.in() << "] x " << w.out());
  }
}

}  // namespace

TEST("cpu: int8 products are exact for every instruction set, thread count and size") {
  uint64_t seed = 1;
  for (int64_t k : {1, 15, 16, 17, 63, 64, 65, 100, 1603}) {
    for (int64_t rows : {1, 3, 16, 47, 48, 49, 100}) {
      const Int8Weight w = int8_weight(rows, k, ++seed);
      for (int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 20, 23, 33})
        check_int8_product(int8_numbers({tokens, k}, ++seed).t, w.linear);
    }
  }
  // More tokens than share a panel; more columns than a panel has.
  check_int8_product(int8_numbers({1030, 130}, 1).t, int8_weight(101, 130, 2).linear);
  check_int8_product(int8_numbers({70, 2500}, 3).t, int8_weight(50, 2500, 4).linear);
}

TEST("cpu: int8 sums that fill 32 bits are exact") {
  const int64_t k = (int64_t{1} << 17) - 1, rows = 5;
  const int8_t extremes[] = {-128, 127, -127, 1, -1};
  const auto filled = [&](int64_t n) {
    Owned q = int8_numbers({n, k}, 1);
    for (int64_t r = 0; r < n; ++r) std::memset(q.t.as<int8_t>() + r * k, extremes[r % 5], static_cast<size_t>(k));
    return q;
  };
  const Owned weight = filled(rows);
  const Int8Weight scales = int8_weight(rows, 1, 1);
  for (int64_t tokens : {5, 19}) check_int8_product(filled(tokens).t, {weight.t, nullptr, scales.scale.t});
}

TEST("cpu: rows are quantised by the int8 rule, for every kind of number") {
  for (int64_t dim : {1, 15, 16, 17, 63, 64, 65, 100, 1603}) {
    for (DType act : {DType::f32, DType::bf16}) {
      Owned x = activations(act, {7, dim}, static_cast<uint64_t>(dim));
      Random random(static_cast<uint64_t>(dim));
      for (int64_t i = 0; i < dim; ++i) {
        set_value(x.t, dim + i, NAN);
        set_value(x.t, 2 * dim + i, -0.0f);
        set_value(x.t, 3 * dim + i, std::bit_cast<float>(random.bits()));
        set_value(x.t, 4 * dim + i, static_cast<float>(static_cast<int>(random.bits() % 255) - 127) / 2);  // ties, where the scale is 1
      }
      set_value(x.t, 4 * dim, 127.0f);
      set_value(x.t, 5 * dim + dim / 2, NAN);
      set_value(x.t, 6 * dim + dim - 1, INFINITY);
      const std::vector<float> values = values_of(x.t);
      for (float fixed : {0.0f, 0.02f, 1e-38f}) {
        for (NamedBackend& b : backends()) {
          Owned q(DType::i8, {7, dim}, 1), scales(DType::f32, {7});
          b.backend->quantize_rows(x.t, fixed, q.t, scales.t);
          for (int64_t r = 0; r < 7; ++r) {
            const float* row = values.data() + r * dim;
            const float scale = fixed > 0 ? fixed : int8_scale(absolute_max(row, dim)), got = scales.t.as<float>()[r];
            std::vector<int8_t> want(static_cast<size_t>(dim));
            quantize_int8(row, dim, scale, want.data());
            CHECK_MSG(got == scale, b.label << ", row " << r << " of " << dim << ": scale " << got << ", not " << scale);
            CHECK_MSG(std::memcmp(q.t.as<int8_t>() + r * dim, want.data(), want.size()) == 0,
                      b.label << ", row " << r << " of " << dim << ", fixed scale " << fixed);
          }
        }
      }
    }
  }
}

TEST("cpu: int8 projections of one input equal separate ones, whatever the schemes") {
  const int64_t tokens = 9, in = 100;
  const Owned x = activations(DType::f32, {tokens, in}, 1), norm_weight = activations(DType::f32, {in}, 2);
  Int8Weight w[] = {int8_weight(130, in, 3), int8_weight(33, in, 4), int8_weight(20, in, 5)};
  const auto set = [](Linear& linear, ActScheme scheme, float scale) { linear.activations = scheme, linear.input_scale = scale; };
  for (int mix = 0; mix < 5; ++mix) {
    for (Int8Weight& each : w) set(each.linear, mix == 0 ? ActScheme::token : ActScheme::fixed, 0.05f);
    if (mix == 2) set(w[1].linear, ActScheme::fixed, 0.06f);
    if (mix == 4)
      for (Int8Weight& each : w) set(each.linear, ActScheme::sequence, 0);
    if (mix == 3) set(w[1].linear, ActScheme::token, 0), set(w[2].linear, ActScheme::none, 0);
    for (NamedBackend& b : backends()) {
      // f32: with bf16, separate products round the normed row, which one that makes its input itself does not.
      Owned normed(DType::f32, {tokens, in}), q(DType::f32, {tokens, 130}), k(DType::f32, {tokens, 33}), v(DType::f32, {tokens, 20});
      Owned branch(DType::f32, {tokens, in});
      Workspace ws{normed.t, q.t, k.t, v.t, Tensor(), branch.t, Tensor(), Tensor(), Tensor()};
      b.backend->attention_input(x.t, {norm_weight.t, 1, 1e-6f}, w[0].linear, w[1].linear, w[2].linear, ws);
      b.backend->rms_norm(x.t, {norm_weight.t, 1, 1e-6f}, normed.t);
      const Owned* together[] = {&q, &k, &v};
      for (int i = 0; i < 3; ++i) {
        Owned alone(DType::f32, {tokens, w[i].linear.out()});
        b.backend->linear(normed.t, w[i].linear, alone.t);
        CHECK_MSG(bits_of(alone.t) == bits_of(together[i]->t), b.label << ", mix " << mix << ", projection " << i);
      }
    }
  }
}

TEST("cpu: linear, zero tokens") {
  const Owned w = weights(DType::f32, 4, 16, 1);
  float nothing = 0;
  make_cpu_backend(2)->linear(Tensor(&nothing, DType::f32, {0, 16}), {w.t, nullptr}, Tensor(&nothing, DType::f32, {0, 4}));
  Int8Weight int8 = int8_weight(4, 16, 1);
  int8.linear.activations = ActScheme::token;
  make_cpu_backend(2)->linear(Tensor(&nothing, DType::f32, {0, 16}), int8.linear, Tensor(&nothing, DType::f32, {0, 4}));
}

TEST("cpu: elementwise operations and norms give equal bits") {
  const int64_t rows = 40, dim = 1100;
  const Owned x = activations(DType::f32, {rows, dim}, 1), y = activations(DType::f32, {rows, dim}, 2),
              weight = activations(DType::f32, {dim}, 3);
  const auto copied = [&](const Tensor& t) { std::memcpy(t.data, x.t.data, static_cast<size_t>(t.bytes())); };
  for (DType out : {DType::f32, DType::bf16}) {
    check_bits("geglu", out, {rows, dim}, [&](Backend& b, const Tensor& t) { b.geglu(x.t, y.t, t); });
    check_bits("rms_norm", out, {rows, dim}, [&](Backend& b, const Tensor& t) { b.rms_norm(x.t, {weight.t, 1, 1e-6f}, t); });
  }
  check_bits("rms_norm in place", DType::f32, {rows, dim},
             [&](Backend& b, const Tensor& t) { copied(t), b.rms_norm(t, {weight.t, 1, 1e-6f}, t); });
  check_bits("soft_cap", DType::f32, {rows, dim}, [&](Backend& b, const Tensor& t) { copied(t), b.soft_cap(t, 30); });
  check_bits("add", DType::f32, {rows, dim}, [&](Backend& b, const Tensor& t) { copied(t), b.add(t, y.t); });
}

TEST("cpu: rounding to bf16 is the format's, for every kind of number") {
  std::vector<float> values = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-45f, 3.39e38f, 3.4e38f};
  Random random(1);
  for (int i = 0; i < 2000; ++i) values.push_back(std::bit_cast<float>(random.bits()));
  const int64_t n = static_cast<int64_t>(values.size());
  const Tensor k(values.data(), DType::f32, {1, n});
  for (NamedBackend& b : backends()) {
    Owned page(DType::bf16, {2, kPageTokens, n});
    void* pages[] = {page.t.data};
    const AttentionSpan span{0, 1, 3, {DType::bf16, pages, 1}};
    b.backend->append_kv(k, k, {&span, 1}, {1, 1, n, 1, 0, kNoWindow});
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t want = to_bf16(values[static_cast<size_t>(i)]).bits, got = page.t.as<bf16>()[3 * n + i].bits;
      CHECK_MSG(got == want,
                b.label << ": bits " << std::bit_cast<uint32_t>(values[static_cast<size_t>(i)]) << " became " << got << ", not " << want);
    }
  }
}

TEST("cpu: attention gives equal bits for every chunking, ring, instruction set and thread count") {
  std::vector<AttentionProblem> problems = {
      {4, 1, 32, 203, 40},
      {4, 2, 72, 150, 64, 5.0f},
      {3, 1, 128, 140, 65, 0, DType::bf16, DType::bf16},
      {2, 2, 64, 170, kNoWindow, 0, DType::bf16},
      {1, 1, 256, 70, 1},
  };
  for (const AttentionProblem& p : problems) {
    const std::vector<uint8_t> want = bits_of(attend_in_chunks(*backends()[0].backend, p, {p.tokens}, /*ring=*/false).t);
    for (NamedBackend& b : backends()) {
      for (const std::vector<int64_t>& chunks : std::vector<std::vector<int64_t>>{{1}, {7}, {64}, {65, 1, 1, 30}, {p.tokens}}) {
        CHECK_MSG(bits_of(attend_in_chunks(*b.backend, p, chunks, /*ring=*/true).t) == want,
                  b.label << ", window " << p.window << ", dim " << p.dim << ", first chunk " << chunks[0]);
      }
    }
  }
}

TEST("cpu: attention over several partitions gives equal bits whether split among threads or not") {
  for (int64_t window : {int64_t{700}, kNoWindow}) {
    const AttentionProblem p{2, 1, 16, 1101, window, 0, DType::bf16};
    const std::vector<uint8_t> want = bits_of(attend_in_chunks(*backends()[0].backend, p, {p.tokens}, /*ring=*/false).t);
    for (NamedBackend& b : backends()) {
      for (const std::vector<int64_t>& chunks : std::vector<std::vector<int64_t>>{{1000, 60, 5, 1}, {500, 500, 99, 1, 1}}) {
        CHECK_MSG(bits_of(attend_in_chunks(*b.backend, p, chunks, /*ring=*/true).t) == want,
                  b.label << ", window " << window << ", first chunk " << chunks[0]);
      }
    }
  }
}

TEST("cpu: attention of a sequence does not depend on the others in the step") {
  const int64_t heads = 4, kv_heads = 2, dim = 48, rows[] = {1, 37, 5}, first[] = {600, 20, 1030};
  const AttentionShape shape{heads, kv_heads, dim, 0.2f, 0, 512};
  const Owned q = activations(DType::f32, {43, heads * dim}, 7);
  std::vector<Owned> memory;
  std::vector<std::vector<void*>> tables(3);
  Random random(5);
  for (auto& table : tables) {
    for (int page = 0; page < 17; ++page) {
      const Tensor& t = memory.emplace_back(DType::f32, std::initializer_list<int64_t>{2, kv_heads, kPageTokens, dim}).t;
      for (int64_t i = 0; i < t.elements(); ++i) t.as<float>()[i] = random.bell();
      table.push_back(t.data);
    }
  }
  std::vector<AttentionSpan> spans;
  for (int64_t s = 0, row = 0; s < 3; row += rows[s++])
    spans.push_back({row, rows[s], first[s], {DType::f32, tables[static_cast<size_t>(s)].data(), 17}});
  for (NamedBackend& b : backends()) {
    Owned together(DType::f32, {43, heads * dim}), alone(DType::f32, {43, heads * dim});
    b.backend->attention(q.t, spans, shape, together.t);
    for (const AttentionSpan& span : spans) b.backend->attention(q.t, {&span, 1}, shape, alone.t);
    CHECK_MSG(bits_of(together.t) == bits_of(alone.t), b.label);
  }
}

TEST("cpu: a cache too small for the window is an error, not a wrong answer") {
  const Owned q = activations(DType::f32, {1, 32}, 1), page(DType::f32, {2, 1, kPageTokens, 32});
  Owned out(DType::f32, {1, 32});
  void* pages[] = {page.t.data};
  const AttentionSpan span{0, 1, 70, {DType::f32, pages, 1}};
  CHECK_THROWS(make_cpu_backend(1)->attention(q.t, {&span, 1}, {1, 1, 32, 1, 0, 30}, out.t), ErrorCode::internal, "pages");
}

TEST("cpu: stages with one pass over the pool equal the primitives they replace") {
  const int64_t tokens = 9, hidden = 96, ffn = 130, width = 64, kv_width = 32;
  const Owned x = activations(DType::f32, {tokens, hidden}, 1), norm_weight = activations(DType::f32, {hidden}, 2);
  const Owned wq = weights(DType::bf16, width, hidden, 3), wk = weights(DType::q8_0, kv_width, hidden, 4),
              wv = weights(DType::f32, kv_width, hidden, 5);
  const Owned gate = weights(DType::bf16, ffn, hidden, 6), up = weights(DType::f32, ffn, hidden, 7),
              down = weights(DType::f16, hidden, ffn, 8);
  const Norm norm{norm_weight.t, 1, 1e-6f};
  for (DType act : {DType::f32, DType::bf16}) {
    for (NamedBackend& b : backends()) {
      std::vector<std::vector<uint8_t>> results[2];
      for (int fused = 0; fused < 2; ++fused) {
        Owned normed(act, {tokens, hidden}), q(DType::f32, {tokens, width}), k(DType::f32, {tokens, kv_width}),
            v(DType::f32, {tokens, kv_width});
        Owned branch(DType::f32, {tokens, hidden}), gates(DType::f32, {tokens, ffn}), ups(DType::f32, {tokens, ffn}),
            gated(act, {tokens, ffn});
        Owned residual(DType::f32, {tokens, hidden});
        std::memcpy(residual.t.data, x.t.data, static_cast<size_t>(x.t.bytes()));
        Workspace ws{normed.t, q.t, k.t, v.t, Tensor(), branch.t, gates.t, ups.t, gated.t};
        Backend& backend = *b.backend;
        if (fused) {
          backend.attention_input(x.t, norm, {wq.t, nullptr}, {wk.t, nullptr}, {wv.t, nullptr}, ws);
          backend.feed_forward(residual.t, norm, {gate.t, nullptr}, {up.t, nullptr}, {down.t, nullptr}, norm, ws);
        } else {
          backend.Backend::attention_input(x.t, norm, {wq.t, nullptr}, {wk.t, nullptr}, {wv.t, nullptr}, ws);
          backend.Backend::feed_forward(residual.t, norm, {gate.t, nullptr}, {up.t, nullptr}, {down.t, nullptr}, norm, ws);
        }
        for (const Owned* o : {&q, &k, &v, &residual}) results[fused].push_back(bits_of(o->t));
      }
      CHECK_MSG(results[0] == results[1], b.label);
    }
  }
}

// So many columns that one range of a thread is more than what passes through gate before up has its turn.
TEST("cpu: gate and up in long streams equal the primitives they replace") {
  const int64_t hidden = 32, ffn = 1100 * 16 + 5;
  const Owned norm_weight = activations(DType::f32, {hidden}, 2);
  const Norm norm{norm_weight.t, 1, 1e-6f};
  for (DType type : {DType::bf16, DType::q8_0}) {
    const Owned gate = weights(type, ffn, hidden, 6), up = weights(type, ffn, hidden, 7), down = weights(DType::bf16, hidden, ffn, 8);
    for (NamedBackend& b : backends()) {
      Backend& backend = *b.backend;
      for (bool int8 : {false, true}) {
        const auto made = [&](const Owned& w) {
          const std::optional<Linear> small = int8 ? backend.make_int8({w.t, nullptr}) : std::nullopt;
          return small ? *small : backend.make_linear({w.t, nullptr});
        };
        const Linear wgate = made(gate), wup = made(up), wdown = backend.make_linear({down.t, nullptr});
        for (int64_t tokens : {1, 3, 16}) {
          const Owned x = activations(DType::f32, {tokens, hidden}, 1);
          std::vector<uint8_t> results[2];
          for (int fused = 0; fused < 2; ++fused) {
            const DType act = type == DType::bf16 && !int8 ? DType::bf16 : DType::f32;  // f32: blocks and int8 round a norm once
            const Owned normed(act, {tokens, hidden}), branch(DType::f32, {tokens, hidden}), gates(DType::f32, {tokens, ffn}),
                ups(DType::f32, {tokens, ffn}), gated(DType::bf16, {tokens, ffn});
            Owned residual(DType::f32, {tokens, hidden});
            std::memcpy(residual.t.data, x.t.data, static_cast<size_t>(x.t.bytes()));
            Workspace ws;
            ws.normed = normed.t, ws.branch = branch.t, ws.gate = gates.t, ws.up = ups.t, ws.gated = gated.t;
            if (fused) {
              backend.feed_forward(residual.t, norm, wgate, wup, wdown, norm, ws);
            } else {
              backend.Backend::feed_forward(residual.t, norm, wgate, wup, wdown, norm, ws);
            }
            results[fused] = bits_of(residual.t);
          }
          CHECK_MSG(results[0] == results[1],
                    b.label << ": " << dtype_info(type).name << (int8 ? " as int8, " : ", ") << tokens << " tokens");
        }
      }
    }
  }
}

TEST("cpu: attend equals the primitives it replaces, for every cache") {
  const int64_t tokens = 70, heads = 4, kv_heads = 2, dim = 24;
  const Owned qn = activations(DType::f32, {dim}, 4), kn = activations(DType::f32, {dim}, 5);
  Owned cos(DType::f32, {tokens, dim / 2}), sin(DType::f32, {tokens, dim / 2});
  std::vector<int32_t> positions(tokens);
  for (int32_t t = 0; t < tokens; ++t) positions[static_cast<size_t>(t)] = t;
  std::vector<float> inv_freq(dim / 2);
  for (int64_t j = 0; j < dim / 2; ++j) inv_freq[static_cast<size_t>(j)] = std::pow(10000.0f, -static_cast<float>(2 * j) / dim);
  make_reference_backend()->rope_angles(positions, inv_freq, cos.t, sin.t);
  const Owned pk = activations(DType::f32, {kv_heads, 9, dim}, 6), pv = activations(DType::f32, {kv_heads, 9, dim}, 7);
  const Norm q_norm{qn.t, 1, 1e-6f}, k_norm{kn.t, 1, 1e-6f};
  for (DType kv : {DType::f32, DType::bf16, DType::i8}) {
    for (NamedBackend& b : backends()) {
      for (int variant = 0; variant < 4; ++variant) {
        const bool norms = variant % 2 != 0, prefix = variant / 2 != 0;
        std::vector<uint8_t> results[2][2];
        for (int fused = 0; fused < 2; ++fused) {
          Owned q = activations(DType::f32, {tokens, heads * dim}, 1), k = activations(DType::f32, {tokens, kv_heads * dim}, 2),
                v = activations(DType::f32, {tokens, kv_heads * dim}, 3), attended(DType::bf16, {tokens, heads * dim});
          Owned memory(DType::u8, {2, kv_page_bytes(kv, kv_heads, dim)});
          void* pages[] = {memory.t.data, memory.t.rows(1, 1).data};
          const AttentionSpan span{0, tokens, 0, {kv, pages, 2}};
          Owned q_prefix(DType::f32, {tokens, heads * dim});
          AttentionExtras extras;
          AttendParams params;
          params.shape = {heads, kv_heads, dim, 0.2f, 0, 40};
          if (norms) params.q_norm = &q_norm, params.k_norm = &k_norm;
          params.cos = cos.t, params.sin = sin.t, params.spans = {&span, 1};
          if (prefix) {
            extras.prefix_k = pk.t, extras.prefix_v = pv.t, extras.prefix_in_window = norms;
            params.shape.extras = &extras, params.prefix_cos = sin.t, params.prefix_sin = cos.t;
          }
          Workspace ws;
          ws.q = q.t, ws.k = k.t, ws.v = v.t, ws.attended = attended.t, ws.q_prefix = q_prefix.t;
          if (fused) {
            b.backend->attend(params, ws);
          } else {
            b.backend->Backend::attend(params, ws);
          }
          results[fused][0] = bits_of(attended.t), results[fused][1] = bits_of(memory.t);
        }
        CHECK_MSG(results[0][0] == results[1][0] && results[0][1] == results[1][1], b.label << ", " << dtype_info(kv).name);
      }
    }
  }
}

TEST("cpu: values that are infinite reach only the queries that see them") {
  const int64_t tokens = 70, dim = 20;
  const AttentionShape shape{1, 1, dim, 0.2f, 0, 5};
  const Owned q = activations(DType::f32, {tokens, dim}, 1), k = activations(DType::f32, {tokens, dim}, 2);
  Owned v = activations(DType::f32, {tokens, dim}, 3), memory(DType::f32, {2, 2 * kPageTokens * dim}), out(DType::f32, {tokens, dim});
  v.t.as<float>()[33 * dim + 3] = INFINITY;
  void* pages[] = {memory.t.data, memory.t.rows(1, 1).data};
  const AttentionSpan span{0, tokens, 0, {DType::f32, pages, 2}};
  for (NamedBackend& b : backends()) {
    b.backend->append_kv(k.t, v.t, {&span, 1}, shape);
    b.backend->attention(q.t, {&span, 1}, shape, out.t);
    for (int64_t t = 0; t < tokens; ++t) {
      const bool finite = std::isfinite(out.t.as<float>()[t * dim + 3]);
      CHECK_MSG(finite == (t < 33 || t > 37), b.label << ": token " << t);
    }
  }
}

TEST("cpu: the token drawn is the reference's, whatever the settings and sizes") {
  for (int64_t vocab : {1, 2, 63, 64, 65, 1000, 40000}) {
    for (float width : {0.1f, 1.0f, 8.0f}) {
      Owned logits(DType::f32, {1, vocab});
      Random random(static_cast<uint64_t>(vocab));
      // With many equal ones, but for the largest vocabulary.
      for (int64_t i = 0; i < vocab; ++i)
        logits.t.as<float>()[i] =
            width * (vocab == 40000 ? 2 * random.bell() : static_cast<float>(static_cast<int>(8 * random.bell())) / 4);
      const std::vector<int32_t> history = {0, static_cast<int32_t>(vocab - 1), 0};
      std::vector<uint32_t> mask(static_cast<size_t>((vocab + 31) / 32), 0xfffffffdu);
      for (int variant = 0; variant < 9; ++variant) {
        SamplingSettings settings;
        SampleRequest request;
        if (variant == 0) settings.temperature = 0;
        if (variant == 1) settings.temperature = 0.3f;
        if (variant == 2) settings.top_k = 5;
        if (variant == 3) settings.top_p = 0.9f;
        if (variant == 4) settings.min_p = 0.1f;
        if (variant == 5) settings.top_k = 700, settings.top_p = 0.5f;
        if (variant == 6)
          settings.repetition_penalty = 1.3f, settings.frequency_penalty = 0.5f, request.history = history, request.mask = mask;
        if (variant == 7) settings.top_p = 0.999f, settings.temperature = 3;
        if (variant == 8) settings.top_p = 0;
        request.settings = &settings;
        request.top_logprobs = 3;
        for (uint64_t seed = 0; seed < 5; ++seed) {
          request.seed = seed;
          const SampleResult want = sample_token({logits.t.as<float>(), static_cast<size_t>(vocab)}, request);
          for (NamedBackend& b : backends()) {
            SampleResult got;
            b.backend->sample(logits.t, {&request, 1}, {&got, 1});
            CHECK_MSG(got.id == want.id && got.logprob == want.logprob && got.top.size() == want.top.size(),
                      b.label << ": vocabulary " << vocab << ", variant " << variant << ": " << got.id << ", not " << want.id);
          }
        }
      }
    }
  }
}

}  // namespace lapidary
