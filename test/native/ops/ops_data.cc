// The backends under test, and one layer's attention run as an engine would run it.
#include "ops/ops_data.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "cpu/backend.h"

namespace lapidary::test {

std::vector<NamedBackend> cpu_backends() {
  std::vector<NamedBackend> all;
  for (const std::string& name : instruction_sets(cpu_instruction_sets())) {
    const ForcedCpu forced(name);
    for (int threads : {1, 2}) all.push_back({name + ", threads " + std::to_string(threads), make_cpu_backend(threads)});
  }
  return all;
}

Owned attend_in_chunks(Backend& backend, const AttentionProblem& p, const std::vector<int64_t>& chunks, bool ring) {
  const AttentionShape shape = p.shape();
  Random random(p.seed);
  const auto random_rows = [&](int64_t width) {
    Owned rows(DType::f32, {p.tokens, width});
    for (int64_t i = 0; i < p.tokens * width; ++i) rows.t.as<float>()[i] = random.bell();
    return rows;
  };
  const Owned q = random_rows(p.heads * p.dim), k = random_rows(p.kv_heads * p.dim), v = random_rows(p.kv_heads * p.dim);
  Owned out(p.out, {p.tokens, p.heads * p.dim});

  const int64_t all_pages = (p.tokens + kPageTokens - 1) / kPageTokens, chunk = *std::max_element(chunks.begin(), chunks.end());
  int64_t num_pages = all_pages;
  if (ring && p.window != kNoWindow) num_pages = std::min(all_pages, (p.window - 1 + chunk + kPageTokens - 2) / kPageTokens + 1);
  std::vector<Owned> pages;
  std::vector<void*> table;
  for (int64_t i = 0; i < num_pages; ++i)
    table.push_back(pages.emplace_back(p.kv, std::initializer_list<int64_t>{2, p.kv_heads, kPageTokens, p.dim}).t.data);

  int64_t pos = 0;
  for (size_t i = 0; pos < p.tokens; ++i) {
    const int64_t rows = std::min(chunks[std::min(i, chunks.size() - 1)], p.tokens - pos);
    const AttentionSpan span{0, rows, pos, {p.kv, table.data(), num_pages}};
    backend.append_kv(k.t.rows(pos, rows), v.t.rows(pos, rows), {&span, 1}, shape);
    backend.attention(q.t.rows(pos, rows), {&span, 1}, shape, out.t.rows(pos, rows));
    pos += rows;
  }
  return out;
}

}  // namespace lapidary::test
