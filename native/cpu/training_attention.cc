// Attention of training: one sequence and head is one piece of work, done tile by tile as matrix products, queries in tiles of kQueryTile
// and keys in tiles of kKeyTile from the sequence's first row on; the prefix's tiles come first. Heads that share keys have sums of their
// own, added in rising order at the end.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/training.h"

namespace lapidary::cpu {

namespace {

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of a matrix [rows, head_dim], `stride` floats apart.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};

struct KeyTile {
  Rows keys, values, gkeys, gvalues;
  int64_t count;
  bool is_prefix;
  int64_t base;  // its first key's row in the sequence, or its first prefix slot
};

// One sequence and head.
struct Piece {
  Rows q, q_prefix, out, gout, gq, gq_prefix;
  float* stats;  // of its first query, 2 * num_heads apart
  int64_t rows, first_pos;
  std::vector<KeyTile> tiles;
};

// A growing offset into the thread's scratch.
class Arena {
 public:
  explicit Arena(float* memory) : next_(memory) {}
  float* take(int64_t floats) {
    float* p = next_;
    next_ += rounded_up(floats, 16);
    return p;
  }

 private:
  float* next_;
};

class TileWorker {
 public:
  TileWorker(const TrainingKernels& kernels, const TrainingAttention& attention)
      : kernels_(kernels), a_(attention), dim_(attention.shape.head_dim), stats_stride_(2 * attention.shape.num_heads) {}

  void forward(const Piece& piece);
  void backward(const Piece& piece);

 private:
  int64_t a_floats(int64_t lines, int64_t k) const { return rounded_up(rounded_up(lines, kernels_.gemm_rows) * k, 16); }
  int64_t b_floats(int64_t lines, int64_t k) const { return rounded_up(rounded_up(lines, kernels_.gemm_columns) * k, 16); }

  void pack_a(const MatrixSide& side, int64_t lines, int64_t k, float* panels) const {
    const int64_t count = rounded_up(lines, kernels_.gemm_rows);
    for (int64_t k0 = 0; k0 < k; k0 += kGemmSlice)
      kernels_.pack_a(side, lines, 0, count / kernels_.gemm_rows, k0, std::min(kGemmSlice, k - k0), panels + k0 * count);
  }
  void pack_b(const MatrixSide& side, int64_t lines, int64_t k, float* panels) const {
    const int64_t count = rounded_up(lines, kernels_.gemm_columns);
    for (int64_t k0 = 0; k0 < k; k0 += kGemmSlice)
      kernels_.pack_b(side, lines, 0, count / kernels_.gemm_columns, k0, std::min(kGemmSlice, k - k0), panels + k0 * count);
  }
  void multiply(const float* a, const float* b, int64_t m, int64_t n, int64_t k, const Rows& c, bool add_to_c) const {
    const int64_t m_padded = rounded_up(m, kernels_.gemm_rows), n_padded = rounded_up(n, kernels_.gemm_columns);
    for (int64_t k0 = 0; k0 < k; k0 += kGemmSlice)
      kernels_.multiply_panels(a + k0 * m_padded, b + k0 * n_padded, std::min(kGemmSlice, k - k0), m, n, c.data, c.stride,
                               add_to_c || k0 > 0);
  }

  // The tile's scores for queries [first, first + rows) of the piece; false where none of them sees any of its keys.
  bool score_tile(const Piece& piece, const KeyTile& tile, int64_t first, int64_t rows, float* scores, ScoreTile& out) const;

