// A cushion in the runtime: injected keys and values equal the hard prompt they came from, in both window modes as their definitions say;
// files round trip and are distrusted.
#include "model/cushion.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "cpu/backend.h"
#include "model/golden_checks.h"
#include "runtime/text_pass.h"

namespace lapidary {

using namespace test;

namespace {

std::vector<float> logits_of(TextPass& pass, std::span<const int32_t> ids) {
  std::vector<float> all;
  pass.run(ids, [&](int64_t, const Tensor& rows) { all.insert(all.end(), rows.as<float>(), rows.as<float>() + rows.elements()); });
  return all;
}

double distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return a.size() == b.size() ? std::sqrt(difference / norm) : NAN;
}

std::vector<int32_t> some_text(int64_t vocab, int64_t tokens, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<int32_t>(seed >> 33) % static_cast<int32_t>(vocab));
  }
  return ids;
}

struct OpenModel {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
  const ModelConfig& config() const { return weights->config; }
};

OpenModel open_model(const std::string& name, const std::string& backend) {
  OpenModel m{make_backend(backend), nullptr};
  m.weights = load_weights(name == "tiny" ? std::string(LAPIDARY_SOURCE_DIR "/models/tiny") : golden(name), *m.backend);
  return m;
}

}  // namespace

TEST("cushion: injected keys and values equal the hard prompt while the window holds both, and in native mode always") {
  for (const std::string backend : {"reference", "cpu"}) {
    for (const std::string name : {"gemma3-tiny", "gemma2-tiny", "tiny"}) {
      const OpenModel m = open_model(name, backend);
      int64_t window = m.config().max_positions;
      for (const LayerConfig& l : m.config().layers) window = std::min(window, l.window);
      const std::vector<int32_t> head = some_text(m.config().vocab, 3, 7);
      const int64_t longest = backend == "reference" && name == "tiny" ? window + 8 : 2 * window + 9;
      const std::vector<int32_t> text = some_text(m.config().vocab, longest, 9);
      std::vector<int32_t> hard = head;
      hard.insert(hard.end(), text.begin(), text.end());

      TextPass plain(*m.backend, *m.weights, {.chunk = 37});
      plain.run(head, nullptr);
      const Cushion native = plain.to_cushion(CushionWindow::native), pinned = plain.to_cushion(CushionWindow::pinned);
      const std::vector<float> wanted_all = logits_of(plain, hard);
      const size_t vocab = static_cast<size_t>(m.config().vocab);
      const std::span<const float> wanted = std::span(wanted_all).subspan(head.size() * vocab);

      TextPass pass(*m.backend, *m.weights, {.chunk = 37, .cushion = &native});
      const std::vector<float> in_native = logits_of(pass, text);
      const double native_error = distance(in_native, wanted);
      CHECK_MSG(native_error < 1e-5, backend << ' ' << name << ": native mode is " << native_error << " from the hard prompt");

      pass.use_cushion(&pinned);
      const std::vector<float> in_pinned = logits_of(pass, text);
      // The last text token that still sees the first slot at its true distance.
      const size_t same = static_cast<size_t>(window - static_cast<int64_t>(head.size())) * vocab;
      const double pinned_error = distance(std::span(in_pinned).first(same), wanted.first(same));
      CHECK_MSG(pinned_error < 1e-5, backend << ' ' << name << ": pinned mode is " << pinned_error << " from the hard prompt");
      CHECK_MSG(distance(in_pinned, wanted) > 1e-4, backend << ' ' << name << ": beyond the window the modes must differ");

      pass.use_cushion(nullptr);
      CHECK(logits_of(pass, text) == logits_of(plain, text));
    }
  }
}

