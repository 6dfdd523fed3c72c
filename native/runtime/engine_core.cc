// Completed options, the memory estimate they give, the model fingerprint, and the end of shared state.
#include "runtime/engine_core.h"

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "runtime/sequence.h"

namespace lapidary {

namespace {

constexpr int64_t kLogitBytes = int64_t{64} << 20;

uint64_t fnv1a(uint64_t hash, const std::vector<std::byte>& bytes) {
  for (std::byte b : bytes) hash = (hash ^ static_cast<uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

// The first and last 4 KiB of a tensor's bytes, from whatever device holds it.
uint64_t hash_ends(Backend& backend, const Tensor& t, uint64_t hash) {
  const int64_t bytes = t.bytes(), part = std::min<int64_t>(bytes, 4096);
  std::vector<std::byte> host(static_cast<size_t>(part));
  for (const int64_t at : {int64_t{0}, bytes - part}) {
    backend.download(host.data(), Tensor(t.data + at, DType::u8, {part}, t.device));
    hash = fnv1a(hash, host);
  }
  return hash;
}

}  // namespace

EngineOptions complete_options(const ModelConfig& config, const EngineOptions& options) {
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
  expect(o.context <= config.max_positions, ErrorCode::invalid_argument, "context of ", o.context,
         " tokens: the model was made for at most ", config.max_positions);
  if (o.context == 0) o.context = config.max_positions;
  o.prefill_chunk = std::min(o.prefill_chunk, o.context);
  o.max_batch_tokens = std::max(o.max_batch_tokens, o.prefill_chunk);
  return o;
}

int64_t step_logit_rows(const ModelConfig& config, const EngineOptions& complete) {
  const int64_t affordable = kLogitBytes / (config.vocab * static_cast<int64_t>(sizeof(float)));
  return std::min(complete.max_batch_tokens, std::max(complete.max_running, affordable));
}

std::string model_fingerprint(Backend& backend, const ModelWeights& weights) {
  const ModelConfig& c = weights.config;
  std::ostringstream text;
  text << c.num_layers << ' ' << c.hidden << ' ' << c.ffn << ' ' << c.vocab << ' ' << c.num_heads << ' ' << c.num_kv_heads << ' '
       << c.head_dim << ' ' << c.query_scale << ' ' << c.attention_softcap << ' ' << c.final_softcap << ' ' << c.qk_norm;
  for (const LayerConfig& l : c.layers)
    text << ' ' << l.window << ':' << c.ropes[static_cast<size_t>(l.rope)].base << '/' << c.ropes[static_cast<size_t>(l.rope)].factor;
  uint64_t hash = 0xcbf29ce484222325u;
  hash = hash_ends(backend, weights.embedding.weight, hash);
  hash = hash_ends(backend, weights.final_norm.weight, hash);
  text << ' ' << std::hex << hash;
  return text.str();
}

EngineCore::EngineCore(std::shared_ptr<Backend> backend, const ModelWeights& weights, const EngineOptions& complete)
    : config(weights.config),
      options(complete),
      fingerprint(model_fingerprint(*backend, weights)),
      weight_bytes(weights.file_bytes),
      scratch_bytes(
          StepScratch::bytes(weights.config, complete.precision, complete.max_batch_tokens, step_logit_rows(weights.config, complete))),
      pool(std::make_unique<PagePool>(*backend, config, kv_dtype(complete.precision), complete.kv_limit_bytes)),
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
  news.notify_one();
}

MemoryEstimate estimate_memory(const ModelConfig& config, int64_t weight_bytes, const EngineOptions& options, int64_t sequences) {
  expect(sequences >= 0, ErrorCode::invalid_argument, "estimate for ", sequences, " sequences");
  const EngineOptions o = complete_options(config, options);
  MemoryEstimate e;
  e.weight_bytes = weight_bytes;
  e.kv_bytes_per_sequence = KvCache::estimate_bytes(config, kv_dtype(o.precision), o.context, o.prefill_chunk);
  e.kv_bytes = e.kv_bytes_per_sequence * sequences;
  e.scratch_bytes = StepScratch::bytes(config, o.precision, o.max_batch_tokens, step_logit_rows(config, o));
  e.total_bytes = e.weight_bytes + e.kv_bytes + e.scratch_bytes;
  return e;
}

}  // namespace lapidary
