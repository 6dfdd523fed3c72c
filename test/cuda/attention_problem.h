// Attention problems for tests: random queries and caches on host and device, and the definition of attention in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "cuda/api/attention_prefill.h"
#include "cuda/support.h"

namespace lapidary::test {

inline float bf16_to_float(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t float_to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (f != f) return 0x7fc0;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

struct SequenceSpec {
  int rows = 1, first_pos = 0;
};

struct AttentionSpec {
  int num_heads = 2, num_kv_heads = 1, head_dim = 64;
  int window = cuda::kNoWindow;
  float scale = 0.125f, softcap = 0;
  cuda::KvType kv_type = cuda::KvType::bf16;
  std::vector<SequenceSpec> sequences = {{}};
  int prefix_tokens = 0;
  bool second_query = false;
  bool ring = false;    // as few pages as the window allows; else a page for every position
  int spare_pages = 1;  // beyond what is needed; 0: the oldest visible keys of a ring may share a page with the newest
  std::vector<cuda::ImageBlock> images = {};  // of every sequence, in positions
  float magnitude = 1;                        // of queries
  uint32_t seed = 1;
};

// All values are already rounded to what the device holds. Positions no one wrote, and the rest of the last page, are NaN on the device.
struct AttentionProblem {
  AttentionSpec spec;
  int tokens = 0;
  std::vector<float> q, q_prefix;        // [tokens, num_heads, head_dim]
  std::vector<std::vector<float>> k, v;  // of each sequence: [position, num_kv_heads, head_dim], as dequantised
  std::vector<std::vector<int8_t>> k_int8, v_int8;
  std::vector<std::vector<float>> k_scale, v_scale;  // [position, num_kv_heads]
  std::vector<float> prefix_k, prefix_v;             // [num_kv_heads, prefix_tokens, head_dim]
  std::vector<cuda::ImageBlock> row_images;          // [tokens]

  explicit AttentionProblem(const AttentionSpec& s) : spec(s) {
    std::mt19937 random(s.seed);
    std::normal_distribution<float> normal;
    const auto value = [&](float magnitude) {
      const float x = normal(random) * magnitude;
      return s.kv_type == cuda::KvType::f32 ? x : bf16_to_float(float_to_bf16(x));
    };
    for (const SequenceSpec& sequence : s.sequences) {
      for (int r = 0; r < sequence.rows; ++r) {
        cuda::ImageBlock image = {0, 0};
        for (const cuda::ImageBlock& i : s.images) {
          if (sequence.first_pos + r >= i.first && sequence.first_pos + r < i.end) image = i;
        }
        row_images.push_back(image);
      }
      tokens += sequence.rows;
      const int positions = positions_of(sequence);
      std::vector<float> keys(static_cast<size_t>(positions) * s.num_kv_heads * s.head_dim), values(keys.size());
      for (float& x : keys) x = value(1);
      for (float& x : values) x = value(1);
      std::vector<int8_t> keys_int8(keys.size()), values_int8(keys.size());
      std::vector<float> key_scales(static_cast<size_t>(positions) * s.num_kv_heads), value_scales(key_scales.size());
      if (s.kv_type == cuda::KvType::int8) {
        for (size_t i = 0; i < key_scales.size(); ++i) {
          key_scales[i] = quantize(std::span(keys).subspan(i * s.head_dim, s.head_dim), &keys_int8[i * s.head_dim]);
          value_scales[i] = quantize(std::span(values).subspan(i * s.head_dim, s.head_dim), &values_int8[i * s.head_dim]);
        }
      }
      k.push_back(keys), v.push_back(values);
      k_int8.push_back(keys_int8), v_int8.push_back(values_int8);
      k_scale.push_back(key_scales), v_scale.push_back(value_scales);
    }
    q.resize(static_cast<size_t>(tokens) * s.num_heads * s.head_dim);
    for (float& x : q) x = value(s.magnitude);
    q_prefix = q;
    if (s.second_query) {
      for (float& x : q_prefix) x = value(s.magnitude);
    }
    prefix_k.resize(static_cast<size_t>(s.num_kv_heads) * s.prefix_tokens * s.head_dim), prefix_v.resize(prefix_k.size());
    for (float& x : prefix_k) x = bf16_to_float(float_to_bf16(value(1)));
    for (float& x : prefix_v) x = bf16_to_float(float_to_bf16(value(4)));  // sinks stand out
  }

  int positions_of(const SequenceSpec& sequence) const {
    int positions = sequence.first_pos + sequence.rows;
    for (const cuda::ImageBlock& i : spec.images) positions = std::max(positions, i.first < positions ? i.end : 0);
    return positions;
  }
  int pages_of(const SequenceSpec& sequence) const {
    const int all = (positions_of(sequence) + 63) / 64;
    if (!spec.ring || spec.window == cuda::kNoWindow) return all + spec.spare_pages;
    int longest = 0;
    for (const cuda::ImageBlock& i : spec.images) longest = std::max(longest, i.end - i.first);
    return (spec.window - 1 + sequence.rows + 2 * longest + 63) / 64 + spec.spare_pages;
  }

  static float quantize(std::span<float> row, int8_t* to) {
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::fabs(x));
    const float scale = std::max(largest, 1e-8f) / 127;
    for (size_t i = 0; i < row.size(); ++i) {
      to[i] = static_cast<int8_t>(std::clamp(std::nearbyint(row[i] / scale), -127.0f, 127.0f));
      row[i] = to[i] * scale;
    }
    return scale;
  }

  // Attention by its definition. [tokens, num_heads, head_dim]
  std::vector<float> reference() const {
    const AttentionSpec& s = spec;
    std::vector<float> out(q.size());
    int token = 0;
    for (size_t n = 0; n < s.sequences.size(); ++n) {
      for (int r = 0; r < s.sequences[n].rows; ++r, ++token) {
        const int position = s.sequences[n].first_pos + r;
        for (int head = 0; head < s.num_heads; ++head) {
          const int kv_head = head / (s.num_heads / s.num_kv_heads);
          const size_t row = (static_cast<size_t>(token) * s.num_heads + head) * s.head_dim;
          std::vector<double> scores;
          std::vector<const float*> values;
          const auto see = [&](const float* query, const float* key, const float* from) {
            double x = 0;
            for (int d = 0; d < s.head_dim; ++d) x += static_cast<double>(query[d]) * key[d];
            x *= s.scale;
            scores.push_back(s.softcap != 0 ? s.softcap * std::tanh(x / s.softcap) : x);
            values.push_back(from);
          };
          for (int j = 0; j < s.prefix_tokens; ++j) {
            const size_t at = (static_cast<size_t>(kv_head) * s.prefix_tokens + j) * s.head_dim;
            see(&q_prefix[row], &prefix_k[at], &prefix_v[at]);
          }
          for (int p = 0; p < positions_of(s.sequences[n]); ++p) {
            const bool causal = p <= position && static_cast<int64_t>(position) - p < s.window;
            const bool image = p >= row_images[token].first && p < row_images[token].end;
            const size_t at = (static_cast<size_t>(p) * s.num_kv_heads + kv_head) * s.head_dim;
            if (causal || image) see(&q[row], &k[n][at], &v[n][at]);
          }
          const double highest = *std::max_element(scores.begin(), scores.end());
          double sum = 0;
          std::vector<double> total(s.head_dim);
          for (size_t j = 0; j < scores.size(); ++j) {
            const double p = std::exp(scores[j] - highest);
            sum += p;
            for (int d = 0; d < s.head_dim; ++d) total[d] += p * values[j][d];
          }
          for (int d = 0; d < s.head_dim; ++d) out[row + d] = static_cast<float>(total[d] / sum);
        }
      }
    }
    return out;
  }
};

// The problem's arrays on the device.
struct AttentionOnDevice {
  std::vector<uint8_t> pool_host;
  std::vector<cuda::AttentionSequence> sequences;
  std::shared_ptr<DeviceArray<uint8_t>> pool;
  std::vector<std::shared_ptr<DeviceArray<const void*>>> tables;
  std::shared_ptr<DeviceArray<cuda::AttentionSequence>> sequences_device;
  std::shared_ptr<DeviceArray<uint16_t>> q, q_prefix, prefix_k, prefix_v;
  std::shared_ptr<DeviceArray<float>> q_f32, q_prefix_f32, prefix_k_f32, prefix_v_f32;
  std::shared_ptr<DeviceArray<cuda::ImageBlock>> images;
  cuda::AttentionCommon common = {};

