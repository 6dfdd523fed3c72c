// Operands, naive results and runners for the tests of tiled products.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "base/float16.h"
#include "cuda/api/gemm_plan.h"
#include "cuda/support.h"

namespace lapidary::test {

struct Shape {
  int m, n, k;
};
inline std::ostream& operator<<(std::ostream& out, const Shape& s) { return out << s.m << " x " << s.n << " x " << s.k; }
inline std::ostream& operator<<(std::ostream& out, const cuda::GemmPlan& p) {
  return out << (p.wgmma ? "wgmma" : "mma") << " tile " << p.tile << ", " << p.blocks << " blocks" << (p.cluster > 1 ? " in pairs" : "")
             << (p.split ? ", split" : "");
}

enum class Fill { random, extreme, sparse_rows };  // extreme: every value at +-127; sparse_rows: most rows zero

inline std::vector<int8_t> int8_matrix(int rows, int stride, Fill fill, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int8_t> v(static_cast<size_t>(rows) * stride);
  for (size_t i = 0; i < v.size(); ++i) {
    const bool zero = fill == Fill::sparse_rows && i / stride % 5 != 2;
    v[i] = zero                    ? 0
           : fill == Fill::extreme ? static_cast<int8_t>(i / 7 % 3 == 0 ? -127 : 127)
                                   : static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  }
  return v;
}
// Normal values with rare outliers of 60 times their size, a -0 and a denormal.
inline std::vector<bf16> bf16_matrix(int rows, int stride, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16> v(static_cast<size_t>(rows) * stride);
  for (bf16& x : v) x = to_bf16(normal(random) * (random() % 97 == 0 ? 60.0f : 1.0f));
  v[0] = bf16{0x8000};
  v[v.size() / 2] = bf16{0x0001};
  return v;
}
inline std::vector<float> scales(int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.001f, 0.02f);
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = uniform(random);
  return v;
}

inline std::vector<int> naive_sums(const std::vector<int8_t>& x, const std::vector<int8_t>& w, Shape s, int x_stride, int w_stride) {
  std::vector<int> y(static_cast<size_t>(s.m) * s.n);
  for (int r = 0; r < s.m; ++r) {
    for (int c = 0; c < s.n; ++c) {
      int sum = 0;
      for (int k = 0; k < s.k; ++k) sum += x[static_cast<size_t>(r) * x_stride + k] * w[static_cast<size_t>(c) * w_stride + k];
      y[static_cast<size_t>(r) * s.n + c] = sum;
    }
  }
  return y;
}
inline double exact_gelu(double g) { return 0.5 * g * (1 + std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))); }

// An int8 product on the device: operands with padded rows whose padding is not zero, an output with padded rows that must stay as they
// were.
struct Int8Case {
  Shape s;
  int x_stride, w_stride, out_stride;
  std::vector<int8_t> x, w;
  std::vector<float> x_scales, w_scales;
  DeviceArray<int8_t> x_device, w_device;
  DeviceArray<float> x_scales_device, w_scales_device;
  DeviceArray<uint8_t> workspace;

  explicit Int8Case(Shape shape, Fill fill = Fill::random, size_t workspace_bytes = 1)
      : s(shape),
        x_stride(s.k + 16),
        w_stride((s.k + 47) / 16 * 16),
        out_stride(s.n + 8),
        x(int8_matrix(s.m, x_stride, fill, 1)),
        w(int8_matrix(s.n, w_stride, fill, 2)),
        x_scales(scales(s.m, 3)),
        w_scales(scales(s.n, 4)),
        x_device(x),
        w_device(w),
        x_scales_device(x_scales),
        w_scales_device(w_scales),
        workspace(std::vector<uint8_t>(workspace_bytes, 0)) {}
  std::vector<int> sums() const { return naive_sums(x, w, s, x_stride, w_stride); }
  float scale(int row, int column) const { return x_scales[static_cast<size_t>(row)] * w_scales[static_cast<size_t>(column)]; }

  cuda::GemmInt8Params params() const {
    cuda::GemmInt8Params p;
    p.product.x = x_device.get();
    p.product.w = w_device.get();
    p.product.x_scales = x_scales_device.get();
    p.product.w_scales = w_scales_device.get();
    p.product.x_stride = x_stride;
    p.product.w_stride = w_stride;
    p.product.m = s.m, p.product.n = s.n, p.product.k = s.k;
    p.product.output.stride = out_stride;
    p.workspace = workspace.get();
    p.workspace_bytes = static_cast<int64_t>(workspace.size());
    return p;
  }
};

