#include "emulator/requests.h"

#include <algorithm>
#include <bit>

namespace lapidary::emulator {
namespace {

constexpr int kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

// Passes for `count` lanes whose accesses move at most 128 bytes: the largest number of different words in one bank.
int passes(const uint64_t* address, int count, int bytes) {
  uint64_t words[kBanks * 4];
  int n = 0;
  for (int i = 0; i < count; ++i) {
    for (uint64_t word = address[i] / kBankBytes; word * kBankBytes < address[i] + static_cast<uint64_t>(bytes); ++word) words[n++] = word;
  }
  std::sort(words, words + n);
  n = static_cast<int>(std::unique(words, words + n) - words);
  int in_bank[kBanks] = {};
  for (int i = 0; i < n; ++i) ++in_bank[words[i] % kBanks];
  return *std::max_element(in_bank, in_bank + kBanks);
}

}  // namespace

void Requests::add(Kind kind, Place place, int warp, int lane, uint64_t address, int bytes, LaunchStatistics& to) {
  const uint64_t key = static_cast<uint64_t>(place) << 32 | static_cast<uint64_t>(bytes) << 24 | static_cast<uint64_t>(warp) << 8 |
                       static_cast<uint64_t>(kind);
  const uint32_t time = sites_[key].times[lane]++;
  const uint64_t request_key = key ^ (static_cast<uint64_t>(time) + 1) * 0x9e3779b97f4a7c15ull;
  Request& r = requests_[request_key];
  r.lanes |= 1u << lane;
  r.bytes = bytes;
  r.kind = kind;
  r.address[lane] = address;
  if (r.lanes != 0xffffffffu) return;
  count(r, to);
  requests_.erase(request_key);
}

void Requests::finish(LaunchStatistics& to) {
  for (const auto& [key, request] : requests_) count(request, to);
  requests_.clear();
  sites_.clear();
}

void Requests::count(const Request& r, LaunchStatistics& to) {
  uint64_t address[32];
  if (r.kind == Kind::global) {
    // Sectors touched, and how many hold as many different bytes.
    int n = 0;
    for (int i = 0; i < 32; ++i) {
      if (r.lanes >> i & 1) address[n++] = r.address[i] / kSectorBytes;
    }
    std::sort(address, address + n);
    to.global_sectors += std::unique(address, address + n) - address;
    n = 0;
    for (int i = 0; i < 32; ++i) {
      if (r.lanes >> i & 1) address[n++] = r.address[i];
    }
    std::sort(address, address + n);
    const auto different = std::unique(address, address + n) - address;
    to.global_sectors_ideal += (different * r.bytes + kSectorBytes - 1) / kSectorBytes;
    return;
  }
  // Wide accesses are made in groups of neighbouring lanes that move 128 bytes.
  const int group = r.bytes <= 4 ? 32 : 128 / r.bytes;
  for (int first = 0; first < 32; first += group) {
    int n = 0;
    for (int i = first; i < first + group; ++i) {
      if (r.lanes >> i & 1) address[n++] = r.address[i];
    }
    if (!n) continue;
    to.shared_wavefronts += passes(address, n, r.bytes);
    ++to.shared_wavefronts_ideal;
  }
}

}  // namespace lapidary::emulator
