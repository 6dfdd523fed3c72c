// What runs may meet: aborts, stops, masks, back-pressure, lack of memory, defects below, bad requests, the engine's end.
#include <atomic>
#include <limits>
#include <thread>

#include "engine_fixture.h"
#include "runtime/kv_cache.h"

using namespace lapidary;
using namespace lapidary::test;

namespace {

struct Watched {
  std::shared_ptr<WatchedBackend> backend;
  Model model;
};

Watched watched(const std::string& name) {
  auto backend = std::make_shared<WatchedBackend>(std::shared_ptr<Backend>(make_reference_backend()));
  Watched w{backend, load_model(golden(name), backend)};
  backend->vocab = w.model.weights->config.vocab;
  return w;
}

// Lets one thread wait for the other at a place of its choosing.
class Gate {
 public:
  void open() { turn(opened_); }
  void pass() { wait(opened_); }
  void arrive() { turn(arrived_); }
  bool wait_for_arrival() { return wait(arrived_); }

 private:
  void turn(bool& flag) {
    {
      const std::lock_guard lock(mutex_);
      flag = true;
    }
    changed_.notify_all();
  }
  bool wait(const bool& flag) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return flag; });
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool opened_ = false, arrived_ = false;
};

RunRequest tiny_request(const Model& model, int64_t max_tokens) {
  std::vector<int32_t> prompt = {model.tokenizer->bos_id()};
  RunRequest r = greedy_request(joined(prompt, model.tokenizer->encode("Once upon a time", false)), max_tokens);
  return r;
}

}  // namespace

TEST("runs: aborting a lone run takes effect between two layers") {
  Watched w = watched("gemma3-tiny");
  std::atomic<int> attentions{0};
  Gate gate;
  w.backend->before = [&](std::string_view primitive) {
    if (primitive != "attention" || ++attentions != 3) return;
    gate.arrive();
    gate.pass();
  };
  const auto engine = w.model.engine(f32_options());
  RunRequest request = greedy_request(some_ids(50, 1), 10);
  request.sequence = engine->new_sequence();
  const Started s = start(*engine, request);
  REQUIRE(gate.wait_for_arrival());
  s.run->abort();
  gate.open();
  s.seen->wait();
  CHECK(s.seen->outcome.reason == FinishReason::aborted && s.seen->tokens.empty() && s.seen->endings == 1);
  CHECK_MSG(attentions == 3, attentions << " layers began");
  CHECK(request.sequence->tokens().empty() && request.sequence->length() == 0);
  w.backend->before = {};
  const auto fresh = run_to_end(*engine, greedy_request(some_ids(50, 1), 10));
  CHECK(same_run(*run_to_end(*engine, request), *fresh));
}

TEST("runs: one of several is aborted at the end of the step, the others go on") {
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(f32_options(16));
  const auto want = run_to_end(*engine, greedy_request(some_ids(40, 1), 60));
  auto recorder = std::make_shared<Recorder>();
  std::shared_ptr<Run> doomed;
  std::mutex mutex;
  recorder->when_token = [&](Recorder& r) {
    const std::lock_guard lock(mutex);
    if (r.tokens.size() == 5) doomed->abort();
  };
  Started a, b;
  {
    const std::lock_guard lock(mutex);
    a = start(*engine, greedy_request(some_ids(40, 1), 60));
    b = start(*engine, greedy_request(some_ids(7, 2), 500), recorder);
    doomed = b.run;
  }
  b.seen->wait(), a.seen->wait_well();
  CHECK(b.seen->outcome.reason == FinishReason::aborted && b.seen->tokens.size() == 5);
  CHECK(same_run(*want, *a.seen));
}

