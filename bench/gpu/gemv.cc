// Skinny products: 1 to 16 rows against a whole weight matrix, bound by reading the weights once.
#include "cuda/api/gemv.h"

#include <cstring>
#include <string>

#include "base/float16.h"
#include "checks.h"
#include "families.h"

namespace lapidary::bench {

namespace {

// What one format needs: its weights, their meaning, its launcher.
struct Format {
  const char* name;
  cuda::GemvFormat format;
  double bytes_per_weight;
};
constexpr Format kFormats[] = {{"int8", cuda::GemvFormat::int8, 1},
                               {"bf16", cuda::GemvFormat::bf16, 2},
                               {"q8_0", cuda::GemvFormat::q8_0, 1.0625},
                               {"q4_0", cuda::GemvFormat::q4_0, 0.5625}};

std::vector<Matrix> matrices(const Session& session) {
  std::vector<Matrix> all = gemma_matrices(session.tiny());
  if (!session.tiny()) {
    all.push_back({"1B head", 262144, 1152});
    all.push_back({"4B head", 262144, 2560});
  }
  return all;
}

// f16 of 0.03 to 0.06: scales of blocks.
Pattern<uint16_t> block_scales() {
  const Pattern<uint16_t> random = random_bf16(5, 1);
  Pattern<uint16_t> out;
  for (const uint16_t bits : random.host) out.host.push_back(static_cast<uint16_t>(0x2800 | ((bits * 2654435761u >> 8) & 0x3ff)));
  return out;
}

class Weights {
 public:
  Weights(const Session& session, const Format& format, const Matrix& matrix, int rotation) : format_(format), matrix_(matrix) {
    const auto [name, n, k] = matrix;
    for (int i = 0; i < rotation; ++i) {
      if (format.format == cuda::GemvFormat::bf16) {
        sets_.push_back(session.filled(bf16_, n * k, i));
      } else if (format.format == cuda::GemvFormat::int8) {
        sets_.push_back(session.filled(int8_, n * k, i));
      } else {
        const cuda::PlaneLayout layout = cuda::plane_layout(kind(), n, k);
        sets_.push_back(session.filled(int8_, layout.bytes, i));
        const int64_t count = n * layout.scale_stride;
        const DeviceMemory scales = session.filled(f16_, count);
        Session::require(session.api().device.copy_on_device(sets_.back().as<char>() + layout.scales_offset, scales.get(),
                                                             static_cast<size_t>(2 * count), session.context().stream));
        session.synchronize();
      }
    }
  }
  cuda::PlaneKind kind() const { return format_.format == cuda::GemvFormat::q8_0 ? cuda::PlaneKind::q8_0 : cuda::PlaneKind::q4_0; }
  void* set(int i) const { return sets_[static_cast<size_t>(i)].get(); }
  // Of the first set, without an int8 product's scales.
  double at(int64_t row, int64_t i) const {
    const int64_t k = matrix_.k;
    if (format_.format == cuda::GemvFormat::bf16) return from_bf16(bf16_.at(row * k + i));
    if (format_.format == cuda::GemvFormat::int8) return int8_.at(row * k + i);
    const cuda::PlaneLayout layout = cuda::plane_layout(kind(), matrix_.n, k);
    const double scale = to_f32(f16{f16_.at(row * layout.scale_stride + i / cuda::kPlaneBlock)});
    if (format_.format == cuda::GemvFormat::q8_0) return scale * int8_.at(row * k + i);
    uint32_t word = 0;
    for (int b = 0; b < 4; ++b)
      word |= static_cast<uint32_t>(static_cast<uint8_t>(int8_.at(row * layout.quant_row_bytes + i / 8 * 4 + b))) << (8 * b);
    return scale * (static_cast<int>((word >> cuda::plane_nibble_shift(static_cast<int>(i % 8))) & 15) - 8);
  }

