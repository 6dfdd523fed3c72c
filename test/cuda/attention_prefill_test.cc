// Prefill attention against its definition in double, and against itself: sliced caches, chunked prompts, batches, schedules.
#include <cstdio>
#include <functional>
#include <tuple>

#include "cuda/attention_problem.h"
#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

using cuda::ActType;
using cuda::KvType;

#ifdef LAPIDARY_EMULATED
constexpr emulator::Preset kPresets[] = {emulator::Preset::sm80, emulator::Preset::sm86, emulator::Preset::sm90};
#endif

// Runs `body` on every kind of device that has its own tiles or kernels: those the emulator knows, or the one at hand.
void on_each_device(const std::function<void()>& body) {
#ifdef LAPIDARY_EMULATED
  const cuda::DeviceFacts before = emulator::device();
  for (const emulator::Preset preset : kPresets) {
    emulator::set_device(emulator::facts_of(preset));
    body();
  }
  emulator::set_device(before);
#else
  body();
#endif
}

// Whether the device at hand runs the problem in another way than the devices before it in kPresets.
bool differs_here(const AttentionSpec& s, bool pool) {
#ifdef LAPIDARY_EMULATED
  const auto way = [&](const cuda::DeviceFacts& device) {
    const cuda::AttentionTileShape shape = cuda::attention_tile(s.head_dim, s.kv_type, device, pool);
    return std::tuple(shape.rows, shape.keys, shape.wgmma);
  };
  for (const emulator::Preset preset : kPresets) {
    const cuda::DeviceFacts earlier = emulator::facts_of(preset);
    if (std::pair(earlier.major, earlier.minor) == std::pair(context().device->major, context().device->minor)) break;
    if (way(earlier) == way(*context().device)) return false;
  }
#endif
  (void)s, (void)pool;
  return true;
}

// bf16 bars: P is rounded to bf16 (2^-9), as is the output; the norm averages over them.
constexpr double kWorst = 2e-2, kNorm = 4e-3, kExactWorst = 1e-5, kExactNorm = 1e-5;

std::string describe(const AttentionSpec& s) {
  std::ostringstream os;
  os << "heads " << s.num_heads << "/" << s.num_kv_heads << " dim " << s.head_dim << " window " << s.window << " cap " << s.softcap
     << " kv " << static_cast<int>(s.kv_type) << " prefix " << s.prefix_tokens << (s.second_query ? "+q" : "") << (s.ring ? " ring" : "")
     << " images " << s.images.size() << " rows";
  for (const SequenceSpec& x : s.sequences) os << " " << x.rows << "@" << x.first_pos;
  os << " on sm_" << context().device->major << context().device->minor;
  return os.str();
}

cuda::AttentionPrefillParams params_of(const AttentionProblem& problem, const AttentionOnDevice& device, bool pool) {
  cuda::AttentionPrefillParams p = {};
  p.common = device.common;
  p.q = device.q->get();
  p.q_prefix = problem.spec.second_query ? device.q_prefix->get() : nullptr;
  p.images = device.images ? device.images->get() : nullptr;
  if (pool) p.pool = device.pool->get(), p.pool_bytes = static_cast<int64_t>(device.pool->size());
  p.shape = cuda::attention_tile(problem.spec.head_dim, problem.spec.kv_type, *context().device, pool);
  return p;
}

// pool false: the mma.sync kernel wherever it runs.
template <typename T>
std::vector<T> run_prefill_as(const AttentionProblem& problem, ActType type, float inverse_scale, bool pool) {
  const AttentionOnDevice device(problem);
  cuda::AttentionPrefillParams p = params_of(problem, device, pool);
  REQUIRE(p.shape.rows > 0);
  const auto tiles =
      cuda::plan_attention_tiles(device.sequences, problem.spec.num_heads / problem.spec.num_kv_heads, problem.spec.window, p.shape);
  const DeviceArray<cuda::AttentionTile> tiles_device(tiles);
  p.tiles = tiles_device.get(), p.num_tiles = static_cast<int32_t>(tiles.size());
  DeviceArray<T> out(problem.q.size());
  p.out = out.get(), p.out_type = type, p.out_inverse_scale = inverse_scale;
  require_ok(api().attention_prefill(p, context()));
  return out.download();
}

