// A tile is some consecutive queries of a span with the heads that share a KV head. Most tiles are one piece of work each; one that is more
// than a thread's share is split by partitions of its keys, whose states are merged afterwards. Both ways go through the same kernels in
// the same order.
#include "cpu/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "cpu/scratch.h"

namespace lapidary::cpu {

namespace {

// Queries of a tile: enough that turning a block's keys costs little beside the products; where that leaves threads without work, fewer.
constexpr int64_t kTileQueries = 256, kLeastTileQueries = 32, kTilesPerThread = 3;
// Tiles of so few queries are split for the balance of threads alone, since their states are small.
constexpr int64_t kSmallTileQueries = 16;
// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 128 * 1024;

int64_t partitions_before(int64_t end) { return (end + kPartitionKeys - 1) / kPartitionKeys; }

struct Tile {
  AttentionTile text, prefix;  // prefix: as text where there is none
  int64_t prefix_partitions;   // 0: none
  int64_t first_partition, end_partition;
  std::byte* out;  // of the tile's first query
  int64_t work;    // keys times queries
  int64_t first_piece = -1;

  int64_t queries() const { return text.rows * text.group; }
  // Of the prefix, then of the text.
  int64_t partitions() const { return prefix_partitions + end_partition - first_partition; }
  int64_t state_floats() const { return padded(attention_state_floats(queries(), text.head_dim)); }
};

// A tile, or one partition of a split one, whose states all lie in one memory.
struct Piece {
  const Tile* tile;
  int64_t partition;  // -1: the whole tile
  int64_t work;
  int64_t state;  // floats from the beginning of that memory
};

AttentionState carve(float* memory, int64_t queries) { return {memory, memory + queries, memory + 2 * queries}; }

class Plan {
 public:
  Plan(const Kernels& kernels, ThreadPool& pool, const AttentionShape& shape, const Tensor& q, const Tensor& out)
      : kernels_(kernels),
        pool_(pool),
        shape_(shape),
        q_(q),
        out_(out),
        group_(shape.num_heads / shape.num_kv_heads),
        width_(shape.num_heads * shape.head_dim) {
    if (shape.extras && shape.extras->prefix_k && shape.extras->prefix_k.shape[1] > 0) prefix_ = shape.extras;
  }

  void add(std::span<const AttentionSpan> spans, const std::vector<KeySpan>& visible) {
    int64_t rows = 0;
    for (const AttentionSpan& span : spans) rows += span.rows;
    if (prefix_) find_prefix(spans, visible.size());
    const int64_t wanted = rows * group_ * shape_.num_kv_heads / (kTilesPerThread * pool_.threads());
    const int64_t tile_rows = std::max<int64_t>(std::clamp(wanted, kLeastTileQueries, kTileQueries) / group_, 1);
    for (const AttentionSpan& span : spans) {
      for (int64_t row = 0; row < span.rows; row += tile_rows)
        add_rows(span, row, std::min(tile_rows, span.rows - row), visible.data() + span.first_row + row);
    }
  }

