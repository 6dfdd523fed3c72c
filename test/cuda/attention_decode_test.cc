// Decode attention against its definition, and its invariances: splits, batch, merge, fusion.
#include "cuda/attention_problem.h"

#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::AttentionDecodeParams;
using cuda::DecodeMerge;
using cuda::KvType;

struct DecodeOptions {
  DecodeMerge merge = DecodeMerge::automatic;
  cuda::ActType out_type = cuda::ActType::f32;
  float out_inverse_scale = 0;
  int max_rows = 0, max_keys = 0;  // 0: as the sequences need
};

AttentionDecodeParams decode_params(const AttentionProblem& problem, const AttentionOnDevice& device, const DecodeOptions& options) {
  AttentionDecodeParams p = {};
  p.common = device.common;
  p.q = device.q->get(), p.q_prefix = problem.spec.second_query ? device.q_prefix->get() : nullptr;
  p.out_type = options.out_type, p.out_inverse_scale = options.out_inverse_scale, p.merge = options.merge;
  p.max_rows = options.max_rows, p.max_keys = options.max_keys;
  for (const SequenceSpec& s : problem.spec.sequences) {
    p.max_rows = std::max(p.max_rows, s.rows);
    p.max_keys = std::max(p.max_keys, s.first_pos + s.rows);
  }
  return p;
}

// Gives `p` scratch and output, runs it, and checks that the counters are zeros again. The result's bytes.
std::vector<uint8_t> launch_decode(AttentionDecodeParams p, int tokens) {
  const cuda::DeviceFacts& facts = *context().device;
  const size_t element = p.out_type == cuda::ActType::f32 ? 4 : p.out_type == cuda::ActType::bf16 ? 2 : 1;
  DeviceArray<uint8_t> out(static_cast<size_t>(tokens) * p.common.num_heads * p.common.head_dim * element);
  DeviceArray<float> partials(static_cast<size_t>(std::max<int64_t>(cuda::attention_decode_workspace_bytes(p, facts) / 4, 1)));
  DeviceArray<int32_t> counters(std::vector<int32_t>(static_cast<size_t>(cuda::attention_decode_counters(p, facts))));
  p.out = out.get(), p.partials = partials.get(), p.counters = counters.get();
  const char* reason = cuda::why_not_attention_decode(p, facts);
  CHECK_MSG(!reason, "unsupported: " << reason);
  require_ok(api().attention_decode(p, context()));
  for (const int32_t c : counters.download()) CHECK(c == 0);
  return out.download();
}

template <typename T>
std::vector<T> as(const std::vector<uint8_t>& bytes) {
  std::vector<T> v(bytes.size() / sizeof(T));
  std::memcpy(v.data(), bytes.data(), bytes.size());
  return v;
}

std::vector<float> decode(const AttentionProblem& problem, const DecodeOptions& options = {}) {
  const AttentionOnDevice device(problem);
  return as<float>(launch_decode(decode_params(problem, device, options), problem.tokens));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Weights are rounded to bf16 before they meet the values: 2^-9 each, far less in the norm.
void check(const AttentionSpec& spec, const std::string& what) {
  const AttentionProblem problem(spec);
  check_attention(decode(problem), problem.reference(), 2e-2, 4e-3, what);
}

std::string name_of(const AttentionSpec& s) {
  return "head_dim " + std::to_string(s.head_dim) + (s.kv_type == KvType::int8 ? ", int8" : ", bf16") + ", heads " +
         std::to_string(s.num_heads) + "/" + std::to_string(s.num_kv_heads) + ", window " + std::to_string(s.window) + ", rows " +
         std::to_string(s.sequences[0].rows) + " at " + std::to_string(s.sequences[0].first_pos);
}

}  // namespace