std::vector<float> run_prefill(const AttentionProblem& problem, bool pool = true) {
  return run_prefill_as<float>(problem, ActType::f32, 0, pool);
}

std::vector<float> run_f32(const AttentionProblem& problem, bool wide_prefix = true) {
  const AttentionOnDevice device(problem);
  cuda::AttentionF32Params p = {};
  p.common = device.common;
  p.q = device.q_f32->get();
  p.q_prefix = problem.spec.second_query ? device.q_prefix_f32->get() : nullptr;
  p.images = device.images ? device.images->get() : nullptr;
  if (wide_prefix && problem.spec.prefix_tokens > 0)
    p.prefix_k_f32 = device.prefix_k_f32->get(), p.prefix_v_f32 = device.prefix_v_f32->get();
  p.tokens = problem.tokens;
  DeviceArray<float> out(problem.q.size());
  p.out = out.get(), p.out_type = ActType::f32;
  require_ok(api().attention_f32(p, context()));
  return out.download();
}

// With and without a pool, where that or the device makes a difference.
std::vector<bool> pools(const AttentionSpec& spec) {
  std::vector<bool> out;
  if (differs_here(spec, false)) out.push_back(false);
  if (cuda::attention_tile(spec.head_dim, spec.kv_type, *context().device, true).wgmma) out.push_back(true);
  return out;
}

std::vector<float> run_any(const AttentionProblem& problem, bool pool) {
  return problem.spec.kv_type == KvType::f32 ? run_f32(problem) : run_prefill(problem, pool);
}

void check_prefill(const AttentionSpec& spec) {
  const std::vector<bool> ways = pools(spec);
  if (ways.empty()) return;
  const AttentionProblem problem(spec);
  const std::vector<float> want = problem.reference();
  const bool exact = spec.kv_type == KvType::f32;
  for (const bool pool : ways) {
    check_attention(run_any(problem, pool), want, exact ? kExactWorst : kWorst, exact ? kExactNorm : kNorm,
                    (pool ? "wgmma " : "") + describe(spec));
  }
}

TEST("cuda prefill: every head_dim, bf16 and int8 cache") {
  on_each_device([] {
    for (const int head_dim : {8, 16, 24, 32, 40, 64, 96, 128, 192, 256}) {
      for (const KvType type : {KvType::bf16, KvType::int8}) {
        if (type == KvType::int8 && head_dim % 16 != 0) continue;
        check_prefill({.num_heads = 4,
                       .num_kv_heads = 2,
                       .head_dim = head_dim,
                       .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                       .kv_type = type,
                       .sequences = {{70, 5}}});
      }
    }
  });
}

TEST("cuda prefill: window edges, in a ring and in growing pages") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int window : {1, 2, 63, 64, 65, 100}) {
        for (const bool ring : {false, true}) {
          check_prefill({.num_heads = 2,
                         .num_kv_heads = 1,
                         .head_dim = 32,
                         .window = window,
                         .kv_type = type,
                         .sequences = {{130, 0}, {70, 97}, {40, 600}},
                         .ring = ring});
        }
      }
      // The sequence around its window: W - 1, W and W + 1 keys.
      for (const int rows : {99, 100, 101})
        check_prefill({.head_dim = 32, .window = 100, .kv_type = type, .sequences = {{rows, 0}}, .ring = true});
    }
    check_prefill(
        {.num_heads = 4, .num_kv_heads = 2, .head_dim = 256, .window = 80, .scale = 0.0625f, .sequences = {{70, 200}}, .ring = true});
    check_prefill(
        {.num_heads = 4, .num_kv_heads = 2, .head_dim = 128, .window = 80, .scale = 0.09f, .sequences = {{150, 200}}, .ring = true});
  });
}

