// Block panels that become int8 panels on the way, and the products of long spans with them (docs/numerics.md, "Blocks in int8").
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/backend.h"
#include "cpu/packed.h"
#include "cpu/products.h"
#include "model/convert.h"
#include "ops/ops_data.h"

namespace lapidary::cpu {

using namespace test;

namespace {

constexpr DType kBlockTypes[] = {DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k};

std::vector<int64_t> columns_of(DType type) {
  return dtype_info(type).block_elements == 256 ? std::vector<int64_t>{256, 768, 2048} : std::vector<int64_t>{32, 64, 96, 640, 1152};
}

Linear long_spans(const Owned& w) {
  Linear host = {w.t, nullptr};
  host.activations = ActScheme::long_spans;
  return host;
}

std::vector<NamedBackend> all_backends() {
  std::vector<NamedBackend> list = cpu_backends();
  list.push_back({"reference", make_reference_backend()});
  return list;
}

// The int8 panels of `w` by every instruction set's own conversion, against those of rows quantised in plain loops.
void check_panels(const Owned& w, const std::string& what) {
  const int64_t n = w.t.shape[0], k = w.t.shape[1];
  const Linear rows = int8_linear({w.t, nullptr}, true, 1);
  const Linear want = pack_linear(kPackedInt8, rows, *ThreadPool::shared(1));
  const PackedMatrix& expected = *packed_matrix(want);
  for (const std::string& set : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(set);
    const Kernels& kernels = select_kernels();
    const Linear made = make_cpu_backend(1)->make_linear(long_spans(w));
    const PackedMatrix& blocks = *packed_matrix(made);
    const PackedKernel* kernel = find_packed(kernels, w.t.dtype, DType::bf16);
    REQUIRE(kernel && kernel->to_int8 && blocks.panels() == expected.panels());
    CHECK_MSG(bits_of(made.scale) == bits_of(want.scale), set << ", " << what << ": other scales");
    const Owned panel(DType::u8, {expected.panel_bytes});
    for (int64_t p = 0; p < blocks.panels(); ++p) {
      std::memset(panel.t.data, 0x5a, static_cast<size_t>(expected.panel_bytes));
      kernel->to_int8(blocks.panel(p), k, made.scale.as<float>() + p * kPackedRows, n - p * kPackedRows, panel.t.data);
      CHECK_MSG(std::memcmp(panel.t.data, expected.panel(p), static_cast<size_t>(expected.panel_bytes)) == 0,
                set << ", " << what << ": panel " << p);
    }
  }
}

std::string name_of(const Owned& w) { return std::string(dtype_info(w.t.dtype).name) + " " + w.t.shape_text(); }

// Product of `rows` rows of x as one span.
std::vector<uint8_t> product(Backend& backend, const Linear& w, const Tensor& x) {
  const Owned out(DType::f32, {x.shape[0], w.out()});
  backend.linear(x, w, out.t);
  return bits_of(out.t);
}

}  // namespace

TEST("packed blocks int8: panels are those of rows quantised to int8, on every set") {
  for (DType type : kBlockTypes) {
    for (int64_t k : columns_of(type)) {
      for (int64_t n : {1, 15, 16, 17, 33}) {
        const Owned w = weights(type, n, k, static_cast<uint64_t>(n + k));
        check_panels(w, name_of(w));
      }
    }
  }
}

TEST("packed blocks int8: rows of zeros, of one number, of every bit, and with scales that are no finite numbers") {
  for (DType type : kBlockTypes) {
    const int64_t k = dtype_info(type).block_elements == 256 ? 512 : 96, n = 19, bytes = dtype_info(type).block_bytes;
    for (uint8_t fill : {0x00, 0x7f, 0x80, 0xff}) {
      Owned w = weights(type, n, k, 5);
      for (int64_t r = 0; r < n; r += 2) std::memset(w.t.data + r * w.t.row_bytes(), fill, static_cast<size_t>(w.t.row_bytes()));
      check_panels(w, name_of(w) + ", filled");
    }
    // d is the block's first or, in Q6_K, its last number.
    for (uint16_t strange : {0x7c00, 0xfc00, 0x7e01, 0xfe00, 0x7bff, 0x0001, 0x8000}) {
      Owned w = weights(type, n, k, 6);
      for (int64_t r = 0; r < n; r += 3) {
        const int64_t block = r % (w.t.row_bytes() / bytes);
        std::memcpy(w.t.data + r * w.t.row_bytes() + block * bytes + (type == DType::q6_k ? 208 : 0), &strange, 2);
      }
      check_panels(w, name_of(w) + ", d " + std::to_string(strange));
    }
  }
}

TEST("packed blocks int8: a long span is the product with int8 rows, a short one the product with blocks") {
  for (DType type : kBlockTypes) {
    const int64_t k = dtype_info(type).block_elements == 256 ? 768 : 160, n = 83;
    const Owned w = weights(type, n, k, 9);
    const Linear rows = int8_linear({w.t, nullptr}, true, 1);
    for (int64_t tokens : {1, 31, 32, 33, 130}) {
      const Owned x = activations(DType::bf16, {tokens, k}, static_cast<uint64_t>(tokens)), f32 = activations(DType::f32, {tokens, k}, 3);
      const auto reference = make_reference_backend();
      const std::vector<uint8_t> want = product(*reference, rows, x.t);
      for (NamedBackend& b : all_backends()) {
        const Linear made = b.backend->make_linear(long_spans(w)), plain = b.backend->make_linear({w.t, nullptr});
        const std::vector<uint8_t> got = product(*b.backend, made, x.t);
        CHECK_MSG((got == want) == (tokens >= kLongSpan), b.label << ", " << name_of(w) << ", " << tokens << " rows");
        if (tokens < kLongSpan) CHECK_MSG(got == product(*b.backend, plain, x.t), b.label << ", " << name_of(w) << ", " << tokens);
        CHECK_MSG(product(*b.backend, made, f32.t) == product(*b.backend, plain, f32.t), b.label << ", f32 rows, " << name_of(w));
      }
    }
  }
}

TEST("packed blocks int8: more tokens than share a panel, and columns of several slices") {
  for (DType type : {DType::q8_0, DType::q4_k}) {
    const Owned w = weights(type, 70, 2560, 4), x = activations(DType::bf16, {1030, 2560}, 5);
    const std::vector<uint8_t> want = product(*make_reference_backend(), int8_linear({w.t, nullptr}, true, 1), x.t);
    for (int threads : {1, 2}) {
      const auto backend = make_cpu_backend(threads);
      CHECK_MSG(product(*backend, backend->make_linear(long_spans(w)), x.t) == want, name_of(w) << ", " << threads << " threads");
    }
  }
}

TEST("packed blocks int8: rows of a step go by their own span, whatever else is in it") {
  const int64_t hidden = 256, ffn = 512;
  const Owned q = weights(DType::q4_k, 96, hidden, 1), k = weights(DType::q4_k, 32, hidden, 2), v = weights(DType::q6_k, 32, hidden, 3),
              o = weights(DType::q5_0, hidden, 96, 4), gate = weights(DType::q4_0, ffn, hidden, 5),
              up = weights(DType::q4_0, ffn, hidden, 6), down = weights(DType::q8_0, hidden, ffn, 7),
              norm_weight = activations(DType::f32, {hidden}, 8);
  const Norm norm{norm_weight.t};
  const std::vector<std::vector<int64_t>> steps = {{1, 1, 40, 31, 32, 1}, {33}, {32, 32}, {1, 1, 1}, {31, 1}, {7, 64, 7}};
  for (NamedBackend& b : all_backends()) {
    const auto made = [&](const Owned& w) { return b.backend->make_linear(long_spans(w)); };
    const Linear wq = made(q), wk = made(k), wv = made(v), wo = made(o), wgate = made(gate), wup = made(up), wdown = made(down);
    // All projections of a step, and its residual stream afterwards, span by span.
    const auto run = [&](const Owned& input, const std::vector<int64_t>& spans) {
      const int64_t tokens = input.t.shape[0];
      Owned x(DType::f32, {tokens, hidden});
      std::memcpy(x.t.data, input.t.data, static_cast<size_t>(x.t.bytes()));
      const Owned normed(DType::bf16, {tokens, hidden}), q_out(DType::f32, {tokens, 96}), k_out(DType::f32, {tokens, 32}),
          v_out(DType::f32, {tokens, 32}), attended(DType::bf16, {tokens, 96}), branch(DType::f32, {tokens, hidden}),
          gate_out(DType::f32, {tokens, ffn}), up_out(DType::f32, {tokens, ffn}), gated(DType::bf16, {tokens, ffn});
      std::vector<AttentionSpan> list;
      for (int64_t rows : spans) list.push_back({list.empty() ? 0 : list.back().first_row + list.back().rows, rows});
      Workspace ws;
      ws.normed = normed.t, ws.q = q_out.t, ws.k = k_out.t, ws.v = v_out.t, ws.attended = attended.t, ws.branch = branch.t;
      ws.gate = gate_out.t, ws.up = up_out.t, ws.gated = gated.t, ws.spans = list;
      b.backend->attention_input(x.t, norm, wq, wk, wv, ws);
      for (int64_t i = 0; i < attended.t.elements(); ++i) set_value(attended.t, i, q_out.t.as<float>()[i]);
      b.backend->attention_output(wo, norm, x.t, ws);
      b.backend->feed_forward(x.t, norm, wgate, wup, wdown, norm, ws);
      std::vector<std::vector<uint8_t>> parts;
      for (const AttentionSpan& s : list) {
        parts.emplace_back();
        for (const Tensor& t : {q_out.t, k_out.t, v_out.t, x.t}) {
          const std::vector<uint8_t> bits = bits_of(t.rows(s.first_row, s.rows));
          parts.back().insert(parts.back().end(), bits.begin(), bits.end());
        }
      }
      return parts;
    };
    for (const std::vector<int64_t>& spans : steps) {
      int64_t tokens = 0;
      for (int64_t rows : spans) tokens += rows;
      const Owned x = activations(DType::f32, {tokens, hidden}, 10);
      const auto together = run(x, spans);
      int64_t first = 0;
      for (size_t s = 0; s < spans.size(); first += spans[s++]) {
        Owned own(DType::f32, {spans[s], hidden});
        std::memcpy(own.t.data, x.t.rows(first, spans[s]).data, static_cast<size_t>(own.t.bytes()));
        CHECK_MSG(run(own, {spans[s]})[0] == together[s],
                  b.label << ": span " << s << " of " << spans.size() << ", " << spans[s] << " rows");
      }
    }
  }
}

}  // namespace lapidary::cpu
