// Memory, streams, events and graphs over the CUDA runtime. The emulator has a table of its own, so nvcc alone compiles this file.
#include <cuda_runtime.h>

#include <cstring>
#include <mutex>

#include "cuda/api/device_api.h"

namespace lapidary::cuda {

namespace {

constexpr int kMaxDevices = 64;

// `where` is a literal. Takes the error out of the thread's state, so that a later, unrelated call does not report it again.
Status check(cudaError_t e, const char* where) {
  if (e == cudaSuccess) return {};
  (void)cudaGetLastError();
  return Status::cuda(static_cast<int>(e), where, cudaGetErrorString(e));
}

cudaStream_t raw(Stream stream) { return static_cast<cudaStream_t>(stream); }

// --- devices ---------------------------------------------------------------------------------------------------------------

// The runtime's own words for a missing and for an old driver are the same ("driver version is insufficient").
Status device_count(int* count) {
  *count = 0;
  const cudaError_t e = cudaGetDeviceCount(count);
  if (e == cudaSuccess) return {};
  *count = 0;
  (void)cudaGetLastError();
  int driver = 0;
  if (e == cudaErrorInsufficientDriver) {
    (void)cudaDriverGetVersion(&driver);
    return Status::cuda(e, "device_count",
                        driver == 0 ? "no NVIDIA driver found" : "the NVIDIA driver is too old for CUDA 13 (580 or newer is needed)");
  }
  if (e == cudaErrorNoDevice) return Status::cuda(e, "device_count", "no NVIDIA GPU found");
  return Status::cuda(static_cast<int>(e), "device_count", cudaGetErrorString(e));
}

// What build-cuda.mjs compiled besides compute capability 8.0.
#ifdef LAPIDARY_CODE_90A
constexpr bool kCode90a = true;
#else
constexpr bool kCode90a = false;
#endif
#ifdef LAPIDARY_CODE_120
constexpr bool kCode120 = true;
#else
constexpr bool kCode120 = false;
#endif

// sm_90a code runs on 9.0 alone, sm_120 code on 12.x.
int32_t code_for(int major, int minor) {
  if (major == 9 && minor == 0 && kCode90a) return 90;
  return major == 12 && kCode120 ? 120 : 80;
}

// Makes no context: cheap enough for a listing of devices.
Status device_facts(int ordinal, DeviceFacts* facts) {
  cudaDeviceProp properties;
  if (const Status s = check(cudaGetDeviceProperties(&properties, ordinal), "device_facts"); !s.ok()) return s;
  *facts = {};
  static_assert(sizeof facts->name == sizeof properties.name);
  std::memcpy(facts->name, properties.name, sizeof facts->name);
  facts->ordinal = ordinal;
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->code = code_for(properties.major, properties.minor);
  facts->sm_count = properties.multiProcessorCount;
  facts->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  facts->l2_bytes = properties.l2CacheSize;
  facts->smem_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  facts->smem_per_sm = static_cast<int64_t>(properties.sharedMemPerMultiprocessor);
  const struct {
    cudaDeviceAttr attribute;
    int32_t* to;
  } attributes[] = {
      {cudaDevAttrClockRate, &facts->clock_khz},
      {cudaDevAttrMemoryClockRate, &facts->memory_clock_khz},
      {cudaDevAttrGlobalMemoryBusWidth, &facts->memory_bus_bits},
  };
  for (const auto& [attribute, to] : attributes) {
    if (const Status s = check(cudaDeviceGetAttribute(to, attribute, ordinal), "device_facts"); !s.ok()) return s;
  }
  if (const Status s = check(cudaDriverGetVersion(&facts->driver_version), "device_facts"); !s.ok()) return s;
  return check(cudaRuntimeGetVersion(&facts->runtime_version), "device_facts");
}

Status use_device(int ordinal) { return check(cudaSetDevice(ordinal), "use_device"); }

Status memory_info(int64_t* free_bytes, int64_t* total_bytes) {
  size_t free = 0, total = 0;
  const Status s = check(cudaMemGetInfo(&free, &total), "memory_info");
  *free_bytes = static_cast<int64_t>(free);
  *total_bytes = static_cast<int64_t>(total);
  return s;
}

// --- streams ---------------------------------------------------------------------------------------------------------------

Status stream_create(Stream* stream) {
  cudaStream_t made = nullptr;
  const Status s = check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream_create");
  *stream = made;
  return s;
}

Status stream_destroy(Stream stream) { return check(cudaStreamDestroy(raw(stream)), "stream_destroy"); }
Status stream_synchronize(Stream stream) { return check(cudaStreamSynchronize(raw(stream)), "stream_synchronize"); }

// --- memory ----------------------------------------------------------------------------------------------------------------

// The current device's pool, our own rather than the process' default one, so that another CUDA user beside us keeps its settings.
// Released memory stays in the pool until trim(): a step that allocates what the last one released never waits for the driver.
Status current_pool(cudaMemPool_t* pool) {
  static std::mutex mutex;
  static cudaMemPool_t pools[kMaxDevices];
  int ordinal = 0;
  if (const Status s = check(cudaGetDevice(&ordinal), "allocate"); !s.ok()) return s;
  if (ordinal >= kMaxDevices) return Status::refused("allocate", "more than 64 devices");
  const std::lock_guard lock(mutex);
  if (!pools[ordinal]) {
    int supported = 0;
    if (const Status s = check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, ordinal), "allocate"); !s.ok()) return s;
    if (!supported) return Status::cuda(cudaErrorNotSupported, "allocate", "this device has no memory pools");
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = ordinal;
    cudaMemPool_t made = nullptr;
    if (const Status s = check(cudaMemPoolCreate(&made, &properties), "allocate"); !s.ok()) return s;
    uint64_t keep = UINT64_MAX;
    if (const Status s = check(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &keep), "allocate"); !s.ok()) {
      (void)cudaMemPoolDestroy(made);
      return s;
    }
    pools[ordinal] = made;
  }
  *pool = pools[ordinal];
  return {};
}