TEST("cuda prefill: groups of heads, one KV head, ragged batches") {
  on_each_device([] {
    for (const int group : {1, 2, 3, 4, 8}) {
      check_prefill({.num_heads = group, .num_kv_heads = 1, .head_dim = 64, .sequences = {{33, 7}, {1, 0}, {1, 64}, {17, 63}}});
      check_prefill({.num_heads = 2 * group, .num_kv_heads = 2, .head_dim = 32, .kv_type = KvType::int8, .sequences = {{33, 7}}});
      check_prefill({.num_heads = 2 * group, .num_kv_heads = 2, .head_dim = 32, .kv_type = KvType::f32, .sequences = {{33, 7}, {1, 3}}});
    }
    std::vector<SequenceSpec> ragged;
    for (int rows = 1; rows <= 17; ++rows) ragged.push_back({rows, rows * 13 % 71});
    ragged.push_back({33, 0}), ragged.push_back({130, 31});
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      check_prefill({.num_heads = 4, .num_kv_heads = 2, .head_dim = 32, .window = 50, .kv_type = type, .sequences = ragged});
    }
    check_prefill(
        {.num_heads = 4, .num_kv_heads = 1, .head_dim = 256, .scale = 0.0625f, .sequences = {{1, 0}, {31, 60}, {33, 0}, {17, 129}}});
    check_prefill({.num_heads = 2, .num_kv_heads = 1, .head_dim = 128, .scale = 0.09f, .sequences = {{1, 127}, {63, 0}, {65, 64}}});
  });
}

TEST("cuda prefill: soft-cap") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const float cap : {1.0f, 50.0f}) {
        check_prefill({.num_heads = 2,
                       .head_dim = 64,
                       .window = 90,
                       .scale = 0.5f,
                       .softcap = cap,
                       .kv_type = type,
                       .sequences = {{80, 50}},
                       .prefix_tokens = 3,
                       .magnitude = 4});
      }
    }
    check_prefill({.num_heads = 2, .head_dim = 256, .scale = 0.0625f, .softcap = 50, .sequences = {{80, 50}}, .magnitude = 8});
    check_prefill(
        {.num_heads = 2, .head_dim = 128, .scale = 0.09f, .softcap = 50, .sequences = {{80, 50}}, .prefix_tokens = 5, .magnitude = 8});
  });
}

TEST("cuda prefill: a prefix of any length, seen by the same query or by a second one") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int prefix : {1, 3, 64, 70, 130}) {
        for (const bool second : {false, true}) {
          check_prefill({.num_heads = 4,
                         .num_kv_heads = 2,
                         .head_dim = 32,
                         .window = 40,
                         .kv_type = type,
                         .sequences = {{75, 0}, {2, 150}},
                         .prefix_tokens = prefix,
                         .second_query = second,
                         .ring = true});
        }
      }
    }
    for (const bool second : {false, true}) {
      check_prefill({.num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 256,
                     .window = 70,
                     .scale = 0.0625f,
                     .sequences = {{75, 100}},
                     .prefix_tokens = 70,
                     .second_query = second});
      check_prefill({.num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 256,
                     .window = 70,
                     .scale = 0.0625f,
                     .kv_type = KvType::int8,
                     .sequences = {{75, 100}},
                     .prefix_tokens = 70,
                     .second_query = second});
      check_prefill({.num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 128,
                     .scale = 0.09f,
                     .sequences = {{75, 100}},
                     .prefix_tokens = 9,
                     .second_query = second});
    }
  });
}

TEST("cuda prefill: image blocks at the edges of tiles, inside and outside the window, beyond the newest row") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int window : {20, cuda::kNoWindow}) {
        for (const cuda::ImageBlock image : {cuda::ImageBlock{0, 64}, {63, 65}, {64, 128}, {10, 100}, {127, 129}, {100, 190}}) {
          check_prefill({.num_heads = 2,
                         .head_dim = 32,
                         .window = window,
                         .kv_type = type,
                         .sequences = {{150, 0}, {40, 80}},
                         .ring = window < 64,
                         .images = {image}});
        }
        check_prefill({.num_heads = 2,
                       .head_dim = 32,
                       .window = window,
                       .kv_type = type,
                       .sequences = {{200, 0}},
                       .prefix_tokens = 2,
                       .images = {{3, 30}, {30, 70}, {129, 180}}});
      }
    }
    check_prefill({.num_heads = 4,
                   .num_kv_heads = 2,
                   .head_dim = 256,
                   .window = 30,
                   .scale = 0.0625f,
                   .sequences = {{150, 0}},
                   .images = {{10, 90}, {100, 145}}});
    check_prefill({.num_heads = 4,
                   .num_kv_heads = 2,
                   .head_dim = 128,
                   .window = 30,
                   .scale = 0.09f,
                   .sequences = {{150, 0}},
                   .images = {{10, 90}, {100, 300}}});
  });
}

