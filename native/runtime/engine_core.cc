// Completed options, the memory estimate they give, the model fingerprint, and the end of shared state.
#include "runtime/engine_core.h"

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "runtime/sequence.h"

namespace lapidary {

namespace {

constexpr int64_t kLogitBytes = int64_t{64} << 20;

}  // namespace

EngineOptions complete_options(const ModelConfig& config, const EngineOptions& options, int64_t cushion_tokens) {
  EngineOptions o = options;
  const auto check = [](const char* name, int64_t value, int64_t least) {
    expect(value >= least, ErrorCode::invalid_argument, name, " is ", value, ", must be at least ", least);
  };
  check("context", o.context, 0);
  check("prefill chunk", o.prefill_chunk, 1);
  check("max batch tokens", o.max_batch_tokens, 1);
  check("max running sequences", o.max_running, 1);
  check("KV limit", o.kv_limit_bytes, 0);
  check("prefix cache", o.prefix_cache, 0);
  check("unread tokens", o.unread_tokens, 1);
  const int64_t most = config.max_positions - cushion_tokens;
  expect(o.context <= most, ErrorCode::invalid_argument, "context of ", o.context, " tokens: the model was made for at most ",
         config.max_positions, cushion_tokens ? ", of which its cushion takes " + std::to_string(cushion_tokens) : "");
  if (!o.kv) o.kv = kv_dtype(o.precision);
  expect(*o.kv == DType::f32 || *o.kv == DType::bf16 || *o.kv == DType::i8, ErrorCode::invalid_argument, "a cache of ",
         dtype_info(*o.kv).name, ": it must be f32, bf16 or i8");
  if (o.context == 0) o.context = most;
  o.prefill_chunk = std::min(o.prefill_chunk, o.context);
  o.max_batch_tokens = std::max(o.max_batch_tokens, o.prefill_chunk);
  return o;
}

int64_t step_logit_rows(const ModelConfig& config, const EngineOptions& complete) {
  const int64_t affordable = kLogitBytes / (config.vocab * static_cast<int64_t>(sizeof(float)));
  return std::min(complete.max_batch_tokens, std::max(complete.max_running, affordable));
}

std::string model_fingerprint(const ModelWeights& weights) {
  const ModelConfig& c = weights.config;
  std::ostringstream text;
  text << c.num_layers << ' ' << c.hidden << ' ' << c.ffn << ' ' << c.vocab << ' ' << c.num_heads << ' ' << c.num_kv_heads << ' '
       << c.head_dim << ' ' << c.query_scale << ' ' << c.attention_softcap << ' ' << c.final_softcap << ' ' << c.qk_norm;
  for (const LayerConfig& l : c.layers)
    text << ' ' << l.window << ':' << c.ropes[static_cast<size_t>(l.rope)].base << '/' << c.ropes[static_cast<size_t>(l.rope)].factor;
  text << ' ' << weights.content_hash;
  if (weights.cushion) text << " cushion " << cushion_fingerprint(*weights.cushion);
  return text.str();
}

EngineCore::EngineCore(std::shared_ptr<Backend> backend, const ModelWeights& weights, const EngineOptions& complete)
    : config(weights.config),
      options(complete),
      fingerprint(model_fingerprint(weights)),
      weight_bytes(weights.file_bytes),
      scratch_bytes(
          StepScratch::bytes(weights.config, complete.precision, complete.max_batch_tokens, step_logit_rows(weights.config, complete))),
      pool(std::make_unique<PagePool>(*backend, config, *complete.kv, complete.kv_limit_bytes)),
      backend_(std::move(backend)) {}

EngineCore::~EngineCore() = default;

void EngineCore::check_open() const { expect(pool != nullptr, ErrorCode::disposed, "the model is closed"); }

void EngineCore::shut() {
  const std::lock_guard lock(memory);
  for (SequenceImpl* sequence : sequences) sequence->drop_cache();
  pool.reset();
  backend_.reset();
}

void EngineCore::signal() {
  {
    const std::lock_guard lock(inbox);
    signalled = true;
  }
  news.notify_one();
}

void EngineCore::request_close() {
  {
    const std::lock_guard lock(inbox);
    closing = true;
  }
  turns.announce_end();
  news.notify_one();
}

MemoryEstimate estimate_memory(const ModelConfig& config, int64_t weight_bytes, const EngineOptions& options, int64_t sequences) {
  expect(sequences >= 0, ErrorCode::invalid_argument, "estimate for ", sequences, " sequences");
  const EngineOptions o = complete_options(config, options);
  MemoryEstimate e;
  e.weight_bytes = weight_bytes;
  e.kv_bytes_per_sequence = KvCache::estimate_bytes(config, *o.kv, o.context, o.prefill_chunk);
  e.kv_bytes = e.kv_bytes_per_sequence * sequences;
  e.scratch_bytes = StepScratch::bytes(config, o.precision, o.max_batch_tokens, step_logit_rows(config, o));
  e.total_bytes = e.weight_bytes + e.kv_bytes + e.scratch_bytes;
  return e;
}

}  // namespace lapidary
