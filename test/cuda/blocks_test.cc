// Kernels over stored blocks: values bit-equal to native/tensor/blocks.cc, products against double, embedding rows of every kind.
#include "tensor/blocks.h"

#include "cuda/gemv_problem.h"

namespace lapidary::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32,  DType::bf16, DType::f16,  DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                                  DType::q5_1, DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k};

int block_elements(DType t) { return dtype_info(t).block_elements; }
std::string type_text(DType t) { return std::string(dtype_info(t).name); }

// Random bytes for everything, with the f16 (and f32) parts kept finite: blocks of every kind hold any quants and scales.
std::vector<std::byte> random_weight(DType t, int64_t elements, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(static_cast<size_t>(dtype_bytes(t, elements)));
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  if (t == DType::f32) {
    const std::vector<float> v = random_floats(static_cast<size_t>(elements), seed);
    std::memcpy(bytes.data(), v.data(), bytes.size());
    return bytes;
  }
  if (t == DType::bf16) {
    const std::vector<uint16_t> v = random_bf16(static_cast<size_t>(elements), seed);
    std::memcpy(bytes.data(), v.data(), bytes.size());
    return bytes;
  }
  // f16 of size 2^-9 to 2^-5, subnormals and zeros now and then; either sign.
  const auto put_half = [&](size_t at) {
    const uint32_t r = random();
    uint16_t h = static_cast<uint16_t>(0x1800 + r % 0x1000);
    if (r >> 16 & 1) h = static_cast<uint16_t>(h | 0x8000);
    if (r >> 20 == 7) h = static_cast<uint16_t>(h & 0x83ff);
    std::memcpy(bytes.data() + at, &h, 2);
  };
  const size_t block = static_cast<size_t>(dtype_info(t).block_bytes);
  for (size_t at = 0; at < bytes.size(); at += block) {
    switch (t) {
      case DType::q4_1:
      case DType::q5_1:
      case DType::q4_k:
      case DType::q5_k:
        put_half(at), put_half(at + 2);
        break;
      case DType::q2_k:
        put_half(at + 80), put_half(at + 82);
        break;
      case DType::q3_k:
        put_half(at + 108);
        break;
      case DType::q6_k:
        put_half(at + 208);
        break;
      default:
        put_half(at);
    }
  }
  return bytes;
}
std::vector<float> values_of(DType t, const std::vector<std::byte>& bytes, int64_t elements) {
  std::vector<float> v(static_cast<size_t>(elements));
  dequantize_row(t, bytes.data(), elements, v.data());
  return v;
}

TEST("cuda blocks: planes and int8 rows are widened to the blocks' values") {
  const int n = 5, k = 96;
  for (const DType t : {DType::q8_0, DType::q4_0}) {
    const cuda::PlaneKind kind = t == DType::q8_0 ? cuda::PlaneKind::q8_0 : cuda::PlaneKind::q4_0;
    const std::vector<std::byte> blocks = random_weight(t, n * k, 9);
    std::vector<std::byte> planes(static_cast<size_t>(cuda::plane_layout(kind, n, k).bytes));
    cuda::pack_planes(kind, blocks.data(), n, k, planes.data());
    const DeviceArray<std::byte> device(planes);
    const DeviceArray<float> out(static_cast<size_t>(n * k));
    require_ok(api().dequantize_blocks({device.get(), out.get(), t, OutType::f32, k, n, k, true}, context()));
    CHECK(out.download() == values_of(t, blocks, n * k));
  }
  std::vector<int8_t> q(static_cast<size_t>(n * k));
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<int8_t>(static_cast<int>(i * 37 % 255) - 127);
  const std::vector<float> scales = {0.5f, 1, 0.01f, 3, 0};
  const DeviceArray<int8_t> device(q);
  const DeviceArray<float> device_scales(scales), out(static_cast<size_t>(n * k));
  require_ok(api().dequantize_blocks({device.get(), out.get(), DType::i8, OutType::f32, k, n, k, false, device_scales.get()}, context()));
  const std::vector<float> got = out.download();
  for (size_t i = 0; i < q.size(); ++i) CHECK(got[i] == static_cast<float>(q[i]) * scales[i / k]);
}