TEST("runs: more than max_running wait their turn, in order, and can be aborted there") {
  EngineOptions options = f32_options();
  options.max_running = 2;
  options.unread_tokens = 1;
  const auto engine = golden_model("gemma2-tiny", "reference").engine(options);
  const auto sequence = engine->new_sequence();  // ten tokens of which none is cached any more
  RunRequest on_sequence = greedy_request(some_ids(9, 9), 1);
  on_sequence.sequence = sequence;
  run_to_end(*engine, on_sequence);
  sequence->rewind(0);
  on_sequence.prompt = some_ids(200, 9), on_sequence.max_tokens = 0;
  run_to_end(*engine, on_sequence);
  sequence->rewind(10);

  std::vector<Started> runs;
  for (uint32_t i = 0; i < 5; ++i) runs.push_back(start(*engine, i == 3 ? on_sequence : greedy_request(some_ids(9, i), 2)));
  REQUIRE(runs[0].seen->wait_for_tokens(1) && runs[1].seen->wait_for_tokens(1));
  runs[3].run->abort();
  runs[3].seen->wait();
  CHECK(sequence->tokens() == some_ids(10, 9));  // a run that never began leaves no trace
  CHECK(runs[3].seen->outcome.reason == FinishReason::aborted && runs[3].seen->outcome.usage.generated_tokens == 0);
  CHECK(runs[2].seen->count() == 0 && runs[4].seen->count() == 0);
  for (const Started& s : runs) s.run->acknowledge(10);
  for (const Started& s : runs) s.seen->wait_well();
  CHECK(runs[4].seen->tokens.size() == 2 && runs[4].seen->outcome.usage.queue_ms > 0);
}

TEST("runs: one that nobody reads stops at its unread tokens, others go on, reading wakes it") {
  EngineOptions options = f32_options();
  options.unread_tokens = 4;
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(options);
  const Started idle = start(*engine, greedy_request(some_ids(9, 1), 20));
  auto reader = std::make_shared<Recorder>();
  std::mutex mutex;
  std::shared_ptr<Run> read;
  reader->when_token = [&](Recorder&) {
    const std::lock_guard lock(mutex);
    read->acknowledge(1);
  };
  Started other;
  {
    const std::lock_guard lock(mutex);
    other = start(*engine, greedy_request(some_ids(9, 2), 100), reader);
    read = other.run;
  }
  other.seen->wait_well();
  CHECK(other.seen->tokens.size() == 100);
  CHECK(idle.seen->count() == 4);
  idle.run->acknowledge(3);
  REQUIRE(idle.seen->wait_for_tokens(7));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(idle.seen->count() == 7);
  idle.run->acknowledge(100);
  idle.seen->wait_well();
  CHECK(idle.seen->tokens.size() == 20);
}

TEST("runs: stop strings end the text before them, wherever tokens are cut") {
  const Model model = load_model(tiny_model(), backend_named("cpu"));
  const auto engine = model.engine(f32_options());
  const auto whole = run_to_end(*engine, tiny_request(model, 60));
  const std::string text = whole->text;
  CHECK(text == model.tokenizer->decode(whole->tokens));
  REQUIRE(text.size() > 60);
  for (size_t at : {size_t{3}, size_t{10}, size_t{17}, size_t{31}}) {
    const std::string stop = text.substr(at, 7);
    RunRequest r = tiny_request(model, 60);
    r.stop_strings = {"never to be found", stop};
    const auto got = run_to_end(*engine, r);
    CHECK(got->outcome.reason == FinishReason::stop_sequence && got->outcome.stop_sequence == stop);
    CHECK_MSG(got->text == text.substr(0, text.find(stop)), got->text);
    CHECK(std::equal(got->tokens.begin(), got->tokens.end(), whole->tokens.begin()) && got->tokens.size() < whole->tokens.size());
  }
  // What may begin a stop string is told in the end when nothing came of it.
  RunRequest r = tiny_request(model, 60);
  r.stop_strings = {text.substr(text.size() - 4) + "#"};
  const auto got = run_to_end(*engine, r);
  CHECK(got->text == text && got->tokens == whole->tokens && got->outcome.reason == FinishReason::length && got->text_only == 0);
  r.stop_ids = {whole->tokens[40]};
  r.stop_strings = {model.tokenizer->decode(std::span(whole->tokens).first(40)).substr(20) + "#"};
  const auto cut = run_to_end(*engine, r);
  CHECK(cut->outcome.reason == FinishReason::stop && cut->text == model.tokenizer->decode(cut->tokens) && cut->text_only == 1);
}

