// Puts the accesses of the lanes of a warp together into the requests the hardware makes of them, and counts what each costs: passes over
// the banks of shared memory, 32-byte sectors of global memory. Lanes belong together that are at one place for the same time.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "emulator/control.h"
#include "emulator/shadow.h"

namespace lapidary::emulator {

class Requests {
 public:
  enum class Kind : uint8_t { shared, global };
  // An access of `bytes` at `address` (in shared memory: an offset) by a lane of the block's warp.
  void add(Kind kind, Place place, int warp, int lane, uint64_t address, int bytes, LaunchStatistics& to);
  // Counts requests that not all lanes took part in.
  void finish(LaunchStatistics& to);

 private:
  struct Request {
    uint32_t lanes;  // a bit mask
    int bytes;
    Kind kind;
    uint64_t address[32];
  };
  struct Site {
    uint32_t times[32];
  };  // how often each lane has been there
  static void count(const Request& request, LaunchStatistics& to);

  std::unordered_map<uint64_t, Site> sites_;        // (place, kind, size, warp)
  std::unordered_map<uint64_t, Request> requests_;  // not complete; by a site's key and time
};

}  // namespace lapidary::emulator
