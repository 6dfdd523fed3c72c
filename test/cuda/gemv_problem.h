// Problems for the tests of the skinny products: data on both sides, the launch, and what it should give.
#pragma once

#include <random>
#include <string>

#include "base/float16.h"
#include "cuda/support.h"

namespace lapidary::test {

using cuda::Epilogue;
using cuda::OutType;

// Small integers whose bits differ everywhere, ends of the range included.
inline std::vector<int8_t> random_int8(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int8_t> v(count);
  for (int8_t& q : v) {
    const uint32_t r = random();
    q = r % 16 == 0 ? (r & 16 ? 127 : -127) : static_cast<int8_t>(static_cast<int>((r >> 8) % 255) - 127);
  }
  return v;
}
// Normal values with a large outlier here and there, zeros of both signs and denormals.
inline std::vector<float> random_floats(size_t count, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> v(count);
  for (float& x : v) {
    x = normal(random);
    const uint32_t r = random() % 256;
    if (r == 0) x *= 40;
    if (r == 1) x = 0;
    if (r == 2) x = -0.0f;
    if (r == 3) x = 1e-39f;
  }
  return v;
}
inline std::vector<uint16_t> random_bf16(size_t count, uint32_t seed, float size = 1) {
  const std::vector<float> values = random_floats(count, seed, size);
  std::vector<uint16_t> v(count);
  for (size_t i = 0; i < count; ++i) v[i] = to_bf16(values[i]).bits;
  return v;
}
inline std::vector<float> random_scales(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
  std::vector<float> v(count);
  for (float& s : v) s = 0.01f * uniform(random);
  return v;
}
inline std::vector<float> widen(const std::vector<uint16_t>& v) {
  std::vector<float> f(v.size());
  for (size_t i = 0; i < v.size(); ++i) f[i] = to_f32(bf16{v[i]});
  return f;
}

// Zeroed once; every launch must leave its counters and sums at zero.
class GemvWorkspace {
 public:
  explicit GemvWorkspace(int64_t bytes) : words_(std::vector<uint32_t>(static_cast<size_t>(bytes + 3) / 4, 0)) {}
  void* get() const { return words_.get(); }
  int64_t bytes() const { return static_cast<int64_t>(words_.size()) * 4; }
  bool is_clean() const {
    const std::vector<uint32_t> words = words_.download();
    for (size_t i = 0; i < static_cast<size_t>(cuda::kGemvZeroBytes) / 4; ++i)
      if (words[i]) return false;
    return true;
  }

 private:
  DeviceArray<uint32_t> words_;
};

// sums[row][column], exact.
inline std::vector<int32_t> int8_sums(const std::vector<int8_t>& x, const std::vector<int8_t>& w, int m, int n, int k) {
  std::vector<int32_t> sums(static_cast<size_t>(m) * n);
  for (int r = 0; r < m; ++r) {
    for (int c = 0; c < n; ++c) {
      int32_t s = 0;
      for (int i = 0; i < k; ++i) s += int32_t{x[static_cast<size_t>(r) * k + i]} * w[static_cast<size_t>(c) * k + i];
      sums[static_cast<size_t>(r) * n + c] = s;
    }
  }
  return sums;
}
inline std::vector<float> float_products(const std::vector<float>& x, const std::vector<float>& w, int m, int n, int k) {
  std::vector<float> y(static_cast<size_t>(m) * n);
  for (int r = 0; r < m; ++r) {
    for (int c = 0; c < n; ++c) {
      double s = 0;
      for (int i = 0; i < k; ++i) s += double{x[static_cast<size_t>(r) * k + i]} * w[static_cast<size_t>(c) * k + i];
      y[static_cast<size_t>(r) * n + c] = static_cast<float>(s);
    }
  }
  return y;
}

// 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) * u
inline double geglu_value(double g, double u) { return 0.5 * g * (1 + std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * u; }
// Rows of a stacked weight: channel c's gate and up.
inline int gate_row(int c) { return c / 8 * 16 + c % 8; }
inline int up_row(int c) { return gate_row(c) + 8; }

// Reports the first difference in bits.
template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  CHECK_MSG(got.size() == want.size(), what << ": " << got.size() << " elements, want " << want.size());
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0) {
      CHECK_MSG(false, what << ": element " << i << " is " << +got[i] << ", want " << +want[i]);
      return;
    }
  }
}

inline std::string shape_text(int m, int n, int k, int blocks) {
  return "m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k) + ", blocks " + std::to_string(blocks);
}

// An int8 product with everything on the device.
struct Int8Problem {
  int m, n, k;
  std::vector<int8_t> x, w;
  std::vector<float> x_scales, w_scales;
  DeviceArray<int8_t> x_device, w_device;
  DeviceArray<float> x_scales_device, w_scales_device;

  Int8Problem(int m_, int n_, int k_, uint32_t seed = 1)
      : m(m_),
        n(n_),
        k(k_),
        x(random_int8(static_cast<size_t>(m) * k, seed)),
        w(random_int8(static_cast<size_t>(n) * k, seed + 1)),
        x_scales(random_scales(static_cast<size_t>(m), seed + 2)),
        w_scales(random_scales(static_cast<size_t>(n), seed + 3)),
        x_device(x),
        w_device(w),
        x_scales_device(x_scales),
        w_scales_device(w_scales) {}