TEST("cushion: reference and cpu agree in both modes far beyond the window, whatever the chunk") {
  const OpenModel a = open_model("gemma3-tiny", "reference"), b = open_model("gemma3-tiny", "cpu");
  const std::vector<int32_t> text = some_text(a.config().vocab, 90, 3), head = some_text(a.config().vocab, 2, 4);
  TextPass maker(*a.backend, *a.weights, {});
  maker.run(head, nullptr);
  for (CushionWindow window : {CushionWindow::native, CushionWindow::pinned}) {
    const Cushion cushion = maker.to_cushion(window);
    TextPass on_a(*a.backend, *a.weights, {.chunk = 90, .cushion = &cushion}),
        on_b(*b.backend, *b.weights, {.chunk = 90, .cushion = &cushion}),
        in_parts(*b.backend, *b.weights, {.chunk = 13, .cushion = &cushion});
    const std::vector<float> first = logits_of(on_a, text), second = logits_of(on_b, text);
    CHECK_MSG(distance(second, first) < 1e-5, "cpu is " << distance(second, first) << " from reference");
    CHECK(logits_of(in_parts, text) == second);
  }
}

TEST("cushion: an int8 cache leaves it as it is") {
  for (const std::string backend : {"reference", "cpu"}) {
    const OpenModel m = open_model("gemma3-tiny", backend);
    const std::vector<int32_t> text = some_text(m.config().vocab, 40, 3);
    TextPass maker(*m.backend, *m.weights, {});
    maker.run(some_text(m.config().vocab, 2, 4), nullptr);
    // One large value in every row: int8 would have no steps left for the others.
    Cushion cushion = maker.to_cushion(CushionWindow::pinned), rounded = maker.to_cushion(CushionWindow::pinned);
    const int64_t dim = m.config().head_dim;
    for (size_t l = 0; l < cushion.v.size(); ++l) {
      for (int64_t row = 0; row < cushion.v[l].elements() / dim; ++row) {
        float *exact = cushion.v[l].as<float>() + row * dim, *coarse = rounded.v[l].as<float>() + row * dim;
        exact[0] = coarse[0] = 300;
        const float scale = 300.0f / 127;
        for (int64_t i = 0; i < dim; ++i) coarse[i] = std::nearbyint(coarse[i] / scale) * scale;
      }
    }
    const auto logits_with = [&](const Cushion& c, DType kv) {
      TextPass pass(*m.backend, *m.weights, {.cushion = &c, .kv = kv});
      return logits_of(pass, text);
    };
    const std::vector<float> wanted = logits_with(cushion, DType::f32);
    const double kept = distance(logits_with(cushion, DType::i8), wanted), lost = distance(logits_with(rounded, DType::f32), wanted);
    CHECK_MSG(kept > 0 && kept < 0.3 * lost, backend << ": an int8 cache is " << kept << " away, an int8 cushion would be " << lost);
  }
}

TEST("cushion: a file gives back what was written, and a damaged or foreign one is refused") {
  const OpenModel m = open_model("gemma3-tiny", "reference");
  TextPass pass(*m.backend, *m.weights, {});
  pass.run(some_text(m.config().vocab, 4, 5), nullptr);
  Cushion cushion = pass.to_cushion(CushionWindow::native);
  cushion.notes["model"] = "tiny";
  const std::string path = (std::filesystem::temp_directory_path() / "lapidary-cushion-test.safetensors").string();
  write_cushion(path, cushion);
  const Cushion back = read_cushion(path, m.config());
  CHECK(back.tokens == cushion.tokens && back.window == cushion.window && back.notes == cushion.notes);
  CHECK(cushion_fingerprint(back) == cushion_fingerprint(cushion));
  Cushion other = read_cushion(path, m.config());
  other.v[0].as<float>()[0] += 1;
  CHECK(cushion_fingerprint(other) != cushion_fingerprint(cushion));

  const OpenModel foreign = open_model("gemma2-tiny", "reference");
  CHECK_THROWS(read_cushion(path, foreign.config()), ErrorCode::bad_file, "cushion");
  CHECK_THROWS(read_cushion(golden("gemma3-tiny") + "/model.safetensors", m.config()), ErrorCode::bad_file, "lapidary-cushion");
  other.k[1].as<float>()[2] = NAN;
  write_cushion(path, other);
  CHECK_THROWS(read_cushion(path, m.config()), ErrorCode::bad_file, "not finite");
  std::filesystem::remove(path);
}

}  // namespace lapidary