 private:
  Format format_;
  Matrix matrix_;
  Pattern<int8_t> int8_ = random_int8(2);
  Pattern<uint16_t> bf16_ = random_bf16(2, 1), f16_ = block_scales();
  std::vector<DeviceMemory> sets_;
};

}  // namespace

void run_gemv(Session& session) {
  const Pattern<int8_t> x8 = random_int8(1);
  const Pattern<uint16_t> x16 = random_bf16(1, 1);
  const Pattern<float> scales = random_f32(3, 0.001f, 0.01f);
  const DeviceMemory workspace = session.zeros(static_cast<size_t>(64) << 20);
  for (const Format& format : kFormats) {
    const bool is_int8 = format.format == cuda::GemvFormat::int8;
    for (const Matrix& matrix : matrices(session)) {
      const auto [label, n, k] = matrix;
      const std::string name = std::string(format.name) + " " + label;
      if (!session.wants(name)) continue;
      const double bytes = static_cast<double>(n * k) * format.bytes_per_weight;
      const int rotation = session.rotation(bytes);
      const Weights weights(session, format, matrix, rotation);
      const DeviceMemory w_scales = session.filled(scales, n);
      for (const int64_t m : {1, 4, 16}) {
        const DeviceMemory x = is_int8 ? session.filled(x8, m * k) : session.filled(x16, m * k);
        const DeviceMemory x_scales = session.filled(scales, m, 17), out = session.memory(static_cast<size_t>(m * n) * 4);
        cuda::ProductOutput output;
        output.out = out.get();
        output.stride = n;
        const auto sized = [&](auto product) {
          product.m = static_cast<int32_t>(m);
          product.n = static_cast<int32_t>(n);
          product.k = static_cast<int32_t>(k);
          product.output = output;
          return product;
        };
        const auto work = [&](int i) {
          if (is_int8) {
            cuda::Int8Product product = sized(cuda::Int8Product{});
            product.x = x.as<int8_t>();
            product.w = static_cast<const int8_t*>(weights.set(i));
            product.x_scales = x_scales.as<float>();
            product.w_scales = w_scales.as<float>();
            product.x_stride = product.w_stride = k;
            return session.api().gemv_int8({product, {}, workspace.get(), static_cast<int64_t>(workspace.bytes()), 0}, session.context());
          }
          if (format.format == cuda::GemvFormat::bf16) {
            cuda::Bf16Product product = sized(cuda::Bf16Product{});
            product.x = x.as<uint16_t>();
            product.w = static_cast<const uint16_t*>(weights.set(i));
            product.x_stride = product.w_stride = 2 * k;
            return session.api().gemv_bf16({product, {}, workspace.get(), static_cast<int64_t>(workspace.bytes()), 0}, session.context());
          }
          cuda::PlanesProduct product = sized(cuda::PlanesProduct{});
          product.x = x.as<uint16_t>();
          product.planes = weights.set(i);
          product.kind = weights.kind();
          product.x_stride = 2 * k;
          return session.api().gemv_planes({product, {}, workspace.get(), static_cast<int64_t>(workspace.bytes()), 0}, session.context());
        };
        const auto check = [&] {
          return spot_check(m, n, [&](int64_t row, int64_t column) -> std::string {
            double want = 0, size = 0;
            for (int64_t i = 0; i < k; ++i) {
              const double term = (is_int8 ? x8.at(row * k + i) : from_bf16(x16.at(row * k + i))) * weights.at(column, i);
              want += term;
              size += term * term;
            }
            if (is_int8) want *= static_cast<double>(scales.at(17 + row)) * scales.at(column);
            const double got = device_element<float>(session, out, row * n + column);
            return close(got, want, 1e-5, is_int8 ? 1e-6 : 1e-4 * std::sqrt(size)) ? "" : mismatch(row, column, got, want);
          });
        };
        Case c = {name + " M=" + std::to_string(m), bytes + 4.0 * static_cast<double>(m * n), 2.0 * static_cast<double>(m * n * k),
                  Bound::copy};
        c.sizes = {{"m", m}, {"n", n}, {"k", k}};
        cuda::GemvPlan plan;
        if (!cuda::plan_gemv({format.format, static_cast<int32_t>(m), static_cast<int32_t>(n), static_cast<int32_t>(k), false},
                             session.facts(), 0, &plan))
          c.note = plan.why;
        session.run(c, rotation, work, check);
      }
    }
  }
}

}  // namespace lapidary::bench
