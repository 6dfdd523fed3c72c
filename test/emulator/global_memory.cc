#include "emulator/global_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "emulator/settings.h"

namespace lapidary::emulator {
namespace {

// Every allocation begins kLead bytes into a page of its own, so that rows are not more aligned than the 256 bytes that are promised, and
// ends before a redzone of at least as much.
constexpr size_t kPage = 64 << 10, kLead = 256, kReserve = size_t{64} << 30;

struct Allocation {
  std::byte* begin;
  size_t bytes, first_page, pages;
  bool live, pinned;
};

class Arena {
 public:
  Arena() {
    for (size_t bytes = kReserve; !base_ && bytes >= (size_t{1} << 30); bytes /= 2) {
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p != MAP_FAILED) base_ = static_cast<std::byte*>(p), pages_ = bytes / kPage;
    }
    owner_.resize(pages_);
  }

  void* allocate(size_t bytes, bool pinned) {
    const std::lock_guard lock(mutex_);
    const size_t pages = (bytes + 2 * kLead + kPage - 1) / kPage;
    const size_t first = find(pages);
    if (first == pages_) return nullptr;
    if (!pinned && in_use_ + static_cast<int64_t>(bytes) > settings().device.memory_bytes) return nullptr;
    for (size_t i = 0; i < pages; ++i) {
      if (owner_[first + i] && !all_[owner_[first + i] - 1].live) owner_[first + i] = 0;
    }
    Allocation a = {base_ + first * kPage + kLead, bytes, first, pages, true, pinned};
    all_.push_back(a);
    std::fill_n(owner_.begin() + static_cast<std::ptrdiff_t>(first), pages, static_cast<uint32_t>(all_.size()));
    next_ = first + pages;
    if (!pinned) in_use_ += static_cast<int64_t>(bytes);
    std::memset(a.begin, 0xff, bytes);
    return a.begin;
  }

  bool release(void* memory) {
    const std::lock_guard lock(mutex_);
    Allocation* a = find_owner(memory);
    if (!a || !a->live || a->begin != memory) return false;
    a->live = false;
    if (!a->pinned) in_use_ -= static_cast<int64_t>(a->bytes);
    madvise(base_ + a->first_page * kPage, a->pages * kPage, MADV_DONTNEED);  // the addresses stay dead until the arena is used up
    return true;
  }

  int64_t in_use() const { return in_use_; }

  Allocation* find_owner(const void* p) {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(p) - base_);
    if (offset >= pages_ * kPage) return nullptr;
    const uint32_t owner = owner_[offset / kPage];
    return owner ? &all_[owner - 1] : nullptr;
  }

 private:
  // Free pages in a row, from where the last search ended; pages_ if there are none.
  size_t find(size_t pages) {
    for (int turn = 0; turn < 2; ++turn, next_ = 0) {
      size_t run = 0;
      for (size_t i = next_; i < pages_; ++i) {
        const bool taken = owner_[i] && all_[owner_[i] - 1].live;
        run = taken ? 0 : run + 1;
        if (run == pages) return i + 1 - pages;
      }
    }
    return pages_;
  }

  std::mutex mutex_;
  std::byte* base_ = nullptr;
  size_t pages_ = 0, next_ = 0;
  int64_t in_use_ = 0;
  std::vector<uint32_t> owner_;  // of every page: 1 + its allocation
  std::deque<Allocation> all_;   // a deque: they stay where they are
};

Arena& arena() {
  static Arena* const the_arena = new Arena;
  return *the_arena;
}

std::unordered_set<uintptr_t>& previous_lines() {
  static auto* const lines = new std::unordered_set<uintptr_t>;
  return *lines;
}

}  // namespace

void* device_allocate(size_t bytes, bool pinned) { return arena().allocate(bytes, pinned); }
bool device_release(void* memory) { return arena().release(memory); }
int64_t device_bytes_in_use() { return arena().in_use(); }

bool is_device_range(const void* p, size_t bytes) {
  const Allocation* a = arena().find_owner(p);
  if (!a || !a->live) return false;
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(p) - a->begin);
  return offset <= a->bytes && bytes <= a->bytes - offset;
}

std::string judge_device_range(const void* p, size_t bytes) {
  if (is_device_range(p, bytes)) return {};
  const Allocation* a = arena().find_owner(p);
  if (!p) return "a null pointer";
  if (!a) return "an address that is not device memory";
  if (!a->live) return "memory that has been released";
  const auto offset = static_cast<const std::byte*>(p) - a->begin;
  return "out of bounds: bytes " + std::to_string(offset) + ".." + std::to_string(offset + static_cast<std::ptrdiff_t>(bytes) - 1) +
         " of an allocation of " + std::to_string(a->bytes);
}

void note_written(std::unordered_set<uintptr_t>&& lines, bool dependent) {
  // A dependent launch may overlap the one before it, which may overlap the one before that.
  if (dependent) {
    previous_lines().insert(lines.begin(), lines.end());
  } else {
    previous_lines() = std::move(lines);
  }
}

bool written_by_previous(const void* p, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(p) / 128, last = (reinterpret_cast<uintptr_t>(p) + bytes - 1) / 128;
  for (uintptr_t line = first; line <= last; ++line) {
    if (previous_lines().contains(line)) return true;
  }
  return false;
}

}  // namespace lapidary::emulator