TEST("runs: end tokens are not told but stay in the sequence, unless they are ignored") {
  const Model model = golden_model("gemma3-tiny", "reference");
  const auto prompt = golden_values<int32_t>("gemma3-tiny", "greedy.prompt"),
             want = golden_values<int32_t>("gemma3-tiny", "greedy.continuation");
  const size_t at = static_cast<size_t>(std::find(want.begin(), want.end(), want[9]) - want.begin());
  const std::vector<int32_t> before(want.begin(), want.begin() + static_cast<ptrdiff_t>(at));
  auto ending = std::make_shared<ModelWeights>(*model.weights);
  ending->config.eos_ids = {want[9]};
  const auto engine = Engine::start(model.backend, ending, nullptr, f32_options());
  RunRequest r = greedy_request(prompt, 64);
  CHECK(run_to_end(*engine, r)->tokens == want);
  r.ignore_eos = false;
  r.sequence = engine->new_sequence();
  const auto stopped = run_to_end(*engine, r);
  CHECK(stopped->tokens == before && stopped->outcome.reason == FinishReason::stop &&
        stopped->outcome.usage.generated_tokens == static_cast<int64_t>(at));
  CHECK(r.sequence->tokens() == joined(joined(prompt, before), {want[9]}));
  const auto plain = model.engine(f32_options());
  RunRequest ids = greedy_request(prompt, 64);
  ids.stop_ids = {want[9]};
  CHECK(run_to_end(*plain, ids)->tokens == before);
}

TEST("runs: masks are asked for before every token, and others do not wait") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  const auto engine = model.engine(f32_options(16));
  const auto one = [&](int32_t id) {
    std::vector<uint32_t> bits(512 / 32);
    bits[static_cast<size_t>(id) / 32] = 1u << id % 32;
    return bits;
  };
  RunRequest r = greedy_request(some_ids(40, 1), 3);
  r.masked = true;
  const Started s = start(*engine, r);
  CHECK(run_to_end(*engine, greedy_request(some_ids(50, 2), 30))->tokens.size() == 30);
  CHECK(s.seen->count() == 0);
  const std::vector<int32_t> wanted = {77, 5, 300};
  for (size_t i = 0; i < wanted.size(); ++i) {
    REQUIRE(s.seen->wait_until([&] { return s.seen->masks_wanted.size() == i + 1; }));
    CHECK_THROWS(s.run->provide_mask({1}), ErrorCode::invalid_argument, "1 words");
    s.run->provide_mask(one(wanted[i]));
  }
  s.seen->wait_well();
  CHECK(s.seen->tokens == wanted);
  CHECK((s.seen->masks_wanted == std::vector<std::vector<int32_t>>{{}, {77}, {77, 5}}));

  // Answered from within the question, and "all allowed": as without masks.
  auto eager = std::make_shared<Recorder>();
  std::mutex mutex;
  std::shared_ptr<Run> run;
  eager->when_mask = [&](Recorder&) {
    const std::lock_guard lock(mutex);
    run->provide_mask({});
  };
  Started all;
  r.max_tokens = 20;
  {
    const std::lock_guard lock(mutex);
    all = start(*engine, r, eager);
    run = all.run;
  }
  all.seen->wait_well();
  CHECK(same_run(*all.seen, *run_to_end(*engine, greedy_request(some_ids(40, 1), 20))));

  const Started none = start(*engine, r);
  none.run->provide_mask(std::vector<uint32_t>(16, 0));
  REQUIRE(none.seen->wait_until([&] { return !none.seen->masks_wanted.empty(); }));
  none.run->provide_mask(std::vector<uint32_t>(16, 0));
  none.seen->wait();
  CHECK_THROWS(none.seen->wait_well(), ErrorCode::invalid_argument, "no token is left");

  const Started waiting = start(*engine, r);
  waiting.run->abort();
  waiting.seen->wait();
  CHECK(waiting.seen->outcome.reason == FinishReason::aborted);
}

