// How many units of panels pass by a slice of the inputs before the next slice. Part of kernels/packed_panels.h and kernels/amx_tiles.h.
#pragma once

#include <cstdint>

namespace lapidary::cpu {
namespace {

// Prepared inputs of more bytes would leave the second-level cache, which weights and sums share, while one unit passes by. Units are then
// joined as far as the sums that wait between slices stay there themselves.
constexpr int64_t kCachedInputBytes = 1024 * 1024, kWaitingBytes = 512 * 1024;

// Of `units` that lie side by side, as even as may be. sum_bytes: of a unit's sums of one token.
inline int64_t joined_units(int64_t units, int64_t tokens, int64_t input_bytes, int64_t sum_bytes) {
  const int64_t most = kWaitingBytes / (tokens * sum_bytes);
  if (tokens * input_bytes <= kCachedInputBytes || most <= 1 || units <= 1) return 1;
  const int64_t turns = (units + most - 1) / most;
  return (units + turns - 1) / turns;
}

// What the sums of so many tokens, or fewer, take at most.
inline int64_t waiting_bytes(int64_t tokens, int64_t input_bytes, int64_t sum_bytes) {
  const int64_t unit = tokens * sum_bytes;
  return tokens * input_bytes <= kCachedInputBytes || unit > kWaitingBytes ? unit : kWaitingBytes;
}

}  // namespace
}  // namespace lapidary::cpu
