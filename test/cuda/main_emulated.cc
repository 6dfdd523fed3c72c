// The CUDA tests over the emulator, linked in. LAPIDARY_EMULATOR_MODE (eager, lazy, random) and LAPIDARY_EMULATOR_SCHEDULE (a seed) choose
// how launches run outside each_mode.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "cuda/support.h"
#include "emulator/control.h"

namespace lapidary::test {

namespace {

using emulator::AsyncMode;

const char* name(AsyncMode mode) { return mode == AsyncMode::eager ? "eager" : mode == AsyncMode::lazy ? "lazy" : "random"; }

struct Mode {
  AsyncMode async = AsyncMode::eager;
  uint64_t schedule = 0;
  void set() const {
    emulator::set_async_mode(async);
    emulator::set_schedule(schedule);
  }
};

const Mode& usual_mode() {
  static const Mode of_environment = [] {
    Mode m;
    if (const char* mode = std::getenv("LAPIDARY_EMULATOR_MODE")) {
      for (const AsyncMode a : {AsyncMode::eager, AsyncMode::lazy, AsyncMode::random}) {
        if (std::string_view(mode) == name(a)) m.async = a;
      }
    }
    if (const char* seed = std::getenv("LAPIDARY_EMULATOR_SCHEDULE")) m.schedule = std::strtoull(seed, nullptr, 10);
    m.set();
    return m;
  }();
  return of_environment;
}

[[maybe_unused]] const Mode& set_before_the_first_case = usual_mode();

// Runs the body; if it records failures, says in which setting.
void run_as(const std::string& setting, const std::function<void()>& body) {
  const int before = failures();
  const auto tell = [&] {
    if (failures() > before) std::printf("    with %s\n", setting.c_str());
  };
  try {
    body();
  } catch (...) {
    tell();
    throw;
  }
  tell();
}

}  // namespace

const cuda::Api& api() { return *lapidary_cuda_api(); }

const cuda::LaunchContext& context() {
  static const cuda::LaunchContext of_device = [] {
    cuda::LaunchContext c;
    c.device = &emulator::device();
    require_ok(api().device.stream_create(&c.stream));
    return c;
  }();
  return of_device;
}

void require_ok(const cuda::Status& status) {
  if (status.ok()) return;
  record_failure("status", 0, std::string(status.where) + ": " + status.what + " (" + std::to_string(status.code) + ")");
  throw LeaveCase{};
}

void each_device(std::initializer_list<Capability> devices, const std::function<void()>& body) {
  struct Restore {
    cuda::DeviceFacts before = emulator::device();
    ~Restore() { emulator::set_device(before); }
  } restore;
  for (const Capability c : devices) {
    const cuda::DeviceFacts facts = emulator::facts_of(static_cast<emulator::Preset>(c));
    emulator::set_device(facts);
    run_as(std::string("the device ") + facts.name, body);
  }
}

void each_mode(const std::function<void()>& body) {
  struct Restore {
    ~Restore() { usual_mode().set(); }
  } restore;
  for (const Mode& mode : {Mode{AsyncMode::eager, 0}, Mode{AsyncMode::lazy, 0}, Mode{AsyncMode::random, 1}, Mode{AsyncMode::lazy, 2}}) {
    mode.set();
    run_as(std::string(name(mode.async)) + " operations, schedule " + std::to_string(mode.schedule), body);
  }
}

void with_range_checks(const std::function<void()>& body) {
  struct Restore {
    ~Restore() { emulator::set_checks(emulator::Checks::full); }
  } restore;
  emulator::set_checks(emulator::Checks::bounds);
  body();
}

}  // namespace lapidary::test
