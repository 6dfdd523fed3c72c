// Conversations: turns, forks, rewinds and kept prefixes give what a fresh computation of the same tokens gives.
#include "engine_fixture.h"

using namespace lapidary;
using namespace lapidary::test;

namespace {

RunRequest on(std::shared_ptr<Sequence> sequence, std::vector<int32_t> prompt, int64_t max_tokens) {
  RunRequest r = greedy_request(std::move(prompt), max_tokens);
  r.sequence = std::move(sequence);
  return r;
}

}  // namespace

TEST("sequence: a second turn continues after the whole first one") {
  for (const char* backend : kBackendNames) {
    const auto engine = golden_model("gemma3-tiny", backend).engine(f32_options(16));
    const auto sequence = engine->new_sequence();
    CHECK(sequence->length() == 0 && sequence->tokens().empty() && sequence->bytes() == 0);
    const auto a = some_ids(40, 1), b = some_ids(23, 2);
    const auto first = run_to_end(*engine, on(sequence, a, 10));
    CHECK(sequence->tokens() == joined(a, first->tokens));
    CHECK(sequence->length() == 49);  // the tenth token is not in the cache yet
    const auto second = run_to_end(*engine, on(sequence, b, 30));
    CHECK(second->outcome.usage.prompt_tokens == 23);
    const auto fresh = run_to_end(*engine, greedy_request(joined(joined(a, first->tokens), b), 30));
    CHECK(same_run(*fresh, *second));
  }
}

TEST("sequence: forks go their own ways") {
  const auto engine = golden_model("gemma2-tiny", "cpu").engine(f32_options(32));
  const auto sequence = engine->new_sequence();
  const auto a = some_ids(75, 1), b = some_ids(9, 2), c = some_ids(90, 3);
  const auto first = run_to_end(*engine, on(sequence, a, 7));
  const auto fork = sequence->fork();
  const auto start_tokens = joined(a, first->tokens);
  CHECK(fork->tokens() == start_tokens && fork->length() == sequence->length());
  const Started left = start(*engine, on(sequence, b, 60)), right = start(*engine, on(fork, c, 60));
  left.seen->wait_well(), right.seen->wait_well();
  CHECK(same_run(*left.seen, *run_to_end(*engine, greedy_request(joined(start_tokens, b), 60))));
  CHECK(same_run(*right.seen, *run_to_end(*engine, greedy_request(joined(start_tokens, c), 60))));
}

TEST("sequence: rewound, within what rings remember and beyond, it is as if never gone on") {
  const auto engine = golden_model("gemma3-tiny", "cpu").engine(f32_options(16));
  const auto a = some_ids(300, 1), b = some_ids(20, 2);
  for (const int64_t length : {300, 299, 280, 100, 1, 0}) {
    const auto sequence = engine->new_sequence();
    run_to_end(*engine, on(sequence, a, 5));
    sequence->rewind(length);
    const std::vector<int32_t> kept(a.begin(), a.begin() + length);
    CHECK(sequence->tokens() == kept);
    CHECK_MSG(sequence->length() == (length >= 280 ? length : 0), "rewound to " << length << ": " << sequence->length() << " cached");
    const auto got = run_to_end(*engine, on(sequence, b, 20));
    CHECK_MSG(same_run(*got, *run_to_end(*engine, greedy_request(joined(kept, b), 20))), "rewound to " << length);
    CHECK_THROWS(sequence->rewind(1000), ErrorCode::invalid_argument, "rewind to 1000");
    CHECK_THROWS(sequence->rewind(-1), ErrorCode::invalid_argument, "rewind to -1");
  }
}