TEST("cuda blocks: widened bit for bit") {
  for (const DType t : kWeightTypes) {
    const int block = std::max(block_elements(t), 8);
    for (const auto& [n, k] : {std::pair{1, block}, {3, 2 * block}, {17, 5 * block}}) {
      const std::vector<std::byte> blocks = random_weight(t, int64_t{n} * k, static_cast<uint32_t>(n + k));
      const std::vector<float> want = values_of(t, blocks, int64_t{n} * k);
      const DeviceArray<std::byte> device(blocks);
      const int stride = k + 8;
      const DeviceArray<float> f32_out(std::vector<float>(static_cast<size_t>(n) * stride, 7));
      const DeviceArray<uint16_t> bf16_out(std::vector<uint16_t>(static_cast<size_t>(n) * stride, 7));
      require_ok(api().dequantize_blocks({device.get(), f32_out.get(), t, OutType::f32, stride, n, k}, context()));
      require_ok(api().dequantize_blocks({device.get(), bf16_out.get(), t, OutType::bf16, stride, n, k}, context()));
      const std::vector<float> f32_got = f32_out.download();
      const std::vector<uint16_t> bf16_got = bf16_out.download();
      std::vector<float> rows, want_rows;
      std::vector<uint16_t> rounded, want_rounded;
      for (int r = 0; r < n; ++r) {
        for (int i = 0; i < stride; ++i) {
          const float w = i < k ? want[static_cast<size_t>(r) * k + i] : 7;
          want_rows.push_back(w);
          want_rounded.push_back(i < k ? to_bf16(w).bits : uint16_t{7});
        }
      }
      expect_same(f32_got, want_rows, type_text(t) + " to f32, " + shape_text(0, n, k, 0));
      expect_same(bf16_got, want_rounded, type_text(t) + " to bf16, " + shape_text(0, n, k, 0));
    }
  }
}

// The order that cuda/api/blocks.h states, in plain code: 32 lanes of eight elements, then a butterfly.
float ordered_product(const float* x, const float* w, int k) {
  float lanes[32] = {};
  for (int i = 0; i < k; ++i) lanes[i / 8 % 32] = std::fma(x[i], w[i], lanes[i / 8 % 32]);
  for (int step = 16; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) lanes[l] += lanes[l + step];
  return lanes[0];
}

TEST("cuda blocks: products of few rows, in the order that is promised, whatever their number") {
  for (const DType t : kWeightTypes) {
    const int block = std::max(block_elements(t), 8);
    for (const auto& [m, n, k] :
         {std::tuple{1, 1, block}, {1, 33, 3 * block}, {2, 7, 2 * block}, {8, 5, block}, {9, 17, 2 * block}, {16, 16, 3 * block}}) {
      const std::vector<std::byte> blocks = random_weight(t, int64_t{n} * k, static_cast<uint32_t>(m * n + k));
      const std::vector<float> w = values_of(t, blocks, int64_t{n} * k);
      const std::vector<uint16_t> x_bf16 = random_bf16(static_cast<size_t>(m) * k, 5);
      const std::vector<float> x_f32 = random_floats(static_cast<size_t>(m) * k, 6);
      const DeviceArray<std::byte> w_device(blocks);
      const DeviceArray<uint16_t> x_bf16_device(x_bf16);
      const DeviceArray<float> x_f32_device(x_f32);
      for (const bool bf16_x : {false, true}) {
        const std::vector<float> x = bf16_x ? widen(x_bf16) : x_f32;
        const DeviceArray<float> out(std::vector<float>(static_cast<size_t>(m) * n));
        cuda::GemvBlocksParams p;
        p.x = bf16_x ? static_cast<const void*>(x_bf16_device.get()) : x_f32_device.get();
        p.x_type = bf16_x ? cuda::ActType::bf16 : cuda::ActType::f32;
        p.w = w_device.get();
        p.dtype = t;
        p.x_stride = k;
        p.m = m, p.n = n, p.k = k;
        p.output.out = out.get();
        p.output.stride = n;
        require_ok(api().gemv_blocks(p, context()));
        const std::vector<float> got = out.download();
        const std::string what = type_text(t) + (bf16_x ? ", bf16 x, " : ", f32 x, ") + shape_text(m, n, k, 0);
        const double error = relative_error(got, float_products(x, w, m, n, k));
        CHECK_MSG(error <= 1e-5, what << ": error " << error);
        std::vector<float> want(got.size());
        for (int r = 0; r < m; ++r)
          for (int c = 0; c < n; ++c)
            want[static_cast<size_t>(r) * n + c] = ordered_product(&x[static_cast<size_t>(r) * k], &w[static_cast<size_t>(c) * k], k);
        expect_same(got, want, what);
      }
    }
  }
}

