// Weights rounded to bf16 and quantised to int8 at load: the rule, row by row, and what it does to a trained model's distribution.
#include "model/convert.h"

#include <cstring>

#include "check.h"
#include "model/golden_checks.h"
#include "ops/int8.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;

TEST("convert: int8 per output channel, from every kind of weight") {
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_k}) {
    const Owned w = weights(type, 5, 512, 3);
    for (int threads : {1, 2}) {
      const Linear q = convert_linear({w.t, nullptr}, WeightsKind::int8, threads);
      CHECK(q.weight.dtype == DType::i8 && q.activations == ActScheme::token && q.scale.elements() == 5 && q.keep);
      CHECK(converted_bytes(5, 512, w.t.bytes(), WeightsKind::int8) == q.weight.bytes() + q.scale.bytes());
      std::vector<float> row(512);
      for (int64_t r = 0; r < 5; ++r) {
        dequantize_row(type, w.t.rows(r, 1).data, 512, row.data());
        const float scale = q.scale.as<float>()[r];
        CHECK(scale == int8_scale(absolute_max(row.data(), 512)));
        for (int64_t i = 0; i < 512; ++i) {
          const float back = static_cast<float>(q.weight.as<int8_t>()[r * 512 + i]) * scale;
          CHECK_MSG(std::abs(back - row[static_cast<size_t>(i)]) <= 0.5001f * scale, "row " << r << ", element " << i);
        }
      }
    }
  }
}

TEST("convert: bf16, and what needs no conversion stays where it is") {
  const Owned w = weights(DType::f32, 3, 40, 1), b = weights(DType::bf16, 3, 40, 2);
  const Linear rounded = convert_linear({w.t, nullptr}, WeightsKind::bf16, 1);
  CHECK(rounded.weight.dtype == DType::bf16);
  for (int64_t i = 0; i < 120; ++i) {
    float x;
    std::memcpy(&x, w.t.data + 4 * i, 4);
    CHECK(rounded.weight.as<bf16>()[i].bits == to_bf16(x).bits);
  }
  CHECK(convert_linear({b.t, nullptr}, WeightsKind::bf16, 1).weight.data == b.t.data);
  CHECK(convert_linear({w.t, nullptr}, WeightsKind::as_is, 1).weight.data == w.t.data);
}

// Per-channel weights and per-token activations cost a trained model next to nothing: the mean divergence of its next-token
// distributions from the f32 ones stays under a hundredth of a nat.
TEST("convert: int8 at load, a trained model's distribution") {
  const Expected expected("gemma3-small");
  for (const std::string name : {"cpu", "reference"}) {
    Loaded model{make_backend(name), nullptr};
    model.weights = load_weights(LAPIDARY_SOURCE_DIR "/models/tiny", *model.backend, {}, {WeightsKind::int8, 2});
    CHECK(model.weights->embedding.weight.dtype == DType::i8 && model.weights->layers[0].down.weight.dtype == DType::i8);
    const auto vocab = static_cast<size_t>(model.weights->config.vocab);
    double sum = 0;
    for (int text = 0; text < 4; ++text) {
      const std::string prefix = "text" + std::to_string(text);
      const std::vector<float> truth = expected.floats(prefix + ".last8_logits_f32"),
                               all = logits_of(model, Precision::f32, expected.ids(prefix + ".ids"));
      sum += mean_kl(truth, std::span(all).last(8 * vocab), vocab) / 4;
    }
    CHECK_MSG(sum > 0 && sum <= 0.01, name << ": mean KL " << sum << " nats");
  }
}

}  // namespace lapidary