TEST("cuda decode: every head_dim and group, bf16 and int8 cache, 1 to 16 rows") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int head_dim : {32, 64, 128, 256}) {
      int i = 0;
      for (const int group : {1, 2, 4, 8, 16}) {
        const int rows[] = {1, 2, 5, 16};
        AttentionSpec s;
        s.kv_type = type, s.head_dim = head_dim, s.num_kv_heads = 1 + i % 2, s.num_heads = group * s.num_kv_heads;
        s.scale = 1 / std::sqrt(static_cast<float>(head_dim));
        s.sequences = {{rows[i++ % 4], 70}};
        check(s, name_of(s));
        s.sequences = {{rows[(i + 1) % 4], 300}};
        check(s, name_of(s));
      }
    }
  }
}

TEST("cuda decode: lengths around tiles and splits, short to long") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int length : {1, 2, 63, 64, 65, 127, 128, 129, 1000, 5000}) {
      AttentionSpec s;
      s.kv_type = type, s.head_dim = length > 1000 ? 64 : 128, s.num_heads = 4, s.num_kv_heads = 2;
      s.sequences = {{1, length - 1}};
      check(s, name_of(s));
      if (length < 16) continue;
      s.sequences = {{16, length - 16}};
      check(s, name_of(s));
    }
  }
}

TEST("cuda decode: window edges, ring seams, the newest rows on the oldest's page") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int window : {1, 2, 63, 64, 65, 200}) {
      for (const int at : {0, 1, window - 2, window - 1, window, window + 1, 3 * window + 61}) {
        if (at < 0) continue;
        for (const int rows : {1, 5}) {
          AttentionSpec s;
          s.kv_type = type, s.head_dim = 64, s.num_heads = 4, s.num_kv_heads = 2, s.window = window, s.ring = true, s.spare_pages = 0;
          s.sequences = {{rows, at}};
          check(s, name_of(s));
        }
      }
    }
  }
}

TEST("cuda decode: several splits of a window") {
  for (const int at : {500, 511, 512, 513, 700, 1024}) {
    AttentionSpec s;
    s.head_dim = 256, s.num_heads = 4, s.num_kv_heads = 1, s.window = 512, s.ring = true, s.scale = 1.0f / 16;
    s.sequences = {{3, at}};
    check(s, name_of(s));
  }
}

TEST("cuda decode: soft-cap") {
  for (const float magnitude : {0.01f, 1.0f, 30.0f}) {
    AttentionSpec s;
    s.head_dim = 128, s.num_heads = 8, s.num_kv_heads = 4, s.softcap = 50, s.scale = 1.0f / 12, s.window = 100, s.magnitude = magnitude;
    s.sequences = {{2, 150}, {1, 10}};
    check(s, name_of(s) + ", magnitude " + std::to_string(magnitude));
  }
}

TEST("cuda decode: a prefix of any length, seen by the same query or by a second one") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int head_dim : {32, 64, 128, 256}) {
      for (const int prefix : {1, 4, 63, 64, 65}) {
        AttentionSpec s;
        s.kv_type = type, s.head_dim = head_dim, s.num_heads = 4, s.num_kv_heads = 2, s.prefix_tokens = prefix, s.second_query = prefix % 2;
        s.window = 90, s.ring = true, s.scale = 1 / std::sqrt(static_cast<float>(head_dim));
        s.sequences = {{1, 0}, {2, 100}, {5, 300}};
        check(s, name_of(s) + ", prefix " + std::to_string(prefix));
      }
    }
  }
}

TEST("cuda decode: a ragged batch, empty sequences among it, on every kind of device") {
  each_device({Capability::sm80, Capability::sm86, Capability::sm90, Capability::sm120}, [] {
    for (const KvType type : {KvType::bf16, KvType::int8}) {
      AttentionSpec s;
      s.kv_type = type, s.head_dim = 64, s.num_heads = 6, s.num_kv_heads = 2;
      s.sequences = {{1, 0}, {16, 500}, {0, 5}, {3, 61}, {1, 1000}, {7, 0}, {0, 0}, {1, 640}};
      check(s, name_of(s));
      s.head_dim = 256, s.num_heads = 32, s.num_kv_heads = 1, s.scale = 1.0f / 16;  // the most shared memory
      s.sequences = {{2, 150}};
      check(s, name_of(s));
    }
  });
}