  static std::shared_ptr<DeviceArray<uint16_t>> bf16_array(const std::vector<float>& from) {
    std::vector<uint16_t> bits(from.size());
    for (size_t i = 0; i < from.size(); ++i) bits[i] = float_to_bf16(from[i]);
    return std::make_shared<DeviceArray<uint16_t>>(bits);
  }

  explicit AttentionOnDevice(const AttentionProblem& problem) {
    const AttentionSpec& s = problem.spec;
    const size_t page_bytes = static_cast<size_t>(cuda::attention_page_bytes(s.kv_type, s.num_kv_heads, s.head_dim));
    int pages = 0;
    for (const SequenceSpec& sequence : s.sequences) pages += problem.pages_of(sequence);
    // Pages of all sequences mixed up in one allocation, its first page nobody's.
    std::vector<int> places(pages);
    for (int i = 0; i < pages; ++i) places[i] = i + 1;
    std::mt19937 random(s.seed + 1);
    std::shuffle(places.begin(), places.end(), random);
    pool_host.assign((pages + 1) * page_bytes, 0xff);  // NaN as bf16 and as f32
    pool = std::make_shared<DeviceArray<uint8_t>>(pool_host.size());
    int row = 0, next = 0;
    for (size_t n = 0; n < s.sequences.size(); ++n) {
      const int count = problem.pages_of(s.sequences[n]);
      std::vector<const void*> table(count);
      for (int i = 0; i < count; ++i) table[i] = pool->get() + places[next + i] * page_bytes;
      for (int p = 0; p < problem.positions_of(s.sequences[n]); ++p)
        write(problem, n, p, pool_host.data() + places[next + p / 64 % count] * page_bytes);
      next += count;
      tables.push_back(std::make_shared<DeviceArray<const void*>>(table));
      sequences.push_back({row, s.sequences[n].rows, s.sequences[n].first_pos, count, tables.back()->get()});
      row += s.sequences[n].rows;
    }
    pool->upload(pool_host);
    sequences_device = std::make_shared<DeviceArray<cuda::AttentionSequence>>(sequences);
    if (s.kv_type == cuda::KvType::f32) {
      q_f32 = std::make_shared<DeviceArray<float>>(problem.q), q_prefix_f32 = std::make_shared<DeviceArray<float>>(problem.q_prefix);
      if (s.prefix_tokens > 0) {
        prefix_k_f32 = std::make_shared<DeviceArray<float>>(problem.prefix_k),
        prefix_v_f32 = std::make_shared<DeviceArray<float>>(problem.prefix_v);
      }
    } else {
      q = bf16_array(problem.q), q_prefix = bf16_array(problem.q_prefix);
    }
    if (s.prefix_tokens > 0) prefix_k = bf16_array(problem.prefix_k), prefix_v = bf16_array(problem.prefix_v);
    if (!s.images.empty()) images = std::make_shared<DeviceArray<cuda::ImageBlock>>(problem.row_images);
    common = {.num_heads = s.num_heads,
              .num_kv_heads = s.num_kv_heads,
              .head_dim = s.head_dim,
              .scale = s.scale,
              .softcap = s.softcap,
              .window = s.window,
              .kv_type = s.kv_type,
              .sequences = sequences_device->get(),
              .num_sequences = static_cast<int32_t>(sequences.size()),
              .prefix_k = prefix_k ? prefix_k->get() : nullptr,
              .prefix_v = prefix_v ? prefix_v->get() : nullptr,
              .prefix_tokens = s.prefix_tokens};
  }