TEST("runs: the same seed gives the same tokens in any company, another seed others") {
  const auto engine = golden_model("gemma2-tiny", "cpu").engine(f32_options(16));
  RunRequest r = greedy_request(some_ids(20, 1), 40);
  r.sampling.temperature = 1.5f;
  r.sampling.repetition_penalty = 1.2f, r.sampling.frequency_penalty = 0.3f;
  r.seed = 7;
  const auto first = run_to_end(*engine, r);
  const Started a = start(*engine, r), b = start(*engine, greedy_request(some_ids(90, 2), 30));
  a.seen->wait_well(), b.seen->wait_well();
  CHECK(same_run(*first, *a.seen));
  r.seed = 8;
  CHECK(run_to_end(*engine, r)->tokens != first->tokens);
}

TEST("runs: want of memory fails the run that met it, after kept prefixes have given way") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  EngineOptions options = f32_options(32);
  const int64_t one = KvCache::estimate_bytes(model.weights->config, DType::f32, 200, 32);
  options.kv_limit_bytes = one + one / 2;
  options.prefix_cache = 2;
  const auto engine = model.engine(options);
  const auto want = run_to_end(*engine, greedy_request(some_ids(50, 1), 140));
  run_to_end(*engine, greedy_request(some_ids(60, 2), 10));  // kept beside the first
  CHECK(engine->memory().kv_bytes > 0 && engine->memory().kv_bytes <= options.kv_limit_bytes);
  CHECK(same_run(*want, *run_to_end(*engine, greedy_request(some_ids(50, 1), 140))));

  const auto held = engine->new_sequence();
  RunRequest small = greedy_request(some_ids(10, 3), 5);
  small.sequence = held;
  run_to_end(*engine, small);
  const auto held_tokens = held->tokens();
  const Started fits = start(*engine, greedy_request(some_ids(50, 1), 60));
  REQUIRE(fits.seen->wait_for_tokens(20));  // on its last pages
  const Started big = start(*engine, greedy_request(some_ids(700, 4), 10));
  big.seen->wait();
  CHECK_THROWS(big.seen->wait_well(), ErrorCode::out_of_memory, "limit");
  fits.seen->wait_well();
  CHECK(std::equal(fits.seen->tokens.begin(), fits.seen->tokens.end(), want->tokens.begin()));
  CHECK(held->tokens() == held_tokens);
  small.prompt = some_ids(900, 5);
  const Started grown = start(*engine, small);
  grown.seen->wait();
  CHECK_THROWS(grown.seen->wait_well(), ErrorCode::out_of_memory, "limit");
  CHECK(held->length() == static_cast<int64_t>(held->tokens().size()) && held->length() > 14);  // what was computed of the prompt
  small.prompt = {9};
  held->rewind(15);
  CHECK(run_to_end(*engine, small)->tokens.size() == 5);
}

