// The fused q, k, v product: the same bits as the product to f32 followed by the row kernel, in the queries and in every byte of the cache.
#include "cuda/gemm_data.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::ActType;
using cuda::KvType;

std::vector<float> smooth(size_t count, float scale, float offset) {
  std::vector<float> v(count);
  for (size_t i = 0; i < count; ++i) v[i] = offset + scale * std::sin(static_cast<float>(i) * 0.7f + 0.1f);
  return v;
}

struct QkvCase {
  int num_heads, num_kv_heads, head_dim;
  KvType kv_type;
  bool norm, prefix;
};

// Two sequences with a row of neither between them; the second begins in the middle of a page and crosses into a page that wraps around.
void compare(const QkvCase& c, int tokens, const cuda::GemmPlan& plan) {
  const int n = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  const Int8Case product({tokens, n, 208});
  const int first_rows = tokens / 2, second_rows = tokens - first_rows - 1;
  const size_t page_bytes = static_cast<size_t>(2 * c.num_kv_heads) * 64 *
                            (static_cast<size_t>(c.head_dim) * (c.kv_type == KvType::bf16 ? 2 : 1) + (c.kv_type == KvType::int8 ? 4 : 0));
  const int num_pages = 5;  // 3 of the first, 2 of the second
  struct Outcome {
    std::vector<uint8_t> q, q_prefix, pages;
  };
  const auto run = [&](bool fused) {
    const DeviceArray<uint8_t> pages(std::vector<uint8_t>(page_bytes * num_pages, 0x5a));
    std::vector<void*> page_table;
    for (int i = 0; i < num_pages; ++i) page_table.push_back(pages.get() + page_bytes * static_cast<size_t>(i));
    const DeviceArray<void*> page_table_device(page_table);
    const std::vector<cuda::AttentionSequence> sequences = {{0, first_rows, 7, 3, page_table_device.get()},
                                                            {first_rows + 1, second_rows, 100, 2, page_table_device.get() + 3}};
    const DeviceArray<cuda::AttentionSequence> sequences_device(sequences);
    const size_t angles = static_cast<size_t>(tokens) * c.head_dim / 2,
                 q_bytes = static_cast<size_t>(tokens) * c.num_heads * c.head_dim * 2;
    const DeviceArray<float> cos(smooth(angles, 0.9f, 0)), sin(smooth(angles, 0.3f, 0.2f)), prefix_cos(smooth(angles, 0.5f, 0.1f)),
        prefix_sin(smooth(angles, 0.4f, -0.3f));
    const DeviceArray<float> q_weight(smooth(static_cast<size_t>(c.head_dim), 0.5f, 0.1f)),
        k_weight(smooth(static_cast<size_t>(c.head_dim), 0.2f, -0.1f));
    const DeviceArray<uint8_t> q(std::vector<uint8_t>(q_bytes, 0x77)), q_prefix(std::vector<uint8_t>(q_bytes, 0x77));
    cuda::QkRopeAppendParams heads = {};
    heads.tokens = tokens;
    heads.num_heads = c.num_heads, heads.num_kv_heads = c.num_kv_heads, heads.head_dim = c.head_dim;
    if (c.norm) heads.rows.q_norm = {q_weight.get(), 1, 1e-6f}, heads.rows.k_norm = {k_weight.get(), 1, 1e-6f};
    heads.rows.cos = cos.get(), heads.rows.sin = sin.get();
    if (c.prefix) heads.rows.prefix_cos = prefix_cos.get(), heads.rows.prefix_sin = prefix_sin.get(), heads.q_prefix_out = q_prefix.get();
    heads.q_out = q.get();
    heads.q_type = ActType::bf16;
    heads.kv_type = c.kv_type;
    heads.sequences = sequences_device.get();
    heads.num_sequences = 2;
    if (fused) {
      require_ok(api().gemm_int8_qkv({product.params().product, heads, plan}, context()));
    } else {
      const DeviceArray<float> y(static_cast<size_t>(tokens) * n);
      cuda::GemmInt8Params p = product.params();
      p.product.output.out = y.get();
      p.product.output.stride = n;
      require_ok(api().gemm_int8(p, context()));
      heads.rows.q = y.get(), heads.rows.k = y.get() + c.num_heads * c.head_dim, heads.rows.v = heads.rows.k + c.num_kv_heads * c.head_dim;
      heads.rows.q_stride = heads.rows.k_stride = heads.rows.v_stride = n;
      require_ok(api().qk_rope_append(heads, context()));
    }
    return Outcome{q.download(), q_prefix.download(), pages.download()};
  };
  const Outcome want = run(false), got = run(true);
  const std::string what = text(tokens, " tokens, ", c.num_heads, " + ", c.num_kv_heads, " heads of ", c.head_dim, ", cache type ",
                                static_cast<int>(c.kv_type), ", ", plan);
  check_equal(got.q, want.q, c.num_heads * c.head_dim * 2, what + ", queries (bytes)");
  check_equal(got.q_prefix, want.q_prefix, c.num_heads * c.head_dim * 2, what + ", queries for the prefix (bytes)");
  check_equal(got.pages, want.pages, static_cast<int>(page_bytes), what + ", pages (bytes)");
  CHECK(want.pages != std::vector<uint8_t>(want.pages.size(), 0x5a));
}

