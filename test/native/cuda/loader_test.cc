// The loader's refusals, one sentence each, and the choice of a device: over tables of functions made here, no CUDA needed.
#include "cuda/loader.h"

#include <cstdio>
#include <fstream>
#include <tuple>

#include "check.h"
#include "cuda/backend.h"

namespace lapidary::test {

namespace {

using cuda::Api;
using cuda::DeviceFacts;
using cuda::Status;

// A machine with devices of these compute capabilities.
std::vector<std::pair<int, int>> capabilities;
Status count_error;

Status count_devices(int* count) {
  *count = static_cast<int>(capabilities.size());
  return count_error;
}
Status tell_facts(int ordinal, DeviceFacts* facts) {
  *facts = {};
  facts->ordinal = ordinal;
  std::snprintf(facts->name, sizeof facts->name, "Device %d", ordinal);
  std::tie(facts->major, facts->minor) = capabilities[static_cast<size_t>(ordinal)];
  return {};
}

Api table() {
  Api api = {};
  api.version = cuda::kApiVersion;
  api.bytes = sizeof(Api);
  api.layout = cuda::kApiLayout;
  api.device.device_count = count_devices;
  api.device.device_facts = tell_facts;
  return api;
}

std::string reason_of(std::vector<std::pair<int, int>> devices, Status error = {}) {
  capabilities = std::move(devices);
  count_error = error;
  DeviceFacts facts;
  std::string reason;
  return cuda::find_device(table(), &facts, &reason) ? "" : reason;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST("cuda loader: files that are no CUDA library are refused with the reason") {
  const cuda::Library missing = cuda::open_library("/nowhere/lapidary_cuda.so");
  CHECK(missing.api == nullptr);
  CHECK_MSG(contains(missing.reason, "/nowhere/lapidary_cuda.so"), missing.reason);
  const std::string file = temporary_folder() + "/lapidary_cuda.so";
  std::ofstream(file) << "not a shared object";
  CHECK_MSG(cuda::open_library(file).reason.starts_with("cuda: the CUDA library cannot be loaded: "), cuda::open_library(file).reason);
#ifdef __linux__
  const cuda::Library other = cuda::open_library("libm.so.6");
  CHECK(other.api == nullptr);
  CHECK_MSG(other.reason == "cuda: libm.so.6 is not a CUDA library of lapidary", other.reason);
#endif
}

TEST("cuda loader: a table of another version, size or layout does not fit") {
  CHECK(cuda::fits_this_build(table()));
  Api api = table();
  api.version += 1;
  CHECK(!cuda::fits_this_build(api));
  api = table();
  api.bytes -= 8;
  CHECK(!cuda::fits_this_build(api));
  api = table();
  api.layout ^= 1;
  CHECK(!cuda::fits_this_build(api));
}

TEST("cuda loader: the first device of compute capability 8.0 is taken, else the reason is given") {
  CHECK(reason_of({}) == "cuda: no NVIDIA GPU found");
  CHECK(reason_of({}, Status::cuda(35, "device_count", "no NVIDIA driver found")) == "cuda: no NVIDIA driver found");
  CHECK_MSG(reason_of({{7, 5}}) == "cuda: Device 0 has compute capability 7.5; 8.0 or newer is needed", reason_of({{7, 5}}));
  CHECK(reason_of({{8, 0}}).empty());
  capabilities = {{7, 5}, {8, 9}, {9, 0}};
  DeviceFacts facts;
  std::string reason;
  REQUIRE(cuda::find_device(table(), &facts, &reason));
  CHECK(facts.ordinal == 1);
}

TEST("cuda loader: the status is a device or a reason, and stays the same") {
  const CudaStatus status = cuda_status(), again = cuda_status();
  CHECK(status.available == status.reason.empty());
  CHECK(status.available == !status.architecture.empty());
  CHECK(status.reason.empty() || status.reason.starts_with("cuda: "));
  CHECK(status.available == again.available && status.reason == again.reason && status.name == again.name);
}

}  // namespace

}  // namespace lapidary::test
