#include "cuda/attention.h"

#include <algorithm>

namespace lapidary::cuda {

namespace {

// Tables kept before they are all forgotten: of more sequences times layers than any engine runs at once.
constexpr size_t kMaxTables = 1 << 16;

// Positions times KV heads that the decode kernel indexes.
constexpr int64_t kMostDecodeKeys = int64_t{1} << 30;

// What one tensor map can span at the smaller head size: 2^31 rows of 128 bf16 elements.
constexpr uintptr_t kMostMappedBytes = uintptr_t{1} << 38;

KvType kv_type(DType dtype) { return dtype == DType::f32 ? KvType::f32 : dtype == DType::i8 ? KvType::int8 : KvType::bf16; }

int32_t window_of(const AttentionShape& shape) {
  return shape.window >= cuda::kNoWindow ? cuda::kNoWindow : static_cast<int32_t>(shape.window);
}

int32_t small(int64_t n) { return static_cast<int32_t>(n); }

}  // namespace

const void* const* Attention::table_of(const KvView& kv) {
  Table& table = tables_[kv.pages];
  const size_t count = static_cast<size_t>(kv.num_pages);
  if (table.host.size() != count || !std::equal(table.host.begin(), table.host.end(), kv.pages)) {
    table.host.clear();  // until the device has it
    if (table.memory.bytes < count * sizeof(void*)) table.memory = device_->allocate(2 * count * sizeof(void*));
    const void* staged = staging_.put(std::span<const void* const>(kv.pages, count));
    device_->check(device_->api().device.copy_on_device(table.memory.memory.get(), staged, count * sizeof(void*), device_->stream()));
    table.host.assign(kv.pages, kv.pages + count);
  }
  return reinterpret_cast<const void* const*>(table.memory.memory.get());
}

Attention::Parts Attention::split(std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  forget_tables();
  Parts parts;
  const bool images = shape.extras && !shape.extras->image_blocks.empty();
  AttentionDecodeParams probe = {};
  probe.common = common({}, shape, spans.empty() ? KvType::bf16 : kv_type(spans[0].kv.dtype));
  probe.max_rows = 1, probe.max_keys = 1;
  const bool takes_decode = !images && supports_attention_decode(probe, device_->facts());
  for (const AttentionSpan& span : spans) {
    if (span.rows == 0) continue;
    const int64_t end = span.first_pos + span.rows, lowest = shape.window > span.first_pos ? 0 : span.first_pos - shape.window + 1;
    expect(end <= (int64_t{1} << 30), ErrorCode::invalid_argument, "attention: position ", end, " is beyond what the cuda backend indexes");
    expect((end - 1) / lapidary::kPageTokens - lowest / lapidary::kPageTokens < span.kv.num_pages, ErrorCode::internal,
           "attention: queries at ", span.first_pos, " to ", end - 1, " see more pages than the ", span.kv.num_pages, " of the cache");
    const AttentionSequence sequence = {small(span.first_row), small(span.rows), small(span.first_pos), small(span.kv.num_pages),
                                        table_of(span.kv)};
    if (takes_decode && span.rows <= kDecodeMaxRows && end * shape.num_kv_heads <= kMostDecodeKeys) {
      parts.decode.push_back(sequence);
      parts.most_rows = std::max(parts.most_rows, sequence.rows);
      parts.most_keys = std::max(parts.most_keys, small(end));
    } else {
      parts.prefill.push_back(sequence);
    }
  }
  return parts;
}

AttentionCommon Attention::common(std::span<const AttentionSequence> sequences, const AttentionShape& shape, KvType type) {
  expect(
      !shape.extras || !shape.extras->prefix_in_window, ErrorCode::unsupported,
      "the cuda backend keeps a cushion visible in every layer: one with window 'native' leaves local windows. Load the model with device "
      "'cpu', or make the cushion with window 'pinned'");
  AttentionCommon c = {};
  c.num_heads = small(shape.num_heads);
  c.num_kv_heads = small(shape.num_kv_heads);
  c.head_dim = small(shape.head_dim);
  c.scale = shape.scale;
  c.softcap = shape.softcap;
  c.window = window_of(shape);
  c.kv_type = type;
  c.num_sequences = small(static_cast<int64_t>(sequences.size()));
  if (!sequences.empty()) c.sequences = staging_.put(sequences);
  return c;
}

const uint16_t* Attention::rounded(const float* x, int64_t rows, int64_t dim, Scratch& memory) {
  void* out = memory.at_least(static_cast<size_t>(rows * dim) * 2);
  device_->check(device_->api().quantize({x, ActType::f32, act_bf16(out), small(rows), small(dim)}, device_->context()));
  return static_cast<const uint16_t*>(out);
}

// These kernels take a bf16 prefix; an f32 one is rounded into scratch.
void Attention::set_prefix(const AttentionExtras* extras, AttentionCommon& common) {
  if (!extras || !extras->prefix_k) return;
  const auto bf16 = [&](const Tensor& side, Scratch& memory) {
    if (side.dtype == DType::bf16) return side.as<const uint16_t>();
    return rounded(side.as<const float>(), side.elements() / side.shape[2], side.shape[2], memory);
  };
  common.prefix_tokens = small(extras->prefix_k.shape[1]);
  common.prefix_k = bf16(extras->prefix_k, prefix_k_);
  common.prefix_v = bf16(extras->prefix_v, prefix_v_);
}

const cuda::ImageBlock* Attention::put_images(const AttentionShape& shape, int64_t tokens) {
  static_assert(sizeof(lapidary::ImageBlock) == sizeof(cuda::ImageBlock));
  if (!shape.extras || shape.extras->image_blocks.empty()) return nullptr;
  return reinterpret_cast<const cuda::ImageBlock*>(staging_.put(shape.extras->image_blocks.first(static_cast<size_t>(tokens))));
}

// Between calls: pointers into the tables are in nobody's hands then, and the kernels that were given some come first on the stream.
void Attention::forget_tables() {
  if (tables_.size() > kMaxTables) tables_.clear();
}

std::vector<AttentionSequence> Attention::sequences_of(std::span<const AttentionSpan> spans) {
  forget_tables();
  std::vector<AttentionSequence> sequences;
  for (const AttentionSpan& s : spans)
    sequences.push_back({small(s.first_row), small(s.rows), small(s.first_pos), small(s.kv.num_pages), table_of(s.kv)});
  return sequences;
}

void Attention::append(const float* k, const float* v, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  if (spans.empty() || tokens == 0) return;
  const std::vector<AttentionSequence> sequences = sequences_of(spans);
  AppendKvParams p = {};
  p.k = k, p.v = v;
  p.tokens = small(tokens), p.num_kv_heads = small(shape.num_kv_heads), p.head_dim = small(shape.head_dim);
  p.kv_type = kv_type(spans[0].kv.dtype);
  p.sequences = staging_.put(std::span<const AttentionSequence>(sequences));
  p.num_sequences = small(static_cast<int64_t>(sequences.size()));
  device_->check(device_->api().append_kv(p, device_->context()));
}

void Attention::attend(const float* q, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape,
                       const AttendedOutput& out) {
  if (spans.empty() || tokens == 0) return;
  const KvType type = kv_type(spans[0].kv.dtype);
  if (type == KvType::f32) return f32(q, tokens, spans, shape, out);
  const int64_t width = shape.num_heads * shape.head_dim;
  const Parts parts = split(spans, shape);
  const uint16_t* queries = rounded(q, tokens, width, q_);
  const uint16_t* prefix_queries = nullptr;
  if (shape.extras && shape.extras->q_prefix) prefix_queries = rounded(shape.extras->q_prefix.as<const float>(), tokens, width, q_prefix_);
  AttentionDecodeParams p = {};
  p.q = queries, p.q_prefix = prefix_queries;
  decode(p, parts, shape, type, out);
  prefill(queries, prefix_queries, tokens, parts, spans, shape, type, out);
}

void Attention::attend_projections(const QkvInput& input, std::span<const AttentionSpan> spans, const AttentionShape& shape,
                                   const AttendedOutput& out) {
  if (spans.empty() || input.tokens == 0) return;
  const KvType type = kv_type(spans[0].kv.dtype);
  const bool is_f32 = type == KvType::f32, second_query = input.rows.prefix_cos != nullptr;
  Parts parts;
  if (is_f32) {
    parts.prefill = sequences_of(spans);
  } else {
    parts = split(spans, shape);
  }
  AttentionDecodeParams p = {};
  p.rows = input.rows;
  decode(p, parts, shape, type, out);
  if (parts.prefill.empty()) return;

  const size_t bytes = static_cast<size_t>(input.tokens * shape.num_heads * shape.head_dim) * (is_f32 ? 4 : 2);
  QkRopeAppendParams prepare = {};
  prepare.rows = input.rows;
  prepare.tokens = small(input.tokens), prepare.num_heads = small(shape.num_heads), prepare.num_kv_heads = small(shape.num_kv_heads);
  prepare.head_dim = small(shape.head_dim);
  prepare.q_out = q_.at_least(bytes);
  if (second_query) prepare.q_prefix_out = q_prefix_.at_least(bytes);
  prepare.q_type = is_f32 ? ActType::f32 : ActType::bf16;
  prepare.kv_type = type;
  prepare.sequences = staging_.put(std::span<const AttentionSequence>(parts.prefill));
  prepare.num_sequences = small(static_cast<int64_t>(parts.prefill.size()));
  device_->check(device_->api().qk_rope_append(prepare, device_->context()));
  if (is_f32) return f32(static_cast<const float*>(prepare.q_out), input.tokens, spans, shape, out);
  prefill(static_cast<const uint16_t*>(prepare.q_out), static_cast<const uint16_t*>(prepare.q_prefix_out), input.tokens, parts, spans,
          shape, type, out);
}

void Attention::decode(AttentionDecodeParams p, const Parts& parts, const AttentionShape& shape, KvType type, const AttendedOutput& out) {
  if (parts.decode.empty()) return;
  p.common = common(parts.decode, shape, type);
  set_prefix(shape.extras, p.common);
  p.out = out.data, p.out_type = out.type, p.out_inverse_scale = out.inverse_scale;
  p.max_rows = parts.most_rows, p.max_keys = parts.most_keys;
  p.merge = DecodeMerge::automatic;
  const DeviceFacts& facts = device_->facts();
  p.partials = static_cast<float*>(partials_.at_least(static_cast<size_t>(attention_decode_workspace_bytes(p, facts))));
  p.counters = static_cast<int32_t*>(counters_.at_least(static_cast<size_t>(attention_decode_counters(p, facts)) * 4));
  device_->check(device_->api().attention_decode(p, device_->chained()));
}

void Attention::prefill(const uint16_t* q, const uint16_t* q_prefix, int64_t tokens, const Parts& parts,
                        std::span<const AttentionSpan> spans, const AttentionShape& shape, KvType type, const AttendedOutput& out) {
  if (parts.prefill.empty()) return;
  AttentionPrefillParams p = {};
  p.common = common(parts.prefill, shape, type);
  p.q = q, p.q_prefix = q_prefix;
  set_prefix(shape.extras, p.common);
  p.images = put_images(shape, tokens);
  // Pages that stand at multiples of kPageAlignment (allocate_page) can be read through one tensor map over the range that they span.
  uintptr_t lowest = UINTPTR_MAX, highest = 0;
  bool aligned = true;
  for (const AttentionSpan& span : spans) {
    for (int64_t i = 0; i < span.kv.num_pages && aligned; ++i) {
      const auto at = reinterpret_cast<uintptr_t>(span.kv.pages[i]);
      if (at == 0) continue;  // a page of a ring that no token has reached
      aligned = at % kPageAlignment == 0;
      lowest = std::min(lowest, at), highest = std::max(highest, at);
    }
  }
  if (aligned && lowest <= highest && highest - lowest < kMostMappedBytes) {
    p.pool = reinterpret_cast<const void*>(lowest);
    p.pool_bytes = static_cast<int64_t>(highest - lowest) + attention_page_bytes(type, shape.num_kv_heads, shape.head_dim);
  }
  const DeviceFacts& facts = device_->facts();
  p.shape = attention_tile(shape.head_dim, type, facts, p.pool != nullptr);
  expect(p.shape.rows > 0, ErrorCode::unsupported, "attention: the cuda backend has no kernel for head_dim ", shape.head_dim,
         " with this cache");
  const std::vector<AttentionTile> tiles =
      plan_attention_tiles(parts.prefill, shape.num_heads / shape.num_kv_heads, p.common.window, p.shape);
  p.tiles = staging_.put(std::span<const AttentionTile>(tiles));
  p.num_tiles = small(static_cast<int64_t>(tiles.size()));
  p.out = out.data, p.out_type = out.type, p.out_inverse_scale = out.inverse_scale;
  device_->check(device_->api().attention_prefill(p, device_->context()));
}

void Attention::f32(const float* q, int64_t tokens, std::span<const AttentionSpan> spans, const AttentionShape& shape,
                    const AttendedOutput& out) {
  const std::vector<AttentionSequence> sequences = sequences_of(spans);
  AttentionF32Params p = {};
  p.common = common(sequences, shape, KvType::f32);
  p.q = q;
  if (const AttentionExtras* extras = shape.extras) {
    if (extras->prefix_k) {
      p.common.prefix_tokens = small(extras->prefix_k.shape[1]);
      if (extras->prefix_k.dtype == DType::f32) {
        p.prefix_k_f32 = extras->prefix_k.as<const float>(), p.prefix_v_f32 = extras->prefix_v.as<const float>();
      } else {
        p.common.prefix_k = extras->prefix_k.as<const uint16_t>(), p.common.prefix_v = extras->prefix_v.as<const uint16_t>();
      }
    }
    if (extras->q_prefix) p.q_prefix = extras->q_prefix.as<const float>();
  }
  p.images = put_images(shape, tokens);
  p.tokens = small(tokens);
  p.out = out.data, p.out_type = out.type;
  device_->check(device_->api().attention_f32(p, device_->context()));
}

}  // namespace lapidary::cuda