std::vector<cuda::GemmPlan> qkv_plans(int tokens, int n) {
  std::vector<cuda::GemmPlan> plans;
  cuda::GemmPlan p;
  p.tile = 0;
  p.group_m = 2;
  p.blocks = static_cast<int32_t>(cuda::gemm_ceil_div(tokens, cuda::kQkvMmaTile.m) * cuda::gemm_ceil_div(n, cuda::kQkvMmaTile.n));
  plans.push_back(p);
  if (context().device->has_wgmma()) {
    p.wgmma = 1;
    p.blocks = 2;
    plans.push_back(p);
    p.cluster = 2;
    plans.push_back(p);
  }
  return plans;
}

const QkvCase kCases[] = {{3, 1, 256, KvType::bf16, true, true},
                          {4, 1, 256, KvType::int8, true, false},
                          {4, 2, 128, KvType::int8, false, true},
                          {3, 1, 128, KvType::bf16, true, false},
                          {5, 1, 64, KvType::bf16, true, false}};

TEST("cuda gemm_int8_qkv: the bits of the product and the row kernel") {
  for (const QkvCase& c : kCases) {
    for (const int tokens : {2, 17, 65, 130}) {
      for (const cuda::GemmPlan& plan : qkv_plans(tokens, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim)) compare(c, tokens, plan);
    }
    compare(c, 33, {});
  }
}

TEST("cuda gemm_int8_qkv: what it cannot do is refused with a reason") {
  const Int8Case product({8, 512, 48});
  const DeviceArray<float> memory(8192);
  const auto refused = [&](auto change) {
    cuda::GemmInt8QkvParams p = {product.params().product, {}, {}};
    p.heads.tokens = 8;
    p.heads.num_heads = 2, p.heads.num_kv_heads = 1, p.heads.head_dim = 128;
    p.heads.q_out = memory.get();
    p.heads.q_type = ActType::bf16;
    p.heads.kv_type = KvType::bf16;
    p.heads.sequences = reinterpret_cast<const cuda::AttentionSequence*>(memory.get());
    REQUIRE(cuda::supports_gemm_int8_qkv(p, *context().device));
    change(p);
    const cuda::Status s = api().gemm_int8_qkv(p, context());
    CHECK(s.kind == cuda::Status::Kind::refused && s.what != nullptr && s.what[0] != 0);
    CHECK(!cuda::supports_gemm_int8_qkv(p, *context().device));
  };
  using P = cuda::GemmInt8QkvParams&;
  refused([](P p) { p.heads.head_dim = 72; });
  refused([](P p) { p.heads.num_heads = 3; });
  refused([](P p) { p.heads.tokens = 7; });
  refused([](P p) { p.heads.kv_type = KvType::f32; });
  refused([](P p) { p.heads.q_type = ActType::int8; });
  refused([](P p) { p.heads.rows.cos = static_cast<const float*>(p.heads.q_out); });
  refused([](P p) { p.heads.q_out = static_cast<float*>(p.heads.q_out) + 1; });
}

#ifdef LAPIDARY_EMULATED
TEST("cuda gemm_int8_qkv: the order of threads and copies does not matter") {
  for (const auto mode : {emulator::AsyncMode::lazy, emulator::AsyncMode::random}) {
    emulator::set_async_mode(mode);
    emulator::set_schedule(mode == emulator::AsyncMode::lazy ? 0 : 99);
    for (const cuda::GemmPlan& plan : qkv_plans(70, 6 * 128)) compare({4, 1, 128, KvType::int8, true, false}, 70, plan);
  }
  emulator::set_async_mode(emulator::AsyncMode::eager);
  emulator::set_schedule(0);
}
#endif

}  // namespace

}  // namespace lapidary::test