 private:
  static void write(const AttentionProblem& problem, size_t n, int position, uint8_t* page) {
    const AttentionSpec& s = problem.spec;
    const size_t plane = static_cast<size_t>(s.num_kv_heads) * 64, row = position % 64;
    for (int head = 0; head < s.num_kv_heads; ++head) {
      const size_t from = static_cast<size_t>(position) * s.num_kv_heads + head, to = head * 64 + row;
      for (int d = 0; d < s.head_dim; ++d) {
        const size_t a = to * s.head_dim + d, b = from * s.head_dim + d, values = plane * s.head_dim;
        if (s.kv_type == cuda::KvType::f32) {
          reinterpret_cast<float*>(page)[a] = problem.k[n][b], reinterpret_cast<float*>(page)[values + a] = problem.v[n][b];
        } else if (s.kv_type == cuda::KvType::bf16) {
          reinterpret_cast<uint16_t*>(page)[a] = float_to_bf16(problem.k[n][b]);
          reinterpret_cast<uint16_t*>(page)[values + a] = float_to_bf16(problem.v[n][b]);
        } else {
          page[a] = static_cast<uint8_t>(problem.k_int8[n][b]), page[values + a] = static_cast<uint8_t>(problem.v_int8[n][b]);
        }
      }
      if (s.kv_type == cuda::KvType::int8) {
        float* scales = reinterpret_cast<float*>(page + 2 * plane * s.head_dim);
        scales[to] = problem.k_scale[n][from], scales[plane + to] = problem.v_scale[n][from];
      }
    }
  }
};

// Largest difference over the largest magnitude of `want`, and the norms' ratio; NaN fails both.
inline void check_attention(const std::vector<float>& got, const std::vector<float>& want, double worst_bar, double norm_bar,
                            const std::string& what) {
  REQUIRE(got.size() == want.size());
  double largest = 0, worst = -1;
  size_t at = 0;
  for (const float x : want) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (!(error <= worst)) worst = error, at = i;
    if (error != error) break;
  }
  CHECK_MSG(worst <= worst_bar * largest,
            what << ": worst at " << at << ": got " << got[at] << ", want " << want[at] << " (largest " << largest << ")");
  const double norm = relative_error(got, want);
  CHECK_MSG(norm <= norm_bar, what << ": relative error " << norm);
}

inline std::vector<float> bf16_to_floats(const std::vector<uint16_t>& bits) {
  std::vector<float> out(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) out[i] = bf16_to_float(bits[i]);
  return out;
}

}  // namespace lapidary::test