  const TrainingKernels& kernels_;
  const TrainingAttention& a_;
  const int64_t dim_, stats_stride_;
};

bool TileWorker::score_tile(const Piece& piece, const KeyTile& tile, int64_t first, int64_t rows, float* scores, ScoreTile& out) const {
  const AttentionShape& shape = a_.shape;
  const bool windowed = shape.window < piece.first_pos + piece.rows;
  out = {scores, rows, tile.count, 0, 0, tile.count, 0, shape.scale, shape.softcap};
  if (tile.is_prefix) {
    if (a_.prefix_in_window && windowed) out.begin = piece.first_pos + first - shape.window + 1 - tile.base, out.begin_step = 1;
    return out.begin < tile.count;
  }
  if (windowed) out.begin = first - shape.window + 1 - tile.base, out.begin_step = 1;
  out.end = first + 1 - tile.base, out.end_step = 1;
  return out.begin < tile.count && out.end + rows - 1 > 0;
}

MatrixSide along(const Rows& rows) { return {rows.data, rows.stride, true}; }
MatrixSide across(const Rows& rows) { return {rows.data, rows.stride, false}; }

void TileWorker::forward(const Piece& piece) {
  const int64_t key_floats = b_floats(kKeyTile, dim_), value_floats = b_floats(dim_, kKeyTile),
                tiles = static_cast<int64_t>(piece.tiles.size());
  const int64_t query_floats = a_floats(kQueryTile, dim_), score_floats = a_floats(kQueryTile, kKeyTile);
  Arena arena(thread_scratch(ScratchUse::kernel, static_cast<size_t>(tiles * (key_floats + value_floats) + 2 * query_floats + score_floats +
                                                                     kQueryTile * kKeyTile + kQueryTile * rounded_up(dim_, 16) + 3 * 64)));
  float* keys = arena.take(tiles * key_floats);
  float* values = arena.take(tiles * value_floats);
  float* queries[] = {arena.take(query_floats), arena.take(query_floats)};
  float* packed_scores = arena.take(score_floats);
  float* scores = arena.take(kQueryTile * kKeyTile);
  const Rows sums{arena.take(kQueryTile * rounded_up(dim_, 16)), rounded_up(dim_, 16)};
  float *maximum = arena.take(64), *sum = arena.take(64), *factors = arena.take(64);

  for (int64_t t = 0; t < tiles; ++t) {
    const KeyTile& tile = piece.tiles[static_cast<size_t>(t)];
    pack_b(along(tile.keys), tile.count, dim_, keys + t * key_floats);
    pack_b(across(tile.values), dim_, tile.count, values + t * value_floats);
  }
  for (int64_t first = 0; first < piece.rows; first += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, piece.rows - first);
    pack_a(along(piece.q.from(first)), rows, dim_, queries[0]);
    if (piece.q_prefix.data) pack_a(along(piece.q_prefix.from(first)), rows, dim_, queries[1]);
    std::fill_n(maximum, rows, -INFINITY);
    std::fill_n(sum, rows, 0.0f);
    std::fill_n(sums.data, rows * sums.stride, 0.0f);
    for (int64_t t = 0; t < tiles; ++t) {
      const KeyTile& tile = piece.tiles[static_cast<size_t>(t)];
      ScoreTile score;
      if (!score_tile(piece, tile, first, rows, scores, score)) continue;
      multiply(queries[tile.is_prefix && piece.q_prefix.data], keys + t * key_floats, rows, tile.count, dim_, {scores, kKeyTile}, false);
      kernels_.soften(score, maximum, sum, factors);
      kernels_.scale_rows(sums.data, sums.stride, rows, dim_, factors);
      pack_a({scores, kKeyTile, true}, rows, tile.count, packed_scores);
      multiply(packed_scores, values + t * value_floats, rows, dim_, tile.count, sums, true);
    }
    const Rows out = piece.out.from(first);
    kernels_.divide_rows(sums.data, sums.stride, rows, dim_, sum, out.data, out.stride);
    for (int64_t i = 0; i < rows; ++i) {
      float* stats = piece.stats + (first + i) * stats_stride_;
      stats[0] = maximum[i], stats[1] = sum[i];
    }
  }
}