TEST("cuda decode: bf16 and int8 output are the rounded f32 output") {
  AttentionSpec s;
  s.num_heads = 4, s.num_kv_heads = 2, s.head_dim = 128, s.sequences = {{2, 300}};
  const AttentionProblem problem(s);
  const AttentionOnDevice device(problem);
  const std::vector<float> whole = as<float>(launch_decode(decode_params(problem, device, {}), problem.tokens));
  const std::vector<uint16_t> halves =
      as<uint16_t>(launch_decode(decode_params(problem, device, {.out_type = cuda::ActType::bf16}), problem.tokens));
  const float inverse = 1 / 0.003f;
  const std::vector<int8_t> bytes = as<int8_t>(
      launch_decode(decode_params(problem, device, {.out_type = cuda::ActType::int8, .out_inverse_scale = inverse}), problem.tokens));
  int saturated = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    CHECK(halves[i] == float_to_bf16(whole[i]));
    const float q = std::clamp(std::nearbyint(whole[i] * inverse), -127.0f, 127.0f);
    CHECK(bytes[i] == static_cast<int8_t>(q));
    saturated += std::fabs(q) == 127;
  }
  CHECK(saturated > 0 && saturated < static_cast<int>(whole.size()) / 2);
}

TEST("cuda decode: a batch gives the bits of its sequences alone, whatever the bounds of the launch") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    AttentionSpec s;
    s.kv_type = type, s.head_dim = 64, s.num_heads = 4, s.num_kv_heads = 2, s.prefix_tokens = 3, s.window = 600;
    s.sequences = {{1, 700}, {5, 1000}, {1, 0}, {16, 300}, {2, 63}};
    const AttentionProblem problem(s);
    const AttentionOnDevice device(problem);
    const std::vector<float> all = as<float>(launch_decode(decode_params(problem, device, {}), problem.tokens));
    CHECK(same_bits(all, as<float>(launch_decode(decode_params(problem, device, {.max_rows = 16, .max_keys = 100000}), problem.tokens))));
    for (size_t n = 0; n < s.sequences.size(); ++n) {
      AttentionDecodeParams p = decode_params(problem, device, {});
      p.common.sequences += n, p.common.num_sequences = 1;
      p.max_rows = s.sequences[n].rows, p.max_keys = s.sequences[n].first_pos + s.sequences[n].rows;
      const std::vector<float> one = as<float>(launch_decode(p, problem.tokens));
      const size_t row = static_cast<size_t>(s.num_heads) * s.head_dim, first = device.sequences[n].first_row * row,
                   count = s.sequences[n].rows * row;
      CHECK_MSG(std::memcmp(&one[first], &all[first], count * 4) == 0, "sequence " << n);
    }
  }
}

TEST("cuda decode: a row's bits depend on its position alone: drafts equal single steps, across the places where splits change") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    AttentionSpec s;
    s.kv_type = type, s.head_dim = 256, s.num_heads = 16, s.num_kv_heads = 1, s.scale = 1.0f / 16;
    // The first position whose split differs from its neighbour's.
    AttentionDecodeParams shape = {};
    shape.common.num_heads = s.num_heads, shape.common.num_kv_heads = s.num_kv_heads, shape.common.head_dim = s.head_dim;
    shape.common.kv_type = type, shape.common.window = s.window, shape.max_rows = 1, shape.max_keys = 1;
    const cuda::DecodeSplitRule rule = cuda::attention_decode_plan(shape, *context().device).rule;
    int change = 1;
    while (change < 4000 && rule.rows_of_first_split(change - 1, 2) == 2) ++change;
    CHECK(change < 4000);
    struct Case {
      int first, window;
    };
    for (const Case& c : {Case{3, cuda::kNoWindow}, Case{change - 3, cuda::kNoWindow}, Case{198, 201}}) {
      s.sequences = {{7, c.first}}, s.window = c.window;
      const AttentionProblem problem(s);
      const AttentionOnDevice device(problem);
      const std::vector<float> draft = as<float>(launch_decode(decode_params(problem, device, {}), problem.tokens));
      check_attention(draft, problem.reference(), 2e-2, 4e-3, name_of(s));
      const size_t row = static_cast<size_t>(s.num_heads) * s.head_dim;
      for (int r = 0; r < s.sequences[0].rows; ++r) {
        cuda::AttentionSequence step = device.sequences[0];
        step.first_row += r, step.first_pos += r, step.rows = 1;
        DeviceArray<cuda::AttentionSequence> one(std::vector<cuda::AttentionSequence>{step});
        AttentionDecodeParams p = decode_params(problem, device, {});
        p.common.sequences = one.get(), p.max_rows = 1;
        const std::vector<float> single = as<float>(launch_decode(p, problem.tokens));
        CHECK_MSG(std::memcmp(&single[r * row], &draft[r * row], row * 4) == 0,
                  "row " << r << " at " << c.first + r << ", window " << c.window);
      }
    }
  }
}

