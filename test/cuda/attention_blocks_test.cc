// The arithmetic under the attention kernels, by brute force: visible keys, blocks to visit, places in shared memory, int8 to bf16, merged
// softmax states, work lists. Nothing here starts a kernel.
#include "cuda/kernels/attention_blocks.cuh"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <set>

#include "check.h"
#include "cuda/api/attention_prefill.h"
#include "cuda/kernels/kv_tile.cuh"
#include "cuda/kernels/online_softmax.cuh"

namespace lapidary::test {

namespace {

using cuda::KeyBlocks;
using cuda::KeyRange;

TEST("cuda attention blocks: visible keys are those of the definition") {
  for (const int window : {1, 2, 7, 64, cuda::kNoWindow}) {
    for (int position = 0; position < 40; ++position) {
      for (const auto& [first, end] : {std::pair{0, 0}, {0, 1}, {3, 9}, {3, 40}, {20, 21}, {5, 5}}) {
        const bool inside = position >= first && position < end;
        const KeyRange keys = cuda::visible_keys(position, window, inside ? first : 0, inside ? end : 0);
        for (int k = 0; k < 50; ++k) {
          const bool want = (k <= position && static_cast<int64_t>(position) - window < k) || (inside && k >= first && k < end);
          CHECK_MSG((k >= keys.begin && k < keys.end) == want,
                    "key " << k << " of query " << position << ", window " << window << ", image " << first << ".." << end);
        }
      }
    }
  }
}

TEST("cuda attention blocks: a tile visits every block with a visible key, no other, and masks every block that needs it") {
  const std::vector<cuda::ImageBlock> images = {{5, 19}, {19, 24}, {40, 41}};
  for (const bool with_images : {false, true}) {
    for (const int size : {1, 4, 8}) {
      for (const int window : {1, 2, 3, 4, 5, 8, 9, 17, cuda::kNoWindow}) {
        for (int first = 0; first < 45; ++first) {
          for (int last = first; last < first + 12; ++last) {
            const auto keys_of = [&](int q) {
              for (const cuda::ImageBlock& i : images) {
                if (with_images && q >= i.first && q < i.end) return cuda::visible_keys(q, window, i.first, i.end);
              }
              return cuda::visible_keys(q, window);
            };
            const KeyBlocks blocks = cuda::key_blocks(keys_of(first), keys_of(last), size);
            for (int b = 0; b < 70 / size; ++b) {
              bool any = false, all = true;
              for (int q = first; q <= last; ++q) {
                for (int k = b * size; k < (b + 1) * size; ++k) {
                  const bool visible = k >= keys_of(q).begin && k < keys_of(q).end;
                  any |= visible, all &= visible;
                }
              }
              const bool visited = b >= blocks.begin && b < blocks.end;
              CHECK_MSG(visited == any,
                        "block " << b << " of " << size << " keys, queries " << first << ".." << last << ", window " << window);
              if (visited)
                CHECK_MSG(blocks.masked(b) == !all,
                          "mask of block " << b << " of " << size << " keys, queries " << first << ".." << last << ", window " << window);
            }
          }
        }
      }
    }
  }
}

template <int HeadDim>
void check_layout() {
  using Layout = cuda::TileLayout<HeadDim>;
  std::set<int> places;
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < Layout::kChunks; ++chunk) {
      const int at = Layout::offset(row, chunk);
      CHECK(at % 16 == 0 && at >= 0 && at < 64 * Layout::kRowBytes);
      CHECK_MSG(places.insert(at).second, "two chunks at " << at << ", head_dim " << HeadDim);
      // A thread's own row within eight and chunk parity, moved by constants.
      CHECK_MSG(Layout::shift(Layout::offset(row % 8, chunk % 2), row / 8 * 8, chunk / 2 * 2) == at,
                "shift to row " << row << " chunk " << chunk);
    }
  }
  // ldmatrix reads one chunk of eight neighbouring rows: they cover all 32 banks.
  for (int row = 0; row < 64; row += 8) {
    for (int chunk = 0; chunk < Layout::kChunks; ++chunk) {
      std::set<int> banks;
      for (int r = 0; r < 8; ++r) banks.insert(Layout::offset(row + r, chunk) % 128 / 16);
      CHECK_MSG(banks.size() == 8, "bank conflict at row " << row << " chunk " << chunk << ", head_dim " << HeadDim);
    }
  }
}