void TileWorker::backward(const Piece& piece) {
  const int64_t tiles = static_cast<int64_t>(piece.tiles.size());
  const int64_t key_floats = b_floats(kKeyTile, dim_), across_floats = b_floats(dim_, kKeyTile), query_floats = a_floats(kQueryTile, dim_);
  const int64_t square_floats = std::max(a_floats(kQueryTile, kKeyTile), a_floats(kKeyTile, kQueryTile));
  Arena arena(thread_scratch(ScratchUse::kernel, static_cast<size_t>(tiles * (2 * key_floats + across_floats) + 3 * query_floats +
                                                                     3 * across_floats + square_floats + 2 * kQueryTile * kKeyTile + 64)));
  float *keys = arena.take(tiles * key_floats), *values = arena.take(tiles * key_floats), *keys_across = arena.take(tiles * across_floats);
  float *queries[] = {arena.take(query_floats), arena.take(query_floats)}, *gout = arena.take(query_floats);
  float *queries_across[] = {arena.take(across_floats), arena.take(across_floats)}, *gout_across = arena.take(across_floats);
  float* square = arena.take(square_floats);
  float *scores = arena.take(kQueryTile * kKeyTile), *gscores = arena.take(kQueryTile * kKeyTile), *along_out = arena.take(64);

  for (int64_t t = 0; t < tiles; ++t) {
    const KeyTile& tile = piece.tiles[static_cast<size_t>(t)];
    pack_b(along(tile.keys), tile.count, dim_, keys + t * key_floats);
    pack_b(along(tile.values), tile.count, dim_, values + t * key_floats);
    pack_b(across(tile.keys), dim_, tile.count, keys_across + t * across_floats);
  }
  for (int64_t first = 0; first < piece.rows; first += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, piece.rows - first);
    const Rows q[] = {piece.q.from(first), piece.q_prefix.data ? piece.q_prefix.from(first) : Rows{}};
    const Rows gq[] = {piece.gq.from(first), piece.gq_prefix.data ? piece.gq_prefix.from(first) : Rows{}};
    const Rows up = piece.gout.from(first), result = piece.out.from(first);
    for (int which = 0; which < 2; ++which) {
      if (!q[which].data) continue;
      pack_a(along(q[which]), rows, dim_, queries[which]);
      pack_b(across(q[which]), dim_, rows, queries_across[which]);
      for (int64_t i = 0; i < rows; ++i) std::fill_n(gq[which].from(i).data, dim_, 0.0f);
    }
    pack_a(along(up), rows, dim_, gout);
    pack_b(across(up), dim_, rows, gout_across);
    for (int64_t i = 0; i < rows; ++i) along_out[i] = kernels_.dot(up.from(i).data, result.from(i).data, dim_);
    for (int64_t t = 0; t < tiles; ++t) {
      const KeyTile& tile = piece.tiles[static_cast<size_t>(t)];
      ScoreTile score;
      if (!score_tile(piece, tile, first, rows, scores, score)) continue;
      const bool which = tile.is_prefix && piece.q_prefix.data;
      multiply(queries[which], keys + t * key_floats, rows, tile.count, dim_, {scores, kKeyTile}, false);
      multiply(gout, values + t * key_floats, rows, tile.count, dim_, {gscores, kKeyTile}, false);
      kernels_.soften_backward(score, piece.stats + first * stats_stride_, stats_stride_, along_out, gscores);
      pack_a({gscores, kKeyTile, true}, rows, tile.count, square);
      multiply(square, keys_across + t * across_floats, rows, dim_, tile.count, gq[which], true);
      if (!tile.gkeys.data) continue;
      pack_a({gscores, kKeyTile, false}, tile.count, rows, square);
      multiply(square, queries_across[which], tile.count, dim_, rows, tile.gkeys, true);
      pack_a({scores, kKeyTile, false}, tile.count, rows, square);
      multiply(square, gout_across, tile.count, dim_, rows, tile.gvalues, true);
    }
  }
}

// Where the derivatives of keys and values of each head gather before those of heads that share them are added.
struct HeadSums {
  float *k = nullptr, *v = nullptr;                // [tokens, num_heads, head_dim]
  float *prefix_k = nullptr, *prefix_v = nullptr;  // [sequences, num_heads, prefix tokens, head_dim]; null: not wanted
};