Status allocate(void** memory, size_t bytes, Stream stream) {
  *memory = nullptr;
  if (bytes == 0) return {};
  cudaMemPool_t pool = nullptr;
  if (const Status s = current_pool(&pool); !s.ok()) return s;
  return check(cudaMallocFromPoolAsync(memory, bytes, pool, raw(stream)), "allocate");
}

Status release(void* memory, Stream stream) { return memory ? check(cudaFreeAsync(memory, raw(stream)), "release") : Status{}; }

Status trim(size_t keep_bytes) {
  cudaMemPool_t pool = nullptr;
  if (const Status s = current_pool(&pool); !s.ok()) return s;
  return check(cudaMemPoolTrimTo(pool, keep_bytes), "trim");
}

Status allocate_pinned(void** memory, size_t bytes) {
  *memory = nullptr;
  return bytes == 0 ? Status{} : check(cudaHostAlloc(memory, bytes, cudaHostAllocPortable), "allocate_pinned");
}

Status release_pinned(void* memory) { return memory ? check(cudaFreeHost(memory), "release_pinned") : Status{}; }

Status copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, Stream stream, const char* where) {
  return bytes == 0 ? Status{} : check(cudaMemcpyAsync(to, from, bytes, kind, raw(stream)), where);
}

Status copy_to_device(void* to, const void* host, size_t bytes, Stream stream) {
  return copy(to, host, bytes, cudaMemcpyHostToDevice, stream, "copy_to_device");
}
Status copy_to_host(void* host, const void* from, size_t bytes, Stream stream) {
  return copy(host, from, bytes, cudaMemcpyDeviceToHost, stream, "copy_to_host");
}
Status copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, "copy_on_device");
}
Status fill(void* to, int byte, size_t bytes, Stream stream) {
  return bytes == 0 ? Status{} : check(cudaMemsetAsync(to, byte, bytes, raw(stream)), "fill");
}

// --- events ----------------------------------------------------------------------------------------------------------------

Status event_create(Event* event) {
  cudaEvent_t made = nullptr;
  const Status s = check(cudaEventCreateWithFlags(&made, cudaEventDefault), "event_create");
  *event = made;
  return s;
}

Status event_destroy(Event event) { return check(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "event_destroy"); }

Status event_record(Event event, Stream stream) {
  return check(cudaEventRecord(static_cast<cudaEvent_t>(event), raw(stream)), "event_record");
}

Status event_elapsed_ms(Event begin, Event end, float* ms) {
  if (const Status s = check(cudaEventSynchronize(static_cast<cudaEvent_t>(end)), "event_elapsed_ms"); !s.ok()) return s;
  return check(cudaEventElapsedTime(ms, static_cast<cudaEvent_t>(begin), static_cast<cudaEvent_t>(end)), "event_elapsed_ms");
}

// --- graphs ----------------------------------------------------------------------------------------------------------------

// Thread-local: calls of other threads that capture forbids (another model allocating, say) stay allowed.
Status graph_begin(Stream stream) { return check(cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal), "graph_begin"); }

Status graph_end(Stream stream, Graph* graph) {
  *graph = nullptr;
  cudaGraph_t recorded = nullptr;
  if (const Status s = check(cudaStreamEndCapture(raw(stream), &recorded), "graph_end"); !s.ok()) {
    if (recorded) (void)cudaGraphDestroy(recorded);
    return s;
  }
  cudaGraphExec_t executable = nullptr;
  const Status s = check(cudaGraphInstantiate(&executable, recorded, 0), "graph_end");
  (void)cudaGraphDestroy(recorded);
  *graph = executable;
  return s;
}

Status graph_launch(Graph graph, Stream stream) {
  return check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), raw(stream)), "graph_launch");
}

Status graph_destroy(Graph graph) {
  return graph ? check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "graph_destroy") : Status{};
}

}  // namespace

const DeviceApi& device_api() {
  static constexpr DeviceApi api = {
      .device_count = device_count,
      .device_facts = device_facts,
      .use_device = use_device,
      .memory_info = memory_info,
      .stream_create = stream_create,
      .stream_destroy = stream_destroy,
      .stream_synchronize = stream_synchronize,
      .allocate = allocate,
      .release = release,
      .trim = trim,
      .allocate_pinned = allocate_pinned,
      .release_pinned = release_pinned,
      .copy_to_device = copy_to_device,
      .copy_to_host = copy_to_host,
      .copy_on_device = copy_on_device,
      .fill = fill,
      .event_create = event_create,
      .event_destroy = event_destroy,
      .event_record = event_record,
      .event_elapsed_ms = event_elapsed_ms,
      .graph_begin = graph_begin,
      .graph_end = graph_end,
      .graph_launch = graph_launch,
      .graph_destroy = graph_destroy,
  };
  return api;
}

}  // namespace lapidary::cuda
