// What a searched cushion is compared with: tokens chosen by how often they are outliers (PrefixQuant, arXiv 2410.05265), and by chance.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compress/prefix_error.h"

namespace lapidary {

// Of each text and layer, tokens whose largest input of down is more than `ratio` times the median token's are outliers. As many of the
// most frequent ones as a text has in the layer with most (the mean, rounded up), frequent ones first, then BOS; a text's first token,
// BOS, is not counted. Equal frequencies: the smaller id first. Error(aborted).
std::vector<int32_t> frequent_outliers(const Subject& subject, std::span<const TextIds> texts, double ratio = 64,
                                       const EvaluationWatch& watch = {});

struct RandomPrefixes {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<double> errors;  // of each, exact
  double median() const;
};
// `count` prefixes of `size` tokens, each any of the vocabulary but BOS.
RandomPrefixes random_prefixes(const Subject& subject, std::span<const TextIds> texts, int64_t count, int64_t size, CushionWindow window,
                               uint64_t seed, const EvaluationWatch& watch = {});

}  // namespace lapidary