TEST("cuda blocks: epilogues of the products") {
  const int m = 3, n = 48, k = 512;
  const std::vector<std::byte> blocks = random_weight(DType::q4_k, int64_t{n} * k, 1);
  const std::vector<float> w = values_of(DType::q4_k, blocks, int64_t{n} * k), x = random_floats(static_cast<size_t>(m) * k, 2, 0.2f);
  const std::vector<float> y = float_products(x, w, m, n, k);
  const DeviceArray<std::byte> w_device(blocks);
  const DeviceArray<float> x_device(x), out(static_cast<size_t>(m) * n), residual(y);
  cuda::GemvBlocksParams p;
  p.x = x_device.get(), p.w = w_device.get(), p.dtype = DType::q4_k, p.x_stride = k, p.m = m, p.n = n, p.k = k;
  p.output = output_of(Epilogue::add, OutType::f32);
  p.output.out = out.get(), p.output.stride = n, p.output.residual = residual.get(), p.output.residual_stride = n;
  require_ok(api().gemv_blocks(p, context()));
  std::vector<float> twice;
  for (const float v : y) twice.push_back(2 * v);
  CHECK(relative_error(out.download(), twice) <= 1e-5);

  const DeviceArray<float> gated_out(static_cast<size_t>(m) * n / 2);
  p.output = output_of(Epilogue::geglu, OutType::f32);
  p.output.out = gated_out.get(), p.output.stride = n / 2;
  require_ok(api().gemv_blocks(p, context()));
  std::vector<float> gated;
  for (int r = 0; r < m; ++r)
    for (int c = 0; c < n / 2; ++c)
      gated.push_back(
          static_cast<float>(geglu_value(y[static_cast<size_t>(r) * n + gate_row(c)], y[static_cast<size_t>(r) * n + up_row(c)])));
  CHECK(relative_error(gated_out.download(), gated) <= 1e-5);
}