// Runs `call` with a fresh output of `columns` columns and gives them back; the padding between the rows must not change.
template <typename T, typename Call>
std::vector<T> run_into(int rows, int columns, int stride, T padding, cuda::ProductOutput& output, Call call) {
  const DeviceArray<T> out(std::vector<T>(static_cast<size_t>(rows) * stride, padding));
  output.out = out.get();
  output.stride = stride;
  require_ok(call());
  const std::vector<T> all = out.download();
  std::vector<T> packed;
  size_t touched = 0;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < stride; ++c) {
      const T& v = all[static_cast<size_t>(r) * stride + c];
      if (c < columns) packed.push_back(v);
      if (c >= columns) touched += std::memcmp(&v, &padding, sizeof(T)) != 0;
    }
  }
  CHECK_MSG(touched == 0, touched << " elements between the output's rows were written");
  return packed;
}
inline std::vector<int> run_raw(const Int8Case& c, const cuda::GemmPlan& plan) {
  cuda::GemmInt8Params p = c.params();
  p.plan = plan;
  p.product.output.epilogue = cuda::Epilogue::raw;
  p.product.output.out_type = cuda::OutType::int32;
  return run_into<int>(c.s.m, c.s.n, c.out_stride, -123456789, p.product.output, [&] { return api().gemm_int8(p, context()); });
}

// Equal, or a failure that names the worst index and both values.
template <typename T>
void check_equal(const std::vector<T>& got, const std::vector<T>& want, int columns, const std::string& what) {
  REQUIRE(got.size() == want.size());
  size_t different = 0, first = 0;
  for (size_t i = got.size(); i-- > 0;) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0) ++different, first = i;
  }
  if (different == 0) return;
  std::ostringstream text;
  text << what << ": " << different << " of " << got.size() << " differ, first at row " << first / static_cast<size_t>(columns)
       << " column " << first % static_cast<size_t>(columns) << ": ";
  if constexpr (sizeof(T) == 1) {
    text << static_cast<int>(got[first]) << ", want " << static_cast<int>(want[first]);
  } else if constexpr (std::is_same_v<T, bf16>) {
    text << to_f32(got[first]) << ", want " << to_f32(want[first]);
  } else {
    text << got[first] << ", want " << want[first];
  }
  CHECK_MSG(different == 0, text.str());
}
template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  ((out << parts), ...);
  return out.str();
}

// Whole tiles with every tile of every path that the device has.
inline std::vector<cuda::GemmPlan> every_plan(Shape s, bool int8) {
  std::vector<cuda::GemmPlan> plans;
  const auto add = [&](const auto* tiles, int count) {
    for (int i = 0; i < count; ++i) {
      const auto& t = tiles[i];
      if (t.smem_bytes() > context().device->smem_per_block) continue;
      cuda::GemmPlan p;
      p.tile = i;
      p.wgmma = t.kWgmma;
      p.blocks = static_cast<int32_t>(
          t.whole_tile_blocks(cuda::gemm_ceil_div(s.m, t.m) * cuda::gemm_ceil_div(s.n, t.n), 3));  // as if it had three SMs
      p.group_m = 2;
      plans.push_back(p);
      if (!t.may_pair()) continue;
      const int64_t pairs = cuda::gemm_ceil_div(s.m, 2 * t.m) * cuda::gemm_ceil_div(s.n, t.n);
      p.cluster = 2;
      p.blocks = static_cast<int32_t>(2 * std::min<int64_t>(pairs, 2));
      plans.push_back(p);
    }
  };
  int8 ? add(cuda::kInt8MmaTiles, cuda::kInt8MmaTileCount) : add(cuda::kBf16MmaTiles, cuda::kBf16MmaTileCount);
  if (context().device->has_wgmma())
    int8 ? add(cuda::kInt8WgmmaTiles, cuda::kInt8WgmmaTileCount) : add(cuda::kBf16WgmmaTiles, cuda::kBf16WgmmaTileCount);
  return plans;
}
// The same tiles with k split over numbers of blocks that divide nothing, from one more than the tiles to every unit alone.
inline std::vector<cuda::GemmPlan> every_split(Shape s, bool int8) {
  std::vector<cuda::GemmPlan> plans;
  for (cuda::GemmPlan p : every_plan(s, int8)) {
    if (p.cluster > 1) continue;
    const auto add = [&](const auto& t) {
      if (!t.splits()) return;
      const int64_t tiles = cuda::gemm_ceil_div(s.m, t.m) * cuda::gemm_ceil_div(s.n, t.n);
      const int64_t units = int8 ? cuda::int8_units(s.k, static_cast<int32_t>(t.unit_bytes())) : cuda::slice_units(s.k);
      p.split = 1;
      int64_t before = 0;
      for (const int64_t blocks : {int64_t{1}, tiles + 1, tiles * units / 2 + 1, tiles * units}) {
        if (blocks > tiles * units || blocks == before) continue;
        p.blocks = static_cast<int32_t>(before = blocks);
        plans.push_back(p);
      }
    };
    if (p.wgmma) {
      add((int8 ? cuda::kInt8WgmmaTiles : cuda::kBf16WgmmaTiles)[p.tile]);
    } else {
      add((int8 ? cuda::kInt8MmaTiles : cuda::kBf16MmaTiles)[p.tile]);
    }
  }
  return plans;
}

}  // namespace lapidary::test