TEST("cuda decode: a cluster and the last block give the same bits") {
  each_device({Capability::sm90}, [] {
    if (!context().device->has_clusters()) return;
    int clusters = 0;
    for (const KvType type : {KvType::bf16, KvType::int8}) {
      for (const int rows : {1, 7}) {
        AttentionSpec s;
        s.kv_type = type, s.head_dim = 256, s.num_heads = 8, s.num_kv_heads = 2, s.prefix_tokens = 5, s.second_query = true,
        s.scale = 1.0f / 16;
        s.sequences = {{rows, 300}, {1, 20}, {rows, 100}};
        const AttentionProblem problem(s);
        const AttentionOnDevice device(problem);
        const AttentionDecodeParams p = decode_params(problem, device, {.merge = DecodeMerge::cluster});
        clusters += cuda::attention_decode_plan(p, *context().device).cluster;
        const std::vector<float> cluster = as<float>(launch_decode(p, problem.tokens));
        CHECK(same_bits(cluster, decode(problem, {.merge = DecodeMerge::global_memory})));
        check_attention(cluster, problem.reference(), 2e-2, 4e-3, name_of(s));
      }
    }
    CHECK(clusters == 4);
  });
}

TEST("cuda decode: masking a long cache equals slicing it") {
  // With a window of n, what lies before it may be anything, infinities included.
  AttentionSpec s;
  s.head_dim = 64, s.num_heads = 2, s.num_kv_heads = 1, s.window = 70;
  s.sequences = {{2, 400}};
  AttentionProblem problem(s);
  const std::vector<float> before = decode(problem);
  for (int p = 0; p < 400 - 70 + 1; ++p) {
    for (int d = 0; d < 64; ++d) problem.k[0][p * 64 + d] = INFINITY, problem.v[0][p * 64 + d] = -INFINITY;
  }
  CHECK(same_bits(before, decode(problem)));
}

TEST("cuda decode: huge scores, equal scores, negative zeros, denormals") {
  AttentionSpec s;
  s.head_dim = 64, s.num_heads = 4, s.num_kv_heads = 2, s.sequences = {{3, 200}};
  for (const float magnitude : {0.0f, 1e-38f, 300.0f, 1e8f}) {
    s.magnitude = magnitude;
    check(s, "magnitude " + std::to_string(magnitude));
  }
  s.magnitude = 1;
  AttentionProblem problem(s);
  for (float& x : problem.k[0]) x = -0.0f;
  for (size_t i = 0; i < problem.v[0].size(); i += 7) problem.v[0][i] = i % 2 ? 1e4f : -1e-39f;
  for (float& x : problem.v[0]) x = bf16_to_float(float_to_bf16(x));
  check_attention(decode(problem), problem.reference(), 2e-2, 4e-3, "equal scores");
}

