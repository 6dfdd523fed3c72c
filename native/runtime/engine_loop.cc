// The step loop, read top to bottom: wait, sweep, admit, plan, reserve, forward, draw.
#include "runtime/engine_loop.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/error.h"

namespace lapidary {

namespace {

// Free pages kept for the next conversation when the engine has nothing to do.
constexpr int64_t kIdleFreeBytes = int64_t{64} << 20;

// The exception at hand, as one of ours where memory ran out.
std::exception_ptr current_error() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return std::make_exception_ptr(Error(ErrorCode::out_of_memory, "out of host memory"));
  } catch (...) {
    return std::current_exception();
  }
}

bool is_abort(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == ErrorCode::aborted;
  } catch (...) {
    return false;
  }
}

}  // namespace

EngineLoop::EngineLoop(std::shared_ptr<EngineCore> core, std::shared_ptr<Backend> backend, std::shared_ptr<const ModelWeights> weights,
                       std::shared_ptr<const Tokenizer> tokenizer)
    : core_(std::move(core)),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      tokenizer_(std::move(tokenizer)),
      scratch_(std::make_unique<StepScratch>(*backend_, core_->config, core_->options.precision, core_->options.max_batch_tokens,
                                             step_logit_rows(core_->config, core_->options))),
      prefixes_(core_->options.prefix_cache) {
  if (weights_->cushion) scratch_->use_cushion(*backend_, core_->config, weights_->cushion.get());
}

void EngineLoop::main() noexcept {
  while (wait_for_news()) {
    try {
      sweep_aborted();
      admit();
      busy_ = step();
    } catch (...) {  // only memory for the bookkeeping itself can fail here
      const std::exception_ptr error = current_error();
      for (const RunPtr& run : std::exchange(running_, {})) end(run, error);
    }
  }
  finish_all();
}

bool EngineLoop::wait_for_news() {
  if (!busy_ && running_.empty() && queue_.empty()) {
    const std::lock_guard lock(core_->memory);
    if (core_->pool->free_bytes() > kIdleFreeBytes) core_->pool->trim();
  }
  std::unique_lock lock(core_->inbox);
  core_->news.wait(lock, [&] { return busy_ || core_->closing || core_->signalled || !core_->incoming.empty(); });
  core_->signalled = false;
  queue_.insert(queue_.end(), core_->incoming.begin(), core_->incoming.end());
  core_->incoming.clear();
  return !core_->closing;
}

void EngineLoop::sweep_aborted() {
  std::vector<RunPtr> aborted;
  const auto take = [&](auto& runs) {
    for (const RunPtr& run : runs)
      if (run->aborted()) aborted.push_back(run);
    std::erase_if(runs, [](const RunPtr& run) { return run->aborted(); });
  };
  take(queue_);
  take(running_);
  for (const RunPtr& run : aborted) end(run);
}

void EngineLoop::admit() {
  while (!queue_.empty() && static_cast<int64_t>(running_.size()) < core_->options.max_running) {
    const RunPtr run = std::move(queue_.front());
    queue_.pop_front();
    try {
      start(run);
      running_.push_back(run);
    } catch (...) {
      end(run, current_error());
    }
  }
}

void EngineLoop::start(const RunPtr& run) {
  std::unique_ptr<KvCache> cache;
  if (run->own_sequence() && !run->scores()) {
    const std::lock_guard lock(core_->memory);
    cache = prefixes_.find(run->request().prompt);
  }
  run->begin(tokenizer_, std::move(cache));
}

void EngineLoop::finish_all() {
  {
    const std::lock_guard lock(core_->inbox);
    queue_.insert(queue_.end(), core_->incoming.begin(), core_->incoming.end());
    core_->incoming.clear();
  }
  for (const RunPtr& run : std::exchange(running_, {})) end(run);
  for (const RunPtr& run : std::exchange(queue_, {})) end(run);
  const TurnLock::Hold turn(&core_->turns);  // whoever works beside the engine has ended
  {
    const std::lock_guard lock(core_->memory);
    prefixes_.clear();
  }
  core_->shut();
  scratch_.reset();
  weights_.reset();
  tokenizer_.reset();
  backend_.reset();
}

