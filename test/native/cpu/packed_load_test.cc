// Weights quantised straight into int8 panels: the very bytes that quantising to rows and packing those gives.
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "check.h"
#include "cpu/backend.h"
#include "cpu/packed.h"
#include "model/convert.h"
#include "model/runner.h"
#include "model/tiny_checkpoint.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;
using namespace cpu;

namespace {

struct Shapes {
  DType dtype;
  std::vector<int64_t> columns;
};
const Shapes kCases[] = {
    {DType::f32, {1, 15, 16, 17, 63, 64, 65, 131}},
    {DType::bf16, {1, 15, 16, 17, 63, 64, 65, 131, 1152}},
    {DType::f16, {1, 31, 64, 97}},
    {DType::q8_0, {32, 64, 288}},
    {DType::q4_0, {32, 64, 288}},
    {DType::q4_1, {32, 96}},
    {DType::q5_0, {32, 96}},
    {DType::q5_1, {32, 96}},
    {DType::q4_k, {256, 512}},
    {DType::q5_k, {256, 512}},
    {DType::q6_k, {256, 512}},
};

// Leaves the numbers of a model and the way they came by.
struct Unchanged final : WeightsTransform {
  int seen = 0;
  Linear linear(const TensorSlot&, Linear host) override { return ++seen, host; }
  void norm(const TensorSlot&, std::span<float>) override {}
};

void check_same_panels(Backend& backend, const Linear& host, const std::string& what) {
  const std::optional<Linear> made = backend.make_int8(host);
  REQUIRE(made.has_value());
  const Linear want = backend.make_linear(int8_linear(host, true, 1));
  const PackedMatrix *a = packed_matrix(*made), *b = packed_matrix(want);
  REQUIRE(a && b);
  CHECK_MSG(a->layout == b->layout && a->n == b->n && a->k == b->k && a->memory.bytes == b->memory.bytes, what);
  CHECK_MSG(std::memcmp(a->panel(0), b->panel(0), a->memory.bytes) == 0, what << ": other panels");
  CHECK_MSG(bits_of(made->scale) == bits_of(want.scale), what << ": other scales");
  CHECK(made->weight.dtype == DType::i8 && made->weight.data == nullptr && made->activations == ActScheme::token);
  CHECK(made->out() == host.out() && made->in() == host.in());
  const Linear again = backend.make_linear(*made);
  CHECK_MSG(again.packed == made->packed, what << ": packed a second time");
}

}  // namespace

TEST("packed load: int8 panels of every type and set") {
  for (const std::string& set : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(set);
    for (int threads : {1, 2}) {
      const auto backend = make_cpu_backend(threads);
      for (const Shapes& c : kCases) {
        for (int64_t k : c.columns) {
          for (int64_t n : {1, 15, 16, 17, 33}) {
            const Owned w = weights(c.dtype, n, k, static_cast<uint64_t>(n * 1000 + k));
            check_same_panels(
                *backend, {w.t, nullptr},
                set + ", " + std::string(dtype_info(c.dtype).name) + " [" + std::to_string(n) + ", " + std::to_string(k) + "]");
          }
        }
      }
    }
  }
}

TEST("packed load: int8 panels of zeros, NaN, infinities, subnormals") {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::string& set : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(set);
    const auto backend = make_cpu_backend(1);
    for (DType type : {DType::f32, DType::bf16}) {
      const Owned w = weights(type, 19, 70, 5);
      for (int64_t i = 0; i < 70; ++i) {
        set_value(w.t, i, 0);
        set_value(w.t, 70 + i, i == 3 || i == 69 ? kNan : 0.25f * static_cast<float>(i));
        set_value(w.t, 140 + i, i == 5 ? -kInf : 1);
        set_value(w.t, 210 + i, 1e-39f * static_cast<float>(i));
        set_value(w.t, 280 + i, kNan);
        set_value(w.t, 350 + i, static_cast<float>(i % 2 == 0 ? 127 : i - 35));  // halves between two numbers
      }
      check_same_panels(*backend, {w.t, nullptr}, set + ", rows out of the ordinary");
    }
  }
}

#if defined(__linux__)
// The file's pages that this process has in memory, in bytes.
int64_t file_bytes_in_memory() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0, shared = 0;
  file >> size >> resident >> shared;
  return shared * static_cast<int64_t>(::sysconf(_SC_PAGESIZE));
}

TEST("packed load: the file's pages leave memory as soon as a weight is packed") {
  TinySizes sizes;
  sizes.vocab = 65536;
  std::string config = kTinyConfig;
  const std::string before = "\"vocab_size\": 40";
  REQUIRE(config.find(before) != config.npos);
  config.replace(config.find(before), before.size(), "\"vocab_size\": 65536");
  const std::string folder = temporary_folder();
  write_folder(folder, config, tiny_tensors(sizes), DType::bf16);
  const auto backend = make_cpu_backend(2);
  // The first report is that of nothing, the second comes when the embedding is quantised, the third when it is done with.
  std::vector<int64_t> at_report;
  const auto weights =
      load_weights(folder, *backend, [&](int64_t, int64_t) { at_report.push_back(file_bytes_in_memory()); }, {WeightsKind::int8, 2});
  REQUIRE(at_report.size() > 2);
  CHECK_MSG(at_report[1] - at_report[2] >= int64_t{3} << 20, at_report[0] << ", " << at_report[1] << ", " << at_report[2] << " bytes");
}
#endif

TEST("packed load: a whole model has the numbers of the long way") {
  const std::string folder = temporary_folder();
  write_folder(folder, kTinyConfig, tiny_tensors(), DType::bf16);
  const std::vector<int32_t> ids = {2, 7, 39, 0, 7, 11, 25, 3, 9};
  for (int threads : {1, 2}) {
    const auto backend = make_cpu_backend(threads);
    Unchanged transform;
    const auto direct = load_weights(folder, *backend, {}, {WeightsKind::int8, threads}),
               rows = load_weights(folder, *backend, {}, {.kind = WeightsKind::int8, .threads = threads, .transform = &transform});
    CHECK(transform.seen == 1 + 3 * 7 && direct->file_bytes == rows->file_bytes && direct->content_hash == rows->content_hash);
    CHECK(packed_matrix(direct->layers[1].gate) && packed_matrix(direct->embedding));
    const std::vector<float> a = Runner(*backend, *direct, Precision::f32, 9, 9).append(ids),
                             b = Runner(*backend, *rows, Precision::f32, 9, 9).append(ids);
    CHECK(a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
}

}  // namespace lapidary
