// devices, cpuPeaks and version: what this machine can compute on, described and measured.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "addon/functions.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/utsname.h>
#include <unistd.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include "addon/ops_tensor.h"
#include "addon/promise_worker.h"
#include "addon/results.h"
#include "cpu/backend.h"
#include "cpu/probe.h"
#include "cuda/backend.h"

namespace lapidary::addon {

namespace {

struct DeviceFacts {
  std::string kind, name, reason, instruction_set;
  bool available = false;
  std::vector<std::string> instruction_sets;
  int cores = 0;
  int64_t memory_bytes = 0;
};

std::string processor_name() {
#ifdef __APPLE__
  char brand[256] = {};
  size_t size = sizeof brand - 1;
  if (sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) == 0) return brand;
#endif
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
#ifdef _WIN32
  return "unknown processor";
#else
  utsname system;
  return uname(&system) == 0 ? std::string(system.machine) + " processor" : "unknown processor";
#endif
}

// A container's limit where one is set, else the machine's memory.
int64_t memory_bytes() {
#ifdef _WIN32
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<int64_t>(status.ullTotalPhys) : 0;
#else
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;
    if (std::ifstream(file) >> limit && limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
#endif
}

DeviceFacts cpu_facts() {
  DeviceFacts out;
  out.kind = "cpu";
  out.name = processor_name();
  out.available = true;
  std::istringstream sets(cpu_instruction_sets());
  for (std::string set; sets >> set;) out.instruction_sets.push_back(set);
  try {
    out.instruction_set = cpu_instruction_set();
  } catch (const Error& error) {  // LAPIDARY_CPU names one that is not there
    out.available = false;
    out.reason = error.what();
  }
  out.cores = physical_cores();
  out.memory_bytes = memory_bytes();
  return out;
}

DeviceFacts cuda_facts() {
  const CudaStatus status = cuda_status();
  DeviceFacts out;
  out.kind = "cuda";
  out.name = status.name;
  out.available = status.available;
  out.reason = status.reason;
  out.instruction_set = status.architecture;
  out.memory_bytes = status.memory_bytes;
  return out;
}

Napi::Object device_object(Napi::Env env, const DeviceFacts& facts) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("kind", text(env, facts.kind));
  object.Set("name", text(env, facts.name));
  object.Set("available", facts.available);
  object.Set("reason", text(env, facts.reason));
  object.Set("instructionSet", text(env, facts.instruction_set));
  Napi::Array sets = Napi::Array::New(env, facts.instruction_sets.size());
  for (size_t i = 0; i < facts.instruction_sets.size(); ++i) sets.Set(static_cast<uint32_t>(i), text(env, facts.instruction_sets[i]));
  object.Set("instructionSets", sets);
  object.Set("cores", facts.cores);
  object.Set("memoryBytes", static_cast<double>(facts.memory_bytes));
  return object;
}

}  // namespace

napi_value list_devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array list = Napi::Array::New(env, 2);
  list.Set(0u, device_object(env, cpu_facts()));
  list.Set(1u, device_object(env, cuda_facts()));
  return list;
}

// cpuPeaks(seconds): Promise<{ bandwidth, f32, int8, bf16, cacheBytes }>, 0 for what is not there.
napi_value cpu_peaks(const Napi::CallbackInfo& info) {
  const double seconds = to_number(info[0], "seconds");
  auto work = [seconds] {
    // The backend of lapidary/ops has the same threads: not both at once.
    const std::shared_ptr<OpsDevice> device = OpsDevice::open("cpu");
    const std::lock_guard lock(device->mutex);
    return cpu::measure_peaks(cpu::select_kernels(), {.seconds = seconds, .memory_bytes = memory_bytes()});
  };
  auto wrap = [](Napi::Env env, const cpu::Peaks& peaks) -> napi_value {
    Napi::Object object = Napi::Object::New(env);
    object.Set("bandwidth", peaks.bandwidth);
    object.Set("f32", peaks.f32);
    object.Set("int8", peaks.int8);
    object.Set("bf16", peaks.bf16);
    object.Set("cacheBytes", static_cast<double>(peaks.cache_bytes));
    return object;
  };
  return promise_work(info.Env(), "lapidary peaks", std::move(work), std::move(wrap));
}

napi_value version(const Napi::CallbackInfo& info) { return text(info.Env(), LAPIDARY_VERSION); }

}  // namespace lapidary::addon
