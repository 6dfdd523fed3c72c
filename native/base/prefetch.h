// Asks for a cache line ahead of its use; a hint that may do nothing.
#pragma once

namespace lapidary {

inline void prefetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#endif
}

}  // namespace lapidary