TEST("cuda decode: the plan") {
  AttentionDecodeParams p = {};
  p.common.num_heads = 8, p.common.num_kv_heads = 4, p.common.head_dim = 256, p.common.window = cuda::kNoWindow,
  p.common.kv_type = KvType::bf16;
  p.common.num_sequences = 1, p.common.scale = 1.0f / 16;
  p.max_rows = 1, p.max_keys = 8192;
  cuda::DeviceFacts facts;
  facts.major = 9, facts.code = 90, facts.sm_count = 132, facts.smem_per_block = 227 * 1024;
  cuda::AttentionDecodePlan plan = cuda::attention_decode_plan(p, facts);
  CHECK(plan.columns == 1 && plan.group_tokens == 1 && plan.row_groups == 1 && !plan.cluster);
  CHECK(plan.rule.keys_per_split(8191) == 256 && plan.splits >= 32);  // 128 of 132 SMs at 8k
  CHECK(plan.rule.keys_per_split(0) == 64 && plan.rule.keys_per_split(32767) == 1024);
  p.common.window = 512, p.common.num_kv_heads = 1, p.common.num_heads = 4;
  plan = cuda::attention_decode_plan(p, facts);
  CHECK(plan.cluster && plan.splits <= 8 && plan.rule.keys_per_split(100000) == 128);  // a window that fits one cluster
  p.max_rows = 16;
  plan = cuda::attention_decode_plan(p, facts);
  CHECK(plan.columns == 4 && plan.group_tokens == 8 && plan.row_groups == 3 && plan.splits <= 8);
  facts.major = 8, facts.code = 80;
  CHECK(!cuda::attention_decode_plan(p, facts).cluster);

  // What the plan promises: every group's splits fit the grid; splits are whole tiles; steps of positions never end inside a tile.
  for (const int sm_count : {1, 58, 108, 132}) {
    for (const int32_t window : {1, 64, 512, 1024, 4096, cuda::kNoWindow}) {
      facts.sm_count = sm_count, p.common.window = window, p.common.num_kv_heads = 4, p.common.num_heads = 8, p.max_keys = 20000;
      plan = cuda::attention_decode_plan(p, facts);
      int32_t previous_end = 0;
      for (int32_t first = 0; first + p.max_rows <= p.max_keys; first += 37) {
        const int32_t keys = plan.rule.keys_per_split(first), end = plan.rule.step_end(first);
        CHECK(keys >= 64 && keys % 64 == 0 && end % 64 == 0 && end >= previous_end);
        previous_end = end;
        const int same = plan.rule.rows_of_first_split(first, p.max_rows);
        CHECK(same >= 1 && same <= p.max_rows);
        for (int r = 0; r < p.max_rows; ++r) CHECK((plan.rule.keys_per_split(first + r) == keys) == (r < same));
        const int32_t oldest = std::max(0, first - window + 1);
        const int32_t splits = (first + same - 1) / keys - oldest / keys + 1;
        CHECK_MSG(splits <= plan.splits, splits << " splits at " << first << ", window " << window << ", plan " << plan.splits);
      }
    }
  }
}

TEST("cuda decode: what it does not take is refused with the reason") {
  AttentionSpec s;
  s.sequences = {{1, 300}}, s.head_dim = 64;
  const AttentionProblem problem(s);
  const AttentionOnDevice device(problem);
  const AttentionDecodeParams good = decode_params(problem, device, {});
  const auto refused = [&](const AttentionDecodeParams& p, std::string_view part) {
    const cuda::Status status = api().attention_decode(p, context());
    CHECK(status.kind == cuda::Status::Kind::refused);
    CHECK_MSG(status.what && std::string_view(status.what).find(part) != std::string_view::npos,
              "reason: " << (status.what ? status.what : "none"));
  };
  AttentionDecodeParams p = good;
  p.common.head_dim = 96;
  CHECK(!cuda::supports_attention_decode(p, *context().device));
  refused(p, "head_dim");
  p = good, p.common.kv_type = KvType::f32;
  CHECK(!cuda::supports_attention_decode(p, *context().device));
  refused(p, "f32");
  p = good, p.max_rows = 17;
  CHECK(!cuda::supports_attention_decode(p, *context().device));
  refused(p, "max_rows");
  p = good, p.common.num_heads = 33;
  CHECK(!cuda::supports_attention_decode(p, *context().device));
  refused(p, "query heads");
  p = good, p.common.window = 0;
  refused(p, "window");
  p = good, p.merge = DecodeMerge::global_memory;
  CHECK(cuda::supports_attention_decode(p, *context().device));
  refused(p, "partials");
  p = good, p.q = nullptr;
  refused(p, "projections");
  p = good, p.common.prefix_tokens = 3;
  refused(p, "prefix");
}

