// QK-norm, RoPE and append against their definitions in double.
#include "cuda/attention_problem.h"

namespace lapidary::test {

namespace {

struct AppendSpec {
  int num_heads = 4, num_kv_heads = 2, head_dim = 64;
  bool norm = true, rope = true, second = false;
  cuda::ActType q_type = cuda::ActType::f32;
  cuda::KvType kv_type = cuda::KvType::f32;
  std::vector<SequenceSpec> sequences = {{5, 61}, {1, 0}, {3, 200}};
  int num_pages = 2;  // of each sequence: a ring
  int padding = 0;    // elements between the rows of the stacked projections
  float magnitude = 1;
};

std::vector<float> normal_values(size_t count, float magnitude, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float& x : v) x = normal(random) * magnitude;
  return v;
}

// Everything one launch reads and writes.
struct AppendProblem {
  AppendSpec spec;
  int tokens = 0, stride;
  std::vector<float> qkv, q_weight, k_weight, cos, sin, prefix_cos, prefix_sin;

  explicit AppendProblem(const AppendSpec& s) : spec(s) {
    for (const SequenceSpec& sequence : s.sequences) tokens += sequence.rows;
    stride = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim + s.padding;
    qkv = normal_values(static_cast<size_t>(tokens) * stride, s.magnitude, 1);
    q_weight = normal_values(s.head_dim, 0.3f, 2), k_weight = normal_values(s.head_dim, 0.3f, 3);
    for (int i = 0; i < 2; ++i) {
      std::vector<float> angles = normal_values(static_cast<size_t>(tokens) * s.head_dim / 2, 3, 4 + i), c(angles.size()), n(angles.size());
      for (size_t j = 0; j < angles.size(); ++j) c[j] = std::cos(angles[j]), n[j] = std::sin(angles[j]);
      (i ? prefix_cos : cos) = c, (i ? prefix_sin : sin) = n;
    }
  }

