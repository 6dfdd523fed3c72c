// The device's own limits: bandwidth against buffer size, matrix units, and what a launch costs inside a graph.
#include "probes.h"

#include <algorithm>
#include <string>

namespace lapidary::bench {

namespace {

std::string size_name(double bytes) {
  return bytes >= 1e9   ? std::to_string(static_cast<int>(bytes / 1e9)) + " GB"
         : bytes >= 1e6 ? std::to_string(static_cast<int>(bytes / 1e6)) + " MB"
                        : std::to_string(static_cast<int>(bytes / 1e3)) + " KB";
}

}  // namespace

void run_bandwidth(Session& session) {
  const std::vector<double> sizes =
      session.tiny() ? std::vector<double>{16e3} : std::vector<double>{1e6, 5e6, 25e6, 116e6, 231e6, 1e9, 2e9};
  const int blocks = session.tiny() ? 2 : 4 * session.facts().sm_count;
  const Pattern<float> pattern = random_f32(1, -1, 1);
  const DeviceMemory sums = session.zeros(static_cast<size_t>(blocks) * 4);
  double best_read = 0, best_copy = 0;
  for (const bool copies : {false, true}) {
    for (const double size : sizes) {
      const int64_t bytes = static_cast<int64_t>(size) / 16 * 16;
      const std::string name = std::string(copies ? "copy " : "read ") + size_name(size);
      if (!session.wants(name)) continue;
      const int rotation = session.rotation(copies ? 2 * size : size);
      std::vector<DeviceMemory> from, to;
      for (int i = 0; i < rotation; ++i) {
        from.push_back(session.filled(pattern, bytes / 4, i));
        if (copies) to.push_back(session.memory(static_cast<size_t>(bytes)));
      }
      const auto work = [&](int i) {
        return session.api().memory_probe({from[i].get(), copies ? to[i].get() : nullptr, sums.as<uint32_t>(), bytes, blocks},
                                          session.context());
      };
      const auto check = [&]() -> std::string {
        uint32_t got = 0, want = 0;
        for (const uint32_t s : session.download<uint32_t>(sums.get(), static_cast<size_t>(blocks))) got ^= s;
        // Whole periods that come in pairs cancel, so only what is left over has to be looked at.
        const int64_t period = static_cast<int64_t>(pattern.host.size()), left = (bytes / 4) % (2 * period);
        for (int64_t i = 0; i < left; ++i) {
          uint32_t word = 0;
          __builtin_memcpy(&word, &pattern.at(i), 4);
          want ^= word;
        }
        return got == want ? "" : "the XOR of what was read is wrong";
      };
      session.run({name, copies ? 2.0 * static_cast<double>(bytes) : static_cast<double>(bytes), 0, Bound::none}, rotation, work, check);
      double& best = copies ? best_copy : best_read;
      best = std::max(best, session.last_gbps());
    }
  }
  session.figure("read_gbps", best_read, "GB/s");
  session.figure("copy_gbps", best_copy, "GB/s");
}

void run_matrix_units(Session& session) {
  using cuda::MatrixUnit;
  const struct {
    MatrixUnit unit;
    const char* name;
    bool int8;
  } units[] = {{MatrixUnit::mma_s8, "mma.sync s8", true},
               {MatrixUnit::mma_bf16, "mma.sync bf16", false},
               {MatrixUnit::wgmma_s8, "wgmma s8", true},
               {MatrixUnit::wgmma_bf16, "wgmma bf16", false}};
  double int8 = 0, bf16 = 0;
  for (const auto& [unit, name, is_int8] : units) {
    const bool wide = unit == MatrixUnit::wgmma_s8 || unit == MatrixUnit::wgmma_bf16;
    const int blocks = session.tiny() ? 1 : (wide ? 1 : 2) * session.facts().sm_count;
    const DeviceMemory sums = session.zeros(static_cast<size_t>(blocks) * 256 * 4);
    const cuda::MatrixProbeParams p = {sums.as<uint32_t>(), unit, blocks, session.tiny() ? 2 : wide ? 400 : 4000};
    if (!session.wants(name)) continue;
    if (!cuda::supports_matrix_probe(p, session.facts())) {
      session.skip(name, "this device has no such unit");
      continue;
    }
    const auto check = [&]() -> std::string {
      for (const uint32_t s : session.download<uint32_t>(sums.get(), 256)) {
        if (s != 0) return "";
      }
      return "all sums are 0";
    };
    session.run(
        {name, 0, cuda::matrix_probe_operations(p), Bound::none}, 1, [&](int) { return session.api().matrix_probe(p, session.context()); },
        check);
    double& best = is_int8 ? int8 : bf16;
    best = std::max(best, session.last_tops());
  }
  session.figure("int8_tops", int8, "Top/s");
  session.figure("bf16_tflops", bf16, "TFLOP/s");
}

// One block that reads 16 bytes, many times in a graph: what is left is the launch. With programmatic dependent launch the next one is set
// up while this runs.
void run_launches(Session& session) {
  const DeviceMemory data = session.zeros(64), sums = session.zeros(4);
  const cuda::MemoryProbeParams p = {data.get(), nullptr, sums.as<uint32_t>(), 16, 1};
  for (const bool dependent : {false, true}) {
    cuda::LaunchContext context = session.context();
    context.dependent = dependent;
    const std::string name = dependent ? "launch in a graph, dependent" : "launch in a graph";
    if (dependent && session.facts().major < 9) {
      session.skip(name, "programmatic dependent launch needs compute capability 9.0");
      continue;
    }
    session.run({name, 0, 0, Bound::none}, 1, [&](int) { return session.api().memory_probe(p, context); }, [] { return std::string(); });
  }
}

}  // namespace lapidary::bench