// --- fused ------------------------------------------------------------------------------------------------------------------

namespace {

// The projections of a step, on the device.
struct Projections {
  std::shared_ptr<DeviceArray<float>> qkv, q_weight, k_weight, cos, sin, prefix_cos, prefix_sin;
  cuda::QkvRows rows = {};

  Projections(const AttentionSpec& s, int tokens, bool norm) {
    std::mt19937 random(s.seed + 7);
    std::normal_distribution<float> normal;
    const auto array = [&](size_t count, float magnitude) {
      std::vector<float> v(count);
      for (float& x : v) x = normal(random) * magnitude;
      return std::make_shared<DeviceArray<float>>(v);
    };
    const int stride = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
    const size_t half = static_cast<size_t>(tokens) * s.head_dim / 2;
    qkv = array(static_cast<size_t>(tokens) * stride, 1);
    q_weight = array(s.head_dim, 0.2f), k_weight = array(s.head_dim, 0.2f);
    cos = array(half, 0.7f), sin = array(half, 0.7f), prefix_cos = array(half, 0.7f), prefix_sin = array(half, 0.7f);
    rows.q = qkv->get(), rows.k = rows.q + s.num_heads * s.head_dim, rows.v = rows.k + s.num_kv_heads * s.head_dim;
    rows.q_stride = rows.k_stride = rows.v_stride = stride;
    if (norm) rows.q_norm = {q_weight->get(), 1, 1e-6f}, rows.k_norm = {k_weight->get(), 1, 1e-6f};
    rows.cos = cos->get(), rows.sin = sin->get();
    if (s.second_query) rows.prefix_cos = prefix_cos->get(), rows.prefix_sin = prefix_sin->get();
  }
};

// The step as two launches and as one: the same output and the same cache, bit for bit.
void check_fused(const AttentionSpec& s, bool norm, DecodeMerge merge, const std::string& what) {
  const AttentionProblem problem(s);
  AttentionOnDevice device(problem);
  const Projections projections(s, problem.tokens, norm);
  AttentionDecodeParams p = decode_params(problem, device, {.merge = merge});

  const size_t q_count = static_cast<size_t>(problem.tokens) * s.num_heads * s.head_dim;
  DeviceArray<uint16_t> q(q_count), q_prefix(q_count);
  cuda::QkRopeAppendParams append = {};
  append.rows = projections.rows, append.tokens = problem.tokens;
  append.num_heads = s.num_heads, append.num_kv_heads = s.num_kv_heads, append.head_dim = s.head_dim;
  append.q_out = q.get(), append.q_prefix_out = s.second_query ? q_prefix.get() : nullptr, append.q_type = cuda::ActType::bf16,
  append.kv_type = s.kv_type;
  append.sequences = p.common.sequences, append.num_sequences = p.common.num_sequences;
  require_ok(api().qk_rope_append(append, context()));
  p.q = q.get(), p.q_prefix = s.second_query ? q_prefix.get() : nullptr;
  const std::vector<float> unfused = as<float>(launch_decode(p, problem.tokens));
  const std::vector<uint8_t> unfused_cache = device.pool->download();
  CHECK(unfused_cache != device.pool_host);

  // The fused launch finds the new rows' places as they were before, or never written.
  device.pool->upload(device.pool_host);
  p.q = nullptr, p.q_prefix = nullptr, p.rows = projections.rows;
  const std::vector<float> fused = as<float>(launch_decode(p, problem.tokens));
  CHECK_MSG(same_bits(fused, unfused), what);
  CHECK_MSG(device.pool->download() == unfused_cache, what << ": the caches differ");
}

}  // namespace