TEST("cuda attention blocks: tiles in shared memory are one to one and free of bank conflicts") {
  check_layout<32>(), check_layout<64>(), check_layout<80>(), check_layout<128>(), check_layout<256>();
}

TEST("cuda attention blocks: every int8 becomes its bf16") {
  for (int q = -128; q < 128; ++q) {
    for (int at = 0; at < 4; ++at) {
      const uint32_t others = 0x807f0001u & ~(0xffu << 8 * at);
      const cuda::U32x2 pairs = cuda::widen_int8(others | static_cast<uint32_t>(static_cast<uint8_t>(q)) << 8 * at);
      const float got[] = {cuda::low_bf16(pairs[0]), cuda::high_bf16(pairs[0]), cuda::low_bf16(pairs[1]), cuda::high_bf16(pairs[1])};
      const float want[] = {1, 0, 127, -128};
      for (int i = 0; i < 4; ++i)
        CHECK_MSG(got[i] == (i == at ? static_cast<float>(q) : want[i]), "byte " << i << " of " << q << " at " << at << ": " << got[i]);
    }
  }
}

TEST("cuda attention blocks: merged softmax states are the softmax of all") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int pieces : {1, 2, 5}) {
    for (const int empty : {-1, 0, 1}) {  // a piece without a visible key: none, the first, the second
      cuda::SoftmaxState<2> merged;
      double sum = 0, total[2] = {0, 0}, highest = -1e300;
      std::vector<std::array<double, 3>> all;
      for (int piece = 0; piece < pieces; ++piece) {
        cuda::SoftmaxState<2> state;
        for (int key = 0; piece != empty && key < 7; ++key) {
          const float t = normal(random) * 20, v[2] = {normal(random), normal(random)};
          const float rescale = state.raise(t), p = std::exp2(t - state.m);
          state.l += p;
          for (int i = 0; i < 2; ++i) state.o[i] = state.o[i] * rescale + p * v[i];
          all.push_back({t, v[0], v[1]});
          highest = std::max(highest, static_cast<double>(t));
        }
        merged.merge(state);
      }
      for (const auto& [t, a, b] : all) {
        const double p = std::exp2(t - highest);
        sum += p, total[0] += p * a, total[1] += p * b;
      }
      for (int i = 0; i < 2; ++i) {
        const double got = merged.o[i] * merged.inverse(), want = all.empty() ? 0 : total[i] / sum;
        CHECK_MSG(std::fabs(got - want) <= 1e-5, pieces << " pieces, empty " << empty << ": " << got << ", want " << want);
      }
    }
  }
}

TEST("cuda attention blocks: a work list covers every packed row once, longest first") {
  const std::vector<cuda::AttentionSequence> sequences = {
      {0, 130, 0, 9, nullptr}, {130, 1, 700, 9, nullptr}, {131, 0, 5, 9, nullptr}, {131, 64, 64, 9, nullptr}};
  for (const int group : {1, 3, 8}) {
    for (const int64_t window : {int64_t{100}, int64_t{cuda::kNoWindow}}) {
      const cuda::AttentionTileShape shape = {128, 64, false};
      const std::vector<cuda::AttentionTile> tiles = cuda::plan_attention_tiles(sequences, group, window, shape);
      std::set<std::pair<int, int>> rows;
      int64_t before = INT64_MAX;
      for (const cuda::AttentionTile& tile : tiles) {
        const cuda::AttentionSequence& s = sequences[tile.sequence];
        CHECK(tile.first_row < s.rows * group);
        for (int r = tile.first_row; r < std::min(tile.first_row + shape.rows, s.rows * group); ++r)
          CHECK(rows.insert({tile.sequence, r}).second);
        const int64_t oldest = s.first_pos + tile.first_row / group,
                      newest = s.first_pos + (std::min(s.rows * group, tile.first_row + shape.rows) - 1) / group;
        const int64_t blocks = (newest - std::max<int64_t>(0, oldest - window + 1)) / shape.keys;
        CHECK(blocks <= before);
        before = blocks;
      }
      CHECK_MSG(rows.size() == static_cast<size_t>(195 * group), rows.size() << " rows");
    }
  }
}

}  // namespace

}  // namespace lapidary::test