TEST("cuda prefill: bf16 and int8 output are the rounded f32 output") {
  on_each_device([] {
    for (const int head_dim : {8, 24, 128, 256}) {
      const AttentionSpec spec = {.num_heads = 4, .num_kv_heads = 2, .head_dim = head_dim, .sequences = {{45, 20}}};
      for (const bool pool : pools(spec)) {
        const AttentionProblem problem(spec);
        const std::vector<float> exact = run_prefill(problem, pool);
        const std::vector<uint16_t> bf16 = run_prefill_as<uint16_t>(problem, ActType::bf16, 0, pool);
        const std::vector<int8_t> int8 = run_prefill_as<int8_t>(problem, ActType::int8, 300, pool);
        bool saturated = false;
        for (size_t i = 0; i < exact.size(); ++i) {
          CHECK_MSG(bf16[i] == float_to_bf16(exact[i]),
                    "dim " << head_dim << " at " << i << ": " << bf16_to_float(bf16[i]) << ", want " << exact[i]);
          const float want = std::clamp(std::nearbyint(exact[i] * 300), -127.0f, 127.0f);
          CHECK_MSG(int8[i] == want, "dim " << head_dim << " at " << i << ": " << int{int8[i]} << ", want " << want);
          saturated |= std::fabs(exact[i] * 300) > 127;
        }
        CHECK_MSG(saturated, "the scale never saturates");
      }
    }
  });
}

// Rows [first, first + rows) of sequence 0's output.
std::vector<float> rows_of(const std::vector<float>& out, const AttentionSpec& s, int first, int rows) {
  const size_t row = static_cast<size_t>(s.num_heads) * s.head_dim;
  return {out.begin() + first * row, out.begin() + (first + rows) * row};
}

// `part` is the same conversation as `whole`, of which it runs rows [first, first + rows) alone.
AttentionProblem part_of(const AttentionProblem& whole, int first, int rows) {
  AttentionProblem part = whole;
  const size_t row = static_cast<size_t>(whole.spec.num_heads) * whole.spec.head_dim;
  part.spec.sequences = {{rows, whole.spec.sequences[0].first_pos + first}};
  part.tokens = rows;
  part.q.assign(whole.q.begin() + first * row, whole.q.begin() + (first + rows) * row);
  part.q_prefix.assign(whole.q_prefix.begin() + first * row, whole.q_prefix.begin() + (first + rows) * row);
  part.row_images.assign(whole.row_images.begin() + first, whole.row_images.begin() + first + rows);
  return part;
}

TEST("cuda prefill: a row's bits do not depend on where chunks begin nor on the sequences beside it") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int head_dim : {32, 128, 256}) {
        if (head_dim != 32 && type == KvType::f32) continue;
        const AttentionSpec spec = {.num_heads = 4,
                                    .num_kv_heads = 2,
                                    .head_dim = head_dim,
                                    .window = 70,
                                    .scale = 0.07f,
                                    .kv_type = type,
                                    .sequences = {{150, 37}},
                                    .prefix_tokens = 3,
                                    .second_query = true,
                                    .magnitude = 3};
        for (const bool pool : pools(spec)) {
          const AttentionProblem whole(spec);
          const std::vector<float> want = run_any(whole, pool);
          for (const auto& [first, rows] : {std::pair{0, 1}, {0, 77}, {77, 73}, {149, 1}, {64, 32}}) {
            const std::vector<float> got = run_any(part_of(whole, first, rows), pool);
            CHECK_MSG(got == rows_of(want, spec, first, rows), describe(spec)
                                                                   << ": rows " << first << " + " << rows << " differ when run alone");
          }
          AttentionSpec beside = spec;
          beside.sequences.push_back({65, 3});
          const AttentionProblem both(beside);
          AttentionProblem mixed = part_of(both, 0, 150);
          const std::vector<float> alone = run_any(mixed, pool);
          CHECK_MSG(rows_of(run_any(both, pool), spec, 0, 150) == alone, describe(spec) << ": differs beside another sequence");
        }
      }
    }
  });
}

