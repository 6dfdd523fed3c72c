// What becomes of drawn tokens, and the words to the observer.
#include "runtime/run.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lapidary {

namespace {

double milliseconds(RunImpl::Clock::time_point from, RunImpl::Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::stop_sequence:
      return "stop-sequence";
    case FinishReason::aborted:
      return "aborted";
  }
  return "aborted";
}

RunImpl::RunImpl(std::shared_ptr<EngineCore> core, RunRequest request, std::shared_ptr<SequenceImpl> sequence)
    : core_(std::move(core)), request_(std::move(request)), sequence_(std::move(sequence)), own_sequence_(request_.sequence == nullptr) {
  outcome_.usage.prompt_tokens = static_cast<int64_t>(request_.prompt.size());
}

// --- any thread -------------------------------------------------------------------------------------------------------

void RunImpl::abort() {
  aborted_ = true;
  core_->signal();
}

void RunImpl::acknowledge(int64_t tokens) {
  acknowledged_ += tokens;
  core_->signal();
}

void RunImpl::provide_mask(std::vector<uint32_t> bits) {
  const size_t words = static_cast<size_t>((core_->config.vocab + 31) / 32);
  expect(bits.empty() || bits.size() == words, ErrorCode::invalid_argument, "token mask has ", bits.size(), " words, a vocabulary of ",
         core_->config.vocab, " needs ", words);
  {
    const std::lock_guard lock(core_->inbox);
    mask_offered_ = true;
    offered_mask_ = std::move(bits);
  }
  core_->signal();
}

// --- engine thread ----------------------------------------------------------------------------------------------------

// Observers are asked not to throw; one that does loses its run, not the engine.
template <typename Call>
void RunImpl::notify(RunObserver& observer, const Call& call) noexcept {
  try {
    call(observer);
  } catch (...) {
    aborted_ = true;
  }
}

void RunImpl::begin(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<KvCache> cache) {
  admitted_ = Clock::now();
  outcome_.usage.queue_ms = milliseconds(submitted_, admitted_);
  outcome_.usage.cached_tokens = cache ? cache->length() : 0;
  sequence_->begin(request_.prompt, std::move(cache));
  if (scores()) {
    const ModelConfig& c = core_->config;
    score_rows_.resize(request_.kind == RunKind::hidden ? static_cast<size_t>(c.num_layers) + 1 : 1);
    const int64_t width = request_.kind == RunKind::logits ? c.vocab : request_.kind == RunKind::hidden ? c.hidden : 1;
    for (std::vector<float>& rows : score_rows_) rows.reserve(request_.prompt.size() * static_cast<size_t>(width));
    return;
  }
  limit_ = core_->options.context - sequence_->prompt_end();
  if (request_.max_tokens >= 0) limit_ = std::min(limit_, request_.max_tokens);
  if (tokenizer) text_.emplace(Text{tokenizer->size(), Tokenizer::Stream(std::move(tokenizer)), StopMatcher(request_.stop_strings)});
  if (limit_ > 0) ask_mask();
}

int64_t RunImpl::rows_left() const { return static_cast<int64_t>(sequence_->token_view().size()) - sequence_->cached(); }

bool RunImpl::paused() const { return generated_ - acknowledged_ >= core_->options.unread_tokens; }

void RunImpl::ask_mask() {
  if (!request_.masked) return;
  waiting_ = true;
  {
    const std::lock_guard lock(core_->inbox);
    mask_offered_ = false;
  }
  const auto generated = sequence_->token_view().subspan(static_cast<size_t>(sequence_->prompt_end()));
  notify(*request_.observer, [&](RunObserver& o) { o.on_mask_wanted(generated); });
}

bool RunImpl::waiting() {
  if (!waiting_) return false;
  const std::lock_guard lock(core_->inbox);
  if (!mask_offered_) return true;
  mask_ = std::move(offered_mask_);
  mask_offered_ = waiting_ = false;
  return false;
}

SampleRequest RunImpl::sample_request() const {
  SampleRequest r;
  r.settings = &request_.sampling;
  r.history = sequence_->token_view();
  r.prompt_tokens = sequence_->prompt_end();
  r.mask = mask_;
  r.seed = request_.seed;
  r.counter = static_cast<uint64_t>(generated_);
  r.top_logprobs = request_.top_logprobs;
  return r;
}

bool RunImpl::is_stop(int32_t id) const {
  const auto among = [id](const std::vector<int32_t>& ids) { return std::find(ids.begin(), ids.end(), id) != ids.end(); };
  return among(request_.stop_ids) || (!request_.ignore_eos && among(core_->config.eos_ids));
}

bool RunImpl::accept(SampleResult&& result) {
  if (!decoding()) {
    first_token_ = Clock::now();
    outcome_.usage.prefill_ms = milliseconds(admitted_, first_token_);
  }
  sequence_->push(result.id);
  if (is_stop(result.id)) {
    outcome_.reason = FinishReason::stop;
    return true;
  }
  ++generated_;
  TokenEvent event{result.id, {}, result.logprob, std::move(result.top)};
  if (text_ && result.id < text_->pieces) event.text = text_->stops.push(text_->stream.push(result.id));
  const bool matched = text_ && text_->stops.matched(), full = generated_ == limit_;
  if (matched) {
    outcome_.reason = FinishReason::stop_sequence;
    outcome_.stop_sequence = text_->stops.match();
  } else if (full) {
    outcome_.reason = FinishReason::length;
    event.text += rest_of_text();
  }
  tell(std::move(event));
  if (matched || full) return true;
  ask_mask();
  return false;
}

void RunImpl::complete() { outcome_.reason = scores() ? FinishReason::stop : FinishReason::length; }

// What is still held back once no token follows.
std::string RunImpl::rest_of_text() {
  if (!text_) return {};
  std::string rest = text_->stops.push(text_->stream.flush());
  return rest + text_->stops.flush();
}

void RunImpl::tell(TokenEvent&& event) {
  notify(*request_.observer, [&](RunObserver& o) { o.on_tokens({&event, 1}); });
}

void RunImpl::measure_end() {
  const Clock::time_point now = Clock::now();
  Usage& usage = outcome_.usage;
  usage.generated_tokens = generated_;
  if (admitted_ == Clock::time_point{}) {
    usage.queue_ms = milliseconds(submitted_, now);
  } else if (first_token_ == Clock::time_point{}) {
    usage.prefill_ms = milliseconds(admitted_, now);
  } else {
    usage.decode_ms = milliseconds(first_token_, now);
  }
}

std::shared_ptr<RunObserver> RunImpl::release() {
  sequence_->end_run();
  sequence_.reset();
  request_.sequence.reset();
  text_.reset();  // the tokenizer is not kept by those who keep the run
  return std::move(request_.observer);
}

void RunImpl::finish() {
  measure_end();
  if (std::string rest = rest_of_text(); !rest.empty()) tell({-1, std::move(rest), 0, {}});
  const std::shared_ptr<RunObserver> observer = release();
  if (scores() && outcome_.reason != FinishReason::aborted) notify(*observer, [&](RunObserver& o) { o.on_scores(std::move(score_rows_)); });
  notify(*observer, [&](RunObserver& o) { o.on_finish(outcome_); });
}

void RunImpl::fail(std::exception_ptr error) {
  const std::shared_ptr<RunObserver> observer = release();
  notify(*observer, [&](RunObserver& o) { o.on_error(error); });
}

}  // namespace lapidary
