// The device API of an emulated device. A stream runs what it is given at once, or when it is waited for; a captured stream records it.
#include "cuda/api/device_api.h"

#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "emulator/global_memory.h"
#include "emulator/settings.h"

namespace lapidary::emulator {
namespace {

using cuda::Status;

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidDevice = 101, kInvalidHandle = 400, kCaptureUnsupported = 900,
              kCaptureUnmatched = 903;

struct EmulatedGraph {
  std::vector<std::function<Status()>> work;
};
struct EmulatedStream {
  std::unique_ptr<EmulatedGraph> recording;
  std::deque<std::function<Status()>> waiting;  // lazy mode
  Status failed;                                // the first failure of what was waiting
  void finish() {
    while (!waiting.empty()) {
      const auto work = std::move(waiting.front());
      waiting.pop_front();
      if (const Status s = work(); !s.ok() && failed.ok()) failed = s;
    }
  }
};
struct EmulatedEvent {
  std::chrono::steady_clock::time_point time;
  bool recorded = false;
};

// Handles that are alive: a stale one is an error, not a crash.
struct Handles {
  std::mutex mutex;
  std::unordered_set<void*> streams, events, graphs;
  EmulatedStream default_stream;
};
Handles& handles() {
  static Handles* const all = new Handles;
  return *all;
}

Status invalid(const char* where, const char* what) { return Status::cuda(kInvalidValue, where, what); }

bool alive(const std::unordered_set<void*>& set, void* handle) {
  const std::lock_guard lock(handles().mutex);
  return set.contains(handle);
}

EmulatedStream* stream_of(cuda::Stream stream) {
  if (!stream) return &handles().default_stream;
  return alive(handles().streams, stream) ? static_cast<EmulatedStream*>(stream) : nullptr;
}

std::vector<void*> all_streams() {
  const std::lock_guard lock(handles().mutex);
  std::vector<void*> all(handles().streams.begin(), handles().streams.end());
  all.push_back(&handles().default_stream);
  return all;
}

template <typename T>
T* keep(std::unordered_set<void*>& set, T* handle) {
  const std::lock_guard lock(handles().mutex);
  set.insert(handle);
  return handle;
}

// Forgets the handle and ends it; false if it was not alive.
template <typename T>
bool drop(std::unordered_set<void*>& set, void* handle) {
  {
    const std::lock_guard lock(handles().mutex);
    if (!set.erase(handle)) return false;
  }
  delete static_cast<T*>(handle);
  return true;
}

Status device_count(int* count) {
  *count = 1;
  return {};
}
Status device_facts(int ordinal, cuda::DeviceFacts* facts) {
  if (ordinal != 0) return Status::cuda(kInvalidDevice, "device_facts", "there is one emulated device");
  *facts = device();
  return {};
}
Status use_device(int ordinal) {
  return ordinal == 0 ? Status{} : Status::cuda(kInvalidDevice, "use_device", "there is one emulated device");
}
Status memory_info(int64_t* free_bytes, int64_t* total_bytes) {
  *total_bytes = device().memory_bytes;
  *free_bytes = *total_bytes - device_bytes_in_use();
  return {};
}

Status stream_create(cuda::Stream* stream) {
  if (const Status s = device_fault("stream_create"); !s.ok()) return s;
  *stream = keep(handles().streams, new EmulatedStream);
  return {};
}
Status stream_destroy(cuda::Stream stream) {
  if (EmulatedStream* s = stream ? stream_of(stream) : nullptr) s->finish();
  return drop<EmulatedStream>(handles().streams, stream) ? Status{} : Status::cuda(kInvalidHandle, "stream_destroy", "not a stream");
}
Status stream_synchronize(cuda::Stream stream) {
  EmulatedStream* s = stream_of(stream);
  if (!s) return Status::cuda(kInvalidHandle, "stream_synchronize", "not a stream");
  if (s->recording) return Status::cuda(kCaptureUnsupported, "stream_synchronize", "the stream is being captured");
  if (const Status fault = device_fault("stream_synchronize"); !fault.ok()) return fault;
  s->finish();
  return std::exchange(s->failed, {});
}

Status allocate(void** memory, size_t bytes, cuda::Stream stream) {
  const EmulatedStream* s = stream_of(stream);
  if (!s) return Status::cuda(kInvalidHandle, "allocate", "not a stream");
  if (s->recording) return Status::cuda(kCaptureUnsupported, "allocate", "the stream is being captured");
  if (const Status fault = device_fault("allocate"); !fault.ok()) return fault;
  *memory = device_allocate(bytes);
  return *memory ? Status{} : Status::cuda(kOutOfMemory, "allocate", "out of memory");
}
// Broken devices take memory back, so that what was allocated can be counted to the end.
Status release(void* memory, cuda::Stream stream) {
  EmulatedStream* s = stream_of(stream);
  if (!s) return Status::cuda(kInvalidHandle, "release", "not a stream");
  if (!memory) return {};
  const auto work = [memory] { return device_release(memory) ? Status{} : invalid("release", "not the beginning of a live allocation"); };
  if (s->waiting.empty()) return work();
  s->waiting.push_back(work);
  return {};
}
Status trim(size_t) { return {}; }
Status allocate_pinned(void** memory, size_t bytes) {
  *memory = device_allocate(bytes, true);
  return *memory ? Status{} : Status::cuda(kOutOfMemory, "allocate_pinned", "out of memory");
}
Status release_pinned(void* memory) {
  if (!memory) return {};
  return device_release(memory) ? Status{} : invalid("release_pinned", "not the beginning of a live allocation");
}

Status check_range(const char* where, const void* p, size_t bytes) {
  if (!bytes) return {};
  const std::string wrong = judge_device_range(p, bytes);
  return wrong.empty() ? Status{} : invalid(where, keep_text(wrong));
}

Status copy_to_device(void* to, const void* host, size_t bytes, cuda::Stream stream) {
  return enqueue(stream, [=] {
    const Status s = check_range("copy_to_device", to, bytes);
    if (s.ok() && bytes) std::memcpy(to, host, bytes);
    return s;
  });
}
Status copy_to_host(void* host, const void* from, size_t bytes, cuda::Stream stream) {
  return enqueue(stream, [=] {
    const Status s = check_range("copy_to_host", from, bytes);
    if (s.ok() && bytes) std::memcpy(host, from, bytes);
    return s;
  });
}
Status copy_on_device(void* to, const void* from, size_t bytes, cuda::Stream stream) {
  return enqueue(stream, [=] {
    Status s = check_range("copy_on_device", to, bytes);
    if (s.ok()) s = check_range("copy_on_device", from, bytes);
    if (s.ok() && bytes) std::memmove(to, from, bytes);
    return s;
  });
}
Status fill(void* to, int byte, size_t bytes, cuda::Stream stream) {
  return enqueue(stream, [=] {
    const Status s = check_range("fill", to, bytes);
    if (s.ok() && bytes) std::memset(to, byte, bytes);
    return s;
  });
}

Status event_create(cuda::Event* event) {
  *event = keep(handles().events, new EmulatedEvent);
  return {};
}
Status event_destroy(cuda::Event event) {
  return drop<EmulatedEvent>(handles().events, event) ? Status{} : Status::cuda(kInvalidHandle, "event_destroy", "not an event");
}
Status event_record(cuda::Event event, cuda::Stream stream) {
  if (!alive(handles().events, event)) return Status::cuda(kInvalidHandle, "event_record", "not an event");
  return enqueue(stream, [event]() -> Status {
    if (!alive(handles().events, event)) return Status::cuda(kInvalidHandle, "event_record", "not an event");
    auto& e = *static_cast<EmulatedEvent*>(event);
    e.time = std::chrono::steady_clock::now();
    e.recorded = true;
    return {};
  });
}
Status event_elapsed_ms(cuda::Event begin, cuda::Event end, float* ms) {
  if (!alive(handles().events, begin) || !alive(handles().events, end))
    return Status::cuda(kInvalidHandle, "event_elapsed_ms", "not an event");
  for (void* stream : all_streams()) static_cast<EmulatedStream*>(stream)->finish();
  const auto &a = *static_cast<EmulatedEvent*>(begin), &b = *static_cast<EmulatedEvent*>(end);
  if (!a.recorded || !b.recorded) return Status::cuda(kInvalidHandle, "event_elapsed_ms", "an event that was not recorded");
  *ms = std::chrono::duration<float, std::milli>(b.time - a.time).count();
  return {};
}

Status graph_begin(cuda::Stream stream) {
  EmulatedStream* s = stream_of(stream);
  if (!s || !stream) return Status::cuda(kInvalidHandle, "graph_begin", "not a stream that can be captured");
  if (s->recording) return invalid("graph_begin", "the stream is being captured already");
  s->recording = std::make_unique<EmulatedGraph>();
  return {};
}
Status graph_end(cuda::Stream stream, cuda::Graph* graph) {
  EmulatedStream* s = stream_of(stream);
  if (!s || !s->recording) return Status::cuda(kCaptureUnmatched, "graph_end", "the stream is not being captured");
  *graph = keep(handles().graphs, s->recording.release());
  return {};
}
Status graph_launch(cuda::Graph graph, cuda::Stream stream) {
  if (!alive(handles().graphs, graph)) return Status::cuda(kInvalidHandle, "graph_launch", "not a graph");
  return enqueue(stream, [work = static_cast<EmulatedGraph*>(graph)->work]() -> Status {
    for (const auto& step : work) {
      if (const Status s = step(); !s.ok()) return s;
    }
    return {};
  });
}
Status graph_destroy(cuda::Graph graph) {
  return drop<EmulatedGraph>(handles().graphs, graph) ? Status{} : Status::cuda(kInvalidHandle, "graph_destroy", "not a graph");
}

}  // namespace

Status enqueue(cuda::Stream stream, std::function<Status()> work) {
  EmulatedStream* s = stream_of(stream);
  if (!s) return Status::cuda(kInvalidHandle, "a stream", "not a stream");
  if (const Status fault = device_fault("a stream"); !fault.ok()) return fault;
  if (s->recording) {
    s->recording->work.push_back(std::move(work));
    return {};
  }
  if (settings().streams == StreamMode::lazy) {
    s->waiting.push_back(std::move(work));
    return {};
  }
  s->finish();
  return work();
}

}  // namespace lapidary::emulator

namespace lapidary::cuda {

const DeviceApi& device_api() {
  using namespace emulator;
  static const DeviceApi api = {
      device_count, device_facts,  use_device,      memory_info,      stream_create,  stream_destroy, stream_synchronize, allocate,
      release,      trim,          allocate_pinned, release_pinned,   copy_to_device, copy_to_host,   copy_on_device,     fill,
      event_create, event_destroy, event_record,    event_elapsed_ms, graph_begin,    graph_end,      graph_launch,       graph_destroy,
  };
  return api;
}

}  // namespace lapidary::cuda
