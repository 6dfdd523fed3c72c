// The CPU backend's promise for training: equal bits for every instruction set and thread count; and products near the processor's speed.
#include <cmath>

#include "check.h"
#include "cpu/backend.h"
#include "ops/training_data.h"

namespace lapidary {

using namespace test;

namespace {

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = [] {
    std::vector<NamedBackend> list = cpu_backends();
    list.push_back({"3 threads", make_cpu_backend(3)});
    return list;
  }();
  return all;
}

// The op writes into tensors it is given copies of; all of them have the same bits on every backend.
template <typename Op>
void check_bits(const std::string& what, const std::vector<const Owned*>& outputs, const Op& op) {
  std::vector<std::vector<uint8_t>> first;
  for (NamedBackend& b : backends()) {
    std::vector<Owned> copies;
    std::vector<Tensor> views;
    for (const Owned* o : outputs) {
      Owned& copy = copies.emplace_back(DType::f32, std::initializer_list<int64_t>{o->t.elements()});
      std::memcpy(copy.t.data, o->t.data, static_cast<size_t>(o->t.bytes()));
      Tensor view = o->t;
      view.data = copy.t.data;
      views.push_back(view);
    }
    op(b.backend->training(), views);
    for (size_t i = 0; i < views.size(); ++i) {
      const std::vector<uint8_t> bits = bits_of(views[i]);
      if (first.size() <= i) first.push_back(bits);
      CHECK_MSG(bits == first[i], what << ": output " << i << " differs between " << backends()[0].label << " and " << b.label);
    }
  }
}

}  // namespace

TEST("cpu training: equal bits for every instruction set and thread count") {
  for (const MatmulForm form : {MatmulForm::nn, MatmulForm::nt, MatmulForm::tn}) {
    const int64_t m = 131, n = 300, k = 530;
    const bool a_turned = form == MatmulForm::tn, b_turned = form == MatmulForm::nt;
    const Owned a = plain_numbers({a_turned ? k : m, a_turned ? m : k}, 1), b = plain_numbers({b_turned ? n : k, b_turned ? k : n}, 2),
                c = plain_numbers({m, n}, 3);
    for (bool add : {false, true}) check_bits("matmul", {&c}, [&](TrainingOps& o, auto& t) { o.matmul(form, a.t, b.t, t[0], add); });
  }
  const int64_t rows = 150, dim = 333;
  const Owned x = plain_numbers({rows, dim}, 1), y = plain_numbers({rows, dim}, 2), z = plain_numbers({rows, dim}, 3),
              w = plain_numbers({dim}, 4);
  check_bits("rms_norm", {&x, &w}, [&](TrainingOps& o, auto& t) { o.rms_norm_backward(x.t, {w.t, 1, 1e-6f}, y.t, t[0], true, t[1]); });
  check_bits("geglu", {&x, &x}, [&](TrainingOps& o, auto& t) { o.geglu_backward(x.t, y.t, z.t, t[0], t[1]); });
  check_bits("soft_cap", {&x}, [&](TrainingOps& o, auto& t) { o.soft_cap_backward(y.t, 30, t[0]); });
  const std::vector<int32_t> ids(rows, 1);
  check_bits("embed", {&x}, [&](TrainingOps& o, auto& t) { o.embed_backward(ids, 0.3f, y.t, t[0]); });
  const std::vector<float> weights(rows, 0.7f);
  std::vector<double> losses(rows);
  check_bits("cross_entropy", {&x}, [&](TrainingOps& o, auto& t) { o.cross_entropy(t[0], 2, {ids, {}, 1, weights}, losses); });
  check_bits("distillation", {&x}, [&](TrainingOps& o, auto& t) { o.distillation(t[0], 2, y.t, 1.5f, weights, losses); });
  const std::vector<SequenceRows> sequences = {{0, 100, 0}, {100, 50, 0}};
  for (const FakeQuant& quant : {FakeQuant{QuantScope::fixed, 0.02f}, FakeQuant{QuantScope::token}, FakeQuant{QuantScope::sequence}}) {
    const Owned scales(DType::f32, {rows});
    check_bits("fake_quantize", {&x, &scales, &z}, [&](TrainingOps& o, auto& t) {
      o.fake_quantize(y.t, quant, sequences, t[0], t[1]);
      for (const auto kind : {QuantErrorGradient::literal, QuantErrorGradient::through_scale})
        o.fake_quantize_backward(y.t, quant, sequences, t[1], 0.2f, kind, t[2]);
    });
  }
  check_bits("adamw", {&x, &y, &z}, [&](TrainingOps& o, auto& t) {
    o.multiply(t[2], t[2]);
    o.adamw(t[0], x.t, t[1], t[2], {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 3, 0.7f});
  });
  check_bits("sgd", {&x, &y}, [&](TrainingOps& o, auto& t) { o.sgd(t[0], z.t, t[1], {0.01f, 0.9f, 0.1f, false, 0.7f}); });
  double squares = 0;
  for (NamedBackend& b : backends()) {
    const Owned large = plain_numbers({200000}, 3);
    const double sum = b.backend->training().sum_of_squares(large.t);
    if (squares == 0) squares = sum;
    CHECK(sum == squares && sum > 0);
  }
}

TEST("cpu training: attention gives equal bits for every instruction set and thread count") {
  for (const TrainingAttentionProblem& p : {TrainingAttentionProblem{4, 2, 40, {130, 61}, 50, 0.7f, 3, true},
                                            TrainingAttentionProblem{3, 1, 16, {70}, kNoWindow, 0, 2, false, true}}) {
    const TrainingAttentionCase c(p);
    const TrainingAttentionResult first(*backends()[0].backend, p, c);
    for (NamedBackend& b : backends()) {
      const TrainingAttentionResult r(*b.backend, p, c);
      for (Owned TrainingAttentionResult::* side :
           {&TrainingAttentionResult::out, &TrainingAttentionResult::stats, &TrainingAttentionResult::q, &TrainingAttentionResult::k,
            &TrainingAttentionResult::v, &TrainingAttentionResult::q_prefix, &TrainingAttentionResult::prefix_k,
            &TrainingAttentionResult::prefix_v})
        CHECK_MSG(bits_of((r.*side).t) == bits_of((first.*side).t), b.label << ", " << p.text());
    }
  }
}

}  // namespace lapidary