  // Head `head` of a token (queries, keys, values in this order) after norm and rotation, in double.
  std::vector<double> head(int token, int head, bool second) const {
    const AppendSpec& s = spec;
    const float* x = &qkv[static_cast<size_t>(token) * stride + head * s.head_dim];
    std::vector<double> y(x, x + s.head_dim);
    if (head >= s.num_heads + s.num_kv_heads) return y;
    if (s.norm) {
      double squares = 0;
      for (const double v : y) squares += v * v;
      const std::vector<float>& weight = head < s.num_heads ? q_weight : k_weight;
      for (int i = 0; i < s.head_dim; ++i) y[i] = y[i] / std::sqrt(squares / s.head_dim + 1e-6) * (1.0 + weight[i]);
    }
    if (!s.rope && !second) return y;
    const std::vector<double> from = y;
    for (int j = 0; j < s.head_dim / 2; ++j) {
      const size_t at = static_cast<size_t>(token) * (s.head_dim / 2) + j;
      const double c = second ? prefix_cos[at] : cos[at], n = second ? prefix_sin[at] : sin[at];
      y[j] = from[j] * c - from[j + s.head_dim / 2] * n;
      y[j + s.head_dim / 2] = from[j + s.head_dim / 2] * c + from[j] * n;
    }
    return y;
  }
};

struct AppendResult {
  std::vector<float> q, q_prefix;           // [tokens, num_heads, head_dim]
  std::vector<std::vector<uint8_t>> pages;  // of each sequence, one after another
};

AppendResult launch(const AppendProblem& p, size_t only = SIZE_MAX) {
  const AppendSpec& s = p.spec;
  const size_t page_bytes = static_cast<size_t>(cuda::attention_page_bytes(s.kv_type, s.num_kv_heads, s.head_dim));
  std::vector<std::shared_ptr<DeviceArray<uint8_t>>> pages;
  std::vector<std::shared_ptr<DeviceArray<const void*>>> tables;
  std::vector<cuda::AttentionSequence> sequences;
  int row = 0, first = 0, tokens = 0;
  for (size_t n = 0; n < s.sequences.size(); ++n) {
    const SequenceSpec& sequence = s.sequences[n];
    if (only == SIZE_MAX || only == n) {
      pages.push_back(std::make_shared<DeviceArray<uint8_t>>(std::vector<uint8_t>(s.num_pages * page_bytes, 0xee)));
      std::vector<const void*> table;
      for (int i = 0; i < s.num_pages; ++i) table.push_back(pages.back()->get() + i * page_bytes);
      tables.push_back(std::make_shared<DeviceArray<const void*>>(table));
      sequences.push_back({tokens, sequence.rows, sequence.first_pos, s.num_pages, tables.back()->get()});
      if (tokens == 0) first = row;
      tokens += sequence.rows;
    }
    row += sequence.rows;
  }
  DeviceArray<cuda::AttentionSequence> sequences_device(sequences);
  const size_t half = s.head_dim / 2, element = s.q_type == cuda::ActType::bf16 ? 2 : 4,
               q_count = static_cast<size_t>(tokens) * s.num_heads * s.head_dim;
  DeviceArray<float> qkv(p.qkv), q_weight(p.q_weight), k_weight(p.k_weight), cos(p.cos), sin(p.sin), prefix_cos(p.prefix_cos),
      prefix_sin(p.prefix_sin);
  DeviceArray<uint8_t> q(q_count * element), q_prefix(q_count * element);

  cuda::QkRopeAppendParams params = {};
  params.rows.q = qkv.get() + static_cast<size_t>(first) * p.stride;
  params.rows.k = params.rows.q + s.num_heads * s.head_dim;
  params.rows.v = params.rows.k + s.num_kv_heads * s.head_dim;
  params.rows.q_stride = params.rows.k_stride = params.rows.v_stride = p.stride;
  if (s.norm) params.rows.q_norm = {q_weight.get(), 1, 1e-6f}, params.rows.k_norm = {k_weight.get(), 1, 1e-6f};
  if (s.rope) params.rows.cos = cos.get() + first * half, params.rows.sin = sin.get() + first * half;
  if (s.second) params.rows.prefix_cos = prefix_cos.get() + first * half, params.rows.prefix_sin = prefix_sin.get() + first * half;
  params.tokens = tokens, params.num_heads = s.num_heads, params.num_kv_heads = s.num_kv_heads, params.head_dim = s.head_dim;
  params.q_out = q.get(), params.q_prefix_out = s.second ? q_prefix.get() : nullptr, params.q_type = s.q_type, params.kv_type = s.kv_type;
  params.sequences = sequences_device.get(), params.num_sequences = static_cast<int32_t>(sequences.size());
  CHECK(cuda::supports_qk_rope_append(params, *context().device));
  require_ok(api().qk_rope_append(params, context()));

  AppendResult result;
  const auto floats = [&](const DeviceArray<uint8_t>& from) {
    const std::vector<uint8_t> bytes = from.download();
    if (s.q_type == cuda::ActType::bf16) {
      std::vector<uint16_t> bits(q_count);
      std::memcpy(bits.data(), bytes.data(), bytes.size());
      return bf16_to_floats(bits);
    }
    std::vector<float> f(q_count);
    std::memcpy(f.data(), bytes.data(), bytes.size());
    return f;
  };
  result.q = floats(q);
  if (s.second) result.q_prefix = floats(q_prefix);
  for (const auto& page : pages) result.pages.push_back(page->download());
  return result;
}

// |got - want| <= 1e-5 of the head's largest magnitude, plus half a step of the type it was rounded to.
void check_head(std::span<const float> got, const std::vector<double>& want, double step, const std::string& what) {
  double largest = 0;
  for (const double x : want) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < got.size(); ++i) {
    const double bar = 1e-5 * largest + (step == 0 ? 0 : step > 0 ? step * 0.5001 : std::fabs(want[i]) / 256 * 1.0001);
    if (!(std::fabs(got[i] - want[i]) <= bar)) {
      CHECK_MSG(false, what << " element " << i << ": got " << got[i] << ", want " << want[i]);
      return;
    }
  }
}
constexpr double kBf16Step = -1;  // relative