  void run() {
    if (tiles_.empty()) return;
    int64_t total = 0, queries = 0;
    for (const Tile& t : tiles_) total += t.work, queries = std::max(queries, t.queries());
    scratch_floats_ = static_cast<size_t>(padded(static_cast<int64_t>(kernels_.attend_scratch_floats(queries, shape_.head_dim))));
    std::vector<Piece> pieces;
    int64_t state_floats = 0;
    for (Tile& t : tiles_) {
      const int64_t share = total / (t.queries() <= kSmallTileQueries ? 4 * pool_.threads() : pool_.threads());
      if (pool_.threads() == 1 || t.partitions() == 1 || t.work <= share) {
        pieces.push_back({&t, -1, t.work, 0});
        continue;
      }
      t.first_piece = state_floats;
      for (int64_t p = 0; p < t.partitions(); ++p, state_floats += t.state_floats())
        pieces.push_back({&t, p, t.work / t.partitions(), state_floats});
    }
    // The largest first, so that the threads end together.
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.work > b.work; });
    float* states = thread_scratch(ScratchUse::partial, static_cast<size_t>(state_floats));
    const int64_t count = static_cast<int64_t>(pieces.size());
    pool_.parallel_for(count, 2 * total * shape_.head_dim < kWorthAThread ? count : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) attend(pieces[static_cast<size_t>(i)], states);
    });
    if (state_floats == 0) return;
    pool_.parallel_for(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) merge_pieces(tiles_[static_cast<size_t>(i)], states);
    });
  }

 private:
  void add_rows(const AttentionSpan& span, int64_t row, int64_t rows, const KeySpan* visible) {
    KeySpan whole = visible[0];
    for (int64_t r = 1; r < rows; ++r) whole = {std::min(whole.begin, visible[r].begin), std::max(whole.end, visible[r].end)};
    const int64_t pos = span.first_pos + row, needed = (whole.end - 1) / kPageTokens - whole.begin / kPageTokens + 1;
    expect(needed <= span.kv.num_pages, ErrorCode::internal, "attention: queries at ", pos, " to ", pos + rows - 1, " see ", needed,
           " pages, the cache has ", span.kv.num_pages);
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      const int64_t at = (span.first_row + row) * width_ + head * group_ * shape_.head_dim;
      Tile tile{};
      tile.text = {.q = q_.as<float>() + at,
                   .q_stride = width_,
                   .rows = rows,
                   .group = group_,
                   .head_dim = shape_.head_dim,
                   .visible = visible,
                   .dtype = span.kv.dtype,
                   .pages = span.kv.pages,
                   .num_pages = span.kv.num_pages,
                   .prefix_k = nullptr,
                   .prefix_v = nullptr,
                   .kv_head = head,
                   .num_kv_heads = shape_.num_kv_heads,
                   .scale = shape_.scale,
                   .softcap = shape_.softcap};
      tile.first_partition = whole.begin / kPartitionKeys;
      tile.end_partition = partitions_before(whole.end);
      tile.work = (whole.end - whole.begin) * tile.queries();
      tile.out = out_.data + dtype_bytes(out_.dtype, at);
      if (prefix_) add_prefix(tile, at, span.first_row + row);
      tiles_.push_back(tile);
    }
  }

  // What each row sees of the prefix, all of which ends the span even where the row sees nothing.
  void find_prefix(std::span<const AttentionSpan> spans, size_t rows) {
    const int64_t slots = prefix_->prefix_k.shape[1];
    prefix_visible_.assign(rows, {0, slots});
    if (!prefix_->prefix_in_window || shape_.window == kNoWindow) return;
    for (const AttentionSpan& span : spans) {
      for (int64_t r = 0; r < span.rows; ++r)
        prefix_visible_[static_cast<size_t>(span.first_row + r)].begin =
            std::clamp<int64_t>(slots + span.first_pos + r - shape_.window + 1, 0, slots);
    }
  }

  void add_prefix(Tile& tile, int64_t at, int64_t row) {
    const int64_t slots = prefix_->prefix_k.shape[1];
    tile.prefix = tile.text;
    if (prefix_->q_prefix) tile.prefix.q = prefix_->q_prefix.as<float>() + at;
    tile.prefix.visible = prefix_visible_.data() + row;
    tile.prefix.dtype = prefix_->prefix_k.dtype;
    tile.prefix.pages = nullptr;
    tile.prefix.prefix_k = prefix_->prefix_k.data;
    tile.prefix.prefix_v = prefix_->prefix_v.data;
    tile.prefix_partitions = partitions_before(slots);
    tile.work += slots * tile.queries();
  }

  void attend(const Piece& piece, float* states) {
    const Tile& t = *piece.tile;
    if (piece.partition >= 0) {
      float* scratch = thread_scratch(ScratchUse::kernel, scratch_floats_);
      const bool prefix = piece.partition < t.prefix_partitions;
      const int64_t p = prefix ? piece.partition : piece.partition - t.prefix_partitions + t.first_partition;
      kernels_.attend(prefix ? t.prefix : t.text, p, p + 1, /*fresh=*/true, carve(states + piece.state, t.queries()), scratch);
      return;
    }
    const size_t own = static_cast<size_t>(t.state_floats());
    float* memory = thread_scratch(ScratchUse::kernel, own + scratch_floats_);
    const AttentionState state = carve(memory, t.queries());
    const bool prefix = t.prefix_partitions > 0;
    if (prefix) kernels_.attend(t.prefix, 0, t.prefix_partitions, /*fresh=*/true, state, memory + own);
    kernels_.attend(t.text, t.first_partition, t.end_partition, /*fresh=*/!prefix, state, memory + own);
    kernels_.finish(t.text, state, t.out, width_, out_.dtype == DType::bf16);
  }

  void merge_pieces(const Tile& t, float* states) {
    if (t.first_piece < 0) return;
    const AttentionState total = carve(states + t.first_piece, t.queries());
    for (int64_t p = 1; p < t.partitions(); ++p)
      kernels_.merge(total, carve(states + t.first_piece + p * t.state_floats(), t.queries()), t.queries(), t.text.head_dim);
    kernels_.finish(t.text, total, t.out, width_, out_.dtype == DType::bf16);
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  const AttentionShape& shape_;
  const Tensor &q_, &out_;
  const int64_t group_;
  const int64_t width_;  // elements of a row of q and out
  const AttentionExtras* prefix_ = nullptr;
  std::vector<KeySpan> prefix_visible_;  // [rows of the step]
  size_t scratch_floats_ = 0;
  std::vector<Tile> tiles_;
};

}  // namespace

bool find_visible(std::span<const AttentionSpan> spans, const AttentionShape& shape, std::vector<KeySpan>& visible) {
  const std::span<const ImageBlock> images = shape.extras ? shape.extras->image_blocks : std::span<const ImageBlock>();
  for (const AttentionSpan& span : spans) {
    visible.resize(std::max(visible.size(), static_cast<size_t>(span.first_row + span.rows)));
    for (int64_t r = 0; r < span.rows; ++r) {
      const int64_t pos = span.first_pos + r, row = span.first_row + r;
      KeySpan seen{shape.window > pos ? 0 : pos - shape.window + 1, pos + 1};
      const ImageBlock image = images.empty() ? ImageBlock{} : images[static_cast<size_t>(row)];
      if (image.first < image.end) {
        if (image.first > seen.end || image.end < seen.begin) return false;
        seen = {std::min<int64_t>(seen.begin, image.first), std::max<int64_t>(seen.end, image.end)};
      }
      visible[static_cast<size_t>(row)] = seen;
    }
  }
  return true;
}

void attention(const Kernels& kernels, ThreadPool& pool, const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape,
               const std::vector<KeySpan>& visible, const Tensor& out) {
  expect(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0, ErrorCode::internal, "attention: ", shape.num_heads,
         " heads over ", shape.num_kv_heads, " kv heads");
  expect(shape.window >= 1, ErrorCode::internal, "attention: window ", shape.window, " must be at least 1");
  Plan plan(kernels, pool, shape, q, out);
  plan.add(spans, visible);
  plan.run();
}

}  // namespace lapidary::cpu
