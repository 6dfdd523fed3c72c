// The probes do the work they are counted for: a loop over ones sums to half its operations, and the read adds up every element.
#include "cpu/probe.h"

#include <vector>

#include "check.h"
#include "cpu/backend.h"
#include "ops/ops_data.h"

namespace lapidary::cpu {

namespace {

// The tables of this processor.
std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> found;
  for (const std::string& name : test::instruction_sets(cpu_instruction_sets())) {
    const test::ForcedCpu forced(name);
    found.push_back(&select_kernels());
  }
  return found;
}

void check_loop(const Kernels& kernels, const ProbeLoop& loop) {
  if (!loop.run || !has_feature(loop.needs)) return;
  const ProbeData data(loop.dtype);
  for (int64_t rounds : {1, 2, 67}) {
    const double total = loop.run(data.bytes, rounds);
    CHECK_MSG(2 * total == static_cast<double>(loop.operations * rounds), kernels.name << ' ' << dtype_info(loop.dtype).name << ": "
                                                                                       << total << " after " << rounds << " rounds of "
                                                                                       << loop.operations);
  }
}

TEST("probes: every loop of every instruction set does the operations it says") {
  for (const Kernels* kernels : tables()) {
    check_loop(*kernels, kernels->probes.f32);
    for (const ProbeLoop& loop : kernels->probes.int8) check_loop(*kernels, loop);
    check_loop(*kernels, kernels->probes.bf16);
  }
}

TEST("probes: the read reads everything") {
  std::vector<float> numbers(4096);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 7);
  double want = 0;
  for (float x : numbers) want += x;
  for (const Kernels* kernels : tables()) {
    const double got = kernels->probes.read(numbers.data(), static_cast<int64_t>(numbers.size()));
    CHECK_MSG(got == want, kernels->name << ": " << got << ", want " << want);
  }
}

TEST("probes: peaks of every instruction set are there; time must be above 0") {
  for (const Kernels* kernels : tables()) {
    const Peaks peaks = measure_peaks(*kernels, {.threads = 2, .seconds = 0.01, .memory_bytes = int64_t{256} << 20});
    CHECK_MSG(peaks.bandwidth > 0 && peaks.f32 > 0 && peaks.int8 > 0 && peaks.bf16 >= 0 && peaks.cache_bytes >= 0, kernels->name);
  }
  CHECK_THROWS(measure_peaks(kScalarKernels, {.seconds = 0}), ErrorCode::invalid_argument, "seconds above 0");
}

}  // namespace

}  // namespace lapidary::cpu