// --- one step ---------------------------------------------------------------------------------------------------------

std::vector<Share> EngineLoop::plan() {
  std::vector<RunState> states;
  states.reserve(running_.size());
  for (const RunPtr& run : running_) {
    RunState s;
    s.rows_left = run->rows_left();
    s.decoding = run->decoding();
    s.samples = run->draws();
    s.every_row = run->wants_every_row();
    s.alone = run->request().kind == RunKind::hidden;
    s.paused = run->paused();
    s.waiting = run->waiting();
    s.last_served = run->last_served;
    states.push_back(s);
  }
  const EngineOptions& o = core_->options;
  const int64_t least_part = o.precision == Precision::int8 ? kLongSpan : 0;
  return plan_step(states, {o.max_batch_tokens, o.prefill_chunk, scratch_->max_logit_rows, least_part});
}

bool EngineLoop::step() {
  const std::vector<Share> shares = plan();
  if (shares.empty()) return false;
  const TurnLock::Hold turn(&core_->turns);
  ++steps_;
  Step step = assemble(shares);
  if (!compute(step)) return true;
  for (const Part& part : step.parts) {
    if (part.draws || part.run->rows_left() > 0 || part.run->aborted()) continue;
    std::erase(running_, part.run);
    part.run->complete();
    end(part.run);
  }
  return true;
}

// Memory for a run's rows, kept prefixes giving way; false after its run has failed for want of it.
bool EngineLoop::reserve(const RunPtr& run, int64_t rows) {
  for (;;) {
    try {
      run->sequence().reserve(rows);
      return true;
    } catch (...) {
      const std::exception_ptr error = current_error();
      {
        const std::lock_guard lock(core_->memory);
        if (prefixes_.drop_oldest()) continue;
      }
      std::erase(running_, run);
      end(run, error);
      return false;
    }
  }
}

EngineLoop::Step EngineLoop::assemble(std::span<const Share> shares) {
  std::vector<RunPtr> runs;  // indices of the shares stay true while runs fail
  for (const Share& share : shares) runs.push_back(running_[share.run]);
  Step step;
  for (size_t i = 0; i < shares.size(); ++i) {
    const RunPtr& run = runs[i];
    const int64_t rows = shares[i].rows;
    if (!reserve(run, rows)) continue;
    run->last_served = steps_;
    const bool every_row = run->wants_every_row();
    const bool draws = run->draws() && rows == run->rows_left();
    const int64_t first_row = static_cast<int64_t>(step.ids.size()), first_pos = run->sequence().cached();
    const std::span<const int32_t> ids = run->sequence().token_view().subspan(static_cast<size_t>(first_pos), static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      step.ids.push_back(ids[static_cast<size_t>(r)]);
      step.positions.push_back(static_cast<int32_t>(first_pos + r));
      if (every_row || (draws && r + 1 == rows)) step.logit_rows.push_back(static_cast<int32_t>(first_row + r));
    }
    step.spans.push_back({first_row, rows, first_pos, {}});
    step.parts.push_back({run, first_pos, rows, draws, every_row});
    step.draws += draws;
  }
  // Only now: no reservation moves a table any more.
  for (size_t i = 0; i < step.parts.size(); ++i) step.spans[i].layers = step.parts[i].run->sequence().views();
  return step;
}

bool EngineLoop::compute(Step& step) {
  if (step.parts.empty()) return false;
  HiddenObserver observe;
  if (RunImpl& first = *step.parts.front().run; first.request().kind == RunKind::hidden) {
    observe = [&](int64_t l, const Tensor& x) {
      std::vector<float>& rows = first.score_rows()[static_cast<size_t>(l)];
      const size_t at = rows.size();
      rows.resize(at + static_cast<size_t>(x.elements()));
      backend_->download(rows.data() + at, x);
    };
  }
  const auto stop = [&] {
    return core_->closing.load() || std::all_of(step.parts.begin(), step.parts.end(), [](const Part& p) { return p.run->aborted(); });
  };
  try {
    const Tensor logits = forward(*backend_, *weights_, {step.ids, step.positions, step.spans, step.logit_rows}, *scratch_,
                                  {.hidden = observe, .stop = stop});
    for (const Part& part : step.parts) part.run->sequence().advance(part.rows);
    collect_scores(step, logits);
    draw(step, logits);
    return true;
  } catch (...) {
    const std::exception_ptr error = current_error();
    if (is_abort(error) && stop()) return false;  // every run of the step is swept next
    for (const Part& part : step.parts) {
      if (std::erase(running_, part.run) > 0) end(part.run, error);
    }
    return false;
  }
}