TEST("cuda prefill: masking a long cache equals slicing it") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      // With a window of 64 the row at position 191 sees keys 128..191, a whole page: alone in a cache of one page they are positions
      // 0..63.
      const AttentionSpec spec = {
          .num_heads = 2, .head_dim = type == KvType::bf16 ? 128 : 64, .window = 64, .kv_type = type, .sequences = {{1, 191}}};
      const AttentionProblem masked(spec);
      AttentionProblem sliced = masked;
      sliced.spec.sequences = {{1, 63}};
      const auto slice = [&](auto& v, size_t row) { v[0].erase(v[0].begin(), v[0].begin() + 128 * row); };
      const size_t dim = spec.head_dim;
      slice(sliced.k, dim), slice(sliced.v, dim), slice(sliced.k_int8, dim), slice(sliced.v_int8, dim), slice(sliced.k_scale, 1),
          slice(sliced.v_scale, 1);
      for (const bool pool : pools(spec)) CHECK_MSG(run_any(masked, pool) == run_any(sliced, pool), describe(spec));
    }
  });
}

TEST("cuda prefill: huge scores, equal scores, negative zeros, denormals") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int head_dim : {32, 256}) {
        const double worst = type == KvType::f32 ? kExactWorst : kWorst, norm = type == KvType::f32 ? kExactNorm : kNorm;
        const AttentionSpec spec = {
            .num_heads = 2, .head_dim = head_dim, .scale = 1, .kv_type = type, .sequences = {{40, 100}}, .prefix_tokens = 2};
        for (const bool pool : pools(spec)) {
          const auto check = [&](const AttentionProblem& problem, const char* what) {
            check_attention(run_any(problem, pool), problem.reference(), worst, norm, what + (" " + describe(spec)));
          };
          AttentionProblem same(spec);
          std::fill(same.q.begin(), same.q.end(), 0.0f), std::fill(same.q_prefix.begin(), same.q_prefix.end(), 0.0f);
          check(same, "all scores equal");
          AttentionProblem negative_zero(spec);
          for (float& x : negative_zero.q) x = -0.0f;
          negative_zero.q_prefix = negative_zero.q;
          for (float& x : negative_zero.prefix_v) x = -0.0f;
          check(negative_zero, "-0");
          AttentionProblem tiny(spec);
          for (float& x : tiny.q) x = bf16_to_float(float_to_bf16(x * 1e-39f));
          tiny.q_prefix = tiny.q;
          check(tiny, "denormal queries");
          // One key of each row is 1e4 above the others, in turn below all of them.
          for (const float sign : {1.0f, -1.0f}) {
            AttentionProblem huge(spec);
            for (float& x : huge.q) x = 0;
            for (size_t i = 0; i < huge.q.size(); i += head_dim) huge.q[i] = sign * 1e4f;
            for (float& x : huge.q) x = bf16_to_float(float_to_bf16(x));
            huge.q_prefix = huge.q;
            std::vector<std::vector<float>>& k = huge.k;
            for (size_t i = 0; i < k[0].size(); i += head_dim) {
              for (int d = 0; d < head_dim; ++d) k[0][i + d] = 0;
              k[0][i] = i / head_dim % 7 == 3 ? 1 : 0;
              std::fill_n(&huge.k_int8[0][i], head_dim, static_cast<int8_t>(0));
              huge.k_int8[0][i] = static_cast<int8_t>(k[0][i]), huge.k_scale[0][i / head_dim] = 1;
            }
            for (size_t i = 0; i < huge.prefix_k.size(); i += head_dim) huge.prefix_k[i] = 0;
            check(huge, "huge scores");
          }
        }
      }
    }
  });
}