Piece make_piece(const TrainingAttention& a, int64_t index, const Tensor& out, const Tensor& stats, const Tensor& gout,
                 const AttentionGradients& g, const HeadSums& sums) {
  const AttentionShape& shape = a.shape;
  const int64_t dim = shape.head_dim, heads = shape.num_heads, kv_heads = shape.num_kv_heads, slots = a.prefix_tokens();
  const int64_t head = index % heads, kv_head = head / (heads / kv_heads);
  const SequenceRows& sequence = a.sequences[static_cast<size_t>(index / heads)];
  const int64_t q_width = heads * dim, kv_width = kv_heads * dim;
  const auto of_head = [&](const Tensor& t) -> Rows {
    return t ? Rows{t.as<float>() + sequence.first_row * q_width + head * dim, q_width} : Rows{};
  };
  const auto of_kv = [&](const Tensor& t) -> Rows { return {t.as<float>() + sequence.first_row * kv_width + kv_head * dim, kv_width}; };
  const auto sums_of_head = [&](float* p) -> Rows { return p ? Rows{p + sequence.first_row * q_width + head * dim, q_width} : Rows{}; };
  const auto sums_of_prefix = [&](float* p) -> Rows { return p ? Rows{p + index * slots * dim, dim} : Rows{}; };
  const auto part = [](const Rows& rows, int64_t first) { return rows.data ? rows.from(first) : rows; };

  Piece piece{of_head(a.q),
              of_head(a.q_prefix),
              of_head(out),
              of_head(gout),
              of_head(g.q),
              of_head(g.q_prefix),
              stats.as<float>() + 2 * (sequence.first_row * heads + head),
              sequence.rows,
              sequence.first_pos,
              {}};
  for (int64_t j = 0; j < slots; j += kKeyTile) {
    const Rows keys{a.prefix_k.as<float>() + kv_head * slots * dim, dim}, values{a.prefix_v.as<float>() + kv_head * slots * dim, dim};
    piece.tiles.push_back({keys.from(j), values.from(j), part(sums_of_prefix(sums.prefix_k), j), part(sums_of_prefix(sums.prefix_v), j),
                           std::min(kKeyTile, slots - j), true, j});
  }
  for (int64_t j = 0; j < sequence.rows; j += kKeyTile)
    piece.tiles.push_back({of_kv(a.k).from(j), of_kv(a.v).from(j), part(sums_of_head(sums.k), j), part(sums_of_head(sums.v), j),
                           std::min(kKeyTile, sequence.rows - j), false, j});
  return piece;
}

// to[i] = (or +=) the sum of the group's rows, each dim floats.
void add_group(const float* from, int64_t group, int64_t dim, float* to, bool add) {
  for (int64_t d = 0; d < dim; ++d) {
    float sum = from[d];
    for (int64_t h = 1; h < group; ++h) sum = sum + from[h * dim + d];
    to[d] = add ? to[d] + sum : sum;
  }
}

}  // namespace

void attention_forward(const TrainingKernels& kernels, ThreadPool& pool, const TrainingAttention& a, const Tensor& out,
                       const Tensor& stats) {
  check_attention(a);
  pool.parallel_for(static_cast<int64_t>(a.sequences.size()) * a.shape.num_heads, 1, [&](int64_t begin, int64_t end) {
    TileWorker worker(kernels, a);
    for (int64_t i = begin; i < end; ++i) worker.forward(make_piece(a, i, out, stats, {}, {}, {}));
  });
}

void attention_backward(const TrainingKernels& kernels, ThreadPool& pool, const TrainingAttention& a, const Tensor& out,
                        const Tensor& stats, const Tensor& gout, const AttentionGradients& g) {
  check_attention(a);
  const AttentionShape& shape = a.shape;
  const int64_t tokens = a.q.shape[0], dim = shape.head_dim, heads = shape.num_heads, kv_heads = shape.num_kv_heads;
  const int64_t group = heads / kv_heads, slots = a.prefix_tokens(), pieces = static_cast<int64_t>(a.sequences.size()) * heads;
  const int64_t text = tokens * heads * dim, prefix = g.prefix_k ? pieces * slots * dim : 0;
  float* memory = thread_scratch(ScratchUse::partial, static_cast<size_t>(2 * (text + prefix)));
  std::fill_n(memory, 2 * (text + prefix), 0.0f);
  HeadSums sums{memory, memory + text};
  if (prefix > 0) sums.prefix_k = memory + 2 * text, sums.prefix_v = sums.prefix_k + prefix;

  pool.parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    TileWorker worker(kernels, a);
    for (int64_t i = begin; i < end; ++i) worker.backward(make_piece(a, i, out, stats, gout, g, sums));
  });
  pool.parallel_for(tokens * kv_heads, 64 * 1024 / (2 * group * dim) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_group(sums.k + i * group * dim, group, dim, g.k.as<float>() + i * dim, false);
      add_group(sums.v + i * group * dim, group, dim, g.v.as<float>() + i * dim, false);
    }
  });
  for (int64_t i = 0; prefix > 0 && i < pieces; ++i) {
    const int64_t to = i % heads / group * slots * dim, n = slots * dim;
    add_group(sums.prefix_k + i * n, 1, n, g.prefix_k.as<float>() + to, true);
    add_group(sums.prefix_v + i * n, 1, n, g.prefix_v.as<float>() + to, true);
  }
}

}  // namespace lapidary::cpu
