// Attention of training: small cases against central differences in double, large ones of the CPU backend against the reference.
#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "ops/training_data.h"

namespace lapidary {

using namespace test;

namespace {

using Doubles = std::vector<double>;

Doubles doubles(const Tensor& t) { return t ? Doubles(t.as<float>(), t.as<float>() + t.elements()) : Doubles(); }

// The six inputs in double.
struct Inputs {
  Doubles q, k, v, q_prefix, prefix_k, prefix_v;
};

// The outputs of all queries, [tokens, heads, dim], from the definition: every key looked at, hidden ones left out.
Doubles attend(const TrainingAttentionProblem& p, const TrainingAttention& a, const Inputs& in) {
  Doubles out(in.q.size());
  const auto dot = [&](const Doubles& x, int64_t i, const Doubles& y, int64_t j) {
    double sum = 0;
    for (int64_t d = 0; d < p.dim; ++d) sum += x[static_cast<size_t>(i * p.dim + d)] * y[static_cast<size_t>(j * p.dim + d)];
    return sum;
  };
  for (const SequenceRows& s : a.sequences) {
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t h = 0; h < p.heads; ++h) {
        const int64_t kv = h / (p.heads / p.kv_heads), query = (s.first_row + r) * p.heads + h, pos = p.prefix + r;
        Doubles weights;
        std::vector<std::pair<const Doubles*, int64_t>> values;
        const auto see = [&](const Doubles& queries, const Doubles& keys, const Doubles& side, int64_t key) {
          double score = dot(queries, query, keys, key) * a.shape.scale;
          if (p.softcap != 0) score = p.softcap * std::tanh(score / p.softcap);
          weights.push_back(std::exp(score));
          values.emplace_back(&side, key);
        };
        for (int64_t j = 0; j < p.prefix; ++j) {
          if (!p.prefix_in_window || pos - j < p.window)
            see(in.q_prefix.empty() ? in.q : in.q_prefix, in.prefix_k, in.prefix_v, kv * p.prefix + j);
        }
        for (int64_t j = 0; j < s.rows; ++j) {
          if (j <= r && r - j < p.window) see(in.q, in.k, in.v, (s.first_row + j) * p.kv_heads + kv);
        }
        double sum = 0;
        for (double w : weights) sum += w;
        for (size_t i = 0; i < weights.size(); ++i) {
          for (int64_t d = 0; d < p.dim; ++d)
            out[static_cast<size_t>(query * p.dim + d)] +=
                weights[i] / sum * (*values[i].first)[static_cast<size_t>(values[i].second * p.dim + d)];
        }
      }
    }
  }
  return out;
}

double error_of(const Tensor& got, const Doubles& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = got.as<float>()[i] - want[i];
    difference += d * d, norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

std::vector<NamedBackend>& backends() {
  static std::vector<NamedBackend> all = cpu_backends();
  return all;
}

void check_against_differences(const TrainingAttentionProblem& p) {
  const TrainingAttentionCase c(p);
  Inputs in{doubles(c.attention.q),        doubles(c.attention.k),        doubles(c.attention.v),
            doubles(c.attention.q_prefix), doubles(c.attention.prefix_k), doubles(c.attention.prefix_v)};
  const Doubles gout = doubles(c.gout.t), out = attend(p, c.attention, in);
  const auto differences = [&](Doubles Inputs::* side) {
    Doubles g((in.*side).size());
    for (size_t i = 0; i < g.size(); ++i) {
      double& x = (in.*side)[i];
      const double at = x, step = 1e-5;
      double moved[2];
      for (int above : {0, 1}) {
        x = at + (above ? step : -step);
        const Doubles y = attend(p, c.attention, in);
        moved[above] = 0;
        for (size_t j = 0; j < y.size(); ++j) moved[above] += y[j] * gout[j];
      }
      x = at;
      g[i] = (moved[1] - moved[0]) / (2 * step);
    }
    return g;
  };
  const Doubles gq = differences(&Inputs::q), gk = differences(&Inputs::k), gv = differences(&Inputs::v),
                gqp = differences(&Inputs::q_prefix), gpk = differences(&Inputs::prefix_k), gpv = differences(&Inputs::prefix_v);
  const auto check = [&](const std::string& label, Backend& backend) {
    const TrainingAttentionResult r(backend, p, c);
    const std::pair<const char*, double> errors[] = {{"out", error_of(r.out.t, out)},
                                                     {"gq", error_of(r.q.t, gq)},
                                                     {"gk", error_of(r.k.t, gk)},
                                                     {"gv", error_of(r.v.t, gv)},
                                                     {"gq_prefix", error_of(r.q_prefix.t, gqp)},
                                                     {"gprefix_k", error_of(r.prefix_k.t, gpk)},
                                                     {"gprefix_v", error_of(r.prefix_v.t, gpv)}};
    // f32 exponentials and differences of probabilities: a few units of the last place on each side of a cancellation.
    for (const auto& [name, error] : errors) CHECK_MSG(error <= 2e-5, label << ", " << p.text() << ": " << name << " " << error);
  };
  check("reference", *make_reference_backend());
  for (NamedBackend& b : backends()) check(b.label, *b.backend);
}

}  // namespace