TEST("cuda prefill: the vision tower's head_dim 72, every key visible") {
  for (const int head_dim : {72, 32, 80, 8}) {
    for (const int tokens : {1, 64, 65, 130, 200}) {
      if (head_dim != 72 && tokens != 130) continue;
      const int heads = 2, row = 3 * heads * head_dim;  // q, k and v of a token beside each other
      const std::vector<SequenceSpec> images = {{tokens, 0}, {70, 0}};
      int total = 0;
      std::vector<cuda::AttentionSequence> sequences;
      for (const SequenceSpec& s : images) sequences.push_back({total, s.rows, 0, 0, nullptr}), total += s.rows;
      std::vector<float> qkv(static_cast<size_t>(total) * row);
      std::mt19937 random(5);
      std::normal_distribution<float> normal;
      for (float& x : qkv) x = bf16_to_float(float_to_bf16(normal(random)));
      const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
      std::vector<float> want(static_cast<size_t>(total) * heads * head_dim);
      for (const cuda::AttentionSequence& s : sequences) {
        for (int i = 0; i < s.rows * heads; ++i) {
          const int token = s.first_row + i / heads, head = i % heads;
          std::vector<double> sums(head_dim);
          double sum = 0;
          for (int j = s.first_row; j < s.first_row + s.rows; ++j) {
            double x = 0;
            for (int d = 0; d < head_dim; ++d)
              x += static_cast<double>(qkv[token * row + head * head_dim + d]) * qkv[j * row + (heads + head) * head_dim + d];
            const double p = std::exp(x * scale);
            sum += p;
            for (int d = 0; d < head_dim; ++d) sums[d] += p * qkv[j * row + (2 * heads + head) * head_dim + d];
          }
          for (int d = 0; d < head_dim; ++d) want[(token * heads + head) * head_dim + d] = static_cast<float>(sums[d] / sum);
        }
      }
      const auto qkv_device = AttentionOnDevice::bf16_array(qkv);
      const DeviceArray<cuda::AttentionSequence> sequences_device(sequences);
      const cuda::AttentionTileShape shape = cuda::attention_full_tile(head_dim, *context().device);
      const auto tiles = cuda::plan_attention_tiles(sequences, 1, cuda::kNoWindow, shape);
      const DeviceArray<cuda::AttentionTile> tiles_device(tiles);
      DeviceArray<uint16_t> out(want.size());
      require_ok(api().attention_full({.q = qkv_device->get(),
                                       .k = qkv_device->get() + heads * head_dim,
                                       .v = qkv_device->get() + 2 * heads * head_dim,
                                       .q_stride = row,
                                       .kv_stride = row,
                                       .num_heads = heads,
                                       .head_dim = head_dim,
                                       .scale = scale,
                                       .sequences = sequences_device.get(),
                                       .num_sequences = static_cast<int32_t>(sequences.size()),
                                       .tiles = tiles_device.get(),
                                       .num_tiles = static_cast<int32_t>(tiles.size()),
                                       .shape = shape,
                                       .out = out.get(),
                                       .out_type = ActType::bf16,
                                       .out_inverse_scale = 0},
                                      context()));
      check_attention(bf16_to_floats(out.download()), want, kWorst, kNorm,
                      "vision dim " + std::to_string(head_dim) + " tokens " + std::to_string(tokens));
    }
  }
}

TEST("cuda prefill: an f32 cache takes a bf16 prefix too") {
  const AttentionProblem problem({.num_heads = 2, .head_dim = 36, .kv_type = KvType::f32, .sequences = {{9, 60}}, .prefix_tokens = 5});
  CHECK(run_f32(problem, true) == run_f32(problem, false));
}

