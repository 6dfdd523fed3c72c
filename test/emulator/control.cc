#include "emulator/control.h"

#include <cstdio>
#include <deque>

#include "emulator/settings.h"

namespace lapidary::emulator {

Settings& settings() {
  static Settings* const all = new Settings;  // outlives every static destructor
  return *all;
}

cuda::DeviceFacts facts_of(Preset preset) {
  cuda::DeviceFacts f;
  const auto set = [&](const char* name, int major, int minor, int sms, int64_t block_kb, int64_t sm_kb, int64_t memory_gb, int64_t l2_mb,
                       int clock_mhz, int memory_mhz, int bus) {
    std::snprintf(f.name, sizeof f.name, "emulated %s", name);
    f.major = major;
    f.minor = minor;
    f.code = major >= 12 ? 120 : major >= 9 ? 90 : 80;
    f.sm_count = sms;
    f.smem_per_block = block_kb << 10;
    f.smem_per_sm = sm_kb << 10;
    f.memory_bytes = memory_gb << 30;
    f.l2_bytes = l2_mb << 20;
    f.clock_khz = clock_mhz * 1000;
    f.memory_clock_khz = memory_mhz * 1000;
    f.memory_bus_bits = bus;
  };
  switch (preset) {
    case Preset::sm80:
      set("sm_80 (A100)", 8, 0, 108, 163, 164, 40, 40, 1410, 1215, 5120);
      break;
    case Preset::sm86:
      set("sm_86 (RTX 3090)", 8, 6, 82, 99, 100, 24, 6, 1695, 9751, 384);
      break;
    case Preset::sm89:
      set("sm_89 (RTX 4090)", 8, 9, 128, 99, 100, 24, 72, 2520, 10501, 384);
      break;
    case Preset::sm90:
      set("sm_90 (H200)", 9, 0, 132, 227, 228, 141, 50, 1980, 3201, 6144);
      break;
    case Preset::sm120:
      set("sm_120 (RTX 5090)", 12, 0, 170, 99, 100, 32, 96, 2407, 14001, 512);
      break;
  }
  f.driver_version = f.runtime_version = 13000;
  return f;
}

void set_device(const cuda::DeviceFacts& facts) { settings().device = facts; }
const cuda::DeviceFacts& device() { return settings().device; }
void set_async_mode(AsyncMode mode) { settings().async = mode; }
void set_schedule(uint64_t seed) { settings().schedule = seed; }
void set_checks(Checks level) { settings().checks = level; }
void set_request_counting(bool on) { settings().count_requests = on; }
void set_stream_mode(StreamMode mode) { settings().streams = mode; }

void break_device(int code, int after) {
  settings().calls_until_broken = after;
  settings().broken_code = code;
}

cuda::Status device_fault(const char* where) {
  const int code = settings().broken_code;
  if (!code) return {};
  if (settings().calls_until_broken > 0) {
    --settings().calls_until_broken;
    return {};
  }
  return cuda::Status::cuda(code, where, "the device was broken by a test");
}

const LaunchStatistics& last_launch() { return settings().statistics; }

const char* keep_text(const std::string& text) {
  static std::mutex mutex;
  static auto* const texts = new std::deque<std::string>;
  const std::lock_guard lock(mutex);
  return texts->emplace_back(text).c_str();
}

}  // namespace lapidary::emulator
