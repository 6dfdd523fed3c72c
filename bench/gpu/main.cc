// lapidary_gpu_bench [FAMILY ...] [--json FILE] [--filter TEXT] [--seconds S] [--tiny] [--read-gbps X] [--copy-gbps X] [--int8-tops X]
// [--bf16-tflops X] lapidary_gpu_bench --list | --facts Ends with 77 where there is no usable device, with 1 when a result was wrong.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>

#include "families.h"
#include "probes.h"

namespace lapidary::bench {

// In the order in which a run that may be cut short wants them; the first two give the rooflines.
const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"bandwidth", "read and copy bandwidth by buffer size", run_bandwidth},
      {"units", "peak of the matrix units, random operands", run_matrix_units},
      {"gemm_int8", "tiled int8 products", run_gemm_int8},
      {"attention_prefill", "prefill attention over a paged cache", run_attention_prefill},
      {"attention_decode", "decode attention, one query token", run_attention_decode},
      {"gemv", "skinny products, 1 to 16 rows, in four formats", run_gemv},
      {"gemm_bf16", "tiled bf16 products", run_gemm_bf16},
      {"rows", "norms, quantisation, GeGLU", run_rows},
      {"sampling", "drawing tokens", run_sampling},
      {"launches", "gap between kernels of a graph", run_launches},
  };
  return all;
}

namespace {

void print_facts(const cuda::DeviceFacts& f) {
  std::printf(
      "{\"name\":\"%s\",\"compute_capability\":\"%d.%d\",\"multiprocessors\":%d,\"driver\":%d,\"runtime\":%d,\"clock_mhz\":%d,"
      "\"memory_clock_mhz\":%d,\"memory_bus_bits\":%d,\"memory_bytes\":%lld,\"l2_bytes\":%lld,\"smem_per_block\":%lld,\"smem_per_sm\":%lld}"
      "\n",
      f.name, f.major, f.minor, f.sm_count, f.driver_version, f.runtime_version, f.clock_khz / 1000, f.memory_clock_khz / 1000,
      f.memory_bus_bits, static_cast<long long>(f.memory_bytes), static_cast<long long>(f.l2_bytes),
      static_cast<long long>(f.smem_per_block), static_cast<long long>(f.smem_per_sm));
}

int run(int argc, char** argv) {
  Options options;
  std::vector<std::string> wanted;
  bool only_facts = false;
  const std::map<std::string, std::string*> texts = {{"--json", &options.json}, {"--filter", &options.filter}};
  const std::map<std::string, double*> numbers = {{"--seconds", &options.seconds},
                                                  {"--read-gbps", &options.read_gbps},
                                                  {"--copy-gbps", &options.copy_gbps},
                                                  {"--int8-tops", &options.int8_tops},
                                                  {"--bf16-tflops", &options.bf16_tflops}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--list") {
      for (const Family& family : families()) std::printf("%s\t%s\n", family.name, family.about);
      return 0;
    }
    if (word == "--facts")
      only_facts = true;
    else if (word == "--tiny")
      options.tiny = true;
    else if (texts.contains(word))
      *texts.at(word) = value();
    else if (numbers.contains(word))
      *numbers.at(word) = std::atof(value().c_str());
    else if (word.starts_with("--"))
      return std::fprintf(stderr, "unknown option %s\n", word.c_str()), 2;
    else
      wanted.push_back(word);
  }
  for (const std::string& name : wanted) {
    bool known = false;
    for (const Family& family : families()) known = known || name == family.name;
    if (!known) return std::fprintf(stderr, "no family of benchmarks is called %s (--list names them)\n", name.c_str()), 2;
  }
  std::unique_ptr<Session> session;
  try {
    session = std::make_unique<Session>(options);
  } catch (const std::exception& e) {
    std::printf("nothing was measured: %s\n", e.what());
    return 77;
  }
  if (only_facts) return print_facts(session->facts()), 0;
  for (const Family& family : families()) {
    bool chosen = wanted.empty();
    for (const std::string& name : wanted) chosen = chosen || name == family.name;
    if (!chosen) continue;
    std::printf("== %s: %s\n", family.name, family.about);
    session->enter(family.name);
    family.run(*session);
  }
  return session->wrong() ? 1 : 0;
}

}  // namespace

}  // namespace lapidary::bench

int main(int argc, char** argv) {
  try {
    return lapidary::bench::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "lapidary_gpu_bench: %s\n", e.what());
    return 1;
  }
}