void EngineLoop::collect_scores(const Step& step, const Tensor& logits) {
  int64_t at = step.draws;
  for (const Part& part : step.parts) {
    if (!part.every_row) continue;
    std::vector<float>& rows = part.run->score_rows().front();
    const Tensor mine = logits.rows(at, part.rows);
    at += part.rows;
    if (part.run->request().kind == RunKind::logprobs) {
      append_logprobs(mine, part, rows);
      continue;
    }
    const size_t before = rows.size();
    rows.resize(before + static_cast<size_t>(mine.elements()));
    backend_->download(rows.data() + before, mine);
  }
}

// Of the tokens that follow the part's rows; nothing follows the last one of the prompt.
void EngineLoop::append_logprobs(const Tensor& logits, const Part& part, std::vector<float>& logprobs) {
  const std::span<const int32_t> ids = part.run->sequence().token_view();
  std::vector<float> row(static_cast<size_t>(logits.shape[1]));
  for (int64_t r = 0; r < part.rows; ++r) {
    const size_t next = static_cast<size_t>(part.first_pos + r + 1);
    if (next == ids.size()) break;
    backend_->download(row.data(), logits.rows(r, 1));
    logprobs.push_back(log_probability(row, ids[next]));
  }
}

// One token for each run that draws. When the draw of all together fails, each is drawn alone, so that a run's damaged logits or
// empty mask are that run's error only.
void EngineLoop::draw(Step& step, const Tensor& logits) {
  std::vector<RunPtr> runs;
  std::vector<SampleRequest> requests;
  for (const Part& part : step.parts) {
    if (!part.draws) continue;
    runs.push_back(part.run);
    requests.push_back(part.run->sample_request());
  }
  if (runs.empty()) return;
  std::vector<SampleResult> results(runs.size());
  std::vector<std::exception_ptr> errors(runs.size());
  try {
    backend_->sample(logits.rows(0, step.draws), requests, results);
  } catch (...) {
    for (size_t i = 0; i < runs.size(); ++i) {
      results[i] = {};
      try {
        backend_->sample(logits.rows(static_cast<int64_t>(i), 1), std::span(requests).subspan(i, 1), std::span(results).subspan(i, 1));
      } catch (...) {
        errors[i] = current_error();
      }
    }
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    if (!errors[i] && (runs[i]->aborted() || !runs[i]->accept(std::move(results[i])))) continue;
    std::erase(running_, runs[i]);
    errors[i] ? end(runs[i], errors[i]) : end(runs[i]);
  }
}

// --- the end of a run -------------------------------------------------------------------------------------------------

// The cache of a run's own sequence goes to the kept prefixes or back to the pool, whoever still holds the run.
void EngineLoop::let_go(const RunPtr& run, bool keep_prefix) {
  if (!run->own_sequence()) return;
  std::unique_ptr<KvCache> cache = run->sequence().take_cache();
  if (!cache) return;
  const std::span<const int32_t> tokens = run->sequence().token_view().first(static_cast<size_t>(cache->length()));
  std::vector<int32_t> cached;
  try {
    if (keep_prefix) cached.assign(tokens.begin(), tokens.end());
  } catch (const std::bad_alloc&) {  // then it is not kept
  }
  const std::lock_guard lock(core_->memory);
  if (!cached.empty()) {
    prefixes_.insert(std::move(cached), std::move(cache));
  }
  cache.reset();
}

void EngineLoop::end(const RunPtr& run) {
  let_go(run, !run->scores());
  run->finish();
}

void EngineLoop::end(const RunPtr& run, std::exception_ptr error) {
  let_go(run, false);
  run->fail(std::move(error));
}

}  // namespace lapidary