TEST("training: attention against central differences") {
  for (const int64_t window : {int64_t{1}, int64_t{2}, int64_t{4}, int64_t{5}, kNoWindow}) {
    for (const float cap : {0.0f, 0.7f}) {
      check_against_differences({2, 1, 6, {5, 1, 3}, window, cap});
      check_against_differences({2, 2, 5, {4}, window, cap, 3});
      check_against_differences({3, 1, 4, {6, 2}, window, cap, 2, true});
      check_against_differences({2, 1, 7, {7}, window, cap, 3, false, true});
    }
  }
  check_against_differences({6, 2, 17, {3}, kNoWindow, 0, 1});
}

TEST("training: attention of long sequences, CPU against reference") {
  std::vector<TrainingAttentionProblem> problems;
  for (const int64_t window : {int64_t{1}, int64_t{59}, int64_t{60}, int64_t{61}, int64_t{64}, int64_t{65}, kNoWindow}) {
    for (const int64_t tokens : {59, 60, 61, 63, 64, 65, 190}) problems.push_back({2, 1, 16, {tokens}, window, window == 64 ? 0.7f : 0.0f});
  }
  for (const int64_t dim : {1, 31, 33, 72, 256, 300}) problems.push_back({2, 2, dim, {70, 20}, 50, 0.5f, 3, true});
  for (const int64_t prefix : {1, 63, 64, 65, 130}) {
    problems.push_back({4, 2, 24, {130, 1, 67}, 40, 0, prefix, true});
    problems.push_back({4, 1, 24, {130, 1, 67}, 40, 0, prefix, false, true});
  }
  for (const TrainingAttentionProblem& p : problems) {
    const TrainingAttentionCase c(p);
    const TrainingAttentionResult want(*make_reference_backend(), p, c);
    for (NamedBackend& b : backends()) {
      const TrainingAttentionResult got(*b.backend, p, c);
      for (Owned TrainingAttentionResult::* side :
           {&TrainingAttentionResult::out, &TrainingAttentionResult::q, &TrainingAttentionResult::k, &TrainingAttentionResult::v,
            &TrainingAttentionResult::prefix_k, &TrainingAttentionResult::prefix_v, &TrainingAttentionResult::q_prefix}) {
        if (side == &TrainingAttentionResult::q_prefix && !p.own_prefix_queries) continue;
        const double error = error_of((got.*side).t, doubles((want.*side).t));
        CHECK_MSG(error <= 1e-5, b.label << ", " << p.text() << ": error " << error);
      }
    }
  }
}

TEST("training: a key that leaves the window has no derivative") {
  const TrainingAttentionProblem p{1, 1, 8, {80}, 70};
  TrainingAttentionCase c(p);
  // Only the last query's output matters: it sees rows 10 to 79.
  std::memset(c.gout.t.data, 0, static_cast<size_t>(79 * 8) * sizeof(float));
  for (NamedBackend& b : backends()) {
    const TrainingAttentionResult r(*b.backend, p, c);
    for (int64_t i = 0; i < 10 * 8; ++i) CHECK(r.k.t.as<float>()[i] == 0 && r.v.t.as<float>()[i] == 0);
    for (int64_t i = 10; i < 80; ++i) CHECK(r.v.t.as<float>()[i * 8] != 0);
  }
}

}  // namespace lapidary
