// A model in int8: what its matrices, norms, inputs and cushion become, decided once from a calibration and applied weight by weight while
// the original's file is read, into memory or into a new folder. Neither the original nor the result is ever held as a whole.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compress/activations.h"
#include "compress/smooth.h"

namespace lapidary {

// How the largest magnitude that a calibrated scale represents is chosen; what is larger is clipped to it.
enum class ClipRule : uint8_t {
  absmax,      // the largest that was seen
  percentile,  // the magnitude that all but 1 in 10,000 values do not exceed
  mse,         // the share of the largest, from 0.5 to 1, with the least mean squared error
};

struct QuantizeOptions {
  bool per_channel = true;                   // weights: a scale per output channel; false: one per matrix
  ActScheme activations = ActScheme::token;  // fixed: calibrated, one scale per site
  double smooth = -1;                        // SmoothQuant's alpha in [0, 1]; negative: off
  ClipRule clip = ClipRule::mse;             // of fixed scales
  bool embedding = false;                    // the embedding too (and a tied head), a scale per row
  int64_t window = 512;                      // tokens of a calibration text that are read at once
  std::shared_ptr<const Cushion> cushion{};  // stands before every text, in the calibration and in the result; null: none
  int threads = 1;                           // of what is computed on weights
  bool calibrates() const { return activations == ActScheme::fixed || smooth >= 0; }
};

// What the calibration saw of one site, after folding, and what was made of it.
struct SiteScale {
  int64_t layer = 0;
  Site site{};
  float absmax = 0;
  double token_ratio = 0;  // SiteStatistics::token_ratio
  double clip = 1;         // share of absmax that the scale represents
  float scale = 0;
};

// Immutable but for its role as a transform, which keeps no state: loads and saves may run side by side.
class QuantizedModel final : public WeightsTransform {
 public:
  QuantizedModel(std::string path, const ModelConfig& config, const QuantizeOptions& options);

  Linear linear(const TensorSlot& slot, Linear host) override;
  void norm(const TensorSlot& slot, std::span<float> weight) override;
  std::shared_ptr<const Cushion> cushion(std::shared_ptr<const Cushion> of_file) override;

  // A folder in the compressed-tensors layout that appears whole, or not at all: errors as CheckpointWriter; Error(aborted). Progress in
  // bytes.
  void save(const std::string& target, const EvaluationWatch& watch = {});

  const std::string& path() const { return path_; }
  const QuantizeOptions& options() const { return options_; }
  const Smoothing& smoothing() const { return smoothing_; }
  const std::vector<SiteScale>& scales() const { return scales_; }  // of fixed activations: layer * kNumSites + site; else empty
  int64_t calibration_rows() const { return rows_; }

 private:
  friend std::shared_ptr<QuantizedModel> quantize_model(const std::string&, const Subject*, std::span<const TextIds>,
                                                        const QuantizeOptions&, const EvaluationWatch&);
  bool is_quantised(const TensorSlot& slot) const;
  void choose_scales(const Activations& seen);

  const std::string path_;
  const ModelConfig config_;
  const QuantizeOptions options_;
  Smoothing smoothing_;
  std::shared_ptr<const Cushion> cushion_;  // of the folded model
  std::vector<SiteScale> scales_;
  int64_t rows_ = 0;
};

// `path`: of the unquantised model. `original`: that model, loaded, with options.cushion as its cushion; may be null where options do not
// calibrate. Progress in tokens read. Error(invalid_argument): options out of range, no text where one is needed; Error(unsupported):
// quantised already, or a calibration that meets infinities; Error(aborted).
std::shared_ptr<QuantizedModel> quantize_model(const std::string& path, const Subject* original, std::span<const TextIds> texts,
                                               const QuantizeOptions& options, const EvaluationWatch& watch = {});

}  // namespace lapidary