TEST("cuda decode: fused with QK-norm, RoPE and append equals the launches one by one, bit for bit") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int head_dim : {32, 64, 128, 256}) {
      for (const DecodeMerge merge : {DecodeMerge::automatic, DecodeMerge::global_memory}) {
        AttentionSpec s;
        s.kv_type = type, s.head_dim = head_dim, s.num_heads = 4, s.num_kv_heads = 2, s.scale = 1 / std::sqrt(static_cast<float>(head_dim));
        s.sequences = {{1, 0}, {5, 60}, {1, 300}, {16, 120}};
        check_fused(s, true, merge, name_of(s));
      }
    }
  }
}

TEST("cuda decode: fused with a prefix, windows, rings whose newest rows overwrite old ones") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int window : {1, 2, 64, 65, 150}) {
      AttentionSpec s;
      s.kv_type = type, s.head_dim = 64, s.num_heads = 4, s.num_kv_heads = 1, s.window = window, s.ring = true, s.spare_pages = 0;
      s.prefix_tokens = window % 2 ? 5 : 0, s.second_query = window % 2;
      s.sequences = {{1, 200}, {3, 190}, {16, 510}, {16, 40}};
      check_fused(s, window != 2, DecodeMerge::automatic, name_of(s));
    }
  }
}

TEST("cuda decode: copies early or late, threads in any order: the same bits") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    AttentionSpec s;
    s.kv_type = type, s.head_dim = 128, s.num_heads = 4, s.num_kv_heads = 2, s.prefix_tokens = 5, s.window = 333, s.ring = true,
    s.spare_pages = 0;
    s.sequences = {{1, 500}, {5, 60}};
    if (type == KvType::int8) s.prefix_tokens = 130;  // more tiles than the ring has stages
    for (const DecodeMerge merge : {DecodeMerge::automatic, DecodeMerge::global_memory}) {
      const AttentionProblem problem(s);
      const std::vector<float> usual = decode(problem, {.merge = merge});
      each_mode([&] {
        CHECK(same_bits(usual, decode(problem, {.merge = merge})));
        check_fused(s, true, merge, name_of(s));
      });
    }
    // Splits of more tiles than the ring has stages.
    s.head_dim = 256, s.num_heads = 16, s.num_kv_heads = 1, s.window = cuda::kNoWindow, s.ring = false, s.prefix_tokens = 0,
    s.scale = 1.0f / 16;
    s.sequences = {{2, 640}};
    const AttentionProblem problem(s);
    const std::vector<float> usual = decode(problem);
    check_attention(usual, problem.reference(), 2e-2, 4e-3, name_of(s));
    each_mode([&] { CHECK(same_bits(usual, decode(problem))); });
  }
}

#ifdef LAPIDARY_EMULATED
TEST("cuda decode: shared memory without bank conflicts, keys outside the window not read, enough bytes in flight") {
  for (const KvType type : {KvType::bf16, KvType::int8}) {
    for (const int head_dim : {32, 64, 128, 256}) {
      for (const int rows : {1, 3, 10}) {
        AttentionSpec s;
        s.kv_type = type, s.head_dim = head_dim, s.num_heads = 2, s.window = 1024, s.sequences = {{rows, 3000}};
        const AttentionProblem problem(s);
        const AttentionOnDevice device(problem);
        launch_decode(decode_params(problem, device, {}), problem.tokens);
        const emulator::LaunchStatistics& statistics = emulator::last_launch();
        CHECK_MSG(statistics.matrix_wavefronts == statistics.matrix_wavefronts_ideal, name_of(s));
        const int64_t visible = (1024 + rows - 1) * cuda::attention_page_bytes(type, 1, head_dim) / 64;
        // Besides keys and values every thread reads the sequence and the pages' places, and the last block the partial results.
        CHECK_MSG(statistics.global_read_bytes >= visible && statistics.global_read_bytes < 2 * visible,
                  name_of(s) << ": " << statistics.global_read_bytes << " bytes read, " << visible << " visible");
        // At least half a ring, and what the latency of device memory asks for of an SM wherever a split has as many keys.
        if (head_dim >= 128)
          CHECK_MSG(statistics.most_bytes_in_flight >= 24 * 1024, name_of(s)
                                                                      << ": " << statistics.most_bytes_in_flight << " bytes in flight");
      }
    }
  }
}
#endif

}  // namespace lapidary::test
