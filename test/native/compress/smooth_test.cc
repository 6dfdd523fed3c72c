// SmoothQuant's folds change no result, in f32, on every golden model and in both file types; the divisors are those of a plain
// computation.
#include "compress/smooth.h"

#include <filesystem>

#include "check.h"
#include "compress/quantize.h"
#include "model/golden_checks.h"

namespace lapidary::test {
namespace {

constexpr double kFoldTolerance = 1e-5;  // f32 sums in which every term has been rounded twice more

// Folds and nothing else.
class Folding final : public WeightsTransform {
 public:
  explicit Folding(const Smoothing& smoothing) : smoothing_(smoothing) {}
  Linear linear(const TensorSlot& slot, Linear host) override { return smoothing_.linear(slot, host, 2); }
  void norm(const TensorSlot& slot, std::span<float> weight) override { smoothing_.norm(slot, weight); }

 private:
  const Smoothing& smoothing_;
};

std::vector<int32_t> some_ids(int64_t vocab, int64_t tokens, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

Subject subject_of(const Loaded& model, const Cushion* cushion = nullptr) {
  return {*model.backend, *model.weights, Precision::f32, cushion};
}

std::vector<std::vector<float>> maxima_of(const Activations& seen) {
  std::vector<std::vector<float>> all;
  for (const SiteStatistics& s : seen.sites) all.push_back(s.channel_max);
  return all;
}

std::vector<float> text_logits(const Loaded& model, const Cushion* cushion, std::span<const int32_t> ids) {
  std::vector<float> all;
  TextPass pass(*model.backend, *model.weights, {.cushion = cushion});
  pass.run(ids, [&](int64_t, const Tensor& rows) { all.insert(all.end(), rows.as<float>(), rows.as<float>() + rows.elements()); });
  return all;
}

Loaded load_folded(const std::string& path, const Smoothing& smoothing) {
  Loaded folded{make_backend("cpu"), nullptr};
  Folding folding(smoothing);
  folded.weights = load_weights(path, *folded.backend, {}, {.transform = &folding});
  return folded;
}

Smoothing smoothing_for(const std::string& path, const Activations& seen, double alpha, bool producers = true) {
  const ModelConfig config = load_config(path);
  ColumnMaxima columns(config, 2);
  visit_weights(path, columns);
  return choose_smoothing(config, maxima_of(seen), columns, alpha, producers);
}

void check_folds(const std::string& path, const std::string& name) {
  const Loaded original = load(path, "cpu");
  const ModelConfig& config = original.weights->config;
  const std::vector<TextIds> texts = {some_ids(config.vocab, 60, 1), some_ids(config.vocab, 31, 2)};
  const std::vector<int32_t> ids = some_ids(config.vocab, 70, 3);
  TextPass maker(*original.backend, *original.weights, {});
  maker.run(some_ids(config.vocab, 3, 4), nullptr);
  const Cushion cushion = maker.to_cushion(CushionWindow::pinned);
  for (const Cushion* before : {static_cast<const Cushion*>(nullptr), &cushion}) {
    const Activations seen = collect_activations(subject_of(original, before), texts, 512);
    const std::vector<float> wanted = text_logits(original, before, ids);
    for (const double alpha : {0.5, 0.8}) {
      const Smoothing smoothing = smoothing_for(path, seen, alpha);
      // The folds must do something: divisors apart from each other by far more than the tolerance.
      for (int s = 0; s < kNumSites; ++s) {
        const std::span<const float> by = smoothing.divisors(0, static_cast<Site>(s));
        REQUIRE(static_cast<int64_t>(by.size()) == site_width(config, static_cast<Site>(s)));
        CHECK(*std::max_element(by.begin(), by.end()) > 1.2f * *std::min_element(by.begin(), by.end()));
      }
      const Loaded folded = load_folded(path, smoothing);
      const Cushion with = before ? smoothing.cushion(cushion) : Cushion{};
      const std::vector<float> got = text_logits(folded, before ? &with : nullptr, ids);
      const double error = relative_error(got, wanted);
      CHECK_MSG(error < kFoldTolerance, name << ", alpha " << alpha << (before ? ", cushion" : "") << ": " << error);
      if (before) CHECK(relative_error(text_logits(folded, &cushion, ids), wanted) > 1e-3);  // values of the unfolded one are others
      // What a calibration of the original sees through the divisors is what one of the folded model sees.
      const Activations through = collect_activations(subject_of(original, before), texts, 512, {},
                                                      [&](int64_t l, Site site) { return smoothing.divisors(l, site); });
      const Activations directly = collect_activations(subject_of(folded, before ? &with : nullptr), texts, 512);
      for (size_t i = 0; i < through.sites.size(); ++i) {
        CHECK_CLOSE(through.sites[i].channel_max, directly.sites[i].channel_max, 1e-4, 1e-5 * directly.sites[i].absmax);
        CHECK_CLOSE((std::vector<float>{through.sites[i].absmax}), (std::vector<float>{directly.sites[i].absmax}), 1e-4, 0);
      }
    }
  }
}

TEST("smooth: folded models give the logits of the originals") {
  for (const char* name : kModels) check_folds(golden(name), name);
}

TEST("smooth: GGUF, whose norms are stored whole") {
  const std::filesystem::path folder = golden("gguf");
  int64_t tried = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf" || entry.path().string().find("f32") == std::string::npos) continue;
    CHECK(load_config(entry.path().string()).norm_offset == 0);
    check_folds(entry.path().string(), entry.path().filename().string());
    ++tried;
  }
  CHECK(tried > 0);
}

TEST("smooth: divisors are those of a plain computation, shared by the heads of a group") {
  const std::string path = golden("gemma3-tiny");
  const Loaded original = load(path, "reference");
  const ModelConfig& c = original.weights->config;
  const std::vector<TextIds> texts = {some_ids(c.vocab, 20, 1)};
  const Activations seen = collect_activations(subject_of(original), texts, 512);
  const double alpha = 0.7;
  const Smoothing smoothing = smoothing_for(path, seen, alpha);
  const int64_t group = c.num_heads / c.num_kv_heads;
  REQUIRE(group > 1);
  const auto column = [](const Linear& w, int64_t i) {
    double most = 0;
    std::vector<float> row(static_cast<size_t>(w.in()));
    for (int64_t r = 0; r < w.out(); ++r) {
      dequantize_row(w.weight.dtype, w.weight.rows(r, 1).data, w.in(), row.data());
      most = std::max(most, std::fabs(static_cast<double>(row[static_cast<size_t>(i)])));
    }
    return most;
  };
  const auto divisor = [&](double x, double w) { return static_cast<float>(std::pow(x, alpha) / std::pow(w, 1 - alpha)); };
  const int64_t l = 1;
  const LayerWeights& layer = original.weights->layers[1];
  for (const int64_t i : {int64_t{0}, int64_t{5}, c.hidden - 1}) {
    const double w = std::max({column(layer.q, i), column(layer.k, i), column(layer.v, i)});
    const std::vector<float> got = {smoothing.divisors(l, Site::attn_in)[static_cast<size_t>(i)]};
    CHECK_CLOSE(got, (std::vector<float>{divisor(seen.at(l, Site::attn_in).channel_max[static_cast<size_t>(i)], w)}), 1e-6, 0);
  }
  for (int64_t kv = 0; kv < c.num_kv_heads; ++kv) {
    double x = 0, w = 0;
    const int64_t d = 3;
    for (int64_t g = 0; g < group; ++g) {
      const int64_t channel = (kv * group + g) * c.head_dim + d;
      x = std::max<double>(x, seen.at(l, Site::o_in).channel_max[static_cast<size_t>(channel)]);
      w = std::max(w, column(layer.o, channel));
    }
    for (int64_t g = 0; g < group; ++g) {
      const std::vector<float> got = {smoothing.divisors(l, Site::o_in)[static_cast<size_t>((kv * group + g) * c.head_dim + d)]};
      CHECK_CLOSE(got, (std::vector<float>{divisor(x, w)}), 1e-6, 0);
    }
  }
  const Smoothing norms_only = smoothing_for(path, seen, alpha, false);
  CHECK(norms_only.divisors(l, Site::o_in).empty() && norms_only.divisors(l, Site::down_in).empty());
  CHECK(!norms_only.divisors(l, Site::mlp_in).empty());
}

TEST("smooth: channels that are never used get finite divisors, and alpha is checked") {
  const std::string path = golden("gemma2-tiny");
  const ModelConfig c = load_config(path);
  std::vector<std::vector<float>> maxima;
  for (int64_t l = 0; l < c.num_layers; ++l)
    for (int s = 0; s < kNumSites; ++s) maxima.emplace_back(static_cast<size_t>(site_width(c, static_cast<Site>(s))), 0.0f);
  ColumnMaxima columns(c, 1);
  visit_weights(path, columns);
  const Smoothing smoothing = choose_smoothing(c, maxima, columns, 0.5, true);
  for (int s = 0; s < kNumSites; ++s)
    for (const float by : smoothing.divisors(0, static_cast<Site>(s))) CHECK(std::isfinite(by) && by > 0);
  CHECK_THROWS(choose_smoothing(c, maxima, columns, 1.01, true), ErrorCode::invalid_argument, "from 0 to 1");
}

}  // namespace
}  // namespace lapidary::test