TEST("sequence: a kept prefix is found again, and changes nothing but the time") {
  const Model model = golden_model("gemma2-tiny", "cpu");
  for (const DType kv : {DType::f32, DType::i8}) {
    EngineOptions options = f32_options(32);
    options.kv = kv;
    const auto plain = model.engine(options);
    options.prefix_cache = 2;
    const auto keeping = model.engine(options);
    const auto a = some_ids(70, 1);
    const auto check = [&](const std::vector<int32_t>& prompt, int64_t cached) {
      const auto got = run_to_end(*keeping, greedy_request(prompt, 25));
      CHECK_MSG(got->outcome.usage.cached_tokens == cached, got->outcome.usage.cached_tokens << " cached, expected " << cached);
      const auto want = run_to_end(*plain, greedy_request(prompt, 25));
      CHECK(want->outcome.usage.cached_tokens == 0);
      CHECK(same_run(*want, *got));
      return got;
    };
    const auto first = check(a, 0);
    check(a, 69);                                                      // all but the last, whose logits are wanted
    check(joined(joined(a, first->tokens), some_ids(5, 9)), 70 + 24);  // the last generated token was not cached
    check(joined(std::vector<int32_t>(a.begin(), a.begin() + 40), some_ids(50, 3)), 40);
    check(some_ids(30, 5), 0);
    check({a[0]}, 0);
    CHECK(run_to_end(*keeping, score_request(RunKind::logits, a))->outcome.usage.cached_tokens == 0);
    CHECK(plain->memory().kv_bytes == 0 && keeping->memory().kv_bytes > 0);
  }
}

TEST("sequence: what rings have forgotten is not taken for a prefix") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  EngineOptions options = f32_options(16);
  options.prefix_cache = 1;
  const auto engine = model.engine(options);
  const auto a = some_ids(400, 1);
  run_to_end(*engine, greedy_request(a, 5));
  const std::vector<int32_t> early(a.begin(), a.begin() + 50);
  const auto got = run_to_end(*engine, greedy_request(joined(early, some_ids(10, 2)), 10));
  CHECK(got->outcome.usage.cached_tokens == 0);
}

TEST("sequence: one run at a time") {
  const Model model = golden_model("gemma2-tiny", "reference");
  const auto engine = model.engine(f32_options());
  const auto sequence = engine->new_sequence();
  const Started s = start(*engine, on(sequence, some_ids(20, 1), 400));
  REQUIRE(s.seen->wait_for_tokens(3));
  CHECK_THROWS(start(*engine, on(sequence, {5}, 1)), ErrorCode::invalid_argument, "busy");
  CHECK_THROWS(sequence->fork(), ErrorCode::invalid_argument, "busy");
  CHECK_THROWS(sequence->rewind(0), ErrorCode::invalid_argument, "busy");
  CHECK_THROWS(sequence->save(temporary_folder() + "/s"), ErrorCode::invalid_argument, "busy");
  CHECK(sequence->tokens().size() >= 23 && sequence->length() >= 20);
  s.run->abort();
  s.seen->wait();
  CHECK(s.seen->outcome.reason == FinishReason::aborted);
  CHECK(sequence->tokens() == joined(some_ids(20, 1), s.seen->tokens));
  // What was told is kept, and the next run goes on from it.
  const auto next = run_to_end(*engine, on(sequence, some_ids(5, 2), 10));
  CHECK(same_run(*next, *run_to_end(*engine, greedy_request(joined(joined(some_ids(20, 1), s.seen->tokens), some_ids(5, 2)), 10))));
}

TEST("sequence: belongs to its engine, and outlives it only in name") {
  const Model model = golden_model("gemma2-tiny", "reference");
  auto engine = model.engine(f32_options());
  const auto other = model.engine(f32_options());
  const auto sequence = engine->new_sequence();
  run_to_end(*engine, on(sequence, {5, 6, 7}, 3));
  CHECK_THROWS(start(*other, on(sequence, {5}, 1)), ErrorCode::invalid_argument, "another model");
  engine.reset();
  CHECK_THROWS(sequence->tokens(), ErrorCode::disposed, "closed");
  CHECK_THROWS(sequence->length(), ErrorCode::disposed, "closed");
  CHECK_THROWS(sequence->fork(), ErrorCode::disposed, "closed");
  CHECK_THROWS(sequence->rewind(0), ErrorCode::disposed, "closed");
  CHECK_THROWS(sequence->save("/nowhere"), ErrorCode::disposed, "closed");
}
