// Drawing tokens from Gemma's 262,144 logits: greedy, and with top-k and top-p; one row and sixteen.
#include "cuda/api/sampling.h"

#include <algorithm>
#include <string>

#include "checks.h"
#include "families.h"

namespace lapidary::bench {

void run_sampling(Session& session) {
  const int32_t vocab = session.tiny() ? 3000 : 262144;
  const Pattern<float> values = random_f32(41, -20, 10);
  struct Setting {
    const char* name;
    float temperature, top_p;
    int32_t top_k;
  };
  constexpr Setting kSettings[] = {
      {"greedy", 0, 1, 0}, {"temperature", 1, 1, 0}, {"top-k 64, top-p 0.95", 1, 0.95f, 64}, {"top-p 0.95", 1, 0.95f, 0}};
  for (const Setting& setting : kSettings) {
    for (const int32_t rows : session.tiny() ? std::vector<int32_t>{2} : std::vector<int32_t>{1, 16}) {
      const std::string name = std::string(setting.name) + ", rows " + std::to_string(rows);
      if (!session.wants(name)) continue;
      const double bytes = 4.0 * vocab * rows;
      const int rotation = std::min(session.rotation(bytes), 64);
      std::vector<DeviceMemory> logits;
      for (int i = 0; i < rotation; ++i) logits.push_back(session.filled(values, static_cast<int64_t>(vocab) * rows));
      std::vector<cuda::SampleRow> host(static_cast<size_t>(rows));
      cuda::SampleParams p = {};
      for (int32_t r = 0; r < rows; ++r) {
        cuda::SampleRow& row = host[static_cast<size_t>(r)];
        row = {};
        row.temperature = setting.temperature;
        row.top_p = setting.top_p;
        row.top_k = setting.top_k;
        row.repetition_penalty = 1;
        row.top_logprobs = -1;
        row.seed = 7;
        row.counter = static_cast<uint64_t>(r);
        cuda::note_row(p.needs, row, vocab);
      }
      const DeviceMemory settings = session.upload(host), out = session.memory(sizeof(cuda::SampledToken) * static_cast<size_t>(rows));
      const DeviceMemory workspace = session.zeros(cuda::sample_workspace_bytes(rows, vocab, false));
      p.settings = settings.as<cuda::SampleRow>();
      p.out = out.as<cuda::SampledToken>();
      p.workspace = workspace.get();
      p.stride = vocab;
      p.rows = p.max_rows = rows;
      p.vocab = vocab;
      const auto work = [&, p](int i) {
        cuda::SampleParams q = p;
        q.logits = logits[static_cast<size_t>(i)].as<float>();
        return session.api().sample(q, session.context());
      };
      const auto check = [&]() -> std::string {
        const auto drawn = session.download<cuda::SampledToken>(out.get(), static_cast<size_t>(rows));
        for (int32_t r = 0; r < rows; ++r) {
          const cuda::SampledToken& token = drawn[static_cast<size_t>(r)];
          if (token.error != cuda::SampleError::none)
            return "row " + std::to_string(r) + ": error " + std::to_string(static_cast<int>(token.error));
          if (token.id < 0 || token.id >= vocab) return "row " + std::to_string(r) + ": token " + std::to_string(token.id);
          const auto logit = [&](int64_t i) { return values.at(static_cast<int64_t>(r) * vocab + i); };
          // How many tokens are likelier: none for greedy, fewer than k for top-k.
          int64_t likelier = 0;
          for (int64_t i = 0; i < vocab; ++i) likelier += logit(i) > logit(token.id);
          const int64_t allowed = setting.temperature == 0 ? 0 : setting.top_k > 0 ? setting.top_k - 1 : vocab - 1;
          if (likelier > allowed)
            return "row " + std::to_string(r) + ": token " + std::to_string(token.id) + " has " + std::to_string(likelier) +
                   " likelier ones";
        }
        return "";
      };
      session.run({name, bytes, 0, Bound::read, {{"m", rows}, {"n", vocab}}}, rotation, work, check);
    }
  }
}

}  // namespace lapidary::bench
