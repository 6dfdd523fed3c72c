// The probes do what the rooflines of the benchmarks rest on: they read everything once, and they compute as many products as they say.
#include <random>

#include "cuda/support.h"

namespace lapidary::test {

namespace {

std::vector<uint32_t> random_words(size_t count) {
  std::mt19937 random(7);
  std::vector<uint32_t> words(count);
  for (uint32_t& w : words) w = static_cast<uint32_t>(random());
  return words;
}

TEST("cuda probe: memory is read once, and copied when asked") {
  for (const int64_t vectors : {0, 1, 255, 256, 257, 4096, 10007}) {
    const std::vector<uint32_t> host = random_words(static_cast<size_t>(vectors) * 4);
    const int blocks = 3;
    const DeviceArray<uint32_t> from(host), to(std::vector<uint32_t>(host.size(), 0xabababab)), sums(std::vector<uint32_t>(blocks, 0));
    require_ok(api().memory_probe({from.get(), nullptr, sums.get(), vectors * 16, blocks}, context()));
    const auto total = [&] {
      uint32_t x = 0;
      for (const uint32_t s : sums.download()) x ^= s;
      return x;
    };
    uint32_t want = 0;
    for (const uint32_t w : host) want ^= w;
    CHECK_MSG(total() == want, vectors << " vectors: XOR " << total() << ", want " << want);
    CHECK(to.download() == std::vector<uint32_t>(host.size(), 0xabababab));
    require_ok(api().memory_probe({from.get(), to.get(), sums.get(), vectors * 16, blocks}, context()));
    CHECK_MSG(to.download() == host, vectors << " vectors are not copied");
    CHECK(total() == want);
  }
}

TEST("cuda probe: memory sizes that are no whole vectors are refused") {
  const DeviceArray<uint32_t> word(std::vector<uint32_t>(8));
  const cuda::Status s = api().memory_probe({word.get(), nullptr, word.get() + 4, 8, 1}, context());
  CHECK(s.kind == cuda::Status::Kind::refused);
}

TEST("cuda probe: matrix sums grow by the same amount with every step") {
  using cuda::MatrixUnit;
  for (const MatrixUnit unit : {MatrixUnit::mma_s8, MatrixUnit::mma_bf16, MatrixUnit::wgmma_s8, MatrixUnit::wgmma_bf16}) {
    const int blocks = 2;
    const DeviceArray<uint32_t> sums(std::vector<uint32_t>(static_cast<size_t>(blocks) * 256, 0));
    const auto run = [&](int steps) {
      require_ok(api().matrix_probe({sums.get(), unit, blocks, steps}, context()));
      return sums.download();
    };
    if (!cuda::supports_matrix_probe({sums.get(), unit, blocks, 1}, *context().device)) {
      CHECK(api().matrix_probe({sums.get(), unit, blocks, 1}, context()).kind == cuda::Status::Kind::refused);
      continue;
    }
    const std::vector<uint32_t> once = run(1), five = run(5);
    size_t different = 0;
    for (size_t i = 0; i < once.size(); ++i) {
      different += once[i] != once[0];
      if (unit == MatrixUnit::mma_s8 || unit == MatrixUnit::wgmma_s8) {
        CHECK_MSG(five[i] == 5 * once[i],
                  "unit " << static_cast<int>(unit) << ", thread " << i << ": " << five[i] << ", want " << 5 * once[i]);
      } else {
        float one = 0, all = 0;
        std::memcpy(&one, &once[i], 4);
        std::memcpy(&all, &five[i], 4);
        CHECK_MSG(std::abs(all - 5 * one) <= 0.01f,
                  "unit " << static_cast<int>(unit) << ", thread " << i << ": " << all << ", want " << 5 * one);
      }
    }
    CHECK_MSG(different > once.size() / 2, "the operands are not random");
  }
}

}  // namespace

}  // namespace lapidary::test
