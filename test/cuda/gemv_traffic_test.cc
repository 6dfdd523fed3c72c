// What a launch of a skinny product does, as the emulator counts it: every weight byte read once, matrix loads without bank conflicts,
// enough bytes in flight.
#include "cuda/gemv_problem.h"
#include "emulator/control.h"

namespace lapidary::test {
namespace {

constexpr int64_t kRoom = cuda::kGemvZeroBytes + (4 << 20);

struct RestoreMode {
  ~RestoreMode() { emulator::set_async_mode(emulator::AsyncMode::eager); }
};

template <class Problem>
void check_traffic(const Problem& problem, cuda::GemvPath path, int64_t weight_bytes, int64_t in_flight) {
  const RestoreMode restore;
  emulator::set_async_mode(emulator::AsyncMode::lazy);  // copies count as in flight until they are waited for
  const GemvWorkspace workspace(kRoom);
  auto params = problem.params(workspace);
  if constexpr (requires { params.path; }) params.path = path;
  cuda::GemvPlan plan;
  REQUIRE(cuda::plan_gemv(cuda::gemv_problem(params), *context().device, 0, &plan) == nullptr);
  CHECK(plan.bulk == (path == cuda::GemvPath::bulk));
  (void)run_gemv<float>(params, workspace, f32_output());
  const emulator::LaunchStatistics& s = emulator::last_launch();
  CHECK_MSG(s.matrix_wavefronts == s.matrix_wavefronts_ideal,
            s.matrix_wavefronts << " wavefronts of ldmatrix, ideal " << s.matrix_wavefronts_ideal);
  CHECK_MSG(s.matrix_wavefronts > 0, "nothing was counted");
  // Beside the weights: x for every block, scales and partial sums (5%).
  const int64_t x_bytes = int64_t{plan.blocks} * problem.m * problem.k * static_cast<int64_t>(sizeof problem.x[0]);
  CHECK_MSG(s.global_read_bytes >= weight_bytes + x_bytes && s.global_read_bytes <= weight_bytes + x_bytes + weight_bytes / 20,
            s.global_read_bytes << " bytes read for " << weight_bytes << " of weights and " << x_bytes << " of x");
  CHECK_MSG(s.most_bytes_in_flight >= in_flight, s.most_bytes_in_flight << " bytes in flight, want " << in_flight);
}

TEST("cuda gemv: weights are read once, without bank conflicts, with enough in flight") {
  using cuda::GemvPath;
  for (const GemvPath path : {GemvPath::async, GemvPath::bulk}) {
    if (path == GemvPath::bulk && context().device->major < 9) continue;
    check_traffic(Int8Problem(1, 1536, 2048), path, 1536 * 2048, 24 << 10);
    check_traffic(Int8Problem(8, 1536, 1152), path, 1536 * 1152, 12 << 10);
    check_traffic(Bf16Problem(1, 1536, 2048), path, 1536 * 2048 * 2, 24 << 10);
  }
  // The 16 bytes that hold a stage's scales come with each stage: for Q8_0 twice.
  check_traffic(PlanesProblem(cuda::PlaneKind::q8_0, 1, 1536, 2048), GemvPath::async, 1536 * 2048 / 128 * (128 + 16), 24 << 10);
  check_traffic(PlanesProblem(cuda::PlaneKind::q4_0, 1, 1536, 4096), GemvPath::async, 1536 * 4096 / 32 * 18, 24 << 10);
}

}  // namespace
}  // namespace lapidary::test
