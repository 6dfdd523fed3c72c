// Loops of nothing but AMX products, see kernels/probe.h: four tiles of sums in turn, two by two of A and B. Part of the kernels file.
#pragma once

#include "cpu/kernels/amx.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kProbeDots = 64;  // of a round

template <typename Dot, typename Element>
double probe_tiles(const void* data, int64_t rounds) {
  const std::byte* numbers = static_cast<const std::byte*>(data);
  int64_t configured = 0;
  configure_tokens(kBlockTokens, configured);
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_load<4>(numbers, kTileRowBytes), tile_load<5>(numbers + kTileBytes, kTileRowBytes);
  tile_load<6>(numbers + 2 * kTileBytes, kTileRowBytes), tile_load<7>(numbers + 3 * kTileBytes, kTileRowBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeDots; i += 4) {
      Dot::template step<0, 4, 6>(), Dot::template step<1, 4, 7>();
      Dot::template step<2, 5, 6>(), Dot::template step<3, 5, 7>();
    }
  }
  Element sums[4][kTileFloats];
  tile_store<0>(sums[0], kTileRowBytes), tile_store<1>(sums[1], kTileRowBytes);
  tile_store<2>(sums[2], kTileRowBytes), tile_store<3>(sums[3], kTileRowBytes);
  tile_release();
  double total = 0;
  for (const auto& tile : sums) {
    for (Element sum : tile) total += sum;
  }
  return total;
}

constexpr ProbeLoop kAmxInt8Loop = {Feature::amx, DType::i8, 2 * 16 * 16 * 64 * kProbeDots, probe_tiles<Int8Dot, int32_t>};
constexpr ProbeLoop kAmxBf16Loop = {Feature::amx, DType::bf16, 2 * 16 * 16 * 32 * kProbeDots, probe_tiles<Bf16Dot, float>};

}  // namespace
}  // namespace lapidary::cpu
