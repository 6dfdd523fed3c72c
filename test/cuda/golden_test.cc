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
TEST("cuda golden: company does not change a bit") { on_each(check_company); }

}  // namespace lapidary::test