  cuda::GemvInt8Params params(const GemvWorkspace& workspace) const {
    cuda::GemvInt8Params p;
    p.product.x = x_device.get();
    p.product.w = w_device.get();
    p.product.x_scales = x_scales_device.get();
    p.product.w_scales = w_scales_device.get();
    p.product.x_stride = p.product.w_stride = k;
    p.product.m = m, p.product.n = n, p.product.k = k;
    p.workspace = workspace.get();
    p.workspace_bytes = workspace.bytes();
    return p;
  }
  std::vector<int32_t> sums() const { return int8_sums(x, w, m, n, k); }
  // The one order of scaling.
  float scaled(const std::vector<int32_t>& sums, int r, int c) const {
    return static_cast<float>(sums[static_cast<size_t>(r) * n + c]) * (x_scales[static_cast<size_t>(r)] * w_scales[static_cast<size_t>(c)]);
  }
};

struct Bf16Problem {
  int m, n, k;
  std::vector<uint16_t> x, w;
  DeviceArray<uint16_t> x_device, w_device;

  Bf16Problem(int m_, int n_, int k_, uint32_t seed = 1)
      : m(m_),
        n(n_),
        k(k_),
        x(random_bf16(static_cast<size_t>(m) * k, seed)),
        w(random_bf16(static_cast<size_t>(n) * k, seed + 1, 0.05f)),
        x_device(x),
        w_device(w) {}

  cuda::GemvBf16Params params(const GemvWorkspace& workspace) const {
    cuda::GemvBf16Params p;
    p.product.x = x_device.get();
    p.product.w = w_device.get();
    p.product.x_stride = p.product.w_stride = int64_t{k} * 2;
    p.product.m = m, p.product.n = n, p.product.k = k;
    p.workspace = workspace.get();
    p.workspace_bytes = workspace.bytes();
    return p;
  }
};

// Blocks of a GGUF kind with random quants and scales around `size`.
template <typename Block>
std::vector<Block> random_blocks(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Block> v(count);
  for (Block& b : v) {
    auto* bytes = reinterpret_cast<uint8_t*>(&b);
    for (size_t i = 0; i < sizeof b; ++i) bytes[i] = static_cast<uint8_t>(random());
    b.d = f16{static_cast<uint16_t>(0x1800 + random() % 0x1000 + (random() % 2 << 15))};  // 2^-9 to 2^-5, either sign
  }
  return v;
}

struct PlanesProblem {
  int m, n, k;
  cuda::PlaneKind kind;
  std::vector<uint16_t> x;
  std::vector<std::byte> blocks;  // as GGUF has them
  std::vector<float> w;           // their values
  std::vector<std::byte> planes;
  DeviceArray<uint16_t> x_device;
  DeviceArray<std::byte> planes_device;

  PlanesProblem(cuda::PlaneKind kind_, int m_, int n_, int k_, uint32_t seed = 1)
      : m(m_),
        n(n_),
        k(k_),
        kind(kind_),
        x(random_bf16(static_cast<size_t>(m) * k, seed)),
        blocks(make_blocks(kind, n, k, seed + 1)),
        w(static_cast<size_t>(n) * k),
        planes(static_cast<size_t>(cuda::plane_layout(kind, n, k).bytes)),
        x_device(x),
        planes_device(planes.size()) {
    dequantize_row(cuda::plane_dtype(kind), blocks.data(), static_cast<int64_t>(w.size()), w.data());
    cuda::pack_planes(kind, blocks.data(), n, k, planes.data());
    planes_device.upload(planes);
  }
  static std::vector<std::byte> make_blocks(cuda::PlaneKind kind, int n, int k, uint32_t seed) {
    const size_t count = static_cast<size_t>(n) * k / 32;
    const auto bytes_of = [](const auto& v) {
      std::vector<std::byte> bytes(v.size() * sizeof(v[0]));
      std::memcpy(bytes.data(), v.data(), bytes.size());
      return bytes;
    };
    if (kind == cuda::PlaneKind::q8_0) return bytes_of(random_blocks<BlockQ8_0>(count, seed));
    return bytes_of(random_blocks<BlockQ4_0>(count, seed));
  }
  cuda::GemvPlanesParams params(const GemvWorkspace& workspace) const {
    cuda::GemvPlanesParams p;
    p.product.x = x_device.get();
    p.product.planes = planes_device.get();
    p.product.kind = kind;
    p.product.x_stride = int64_t{k} * 2;
    p.product.m = m, p.product.n = n, p.product.k = k;
    p.workspace = workspace.get();
    p.workspace_bytes = workspace.bytes();
    return p;
  }
};

// Launches any of the three with this epilogue (store to f32 by default) and gives what was written.
template <typename T, class Params>
std::vector<T> run_gemv(Params p, const GemvWorkspace& workspace, cuda::ProductOutput output, int blocks = 0) {
  const int columns = output.epilogue == Epilogue::geglu ? p.product.n / 2 : p.product.n;
  const DeviceArray<T> out(std::vector<T>(static_cast<size_t>(p.product.m) * columns, T{}));
  output.out = out.get();
  output.stride = columns;
  p.product.output = output;
  p.blocks = blocks;
  p.workspace = workspace.get();
  p.workspace_bytes = workspace.bytes();
  if constexpr (requires { p.product.w_scales; }) {
    require_ok(api().gemv_int8(p, context()));
  } else if constexpr (requires { p.product.planes; }) {
    require_ok(api().gemv_planes(p, context()));
  } else {
    require_ok(api().gemv_bf16(p, context()));
  }
  return out.download();
}
inline cuda::ProductOutput f32_output() { return {}; }
inline cuda::ProductOutput output_of(Epilogue epilogue, OutType type, float inverse_scale = 1) {
  cuda::ProductOutput o;
  o.epilogue = epilogue;
  o.out_type = type;
  o.inverse_scale = inverse_scale;
  return o;
}

}  // namespace lapidary::test
