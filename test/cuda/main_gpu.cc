// The CUDA tests over a CUDA library in a shared object: the real one on a GPU, or its emulated double (LAPIDARY_CUDA_LIBRARY names it).
// Without a usable device the program says why and ends with 77.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/loader.h"
#include "cuda/support.h"

namespace lapidary::test {

namespace {

struct Device {
  const cuda::Api* api = nullptr;
  cuda::DeviceFacts facts;
  cuda::LaunchContext context;
};

[[noreturn]] void leave(const std::string& reason) {
  std::printf("no GPU test was run: %s\n", reason.c_str());
  std::exit(77);
}

const Device& device() {
  static const Device opened = [] {
    const cuda::Library& library = cuda::library();
    if (!library.api) leave(library.reason);
    Device d;
    d.api = library.api;
    std::string reason;
    if (!cuda::find_device(*d.api, &d.facts, &reason)) leave(reason);
    for (const cuda::Status& s : {d.api->device.use_device(d.facts.ordinal), d.api->device.stream_create(&d.context.stream)}) {
      if (!s.ok()) leave(std::string(s.where) + ": " + s.what);
    }
    std::printf("on %s, compute capability %d.%d\n", d.facts.name, d.facts.major, d.facts.minor);
    return d;
  }();
  return opened;
}

[[maybe_unused]] const Device& opened_before_the_first_case = device();

}  // namespace

const cuda::Api& api() { return *device().api; }

const cuda::LaunchContext& context() {
  static const cuda::LaunchContext of_device = [] {
    cuda::LaunchContext c = device().context;
    c.device = &device().facts;
    return c;
  }();
  return of_device;
}

void require_ok(const cuda::Status& status) {
  if (status.ok()) return;
  record_failure("status", 0, std::string(status.where) + ": " + status.what + " (" + std::to_string(status.code) + ")");
  throw LeaveCase{};
}

void each_device(std::initializer_list<Capability>, const std::function<void()>& body) { body(); }
void each_mode(const std::function<void()>& body) { body(); }
void with_range_checks(const std::function<void()>& body) { body(); }

}  // namespace lapidary::test
