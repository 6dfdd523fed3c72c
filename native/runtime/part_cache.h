// Remembers what short parts of text were encoded to. Exact, since the ids of a part depend on its bytes alone.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace lapidary {

class PartCache {
 public:
  static constexpr size_t kKeyBytes = 15;

  // The bytes, zeros after them, and their number in the last place; never all zero.
  static_assert(std::endian::native == std::endian::little);
  struct Key {
    uint64_t low = 0, high = 0;
    bool operator==(const Key&) const = default;
  };

  // text[begin, end), 1 to kKeyBytes bytes.
  static Key key(std::string_view text, size_t begin, size_t end) {
    const size_t bytes = end - begin;
    Key key;
    if (begin + sizeof(Key) <= text.size()) {
      std::memcpy(&key, text.data() + begin, sizeof(Key));
      const auto keep = [](uint64_t word, size_t n) { return n >= 8 ? word : word & ((uint64_t{1} << 8 * n) - 1); };
      key.low = keep(key.low, bytes);
      key.high = keep(key.high, bytes > 8 ? bytes - 8 : 0);
    } else {
      std::memcpy(&key, text.data() + begin, bytes);
    }
    key.high |= static_cast<uint64_t>(bytes) << 56;
    return key;
  }

  // Appends the ids of `key`; false when they are not known.
  bool find(const Key& key, std::vector<int32_t>& out) const {
    for (const Entry& entry : sets_[set(key)].entries) {
      if (entry.key != key) continue;
      for (const int32_t id : entry.ids) {
        if (id < 0) break;
        out.push_back(id);
      }
      return true;
    }
    return false;
  }

  // Ids beyond kIds are not kept. The set's older entry gives way.
  void keep(const Key& key, std::span<const int32_t> ids) {
    if (ids.size() > kIds) return;
    Set& set_of_key = sets_[set(key)];
    set_of_key.entries[1] = set_of_key.entries[0];
    Entry& entry = set_of_key.entries[0];
    entry.key = key;
    for (size_t i = 0; i < kIds; ++i) entry.ids[i] = i < ids.size() ? ids[i] : -1;
  }

 private:
  static constexpr size_t kIds = 4, kSetBits = 14;
  struct Entry {
    Key key;
    int32_t ids[kIds] = {-1, -1, -1, -1};
  };
  struct alignas(64) Set {
    Entry entries[2];
  };
  static_assert(sizeof(Set) == 64);

  static size_t set(const Key& key) {
    const uint64_t mixed = (key.low ^ key.high * 0xd6e8feb86659fd93u) * 0x9e3779b97f4a7c15u;
    return static_cast<size_t>((mixed ^ mixed >> 32) * 0x9e3779b97f4a7c15u >> (64 - kSetBits));
  }

  std::vector<Set> sets_{size_t{1} << kSetBits};
};

}  // namespace lapidary
