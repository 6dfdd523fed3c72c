// What control.h sets and device_api.cc keeps, for the other parts of the emulator.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "emulator/control.h"

namespace lapidary::emulator {

struct Settings {
  std::mutex mutex;  // held by a running launch: one at a time in the process
  cuda::DeviceFacts device = facts_of(Preset::sm90);
  AsyncMode async = AsyncMode::eager;
  uint64_t schedule = 0;
  Checks checks = Checks::full;
  bool count_requests = false;
  StreamMode streams = StreamMode::eager;
  std::atomic<int> broken_code{0}, calls_until_broken{0};
  LaunchStatistics statistics;
};
Settings& settings();

// A text that lives as long as the process, as Status wants it.
const char* keep_text(const std::string& text);
// The failure of break_device, if this call is to have it.
cuda::Status device_fault(const char* where);
// Runs `work` in the order of the stream, or records it while the stream is being captured.
cuda::Status enqueue(cuda::Stream stream, std::function<cuda::Status()> work);

}  // namespace lapidary::emulator
