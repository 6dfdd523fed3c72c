// Which keys a query sees and which blocks of keys a tile of queries visits: arithmetic alone, the same on host and device.
//
// A query sees one interval of cache positions. By the causal rule and the window it is (q - window, q]; a query inside an image block also
// sees the whole block [first, end), which contains q, so the union is an interval again. For queries in rising order both ends rise (image
// blocks are disjoint), so the first and the last query of a tile bound what all of them see:
//
//        first query   |-----------------|
//        last query        |-------------------|
//        blocks         [ b ][   ][   ][   ][ e )      visited: those with a key that any of them sees
//        no mask             [   ][   ]                those whose keys all of them see
#pragma once

#include <cstdint>

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

struct alignas(8) KeyRange {
  int32_t begin, end;  // positions, end excluded
};

// Keys that the query at `position` sees; image block empty (first >= end): none.
LAPIDARY_HOST_DEVICE constexpr KeyRange visible_keys(int32_t position, int32_t window, int32_t image_first = 0, int32_t image_end = 0) {
  const int32_t oldest = position - window + 1;  // does not overflow: position >= 0, window <= 0x7fffffff
  KeyRange keys = {oldest > 0 ? oldest : 0, position + 1};
  if (image_first < image_end) {
    if (image_first < keys.begin) keys.begin = image_first;
    if (image_end > keys.end) keys.end = image_end;
  }
  return keys;
}

struct KeyBlocks {
  int32_t begin, end;            // blocks to visit
  int32_t full_begin, full_end;  // of these, blocks without a masked key: none if full_begin >= full_end

  LAPIDARY_HOST_DEVICE constexpr bool masked(int32_t block) const { return block < full_begin || block >= full_end; }
};

// Block b holds positions [b * keys_per_block, (b + 1) * keys_per_block): aligned to absolute positions, so that what a query adds up, and
// in which order, does not depend on the queries beside it.
LAPIDARY_HOST_DEVICE constexpr KeyBlocks key_blocks(KeyRange first_query, KeyRange last_query, int32_t keys_per_block) {
  return {first_query.begin / keys_per_block, (last_query.end - 1) / keys_per_block + 1,
          (last_query.begin + keys_per_block - 1) / keys_per_block, first_query.end / keys_per_block};
}

}  // namespace lapidary::cuda
