// oneDNN's int8 products at Gemma's shapes: u8 inputs times s8 weights, f32 out with a scale per weight row, the weights in the layout that
// the library chooses. Prints one JSON object: the library's version and, per shape, the seconds of each call.
//   onednn SECONDS M N K [M N K ...]
// Weights come in copies that are larger together than the caches, and are used in turn.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

namespace {

using dnnl::memory;
using Clock = std::chrono::steady_clock;

constexpr int64_t kWeightBytes = int64_t{640} << 20;
constexpr int64_t kLeastCalls = 8;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void fill(const memory& m, int low, int high) {
  auto* bytes = static_cast<int8_t*>(m.get_data_handle());
  uint32_t state = 1;
  for (size_t i = 0; i < m.get_desc().get_size(); ++i) {
    state = state * 1664525 + 1013904223;
    bytes[i] = static_cast<int8_t>(low + static_cast<int>(state >> 8) % (high - low + 1));
  }
}

std::vector<double> time_product(const dnnl::engine& engine, dnnl::stream& stream, int64_t m, int64_t n, int64_t k, double seconds) {
  const memory::desc x({m, k}, memory::data_type::u8, memory::format_tag::ab), y({m, n}, memory::data_type::f32, memory::format_tag::ab);
  const memory::desc any({k, n}, memory::data_type::s8, memory::format_tag::any),
      rows({k, n}, memory::data_type::s8, memory::format_tag::ba);
  dnnl::primitive_attr attributes;
  attributes.set_output_scales(1 << 1, std::vector<float>(static_cast<size_t>(n), 0.001f));
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, any, y), attributes, engine);
  const dnnl::matmul product(description);
  memory plain(rows, engine), input(x, engine), output(y, engine);
  fill(plain, -127, 127);
  fill(input, 0, 127);
  std::vector<memory> weights;
  for (int64_t bytes = 0; bytes < kWeightBytes; bytes += n * k) {
    weights.emplace_back(description.weights_desc(), engine);
    dnnl::reorder(plain, weights.back()).execute(stream, plain, weights.back());
  }
  std::vector<double> samples;
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; samples.size() < kLeastCalls || seconds_since(start) < seconds; ++i) {
    const Clock::time_point before = Clock::now();
    product.execute(stream, {{DNNL_ARG_SRC, input}, {DNNL_ARG_WEIGHTS, weights[i % weights.size()]}, {DNNL_ARG_DST, output}});
    stream.wait();
    samples.push_back(seconds_since(before));
  }
  std::sort(samples.begin(), samples.end());
  return samples;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || (argc - 2) % 3 != 0) {
    std::fprintf(stderr, "usage: onednn SECONDS M N K [M N K ...]\n");
    return 1;
  }
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const dnnl_version_t* version = dnnl_version();
  std::printf("{\"version\":\"%d.%d.%d\",\"products\":[", version->major, version->minor, version->patch);
  for (int i = 2; i < argc; i += 3) {
    const int64_t m = std::atoll(argv[i]), n = std::atoll(argv[i + 1]), k = std::atoll(argv[i + 2]);
    const std::vector<double> samples = time_product(engine, stream, m, n, k, std::atof(argv[1]));
    std::printf("%s{\"m\":%lld,\"n\":%lld,\"k\":%lld,\"median\":%.9f,\"low\":%.9f,\"samples\":%zu}", i == 2 ? "" : ",",
                static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k), samples[samples.size() / 2],
                samples[samples.size() / 10], samples.size());
  }
  std::printf("]}\n");
}
