// The promise of the CPU backend: equal bits whatever the instruction set, thread count, batch, chunk or ring.
#include "cpu/backend.h"

#include <algorithm>
#include <cmath>

#include "check.h"
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

TEST("cpu: linear, zero tokens") {
  const Owned w = weights(DType::f32, 4, 16, 1);
  float nothing = 0;
  make_cpu_backend(2)->linear(Tensor(&nothing, DType::f32, {0, 16}), {w.t, nullptr}, Tensor(&nothing, DType::f32, {0, 4}));
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

}  // namespace lapidary
