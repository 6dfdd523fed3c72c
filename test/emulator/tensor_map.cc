// Bulk copies: contiguous ones, and boxes of tensors placed in shared memory with the hardware's swizzle, zeros outside the tensor.
#include "emulator/tensor_map.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "emulator/core.h"

namespace lapidary::emulator {

namespace {

using cuda::Swizzle;

TensorMapDescription decode(const cuda::TensorMap* map, int rank, Where where) {
  TensorMapDescription d;
  std::memcpy(static_cast<void*>(&d), map, sizeof d);
  if (d.magic != TensorMapDescription::kMagic) fail(where, "a tensor copy through something that is not a tensor map");
  if (d.rank != rank) {
    fail(where, "a tensor copy with " + std::to_string(rank) + " coordinates through a tensor map of rank " + std::to_string(d.rank));
  }
  return d;
}

// A box at a place of its tensor.
struct Box {
  TensorMapDescription map;
  int64_t at[4];  // of its first element

  int64_t row_bytes() const { return int64_t{map.element_bytes} * map.box[0]; }

  // f(byte offset in the unswizzled box, address of the row's inside part in global memory or null, its first byte in the row, its bytes).
  template <typename F>
  void each_row(F f) const {
    const int64_t first = std::clamp<int64_t>(-at[0], 0, map.box[0]), last = std::clamp<int64_t>(map.sizes[0] - at[0], first, map.box[0]);
    int64_t offset = 0;
    for (int w = 0; w < map.box[3]; ++w) {
      for (int z = 0; z < map.box[2]; ++z) {
        for (int y = 0; y < map.box[1]; ++y, offset += row_bytes()) {
          const int64_t place[3] = {at[1] + y, at[2] + z, at[3] + w};
          bool inside = last > first;
          int64_t from = (at[0] + first) * map.element_bytes;
          for (int i = 0; i < 3; ++i) {
            inside &= place[i] >= 0 && place[i] < map.sizes[i + 1];
            from += place[i] * map.strides[i];
          }
          f(offset, inside ? map.base + from : nullptr, first * map.element_bytes, inside ? (last - first) * map.element_bytes : 0);
        }
      }
    }
  }

  // Address in the tile of the 16-byte chunk at this offset of the unswizzled box; the tile starts on its atom.
  int64_t place_of(int64_t offset) const {
    const auto o = static_cast<uint32_t>(offset);
    switch (map.swizzle) {
      case Swizzle::none:
        return o;
      case Swizzle::bytes32:
        return cuda::swizzled<Swizzle::bytes32>(o);
      case Swizzle::bytes64:
        return cuda::swizzled<Swizzle::bytes64>(o);
      case Swizzle::bytes128:
        return cuda::swizzled<Swizzle::bytes128>(o);
    }
    return o;
  }

  void load(std::byte* tile) const {
    each_row([&](int64_t offset, const std::byte* from, int64_t begin, int64_t bytes) {
      std::byte row[256 * 4] = {};
      if (from) std::memcpy(row + begin, from, static_cast<size_t>(bytes));
      for (int64_t i = 0; i < row_bytes(); i += 16) std::memcpy(tile + place_of(offset + i), row + i, 16);
    });
  }
  void store(const std::byte* tile) const {
    each_row([&](int64_t offset, const std::byte* to, int64_t begin, int64_t bytes) {
      if (!to) return;
      std::byte row[256 * 4];
      for (int64_t i = 0; i < row_bytes(); i += 16) std::memcpy(row + i, tile + place_of(offset + i), 16);
      std::memcpy(const_cast<std::byte*>(to), row + begin, static_cast<size_t>(bytes));
    });
  }

  void check(Access access, const void* tile, Where where) const {
    const int atom = cuda::swizzle_atom(map.swizzle);
    const uint32_t place = shared_offset(tile, where);
    if (place % atom != 0) {
      fail(where, "a tensor copy at shared address " + std::to_string(place) + ", which is not a multiple of " + std::to_string(atom) +
                      (map.swizzle == Swizzle::none ? " bytes" : " bytes (the atom of its swizzle)"));
    }
    each_row([&](int64_t, const std::byte* row, int64_t, int64_t bytes) {
      if (row) check_global(access, row, static_cast<size_t>(bytes), 1, where);
    });
  }
};

Box box_of(const cuda::TensorMap* map, int rank, const int* at, Where where) {
  Box box = {decode(map, rank, where), {}};
  std::copy(at, at + rank, box.at);
  return box;
}

}  // namespace

void encode_tensor_map(cuda::TensorMap* map, const TensorMapDescription& description) {
  *map = {};
  std::memcpy(map, &description, sizeof description);
}

void bulk_load(void* to_shared, const void* from_global, int bytes, cuda::Barrier* b, Where where) {
  (void)self("bulk_load");
  if (bytes <= 0 || bytes % 16 != 0) {
    fail(where, "bulk_load of " + std::to_string(bytes) + " bytes: they must be a positive multiple of 16");
  }
  check_shared_bounds(to_shared, static_cast<size_t>(bytes), 16, where);
  check_global(Access::read, from_global, static_cast<size_t>(bytes), 16, where);
  issue_bulk_load(to_shared, bytes, b, -1, [=](std::byte* to) { std::memcpy(to, from_global, static_cast<size_t>(bytes)); }, where);
}

void tensor_load(void* to_shared, const cuda::TensorMap* map, cuda::Barrier* b, int rank, const int* at, uint16_t multicast, Where where) {
  (void)self("tensor_load");
  const Box box = box_of(map, rank, at, where);
  box.check(Access::read, to_shared, where);
  const int bytes = static_cast<int>(box.map.box_bytes());
  const auto copy = [box](std::byte* to) { box.load(to); };
  if (multicast == 0) {
    issue_bulk_load(to_shared, bytes, b, -1, copy, where);
    return;
  }
  if (multicast >> cluster_size() != 0) {
    fail(where, "a multicast to blocks that the cluster does not have: mask " + std::to_string(multicast));
  }
  for (int block = 0; block < cluster_size(); ++block) {
    if (multicast >> block & 1) issue_bulk_load(to_shared, bytes, b, block, copy, where);
  }
}

void tensor_store(const cuda::TensorMap* map, const void* from_shared, int rank, const int* at, Where where) {
  (void)self("tensor_store");
  const Box box = box_of(map, rank, at, where);
  box.check(Access::write, from_shared, where);
  issue_bulk_store(from_shared, static_cast<int>(box.map.box_bytes()), [box](const std::byte* from) { box.store(from); }, where);
}

}  // namespace lapidary::emulator