TEST("runs: damaged logits and failing kernels are errors of their runs, and the engine goes on") {
  Watched w = watched("gemma3-tiny");
  const auto engine = w.model.engine(f32_options(16));
  const auto want = run_to_end(*engine, greedy_request(some_ids(8, 1), 12));
  // The first of two rows of some step is poisoned.
  std::atomic<bool> poison{true};
  w.backend->after_head = [&](const Tensor& logits) {
    if (logits.shape[0] == 2 && poison.exchange(false)) logits.as<float>()[17] = NAN;
  };
  const Started a = start(*engine, greedy_request(some_ids(8, 1), 12)), b = start(*engine, greedy_request(some_ids(8, 1), 12));
  a.seen->wait(), b.seen->wait();
  if (!poison) {  // else the two never met in a step
    const bool a_failed = a.seen->error != nullptr;
    CHECK(a_failed != (b.seen->error != nullptr));
    CHECK_THROWS((a_failed ? a : b).seen->wait_well(), ErrorCode::internal, "token 17");
    CHECK(same_run(*want, *(a_failed ? b : a).seen));
  }
  w.backend->after_head = {};

  std::atomic<int> count{0};
  w.backend->before = [&](std::string_view primitive) {
    if (primitive == "attention" && ++count == 20) throw std::runtime_error("kernel fault");
    if (primitive == "attention" && count == 60) throw std::bad_alloc();
  };
  for (const char* part : {"kernel fault", "memory"}) {
    const Started s = start(*engine, greedy_request(some_ids(8, 1), 100));
    s.seen->wait();
    REQUIRE(s.seen->error);
    try {
      std::rethrow_exception(s.seen->error);
    } catch (const std::exception& e) {
      CHECK_MSG(std::string(e.what()).find(part) != std::string::npos, e.what());
    }
  }
  w.backend->before = {};
  CHECK(same_run(*want, *run_to_end(*engine, greedy_request(some_ids(8, 1), 12))));
  CHECK(engine->memory().kv_bytes == 0);
}

TEST("runs: nothing to generate, and a full context") {
  const Model model = golden_model("gemma3-tiny", "reference");
  EngineOptions options = f32_options(16);
  options.context = 50;
  const auto engine = model.engine(options);
  RunRequest r = greedy_request(some_ids(40, 1), 0);
  r.sequence = engine->new_sequence();
  const auto nothing = run_to_end(*engine, r);
  CHECK(nothing->tokens.empty() && nothing->outcome.reason == FinishReason::length && r.sequence->length() == 40);
  r.prompt = {7, 8}, r.max_tokens = -1;
  const auto rest = run_to_end(*engine, r);
  CHECK(rest->tokens.size() == 8 && rest->outcome.reason == FinishReason::length && r.sequence->tokens().size() == 50);
  CHECK_THROWS(start(*engine, r), ErrorCode::invalid_argument, "prompt of 2 tokens after 50 in the sequence, the context holds 50");
  CHECK(run_to_end(*engine, greedy_request(some_ids(50, 2), -1))->tokens.empty());
  CHECK_THROWS(start(*engine, greedy_request(some_ids(51, 2), 1)), ErrorCode::invalid_argument, "prompt of 51 tokens");
  CHECK(run_to_end(*engine, score_request(RunKind::logits, some_ids(50, 2)))->scores[0].size() == 50 * 512);
}

TEST("runs: what a request gets wrong is said at once") {
  const Model model = golden_model("gemma3-tiny", "reference");
  const auto engine = model.engine(f32_options());
  const auto refused = [&](auto change, const char* part) {
    RunRequest r = greedy_request({5, 6}, 3);
    change(r);
    CHECK_THROWS(start(*engine, r), ErrorCode::invalid_argument, part);
  };
  refused([](RunRequest& r) { r.prompt = {}; }, "no tokens");
  refused([](RunRequest& r) { r.prompt = {5, 512}; }, "prompt token 1 is id 512");
  refused([](RunRequest& r) { r.prompt = {-1}; }, "id -1");
  refused([](RunRequest& r) { r.max_tokens = -2; }, "max tokens is -2");
  refused([](RunRequest& r) { r.top_logprobs = 513; }, "top logprobs is 513");
  refused([](RunRequest& r) { r.stop_ids = {600}; }, "stop token 0 is id 600");
  refused([](RunRequest& r) { r.stop_strings = {"x"}; }, "need a tokenizer");
  refused([](RunRequest& r) { r.sampling.temperature = -1; }, "temperature");
  refused([&](RunRequest& r) { r.kind = RunKind::logits, r.sequence = engine->new_sequence(); }, "of their own");
  RunRequest r = greedy_request({5}, 1);
  CHECK_THROWS(engine->submit(r), ErrorCode::invalid_argument, "observer");
}

