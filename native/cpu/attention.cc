// A tile is some consecutive queries of a span with the heads that share a KV head. With enough tiles for all threads, a tile is
// one piece of work; a few queries over long contexts are split further, by partitions of their keys, whose states are merged
// afterwards. Both ways go through the same kernels in the same order.
#include "cpu/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "cpu/scratch.h"

namespace lapidary::cpu {

namespace {

// Queries of a tile: as many as make good use of a block of keys once it is in the cache.
constexpr int64_t kTileQueries = 16;

struct Tile {
  AttentionTile tile;
  int64_t first_partition, end_partition;
  std::byte* out;           // of the tile's first query
  int64_t first_state = 0;  // of its partitions, when they are split

  int64_t queries() const { return tile.rows * tile.group; }
  int64_t partitions() const { return end_partition - first_partition; }
  int64_t state_floats() const { return attention_state_floats(queries(), tile.head_dim); }
};

AttentionState carve(float* memory, int64_t queries) { return {memory, memory + queries, memory + 2 * queries}; }

class Plan {
 public:
  Plan(const Kernels& kernels, ThreadPool& pool, const AttentionShape& shape, const Tensor& out)
      : kernels_(kernels), pool_(pool), width_(shape.num_heads * shape.head_dim), bf16_(out.dtype == DType::bf16) {}

  void add(const Tensor& q, const AttentionSpan& span, const AttentionShape& shape, const Tensor& out) {
    const int64_t group = shape.num_heads / shape.num_kv_heads, tile_rows = std::max<int64_t>(kTileQueries / group, 1);
    for (int64_t row = 0; row < span.rows; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, span.rows - row), pos = span.first_pos + row;
      const int64_t lowest = shape.window > pos ? 0 : pos - shape.window + 1;
      const int64_t needed = (pos + rows - 1) / kPageTokens - lowest / kPageTokens + 1;
      expect(needed <= span.kv.num_pages, ErrorCode::internal, "attention: queries at ", pos, " to ", pos + rows - 1, " see ", needed,
             " pages, the cache has ", span.kv.num_pages);
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        const int64_t at = (span.first_row + row) * width_ + head * group * shape.head_dim;
        const AttentionTile tile{q.as<float>() + at,
                                 width_,
                                 rows,
                                 group,
                                 shape.head_dim,
                                 pos,
                                 span.kv.pages,
                                 span.kv.num_pages,
                                 span.kv.dtype == DType::bf16,
                                 head,
                                 shape.num_kv_heads,
                                 shape.scale,
                                 shape.softcap,
                                 shape.window};
        tiles_.push_back({tile, lowest / kPartitionKeys, (pos + rows - 1) / kPartitionKeys + 1, out.data + dtype_bytes(out.dtype, at)});
      }
    }
  }

  void run() {
    const int64_t count = static_cast<int64_t>(tiles_.size());
    int64_t most = 0, queries = 0;
    for (const Tile& t : tiles_) most = std::max(most, t.partitions()), queries = std::max(queries, t.queries());
    if (count == 0) return;
    scratch_floats_ = kernels_.attend_scratch_floats(queries, tiles_[0].tile.head_dim);
    if (pool_.threads() > 1 && most > 1 && count < 2 * pool_.threads()) return run_split();
    // Multiply-adds of a tile, about: small steps stay on this thread.
    const int64_t work = queries * tiles_[0].tile.head_dim * kPageTokens * most;
    pool_.parallel_for(count, 64 * 1024 / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) attend_whole(tiles_[static_cast<size_t>(i)]);
    });
  }

 private:
  void attend_whole(const Tile& t) {
    const size_t own = static_cast<size_t>(t.state_floats());
    float* memory = thread_scratch(ScratchUse::kernel, own + scratch_floats_);
    const AttentionState state = carve(memory, t.queries());
    kernels_.attend(t.tile, t.first_partition, t.end_partition, state, memory + own);
    kernels_.finish(t.tile, state, t.out, width_, bf16_);
  }

  void run_split() {
    struct Piece {
      const Tile* tile;
      int64_t partition;
      AttentionState state;
    };
    size_t floats = 0;
    for (const Tile& t : tiles_) floats += static_cast<size_t>(t.partitions() * t.state_floats());
    float* memory = thread_scratch(ScratchUse::partial, floats);
    std::vector<Piece> pieces;
    for (Tile& t : tiles_) {
      t.first_state = static_cast<int64_t>(pieces.size());
      for (int64_t p = t.first_partition; p < t.end_partition; ++p, memory += t.state_floats())
        pieces.push_back({&t, p, carve(memory, t.queries())});
    }
    pool_.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
      float* scratch = thread_scratch(ScratchUse::kernel, scratch_floats_);
      for (int64_t i = begin; i < end; ++i) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        kernels_.attend(piece.tile->tile, piece.partition, piece.partition + 1, piece.state, scratch);
      }
    });
    for (const Tile& t : tiles_) {
      const Piece* piece = &pieces[static_cast<size_t>(t.first_state)];
      for (int64_t p = 1; p < t.partitions(); ++p) kernels_.merge(piece[0].state, piece[p].state, t.queries(), t.tile.head_dim);
      kernels_.finish(t.tile, piece[0].state, t.out, width_, bf16_);
    }
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  const int64_t width_;  // elements of a row of q and out
  const bool bf16_;
  size_t scratch_floats_ = 0;
  std::vector<Tile> tiles_;
};

}  // namespace

void attention(const Kernels& kernels, ThreadPool& pool, const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape,
               const Tensor& out) {
  expect(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0, ErrorCode::internal, "attention: ", shape.num_heads,
         " heads over ", shape.num_kv_heads, " kv heads");
  expect(shape.window >= 1, ErrorCode::internal, "attention: window ", shape.window, " must be at least 1");
  Plan plan(kernels, pool, shape, out);
  for (const AttentionSpan& span : spans) plan.add(q, span, shape, out);
  plan.run();
}

}  // namespace lapidary::cpu