void check(const AppendSpec& s) {
  const AppendProblem p(s);
  const AppendResult got = launch(p);
  const std::string name = "head_dim " + std::to_string(s.head_dim) + ", kv type " + std::to_string(static_cast<int>(s.kv_type));
  const double q_step = s.q_type == cuda::ActType::bf16 ? kBf16Step : 0;
  int token = 0;
  for (size_t n = 0; n < s.sequences.size(); ++n) {
    std::vector<bool> written(s.num_pages * 64);
    for (int r = 0; r < s.sequences[n].rows; ++r, ++token) {
      for (int h = 0; h < s.num_heads; ++h) {
        const size_t at = (static_cast<size_t>(token) * s.num_heads + h) * s.head_dim;
        check_head(std::span(got.q).subspan(at, s.head_dim), p.head(token, h, false), q_step, name + " q, token " + std::to_string(token));
        if (s.second) check_head(std::span(got.q_prefix).subspan(at, s.head_dim), p.head(token, h, true), q_step, name + " q_prefix");
      }
      const int position = s.sequences[n].first_pos + r, page = position / 64 % s.num_pages, row = position % 64;
      written[page * 64 + row] = true;
      const size_t page_bytes = static_cast<size_t>(cuda::attention_page_bytes(s.kv_type, s.num_kv_heads, s.head_dim));
      const uint8_t* data = got.pages[n].data() + page * page_bytes;
      for (int i = 0; i < 2 * s.num_kv_heads; ++i) {  // keys, then values
        const std::vector<double> want = p.head(token, s.num_heads + i, false);
        const size_t at = (static_cast<size_t>(i) * 64 + row) * s.head_dim;
        std::vector<float> values(s.head_dim);
        double step = 0;
        if (s.kv_type == cuda::KvType::f32) {
          std::memcpy(values.data(), data + at * 4, values.size() * 4);
        } else if (s.kv_type == cuda::KvType::bf16) {
          for (int d = 0; d < s.head_dim; ++d)
            values[d] = bf16_to_float(static_cast<uint16_t>(data[(at + d) * 2] | data[(at + d) * 2 + 1] << 8));
          step = kBf16Step;
        } else {
          float scale;
          std::memcpy(&scale, data + 2 * static_cast<size_t>(s.num_kv_heads) * 64 * s.head_dim + (static_cast<size_t>(i) * 64 + row) * 4,
                      4);
          double largest = 0;
          for (const double x : want) largest = std::max(largest, std::fabs(x));
          CHECK_MSG(std::fabs(scale - std::max(largest, 1e-8) / 127) <= 1e-5 * scale, name << " scale " << scale << " of " << largest);
          for (int d = 0; d < s.head_dim; ++d) values[d] = static_cast<int8_t>(data[at + d]) * scale;
          step = scale;
        }
        check_head(values, want, step, name + (i < s.num_kv_heads ? " key" : " value") + " of token " + std::to_string(token));
      }
    }
    // What was not appended is as it was.
    const size_t element = s.kv_type == cuda::KvType::f32 ? 4 : s.kv_type == cuda::KvType::bf16 ? 2 : 1, row_bytes = s.head_dim * element;
    const size_t page_bytes = static_cast<size_t>(cuda::attention_page_bytes(s.kv_type, s.num_kv_heads, s.head_dim));
    bool untouched = true;
    for (int slot = 0; slot < s.num_pages * 64; ++slot) {
      if (written[slot]) continue;
      for (int i = 0; i < 2 * s.num_kv_heads; ++i) {
        const uint8_t* at = got.pages[n].data() + slot / 64 * page_bytes + (static_cast<size_t>(i) * 64 + slot % 64) * row_bytes;
        for (size_t b = 0; b < row_bytes; ++b) untouched = untouched && at[b] == 0xee;
      }
    }
    CHECK_MSG(untouched, name << ": rows of other positions were written, sequence " << n);
  }
}

}  // namespace

TEST("cuda qk_rope_append: every cache type, head_dims of both widths") {
  for (const cuda::KvType type : {cuda::KvType::f32, cuda::KvType::bf16, cuda::KvType::int8}) {
    for (const int head_dim : {2, 6, 32, 64, 72, 128, 256}) {
      AppendSpec s;
      s.head_dim = head_dim, s.kv_type = type;
      s.q_type = type == cuda::KvType::f32 ? cuda::ActType::f32 : cuda::ActType::bf16;
      check(s);
    }
  }
}

TEST("cuda qk_rope_append: without norm, without rotation, with a second rotation, unaligned rows") {
  for (const cuda::KvType type : {cuda::KvType::bf16, cuda::KvType::int8}) {
    AppendSpec s;
    s.kv_type = type;
    for (int i = 0; i < 8; ++i) {
      s.norm = i & 1, s.rope = i & 2, s.second = i & 4, s.padding = i % 3;
      check(s);
    }
  }
}