TEST("runs: closing aborts all of them, and afterwards everything says so") {
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(f32_options(16));
  std::vector<Started> runs;
  for (uint32_t i = 0; i < 80; ++i) runs.push_back(start(*engine, greedy_request(some_ids(20, i), -1)));
  REQUIRE(runs[0].seen->wait_for_tokens(2));
  std::thread other([&] { engine->close(); });
  engine->close();
  other.join();
  for (const Started& s : runs) {
    s.seen->wait();
    CHECK(!s.seen->error && s.seen->outcome.reason == FinishReason::aborted && s.seen->endings == 1);
    s.run->abort(), s.run->acknowledge(1), s.run->provide_mask({});
  }
  engine->close();
  CHECK_THROWS(start(*engine, greedy_request({5}, 1)), ErrorCode::disposed, "closed");
  CHECK_THROWS(engine->new_sequence(), ErrorCode::disposed, "closed");
  CHECK_THROWS(engine->restore("x"), ErrorCode::disposed, "closed");
  CHECK(engine->memory().kv_bytes == 0);
}

TEST("runs: the engine's last reference may fall on its own thread") {
  std::shared_ptr<Engine> engine = golden_model("gemma3-tiny", "reference").engine(f32_options());
  auto recorder = std::make_shared<Recorder>();
  Gate gate;
  recorder->when_finished = [&gate, held = engine](Recorder&) mutable {
    gate.pass();
    held.reset();
  };
  const Started s = start(*engine, greedy_request({5, 6, 7}, 3), recorder);
  const Started other = start(*engine, greedy_request({5, 6, 7}, -1));
  engine.reset();
  gate.open();
  s.seen->wait_well();
  other.seen->wait();
  CHECK(other.seen->outcome.reason == FinishReason::aborted);
}

TEST("runs: a run submitted when another ends, and observers that throw") {
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(f32_options());
  auto first = std::make_shared<Recorder>(), second = std::make_shared<Recorder>();
  const auto sequence = engine->new_sequence();
  first->when_finished = [&](Recorder&) {
    RunRequest r = greedy_request({8}, 4);
    r.sequence = sequence;  // free by now
    start(*engine, r, second);
  };
  RunRequest r = greedy_request({5, 6, 7}, 3);
  r.sequence = sequence;
  start(*engine, r, first).seen->wait_well();
  second->wait_well();
  CHECK(sequence->tokens().size() == 3 + 3 + 1 + 4);

  auto thrower = std::make_shared<Recorder>();
  thrower->when_token = [](Recorder&) { throw std::runtime_error("not allowed"); };
  const Started t = start(*engine, greedy_request({5}, 50), thrower);
  t.seen->wait();
  CHECK(t.seen->outcome.reason == FinishReason::aborted && t.seen->tokens.size() == 1);
  CHECK(run_to_end(*engine, greedy_request({5}, 5))->tokens.size() == 5);
}

TEST("runs: many threads submit, abort, fork and forget at once") {
  EngineOptions options = f32_options(16);
  options.max_running = 6;
  options.prefix_cache = 2;
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(options);
  const auto want = run_to_end(*engine, greedy_request(some_ids(30, 1), 12));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (uint32_t i = 0; i < 12; ++i) {
        RunRequest r = greedy_request(some_ids(30, 1), 12);
        if ((t + i) % 2) r.sequence = engine->new_sequence();
        const Started s = start(*engine, r);
        if ((t + i) % 3 == 0) s.run->abort();
        while (r.sequence && !s.seen->has_ended()) {  // the state of the moment
          if (r.sequence->length() > static_cast<int64_t>(r.sequence->tokens().size()) || r.sequence->bytes() < 0) ++wrong;
        }
        s.seen->wait();
        if (s.seen->error || (s.seen->outcome.reason != FinishReason::aborted && s.seen->tokens != want->tokens)) ++wrong;
        if (r.sequence) {
          const auto fork = r.sequence->fork();
          fork->rewind(static_cast<int64_t>(fork->tokens().size()) / 2);
          if (fork->length() > static_cast<int64_t>(fork->tokens().size()) || engine->memory().kv_bytes < 0) ++wrong;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
}
