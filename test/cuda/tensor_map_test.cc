// Tensor maps: boxes placed in shared memory and stored from it, against plain index arithmetic; and what the hardware (and the emulator)
// refuses.
#include "cuda/launch/tensor_map.h"

#include <algorithm>
#include <random>
#include <string>

#include "cuda/support.h"
#include "cuda/tensor_kernels.cuh"

namespace lapidary::test {

using namespace cuda;

namespace {

struct Tensor4 {
  TensorMapSpec spec;
  std::vector<uint8_t> bytes;  // of the whole allocation
  int64_t place(int64_t x, int64_t y, int64_t z, int64_t w) const {
    return x * element_bytes(spec.type) + y * spec.strides[0] + z * spec.strides[1] + w * spec.strides[2];
  }
};

Tensor4 make_tensor(TensorMapSpec::Type type, int rank, std::vector<int64_t> sizes, std::vector<int> box, Swizzle swizzle,
                    std::mt19937& random) {
  Tensor4 t;
  t.spec.type = type;
  t.spec.rank = rank;
  t.spec.swizzle = swizzle;
  int64_t bytes = round_up(sizes[0] * element_bytes(type), int64_t{16}) + 16;
  for (int i = 0; i < rank; ++i) {
    t.spec.sizes[i] = sizes[i];
    t.spec.box[i] = box[i];
    if (i > 0) t.spec.strides[i - 1] = bytes;
    if (i > 0) bytes *= sizes[i];
  }
  t.bytes.resize(static_cast<size_t>(bytes));
  for (uint8_t& b : t.bytes) b = static_cast<uint8_t>(1 + random() % 255);
  return t;
}

// Where byte `i` of a box stands in a swizzled tile, row by row: the chunk of 16 bytes XOR the number of the 128-byte line modulo the
// span's chunks.
int64_t swizzled_place(int64_t i, Swizzle swizzle) {
  const int64_t chunks = swizzle == Swizzle::bytes128 ? 8 : swizzle == Swizzle::bytes64 ? 4 : swizzle == Swizzle::bytes32 ? 2 : 1;
  const int64_t row = i / (16 * chunks), chunk = i / 16 % chunks, line = i / 128;
  return (row * chunks + (chunk ^ (line % chunks))) * 16 + i % 16;
}

// f(place in the tile, place in the tensor or -1) of every byte of the box.
template <typename F>
void each_box_byte(const Tensor4& t, const int (&at)[4], F f) {
  const int64_t element = element_bytes(t.spec.type);
  int64_t i = 0;
  const int box[4] = {t.spec.box[0], t.spec.box[1], t.spec.rank > 2 ? t.spec.box[2] : 1, t.spec.rank > 3 ? t.spec.box[3] : 1};
  for (int w = 0; w < box[3]; ++w) {
    for (int z = 0; z < box[2]; ++z) {
      for (int y = 0; y < box[1]; ++y) {
        for (int x = 0; x < box[0]; ++x) {
          const int64_t place[4] = {at[0] + x, at[1] + y, at[2] + z, at[3] + w};
          bool inside = true;
          for (int d = 0; d < t.spec.rank; ++d) inside &= place[d] >= 0 && place[d] < t.spec.sizes[d];
          for (int64_t b = 0; b < element; ++b, ++i) {
            f(swizzled_place(i, t.spec.swizzle), inside ? t.place(place[0], place[1], place[2], place[3]) + b : -1);
          }
        }
      }
    }
  }
}

struct BoxCase {
  TensorMapSpec::Type type;
  int rank;
  std::vector<int64_t> sizes;
  std::vector<int> box;
  Swizzle swizzle;
  std::vector<std::vector<int>> places;
};

const std::vector<BoxCase>& box_cases() {
  using T = TensorMapSpec::Type;
  static const std::vector<BoxCase> cases = {
      {T::u8, 2, {300, 37}, {128, 24}, Swizzle::bytes128, {{0, 0}, {128, 8}, {256, 30}, {-17, -3}, {400, 5}, {3, 36}}},
      {T::u8, 2, {48, 5}, {48, 7}, Swizzle::none, {{0, 0}, {1, 1}, {47, 4}, {-47, -6}, {-48, 0}}},
      {T::bf16, 2, {72, 50}, {64, 32}, Swizzle::bytes128, {{0, 0}, {64, 32}, {-1, 49}, {8, -31}}},
      {T::bf16, 2, {33, 9}, {32, 16}, Swizzle::bytes64, {{0, 0}, {32, 8}, {-5, -5}}},
      {T::bf16, 3, {40, 7, 3}, {16, 8, 2}, Swizzle::bytes32, {{0, 0, 0}, {32, 1, 2}, {-1, -1, -1}}},
      {T::f32, 2, {5, 5}, {32, 8}, Swizzle::bytes128, {{0, 0}, {4, 4}, {-31, -7}}},
      {T::f32, 4, {9, 3, 4, 2}, {8, 2, 3, 2}, Swizzle::none, {{0, 0, 0, 0}, {8, 2, 2, 1}, {-4, -1, -2, -1}}},
      {T::bf16, 4, {64, 3, 4, 2}, {64, 2, 3, 2}, Swizzle::bytes128, {{0, 0, 0, 0}, {1, 2, 2, 1}}},
  };
  return cases;
}

BoxParams box_params(const Tensor4& t, const std::vector<int>& place) {
  BoxParams p = {};
  require_ok(make_tensor_map(&p.map, t.spec));
  p.rank = t.spec.rank;
  p.bytes = p.expect_bytes = static_cast<int>(box_bytes(t.spec));
  std::copy(place.begin(), place.end(), p.at);
  return p;
}

Grid box_grid(const BoxParams& p, int blocks = 1) {
  Grid grid;
  grid.x = grid.cluster = blocks;
  grid.smem_bytes = static_cast<size_t>(kBoxBarrierBytes + p.tile_offset + p.bytes);
  return grid;
}

TEST("cuda tensor maps: tensor loads place boxes, swizzled, with zeros outside") {
  if (!context().device->has_wgmma()) return;
  std::mt19937 random(6);
  for (const BoxCase& c : box_cases()) {
    Tensor4 t = make_tensor(c.type, c.rank, c.sizes, c.box, c.swizzle, random);
    const DeviceArray<uint8_t> tensor(t.bytes);
    t.spec.base = tensor.get();
    for (const std::vector<int>& place : c.places) {
      BoxParams p = box_params(t, place);
      const DeviceArray<uint8_t> tile(std::vector<uint8_t>(static_cast<size_t>(p.bytes), 0xee));
      p.tile = reinterpret_cast<std::byte*>(tile.get());
      require_ok(launch<BoxLoadKernel>(box_grid(p), p, context()));
      const std::vector<uint8_t> got = tile.download();
      size_t wrong = 0;
      each_box_byte(t, p.at,
                    [&](int64_t in_tile, int64_t in_tensor) { wrong += got[in_tile] != (in_tensor < 0 ? 0 : t.bytes[in_tensor]); });
      CHECK_MSG(wrong == 0, wrong << " wrong bytes of a box of rank " << c.rank << " at " << place[0] << ", " << place[1]);
    }
  }
}

TEST("cuda tensor maps: tensor stores write the part of a box inside the tensor") {
  if (!context().device->has_clusters()) return;
  std::mt19937 random(7);
  for (const BoxCase& c : box_cases()) {
    if (c.rank > 3) continue;
    Tensor4 t = make_tensor(c.type, c.rank, c.sizes, c.box, c.swizzle, random);
    for (const std::vector<int>& place : c.places) {
      const DeviceArray<uint8_t> tensor(t.bytes);
      t.spec.base = tensor.get();
      BoxParams p = box_params(t, place);
      std::vector<uint8_t> host(static_cast<size_t>(p.bytes));
      for (uint8_t& b : host) b = static_cast<uint8_t>(random());
      const DeviceArray<uint8_t> tile(host);
      p.tile = reinterpret_cast<std::byte*>(tile.get());
      require_ok(launch<BoxStoreKernel<>>(box_grid(p), p, context()));
      std::vector<uint8_t> want = t.bytes;
      each_box_byte(t, p.at, [&](int64_t in_tile, int64_t in_tensor) {
        if (in_tensor >= 0) want[in_tensor] = host[in_tile];
      });
      CHECK_MSG(tensor.download() == want, "a box of rank " << c.rank << " at " << place[0] << ", " << place[1]);
    }
  }
}

TEST("cuda tensor maps: a multicast reaches the blocks of its mask") {
  if (!context().device->has_wgmma()) return;
  std::mt19937 random(8);
  for (const uint16_t mask : {1, 2, 9, 15}) {
    Tensor4 t = make_tensor(TensorMapSpec::Type::bf16, 2, {100, 40}, {64, 16}, Swizzle::bytes128, random);
    const DeviceArray<uint8_t> tensor(t.bytes);
    t.spec.base = tensor.get();
    BoxParams p = box_params(t, {64, 32});
    p.multicast = mask;
    const DeviceArray<uint8_t> tiles(std::vector<uint8_t>(static_cast<size_t>(p.bytes) * 4, 0xee));
    p.tile = reinterpret_cast<std::byte*>(tiles.get());
    require_ok(launch<BoxLoadKernel>(box_grid(p, 4), p, context()));
    const std::vector<uint8_t> got = tiles.download();
    size_t wrong = 0;
    for (int block = 0; block < 4; ++block) {
      each_box_byte(t, p.at, [&](int64_t in_tile, int64_t in_tensor) {
        const uint8_t want = !(mask >> block & 1) ? 0xee : in_tensor < 0 ? 0 : t.bytes[in_tensor];
        wrong += got[block * p.bytes + in_tile] != want;
      });
    }
    CHECK_MSG(wrong == 0, wrong << " wrong bytes, mask " << mask);
  }
}

TEST("cuda tensor maps: tensor maps that the hardware has not are refused") {
  alignas(16) static std::byte memory[64];
  const TensorMapSpec good = matrix_map(memory, TensorMapSpec::Type::bf16, 10, 100, 208, 8, 64, Swizzle::bytes128);
  CHECK(tensor_map_problem(good) == nullptr);
  const auto refused = [&](auto change, const char* part) {
    TensorMapSpec s = good;
    change(s);
    TensorMap map;
    const Status status = make_tensor_map(&map, s);
    CHECK_MSG(status.kind == Status::Kind::refused && std::string(status.what).find(part) != std::string::npos, part);
  };
  refused([](TensorMapSpec& s) { s.rank = 1; }, "rank");
  refused([](TensorMapSpec& s) { s.rank = 5; }, "rank");
  refused([](TensorMapSpec& s) { s.base = memory + 8; }, "aligned");
  refused([](TensorMapSpec& s) { s.base = nullptr; }, "aligned");
  refused([](TensorMapSpec& s) { s.sizes[1] = 0; }, "sizes");
  refused([](TensorMapSpec& s) { s.sizes[0] = int64_t{1} << 31; }, "sizes");
  refused([](TensorMapSpec& s) { s.box[1] = 257; }, "box");
  refused([](TensorMapSpec& s) { s.strides[0] = 216; }, "strides");
  refused([](TensorMapSpec& s) { s.strides[0] = 192; }, "overlap");
  refused([](TensorMapSpec& s) { s.box[0] = 56; }, "span");
  refused([](TensorMapSpec& s) { s.box[0] = 60, s.swizzle = Swizzle::none; }, "16 bytes");
}

#ifdef LAPIDARY_EMULATED
// A status other than ok whose text holds `part`.
void expect_finding(const Status& s, const char* part) {
  CHECK_MSG(!s.ok() && std::string(s.what).find(part) != std::string::npos, part << " not in: " << (s.ok() ? "ok" : s.what));
}

TEST("cuda tensor maps: mistakes with bulk copies are found") {
  std::mt19937 random(9);
  Tensor4 t = make_tensor(TensorMapSpec::Type::bf16, 2, {100, 40}, {64, 16}, Swizzle::bytes128, random);
  const DeviceArray<uint8_t> tensor(t.bytes);
  t.spec.base = tensor.get();
  const BoxParams good = box_params(t, {0, 0});
  const DeviceArray<uint8_t> tile(std::vector<uint8_t>(static_cast<size_t>(good.bytes), 0));
  const auto run = [&](auto change) {
    BoxParams p = good;
    p.tile = reinterpret_cast<std::byte*>(tile.get());
    change(p);
    return launch<BoxLoadKernel>(box_grid(p), p, context());
  };
  require_ok(run([](BoxParams&) {}));
  expect_finding(run([](BoxParams& p) { p.tile_offset = 512; }), "atom of its swizzle");
  expect_finding(run([](BoxParams& p) { p.map = {}; }), "not a tensor map");
  expect_finding(run([](BoxParams& p) { p.rank = 3; }), "rank 2");
  expect_finding(run([](BoxParams& p) { p.multicast = 2; }), "cluster");
  CHECK(!run([](BoxParams& p) { p.expect_bytes += 16; }).ok());  // waits for ever
  CHECK(!run([](BoxParams& p) { p.expect_bytes -= 16; }).ok());  // completes before the bytes are there
  // A map of a tensor that is larger than its memory.
  TensorMapSpec larger = t.spec;
  larger.sizes[1] += 1;
  expect_finding(run([&](BoxParams& p) {
                   require_ok(make_tensor_map(&p.map, larger));
                   p.at[1] = 30;
                 }),
                 "global memory");
  BoxParams store = good;
  store.tile = reinterpret_cast<std::byte*>(tile.get());
  expect_finding(launch<BoxStoreKernel<false>>(box_grid(store), store, context()), "proxy fence");
}
#endif

}  // namespace

}  // namespace lapidary::test
