// Every operation of a sequence under the core's memory lock.
#include "runtime/sequence.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/session_file.h"

namespace lapidary {

namespace {

SessionModel session_model(const EngineCore& core) { return {&core.config, core.fingerprint, *core.options.kv, core.options.context}; }

}  // namespace

SequenceImpl::SequenceImpl(std::shared_ptr<EngineCore> core) : core_(std::move(core)) {
  const std::lock_guard lock(core_->memory);
  core_->check_open();
  core_->sequences.insert(this);
}

SequenceImpl::~SequenceImpl() {
  const std::lock_guard lock(core_->memory);
  core_->sequences.erase(this);
  cache_.reset();
}

void SequenceImpl::drop_cache() { cache_.reset(); }

void SequenceImpl::check_idle() const {
  core_->check_open();
  expect(!busy_, ErrorCode::invalid_argument, "the sequence is busy: a run uses it; wait for the run to finish or abort it");
}

int64_t SequenceImpl::length() const {
  const std::lock_guard lock(core_->memory);
  core_->check_open();
  return cached();
}

std::vector<int32_t> SequenceImpl::tokens() const {
  const std::lock_guard lock(core_->memory);
  core_->check_open();
  return tokens_;
}

int64_t SequenceImpl::bytes() const {
  const std::lock_guard lock(core_->memory);
  core_->check_open();
  return cache_ ? cache_->bytes() : 0;
}

std::shared_ptr<Sequence> SequenceImpl::fork() {
  auto copy = std::make_shared<SequenceImpl>(core_);
  const std::lock_guard lock(core_->memory);
  check_idle();
  copy->tokens_ = tokens_;
  if (cache_) copy->cache_ = cache_->fork();
  return copy;
}

void SequenceImpl::rewind(int64_t length) {
  const std::lock_guard lock(core_->memory);
  check_idle();
  const int64_t size = static_cast<int64_t>(tokens_.size());
  expect(length >= 0 && length <= size, ErrorCode::invalid_argument, "rewind to ", length, " of a sequence of ", size, " tokens");
  tokens_.resize(static_cast<size_t>(length));
  if (cached() <= length) return;
  if (length >= cache_->rewind_limit()) {
    cache_->rewind(length);
  } else {
    cache_.reset();
  }
}

void SequenceImpl::save(const std::string& path) {
  SessionImage image;
  {
    const std::lock_guard lock(core_->memory);
    check_idle();
    image = capture_session(session_model(*core_), tokens_, cache_.get());
  }
  write_session(path, session_model(*core_), image);
}

std::shared_ptr<SequenceImpl> SequenceImpl::restore(std::shared_ptr<EngineCore> core, const std::string& path) {
  auto sequence = std::make_shared<SequenceImpl>(core);
  SessionImage image = read_session(path, session_model(*core));
  const std::lock_guard lock(core->memory);
  core->check_open();
  if (image.cached > 0) {
    auto cache = std::make_unique<KvCache>(*core->pool, core->config, core->options.prefill_chunk);
    restore_cache(image, *cache);
    sequence->cache_ = std::move(cache);
  }
  sequence->tokens_ = std::move(image.tokens);
  return sequence;
}

void SequenceImpl::claim(int64_t prompt) {
  const std::lock_guard lock(core_->memory);
  check_idle();
  const int64_t size = static_cast<int64_t>(tokens_.size()), context = core_->options.context;
  expect(size + prompt <= context, ErrorCode::invalid_argument, "prompt of ", prompt, " tokens after ", size,
         " in the sequence, the context holds ", context, ": shorten the prompt, or load the model with a larger context");
  busy_ = true;
  prompt_begin_ = prompt_end_ = size;
}

void SequenceImpl::begin(std::span<const int32_t> prompt, std::unique_ptr<KvCache> cache) {
  const std::lock_guard lock(core_->memory);
  if (cache) cache_ = std::move(cache);
  if (!cache_) cache_ = std::make_unique<KvCache>(*core_->pool, core_->config, core_->options.prefill_chunk);
  tokens_.insert(tokens_.end(), prompt.begin(), prompt.end());
  prompt_end_ = static_cast<int64_t>(tokens_.size());
}

void SequenceImpl::reserve(int64_t rows) {
  const std::lock_guard lock(core_->memory);
  cache_->reserve(rows);
}

void SequenceImpl::advance(int64_t rows) {
  const std::lock_guard lock(core_->memory);
  cache_->advance(rows);
}

void SequenceImpl::push(int32_t token) {
  const std::lock_guard lock(core_->memory);
  tokens_.push_back(token);
}

void SequenceImpl::end_run() {
  const std::lock_guard lock(core_->memory);
  if (cached() < prompt_end_)
    tokens_.resize(static_cast<size_t>(std::clamp(cached(), prompt_begin_, static_cast<int64_t>(tokens_.size()))));
  busy_ = false;
}

std::unique_ptr<KvCache> SequenceImpl::take_cache() {
  const std::lock_guard lock(core_->memory);
  return std::move(cache_);
}

}  // namespace lapidary