TEST("cuda blocks: embedding rows of every kind of table") {
  const int vocab = 37;
  const std::vector<int32_t> ids = {0, 36, 5, 5, 17};
  const DeviceArray<int32_t> ids_device(ids);
  const float scale = 33.941125f;
  const auto check = [&](cuda::EmbedParams p, const std::vector<float>& values, const std::string& what) {
    const size_t dim = static_cast<size_t>(p.dim);
    const DeviceArray<float> out(ids.size() * dim);
    p.ids = ids_device.get();
    p.out = out.get();
    p.rows = static_cast<int32_t>(ids.size());
    p.vocab = vocab;
    p.scale = scale;
    require_ok(api().embed(p, context()));
    std::vector<float> want;
    for (const int32_t id : ids)
      for (size_t i = 0; i < dim; ++i) want.push_back(values[static_cast<size_t>(id) * dim + i] * scale);
    expect_same(out.download(), want, what);
  };
  for (const DType t : kWeightTypes) {
    for (const int dim : {std::max(block_elements(t), 8), 2304}) {
      const std::vector<std::byte> table = random_weight(t, int64_t{vocab} * dim, 3);
      const DeviceArray<std::byte> device(table);
      cuda::EmbedParams p;
      p.table = device.get();
      p.dtype = t;
      p.dim = dim;
      p.row_bytes = dtype_bytes(t, dim);
      check(p, values_of(t, table, int64_t{vocab} * dim), type_text(t) + " table, dim " + std::to_string(dim));
    }
  }
  const int dim = 160;
  {
    const std::vector<int8_t> q = random_int8(static_cast<size_t>(vocab) * dim, 4);
    const std::vector<float> scales = random_scales(vocab, 5);
    std::vector<float> values(q.size());
    for (size_t i = 0; i < q.size(); ++i) values[i] = static_cast<float>(q[i]) * scales[i / dim];
    const DeviceArray<int8_t> device(q);
    const DeviceArray<float> scales_device(scales);
    cuda::EmbedParams p;
    p.table = device.get();
    p.row_scales = scales_device.get();
    p.dtype = DType::i8;
    p.dim = dim;
    p.row_bytes = dim;
    check(p, values, "int8 table");
  }
  for (const cuda::PlaneKind kind : {cuda::PlaneKind::q8_0, cuda::PlaneKind::q4_0}) {
    const PlanesProblem problem(kind, 1, vocab, dim);
    cuda::EmbedParams p;
    p.table = problem.planes_device.get();
    p.dtype = cuda::plane_dtype(kind);
    p.planes = true;
    p.dim = dim;
    check(p, problem.w, type_text(p.dtype) + " planes");
  }
}

TEST("cuda blocks: what is refused, and why") {
  const DeviceArray<float> memory(std::vector<float>(1024, 0.0f));
  const auto reason = [](const cuda::Status& s) {
    return s.kind == cuda::Status::Kind::refused && s.what ? std::string(s.what) : std::string("(taken)");
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(
      has(reason(api().dequantize_blocks({memory.get(), memory.get(), DType::q4_k, OutType::f32, 32, 1, 32}, context())), "whole blocks"));
  CHECK(has(reason(api().dequantize_blocks({memory.get(), memory.get(), DType::i8, OutType::f32, 32, 1, 32}, context())), "row_scales"));
  CHECK(has(reason(api().dequantize_blocks({memory.get(), memory.get(), DType::i32, OutType::f32, 32, 1, 32}, context())), "dtype"));
  CHECK(
      has(reason(api().dequantize_blocks({memory.get(), memory.get(), DType::q4_1, OutType::f32, 32, 1, 32, true}, context())), "planes"));
  CHECK(
      has(reason(api().dequantize_blocks({memory.get(), memory.get(), DType::q8_0, OutType::int8, 32, 1, 32}, context())), "f32 or bf16"));
  CHECK(
      has(reason(api().dequantize_blocks({memory.get(), memory.get() + 1, DType::q8_0, OutType::f32, 32, 1, 32}, context())), "16 bytes"));
  cuda::GemvBlocksParams p;
  p.x = p.w = memory.get(), p.dtype = DType::q8_0, p.x_stride = 32, p.m = 1, p.n = 1, p.k = 32;
  CHECK(has(reason(api().gemv_blocks(p, context())), "out is null"));
  p.output.out = memory.get();
  p.m = 0;
  CHECK(has(reason(api().gemv_blocks(p, context())), "m must be"));
  cuda::EmbedParams e;
  e.table = memory.get(), e.out = memory.get(), e.dtype = DType::i8, e.dim = 32, e.row_bytes = 32;
  CHECK(has(reason(api().embed(e, context())), "row_scales"));
  e.dtype = DType::q5_0, e.planes = true;
  CHECK(has(reason(api().embed(e, context())), "planes"));
}

}  // namespace
}  // namespace lapidary::test
