// One pass over texts that looks at the inputs of all quantised products: before and after a cushion, and for calibration.
#pragma once

#include <vector>

#include "compress/evaluate.h"
#include "compress/statistics.h"

namespace lapidary {

// Statistics of every layer and site: element layer * kNumSites + site.
struct Activations {
  int64_t rows = 0;  // tokens looked at, openings included
  std::vector<SiteStatistics> sites;
  const SiteStatistics& at(int64_t layer, Site site) const {
    return sites[static_cast<size_t>(layer * kNumSites + static_cast<int>(site))];
  }
};

// How wide a site is: its number of channels.
int64_t site_width(const ModelConfig& config, Site site);

// Texts are read in windows of that many tokens, each opened like all texts here and each token in one window. Everything that passes
// through quantised products is counted, BOS of the opening too; a cushion does not pass. Errors as TextPass::run.
//
// `divisors`: what each channel of a site is divided by before it is counted, so that a model is seen as folds (compress/smooth.h) will
// have made it; an empty span, or none: nothing.
using ChannelDivisors = std::function<std::span<const float>(int64_t layer, Site site)>;
Activations collect_activations(const Subject& subject, std::span<const TextIds> texts, int64_t window, const EvaluationWatch& watch = {},
                                const ChannelDivisors& divisors = {});

}  // namespace lapidary
