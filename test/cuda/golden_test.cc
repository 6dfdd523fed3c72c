// Golden models, whole, on the CUDA backend: f32 logits, hidden states and greedy text, the bf16 bar, and the invariances that hold there
// (docs/numerics.md): f32 results depend on nothing beside a row, bf16 ones not on other sequences.
#include "cuda/backend.h"
#include "cuda/support.h"
#include "model/golden_checks.h"

namespace lapidary::test {
namespace {

const int registered = (backend_makers()["cuda"] = [] { return make_cuda_backend(api(), context().device->ordinal); }, 0);

void on_each(void (*check)(const std::string&, const std::string&)) {
  (void)registered;
  with_range_checks([&] {
    for (const char* name : kModels) check(name, "cuda");
  });
}

}  // namespace

TEST("cuda golden: f32 logits") { on_each(check_logits); }
TEST("cuda golden: hidden states layer by layer") { on_each(check_hidden); }
TEST("cuda golden: 64 greedy tokens") {
  with_range_checks([] { check_greedy("gemma2-tiny", "cuda"); });
}
TEST("cuda golden: bf16 error") { on_each(check_bf16); }

// As near to the unquantised model as the checkpoints' own writer, in bf16 precision too: what is quantised is rounded once.
TEST("cuda golden: int8 checkpoints in bf16") {
  double ours = 0, theirs = 0;
  for (const std::string name : {"gemma2-tiny-dynamic", "gemma2-tiny-static", "gemma3-tiny-dynamic", "gemma3-tiny-static"}) {
    const Expected expected("compressed-tensors/" + name);
    const Loaded model = load(golden("compressed-tensors/" + name), "cuda");
    const auto vocab = static_cast<size_t>(model.weights->config.vocab);
    for (const std::string& c : expected.cases()) {
      const std::vector<float> truth = expected.floats(c + ".logits_unquantized");
      ours += mean_kl(truth, logits_of(model, Precision::bf16, expected.ids(c + ".ids")), vocab);
      theirs += mean_kl(truth, expected.floats(c + ".logits"), vocab);
    }
  }
  CHECK_MSG(ours > 0 && ours <= 1.1 * theirs, "KL " << ours << ", the writer's own " << theirs);
}
TEST("cuda golden: company does not change a bit") { on_each(check_company); }

}  // namespace lapidary::test
