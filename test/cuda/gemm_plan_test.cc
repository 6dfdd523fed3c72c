// The choice of tiles: what it should find for Gemma's matrices on 132 SMs, and that every plan can run.
#include "cuda/gemm_data.h"

namespace lapidary::test {

namespace {

cuda::DeviceFacts device_of(int major, int minor, int sm_count, int smem_kb) {
  cuda::DeviceFacts d;
  d.major = major, d.minor = minor, d.code = major >= 12 ? 120 : major == 9 ? 90 : 80, d.sm_count = sm_count;
  d.smem_per_block = smem_kb * 1024;
  return d;
}

struct Choice {
  int m, n;     // of the tile
  int percent;  // of the SMs' time that does useful work
};
struct Row {
  int n, k;
  Choice at[3];  // M = 128, 512, 2048
};
// The best wgmma tile by wave efficiency, worked out by hand for each matrix (qkv, o and down, gate_up of each model).
const Row kBestOn132[] = {
    {1536, 640, {{64, 64, 36}, {128, 64, 73}, {128, 192, 97}}},      {640, 2048, {{64, 64, 15}, {64, 64, 61}, {128, 96, 81}}},
    {4096, 640, {{64, 64, 97}, {128, 128, 97}, {128, 128, 97}}},     {1536, 1152, {{64, 64, 36}, {128, 64, 73}, {128, 192, 97}}},
    {1152, 6912, {{64, 64, 27}, {128, 64, 55}, {128, 160, 87}}},     {13824, 1152, {{128, 128, 82}, {128, 224, 94}, {128, 192, 97}}},
    {4096, 2560, {{64, 64, 97}, {128, 128, 97}, {128, 128, 97}}},    {2560, 10240, {{64, 64, 61}, {128, 96, 81}, {128, 160, 97}}},
    {20480, 2560, {{128, 160, 97}, {128, 128, 97}, {128, 192, 99}}}, {8192, 3840, {{128, 64, 97}, {128, 128, 97}, {128, 128, 97}}},
    {3840, 15360, {{64, 64, 91}, {128, 128, 91}, {128, 160, 97}}},   {30720, 3840, {{128, 128, 91}, {128, 160, 97}, {128, 224, 98}}},
    {5376, 21504, {{128, 64, 64}, {128, 192, 85}, {128, 224, 97}}},  {43008, 5376, {{128, 128, 85}, {128, 192, 97}, {128, 128, 99}}},
    {3584, 14336, {{64, 64, 85}, {128, 128, 85}, {128, 224, 97}}},   {4608, 36864, {{128, 64, 55}, {128, 160, 87}, {128, 192, 97}}},
};

TEST("cuda gemm plan: the fullest waves of 132 SMs for Gemma's matrices") {
  const cuda::DeviceFacts h200 = device_of(9, 0, 132, 227);
  for (const Row& row : kBestOn132) {
    for (int i = 0; i < 3; ++i) {
      const int m = i == 0 ? 128 : i == 1 ? 512 : 2048;
      const cuda::GemmPlan plan = cuda::gemm_int8_tile(m, row.n, row.k, h200, false);
      const cuda::WgmmaTile& t = cuda::kInt8WgmmaTiles[plan.tile];
      const int64_t tiles = cuda::gemm_ceil_div(m, t.m) * cuda::gemm_ceil_div(row.n, t.n);
      const double useful = static_cast<double>(m) * row.n / static_cast<double>(cuda::gemm_ceil_div(tiles, 132) * 132 * t.m * t.n);
      CHECK_MSG((plan.cluster == 2) == (m > 128 && t.m == 128), m << " x " << row.n << ": cluster of " << plan.cluster);
      CHECK_MSG(plan.wgmma == 1 && t.m == row.at[i].m && t.n == row.at[i].n && std::abs(useful * 100 - row.at[i].percent) < 1,
                m << " x " << row.n << ": tile " << t.m << " x " << t.n << ", " << useful * 100 << "% useful, want " << row.at[i].m << " x "
                  << row.at[i].n << ", " << row.at[i].percent << "%");
    }
  }
}

TEST("cuda gemm plan: k is split where tiles are fewer than SMs, and only with workspace") {
  const cuda::DeviceFacts h200 = device_of(9, 0, 132, 227), a100 = device_of(8, 0, 108, 163);
  for (const cuda::DeviceFacts& device : {h200, a100}) {
    const cuda::GemmPlan down = cuda::gemm_int8_tile(128, 5376, 21504, device, true);
    CHECK(down.split == 1 && down.blocks == device.sm_count && std::string(down.why).find("split") != std::string::npos);
    CHECK(cuda::gemm_int8_tile(128, 5376, 21504, device, false).split == 0);
    CHECK(cuda::gemm_int8_tile(2048, 43008, 5376, device, true).split == 0);
    CHECK(cuda::gemm_bf16_tile(64, 640, 2048, device, true).split == 1);
  }
}

// Without launching anything: tiles fit the device, blocks fit the work, workspace covers the split.
TEST("cuda gemm plan: every plan can run on its device") {
  const cuda::DeviceFacts devices[] = {device_of(8, 0, 108, 163), device_of(8, 6, 84, 99),   device_of(8, 9, 128, 99),
                                       device_of(9, 0, 132, 227), device_of(12, 0, 170, 99), device_of(8, 0, 1, 163)};
  for (const cuda::DeviceFacts& device : devices) {
    for (const int m : {1, 16, 17, 64, 129, 300, 700, 4096}) {
      for (const int n : {8, 100, 640, 1152, 5376, 43008}) {
        for (const int k : {16, 640, 1152, 21504}) {
          for (const bool workspace : {false, true}) {
            const auto check = [&](const cuda::GemmPlan& plan, const auto& tile, bool sliced, int64_t bytes) {
              const int64_t tiles = cuda::gemm_ceil_div(m, tile.m * plan.cluster) * plan.cluster * cuda::gemm_ceil_div(n, tile.n);
              const int64_t units = sliced ? cuda::slice_units(k) : cuda::int8_units(k, static_cast<int32_t>(tile.unit_bytes()));
              CHECK_MSG(plan.blocks > 0 && tile.smem_bytes() <= device.smem_per_block &&
                            plan.blocks <= (plan.split ? tiles * units : tiles) && (workspace || plan.split == 0) &&
                            (plan.split != 0) == (bytes > 0) && plan.why[0] != 0 && (plan.wgmma == 0 || device.major == 9) &&
                            (plan.cluster == 1 || (plan.wgmma == 1 && plan.blocks % 2 == 0 && m > tile.m)),
                        text(device.major, ".", device.minor, ", ", Shape{m, n, k}, ": ", plan));
            };
            const cuda::GemmPlan int8 = cuda::gemm_int8_tile(m, n, k, device, workspace),
                                 bf16 = cuda::gemm_bf16_tile(m, n, k, device, workspace);
            REQUIRE(int8.tile >= 0 && bf16.tile >= 0);
            cuda::Bf16Product p;
            p.m = m, p.n = n, p.k = k;
            const int64_t int8_bytes = cuda::gemm_int8_workspace_bytes(int8, {}), bf16_bytes = cuda::gemm_bf16_workspace_bytes(bf16, p);
            CHECK(bf16_bytes <= cuda::kMaxPartBytes);
            int8.wgmma ? check(int8, cuda::kInt8WgmmaTiles[int8.tile], false, int8_bytes)
                       : check(int8, cuda::kInt8MmaTiles[int8.tile], false, int8_bytes);
            bf16.wgmma ? check(bf16, cuda::kBf16WgmmaTiles[bf16.tile], true, bf16_bytes)
                       : check(bf16, cuda::kBf16MmaTiles[bf16.tile], true, bf16_bytes);
            cuda::F32Product f;
            f.m = m, f.n = n, f.k = k;
            const cuda::GemmPlan f32 = cuda::gemm_f32_tile(m, n, k, device, workspace);
            check(f32, cuda::kF32Tiles[f32.tile], true, cuda::gemm_f32_workspace_bytes(f32, f));
          }
        }
      }
    }
  }
}

}  // namespace

}  // namespace lapidary::test