TEST("cuda prefill: what the launchers do not take is refused with the reason") {
  const AttentionProblem problem({.head_dim = 64, .sequences = {{3, 0}}});
  const AttentionOnDevice device(problem);
  const cuda::AttentionPrefillParams good = params_of(problem, device, false);
  const auto refused = [&](const cuda::AttentionPrefillParams& p, const char* part) {
    CHECK(!cuda::supports_attention_prefill(p, *context().device));
    const cuda::Status s = api().attention_prefill(p, context());
    CHECK_MSG(s.kind == cuda::Status::Kind::refused && std::string(s.what).find(part) != std::string::npos, (s.what ? s.what : "taken"));
  };
  CHECK(cuda::supports_attention_prefill(good, *context().device));
  cuda::AttentionPrefillParams bad = good;
  bad.common.head_dim = 12;
  refused(bad, "multiple of 8");
  bad = good, bad.common.kv_type = KvType::f32;
  refused(bad, "bf16 or int8");
  bad = good, bad.common.num_kv_heads = 3;
  refused(bad, "multiple of num_kv_heads");
  bad = good, bad.shape.rows = 16;
  refused(bad, "attention_tile");
  bad = good, bad.common.window = 0;
  refused(bad, "at least 1");
  bad = good, bad.common.prefix_tokens = 2;
  refused(bad, "prefix_k");
}

#ifdef LAPIDARY_EMULATED

TEST("cuda prefill: copies early or late, threads in any order: the same bits") {
  on_each_device([] {
    for (const KvType type : {KvType::bf16, KvType::int8, KvType::f32}) {
      for (const int head_dim : {32, 128, 256}) {
        if (type == KvType::f32 && head_dim != 32) continue;
        const AttentionSpec spec = {.num_heads = 4,
                                    .num_kv_heads = 2,
                                    .head_dim = head_dim,
                                    .window = 70,
                                    .scale = 0.07f,
                                    .softcap = 30,
                                    .kv_type = type,
                                    .sequences = {{90, 100}, {5, 10}},
                                    .prefix_tokens = 66,
                                    .second_query = true,
                                    .ring = true,
                                    .images = {{120, 150}}};
        for (const bool pool : pools(spec)) {
          const AttentionProblem problem(spec);
          std::vector<float> want;
          const auto same = [&](const char* what) {
            const std::vector<float> got = run_any(problem, pool);
            if (want.empty()) want = got;
            CHECK_MSG(got == want, what << " differs, " << describe(problem.spec));
          };
          emulator::set_async_mode(emulator::AsyncMode::eager);
          same("eager");
          emulator::set_async_mode(emulator::AsyncMode::lazy);
          same("lazy");
          emulator::set_async_mode(emulator::AsyncMode::random);
          for (uint64_t seed = 1; seed <= 2; ++seed) {
            emulator::set_schedule(seed);
            same("random");
          }
          emulator::set_schedule(0);
          emulator::set_async_mode(emulator::AsyncMode::eager);
        }
      }
    }
  });
}

TEST("cuda prefill: shared memory without bank conflicts, blocks outside the window not read") {
  emulator::set_device(emulator::facts_of(emulator::Preset::sm80));
  for (const int head_dim : {32, 64, 128, 256}) {
    const AttentionProblem problem({.num_heads = 2, .head_dim = head_dim, .sequences = {{64, 64}}});
    run_prefill(problem, false);
    CHECK_MSG(emulator::last_launch().matrix_wavefronts == emulator::last_launch().matrix_wavefronts_ideal, "dim " << head_dim);
  }
  AttentionSpec spec = {.num_heads = 2, .head_dim = 64, .window = 64, .sequences = {{32, 32}}};
  run_prefill(AttentionProblem(spec), false);
  const int64_t near = emulator::last_launch().mma_instructions;
  spec.sequences = {{32, 1056}};
  run_prefill(AttentionProblem(spec), false);
  // At a distance the window covers two blocks of keys where the beginning of the conversation has one.
  CHECK_MSG(emulator::last_launch().mma_instructions == 2 * near,
            emulator::last_launch().mma_instructions << " products, near the beginning " << near);
  emulator::set_device(emulator::facts_of(emulator::Preset::sm90));
}

#endif

}  // namespace

}  // namespace lapidary::test