TEST("cuda qk_rope_append: many short sequences, many rows across the seam of a ring, one head") {
  AppendSpec s;
  s.sequences.clear();
  for (int i = 0; i < 70; ++i) s.sequences.push_back({i % 3, i * 7});
  s.head_dim = 32, s.num_heads = 1, s.num_kv_heads = 1;
  check(s);
  s.sequences = {{100, 90}};
  check(s);
}

TEST("cuda qk_rope_append: zeros, outliers and denormals") {
  for (const float magnitude : {0.0f, 1e-40f, 1e15f}) {
    AppendSpec s;
    s.magnitude = magnitude, s.kv_type = cuda::KvType::int8, s.norm = false;
    check(s);
  }
}

TEST("cuda qk_rope_append: a batch gives the bits of its sequences alone") {
  AppendSpec s;
  s.kv_type = cuda::KvType::int8, s.q_type = cuda::ActType::bf16, s.second = true;
  const AppendProblem p(s);
  const AppendResult all = launch(p);
  size_t at = 0;
  for (size_t n = 0; n < s.sequences.size(); ++n) {
    const AppendResult one = launch(p, n);
    CHECK(one.pages[0] == all.pages[n]);
    CHECK(std::equal(one.q.begin(), one.q.end(), all.q.begin() + static_cast<int64_t>(at)));
    CHECK(std::equal(one.q_prefix.begin(), one.q_prefix.end(), all.q_prefix.begin() + static_cast<int64_t>(at)));
    at += one.q.size();
  }
}

TEST("cuda append_kv stores rows as they are, rounded") {
  const int kv_heads = 2, head_dim = 64, tokens = 3;
  const std::vector<float> k = normal_values(tokens * kv_heads * head_dim, 1, 5), v = normal_values(tokens * kv_heads * head_dim, 1, 6);
  DeviceArray<float> k_device(k), v_device(v);
  DeviceArray<uint8_t> page(std::vector<uint8_t>(static_cast<size_t>(cuda::attention_page_bytes(cuda::KvType::bf16, kv_heads, head_dim))));
  DeviceArray<const void*> table(std::vector<const void*>{page.get()});
  DeviceArray<cuda::AttentionSequence> sequences(std::vector<cuda::AttentionSequence>{{0, tokens, 62 + 64, 1, table.get()}});  // 62, 63, 0
  const cuda::AppendKvParams params = {k_device.get(), v_device.get(), tokens, kv_heads, head_dim, cuda::KvType::bf16, sequences.get(), 1};
  require_ok(api().append_kv(params, context()));
  const std::vector<uint8_t> bytes = page.download();
  for (int t = 0; t < tokens; ++t) {
    for (int i = 0; i < kv_heads * head_dim; ++i) {
      const size_t slot = (62 + t) % 64, head = i / head_dim, d = i % head_dim;
      uint16_t key, value;
      std::memcpy(&key, &bytes[((head * 64 + slot) * head_dim + d) * 2], 2);
      std::memcpy(&value, &bytes[(((kv_heads + head) * 64 + slot) * head_dim + d) * 2], 2);
      CHECK(key == float_to_bf16(k[static_cast<size_t>(t) * kv_heads * head_dim + i]));
      CHECK(value == float_to_bf16(v[static_cast<size_t>(t) * kv_heads * head_dim + i]));
    }
  }
}

TEST("cuda qk_rope_append: what it does not take is refused with the reason") {
  cuda::QkRopeAppendParams params = {};
  params.tokens = 1, params.head_dim = 64, params.num_kv_heads = 1, params.num_heads = 1;
  const auto refused = [&](std::string_view part) {
    const cuda::Status status = api().qk_rope_append(params, context());
    CHECK(status.kind == cuda::Status::Kind::refused);
    CHECK_MSG(status.what && std::string_view(status.what).find(part) != std::string_view::npos,
              "reason: " << (status.what ? status.what : "none"));
    CHECK(!cuda::supports_qk_rope_append(params, *context().device));
  };
  CHECK(api().qk_rope_append(params, context()).ok());  // nothing to do
  params.head_dim = 258;
  refused("head_dim");
  params.head_dim = 63;
  refused("head_dim");
  params.head_dim = 64;
  const float some = 0;
  params.rows.q = &some;
  refused("q_out");
  params.rows.q = nullptr, params.rows.k = &some;
  refused("together");
  params.rows.v = &some;
  refused("sequences");
  params.rows.k = params.rows.v = nullptr, params.rows.cos = &some;
  refused("cos and sin");
}

}  // namespace lapidary::test
