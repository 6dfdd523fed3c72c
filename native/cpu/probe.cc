// Measures the roofline: each figure is the best of samples in which every thread runs the same loop of the kernel table.
#include "cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "base/error.h"
#include "base/float16.h"
#include "base/thread_pool.h"
#include "cpu/backend.h"
#include "tensor/tensor.h"

namespace lapidary::cpu {

namespace {

// Enough that no cache we have met holds a quarter of it, and a limit for machines whose caches add up to gigabytes.
constexpr int64_t kLeastBuffer = int64_t{256} << 20, kMostBuffer = int64_t{2} << 30;
// Floats that one range reads at a time: long streams, as kernels have them, and many ranges for each thread.
constexpr int64_t kRangeFloats = 256 * 1024;
constexpr int kLeastSamples = 3;
// Ranges of a loop for each thread: a thread that starts late, or is taken away for a while, leaves its share to the others.
constexpr int64_t kRangesPerThread = 16;
// Short, so that some sample finds all threads running at once even while other work takes turns with us.
constexpr double kSampleSeconds = 0.002;
// Parts of the buffer, read in turn, a part being a sample: when its turn comes again, the others have driven it out of the caches.
constexpr int64_t kBufferParts = 8;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Something whose value nobody needs, and no compiler may leave out.
volatile double sink;

// The best rate of `amount` in one call of `sample`, over `seconds` and a few samples at least.
template <typename Fn>
double best_rate(double amount, double seconds, const Fn& sample) {
  double best = 0;
  const double end = now() + seconds;
  for (int i = 0; i < kLeastSamples || now() < end; ++i) {
    const double start = now();
    sample();
    best = std::max(best, amount / (now() - start));
  }
  return best;
}

// The last-level caches, each counted once: the processors that share one name the same list.
int64_t last_level_cache_bytes() {
#ifdef __linux__
  std::map<std::string, int64_t> bytes;  // by the processors that share it
  std::error_code error;
  for (const auto& processor : std::filesystem::directory_iterator("/sys/devices/system/cpu", error)) {
    int last = 0;
    int64_t size = 0;
    std::string shared;
    for (int index = 0; index < 8; ++index) {
      const auto folder = processor.path() / "cache" / ("index" + std::to_string(index));
      int level = 0;
      int64_t kilobytes = 0;  // "32768K"
      std::string list;
      if (!(std::ifstream(folder / "level") >> level) || level <= last) continue;
      if (!(std::ifstream(folder / "size") >> kilobytes) || !(std::ifstream(folder / "shared_cpu_list") >> list)) continue;
      last = level, size = kilobytes << 10, shared = list;
    }
    if (size > 0) bytes[shared] = size;
  }
  int64_t total = 0;
  for (const auto& [shared, size] : bytes) total += size;
  return total;
#else
  return 0;
#endif
}

double read_rate(const Kernels& kernels, ThreadPool& pool, const ProbeOptions& options, int64_t cache_bytes) {
  int64_t wanted = std::clamp(4 * cache_bytes, kLeastBuffer, kMostBuffer);
  if (options.memory_bytes > 0) wanted = std::min(wanted, options.memory_bytes / 8);
  const int64_t part = std::max<int64_t>(wanted / 4 / kRangeFloats / kBufferParts, 1), ranges = part * kBufferParts,
                count = ranges * kRangeFloats;
  const Buffer buffer = allocate_streamed(static_cast<size_t>(count) * sizeof(float));
  float* data = reinterpret_cast<float*>(buffer.memory.get());
  // Written, so that each page is memory of its own.
  pool.parallel_for(ranges, 1,
                    [&](int64_t begin, int64_t end) { std::fill(data + begin * kRangeFloats, data + end * kRangeFloats, 1.0f); });
  int64_t turn = 0;
  return best_rate(static_cast<double>(part * kRangeFloats) * sizeof(float), options.seconds, [&] {
    const float* first = data + turn++ % kBufferParts * part * kRangeFloats;
    pool.parallel_for(part, 1, [&](int64_t begin, int64_t end) {
      sink = kernels.probes.read(first + begin * kRangeFloats, (end - begin) * kRangeFloats);
    });
  });
}

double loop_rate(const ProbeLoop& loop, ThreadPool& pool, double seconds) {
  const ProbeData data(loop.dtype);
  // Rounds of a range, so that all ranges take about kSampleSeconds.
  int64_t rounds = 1;
  double took = 0;
  while (true) {
    const double start = now();
    sink = loop.run(data.bytes, rounds);
    took = now() - start;
    if (took >= kSampleSeconds / kRangesPerThread / 2 || rounds > int64_t{1} << 30) break;
    rounds *= 2;
  }
  const int64_t ranges = kRangesPerThread * pool.threads();
  return best_rate(static_cast<double>(loop.operations * rounds * ranges), seconds, [&] {
    pool.parallel_for(ranges, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sink = loop.run(data.bytes, rounds);
    });
  });
}

bool usable(const ProbeLoop& loop) { return loop.run != nullptr && has_feature(loop.needs); }

}  // namespace

ProbeData::ProbeData(DType dtype) {
  std::memset(bytes, 0, sizeof bytes);
  if (dtype == DType::i8) {
    std::memset(bytes, 1, kProbeBytes);
  } else if (dtype == DType::bf16) {
    const bf16 one = to_bf16(1);
    for (int64_t i = 0; i < kProbeBytes; i += 2) std::memcpy(bytes + i, &one, 2);
  } else {
    const float one = 1;
    for (int64_t i = 0; i < kProbeBytes; i += 4) std::memcpy(bytes + i, &one, 4);
  }
}

Peaks measure_peaks(const Kernels& kernels, const ProbeOptions& options) {
  expect(options.threads >= 0 && options.seconds > 0, ErrorCode::invalid_argument,
         "peaks: threads must be 0 or more and seconds above 0, got ", options.threads, " and ", options.seconds);
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(options.threads == 0 ? physical_cores() : options.threads);
  Peaks peaks;
  peaks.cache_bytes = last_level_cache_bytes();
  peaks.bandwidth = read_rate(kernels, *pool, options, peaks.cache_bytes);
  peaks.f32 = loop_rate(kernels.probes.f32, *pool, options.seconds);
  for (const ProbeLoop& loop : kernels.probes.int8) {
    if (!usable(loop)) continue;
    peaks.int8 = loop_rate(loop, *pool, options.seconds);
    break;
  }
  if (usable(kernels.probes.bf16)) peaks.bf16 = loop_rate(kernels.probes.bf16, *pool, options.seconds);
  return peaks;
}

}  // namespace lapidary::cpu
