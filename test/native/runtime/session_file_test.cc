// Saved conversations go on with the same bits; damaged or foreign files are refused.
#include "runtime/session_file.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "engine_fixture.h"

using namespace lapidary;
using namespace lapidary::test;

namespace {

RunRequest on(std::shared_ptr<Sequence> sequence, std::vector<int32_t> prompt, int64_t max_tokens) {
  RunRequest r = greedy_request(std::move(prompt), max_tokens);
  r.sequence = std::move(sequence);
  return r;
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_bytes(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

}  // namespace

TEST("session file: a restored conversation goes on with the bits of the saved one, also in other chunks") {
  for (const char* name : {"gemma2-tiny", "gemma3-tiny"}) {
    using Kind = std::pair<Precision, std::optional<DType>>;
    for (const auto& [precision, kv] :
         {Kind{Precision::f32, {}}, Kind{Precision::bf16, {}}, Kind{Precision::f32, DType::i8}, Kind{Precision::bf16, DType::i8}}) {
      const Model model = golden_model(name, "cpu");
      EngineOptions options = f32_options(32);
      options.precision = precision;
      options.kv = kv;
      const std::string path = temporary_folder() + "/conversation";
      for (const size_t length : {1, 15, 16, 17, 64, 200}) {
        std::vector<int32_t> tokens;
        std::shared_ptr<Recorder> want;
        {
          const auto engine = model.engine(options);
          const auto sequence = engine->new_sequence();
          run_to_end(*engine, on(sequence, some_ids(length, 1), 4));
          tokens = sequence->tokens();
          sequence->save(path);
          want = run_to_end(*engine, on(sequence, some_ids(9, 2), 40));
        }
        for (const int64_t chunk : {32, 5}) {
          options.prefill_chunk = chunk;
          const auto engine = model.engine(options);
          const auto sequence = engine->restore(path);
          CHECK(sequence->tokens() == tokens && sequence->length() == static_cast<int64_t>(tokens.size()) - 1);
          const auto fork = sequence->fork();
          CHECK_MSG(same_run(*want, *run_to_end(*engine, on(sequence, some_ids(9, 2), 40))),
                    name << ", " << length << " tokens, chunk " << chunk);
          // Going back is possible too, by computing again what the file did not hold.
          fork->rewind(1);
          const std::vector<int32_t> again(tokens.begin() + 1, tokens.end());
          CHECK(same_run(*want, *run_to_end(*engine, on(fork, joined(again, some_ids(9, 2)), 40))));
        }
        options.prefill_chunk = 32;
      }
    }
  }
}

TEST("session file: an empty conversation, and one whose cache was dropped") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  const auto engine = model.engine(f32_options(16));
  const std::string path = temporary_folder() + "/conversation";
  engine->new_sequence()->save(path);
  CHECK(engine->restore(path)->tokens().empty());
  const auto sequence = engine->new_sequence();
  run_to_end(*engine, on(sequence, some_ids(300, 1), 2));
  sequence->rewind(100);
  CHECK(sequence->length() == 0);
  sequence->save(path);
  const auto restored = engine->restore(path);
  CHECK(restored->tokens() == sequence->tokens() && restored->tokens().size() == 100);
  CHECK(restored->length() == 0);
}

TEST("session file: of another model, precision or context it is refused") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  EngineOptions options = f32_options(16);
  const auto engine = model.engine(options);
  const auto sequence = engine->new_sequence();
  run_to_end(*engine, on(sequence, some_ids(60, 1), 2));
  const std::string path = temporary_folder() + "/conversation";
  sequence->save(path);
  CHECK_THROWS(golden_model("gemma2-tiny", "cpu").engine(options)->restore(path), ErrorCode::bad_file, "another model");
  auto changed = std::make_shared<ModelWeights>(*model.weights);
  changed->config.query_scale *= 2;
  CHECK_THROWS((Engine::start(model.backend, changed, nullptr, options)->restore(path)), ErrorCode::bad_file, "another model");
  options.precision = Precision::bf16;
  CHECK_THROWS(model.engine(options)->restore(path), ErrorCode::bad_file, "precision");
  options.precision = Precision::f32;
  options.kv = DType::i8;
  CHECK_THROWS(model.engine(options)->restore(path), ErrorCode::bad_file, "saved with precision f32, the model is loaded with i8");
  options.kv = {};
  options.context = 50;
  CHECK_THROWS(model.engine(options)->restore(path), ErrorCode::bad_file, "62 tokens, the context holds 50");
  CHECK_THROWS(engine->restore(path + "-missing"), ErrorCode::bad_file, "conversation-missing");
  options.context = 0;
  options.kv_limit_bytes = 1;
  CHECK_THROWS(model.engine(options)->restore(path), ErrorCode::out_of_memory, "limit");
}

TEST("session file: however damaged, it is refused and nothing is lost") {
  const Model model = golden_model("gemma3-tiny", "cpu");
  const auto engine = model.engine(f32_options(16));
  const auto sequence = engine->new_sequence();
  run_to_end(*engine, on(sequence, some_ids(60, 1), 2));
  const std::string folder = temporary_folder(), path = folder + "/conversation", damaged = folder + "/damaged";
  sequence->save(path);
  const std::string good = bytes_of(path);
  REQUIRE(good.size() > 1000);
  const auto refused = [&](const std::string& bytes, const std::string& what) {
    write_bytes(damaged, bytes);
    try {
      engine->restore(damaged);
      CHECK_MSG(false, "restored: " << what);
    } catch (const Error& e) {
      CHECK_MSG(e.code() == ErrorCode::bad_file, what << ": " << e.what());
    }
  };
  for (size_t cut : {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1})
    refused(good.substr(0, cut), "cut at " + std::to_string(cut));
  uint64_t x = 1;
  for (int i = 0; i < 300; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    std::string bytes = good;
    const size_t at = i < 150 ? (x >> 33) % 4000 : (x >> 33) % bytes.size();  // the header's share is small
    const char before = bytes[at];
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (x >> 20) % 8));
    // Padding between header and data is of no account; a space may stand for another one.
    if (before == ' ' || before == 0) continue;
    refused(bytes, "bit flipped at " + std::to_string(at));
  }
  CHECK(engine->memory().kv_bytes == sequence->bytes());
  CHECK(engine->restore(path)->tokens() == sequence->tokens());
}

TEST("session file: saving over an old file replaces it whole, failing leaves it") {
  const Model model = golden_model("gemma3-tiny", "reference");
  const auto engine = model.engine(f32_options(16));
  const std::string folder = temporary_folder(), path = folder + "/conversation";
  const auto sequence = engine->new_sequence();
  run_to_end(*engine, on(sequence, some_ids(10, 1), 2));
  sequence->save(path);
  run_to_end(*engine, on(sequence, some_ids(100, 2), 2));
  sequence->save(path);
  CHECK(engine->restore(path)->tokens() == sequence->tokens());
  CHECK_THROWS(sequence->save(folder + "/no/such/folder"), ErrorCode::bad_file, "no/such");
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files += entry.is_regular_file();
  CHECK(files == 1);
}
