// Memory, streams, events and graphs of a device as plain functions: implemented over the CUDA runtime (device.cu) and by the emulator.
#pragma once

#include "cuda/api/status.h"

namespace lapidary::cuda {

using Event = void*;
using Graph = void*;

struct DeviceApi {
  Status (*device_count)(int* count);  // no driver, no device: ok with 0, or a cuda status that says why
  Status (*device_facts)(int ordinal, DeviceFacts* facts);
  Status (*use_device)(int ordinal);  // of the calling thread
  Status (*memory_info)(int64_t* free_bytes, int64_t* total_bytes);

  Status (*stream_create)(Stream* stream);
  Status (*stream_destroy)(Stream stream);
  Status (*stream_synchronize)(Stream stream);

  Status (*allocate)(void** memory, size_t bytes, Stream stream);  // stream-ordered, 256-byte aligned
  Status (*release)(void* memory, Stream stream);
  Status (*trim)(size_t keep_bytes);  // gives pooled memory beyond this back to the system
  Status (*allocate_pinned)(void** memory, size_t bytes);
  Status (*release_pinned)(void* memory);

  Status (*copy_to_device)(void* to, const void* host, size_t bytes,
                           Stream stream);  // host memory may be reused when the stream gets there
  Status (*copy_to_host)(void* host, const void* from, size_t bytes, Stream stream);
  Status (*copy_on_device)(void* to, const void* from, size_t bytes, Stream stream);
  Status (*fill)(void* to, int byte, size_t bytes, Stream stream);

  Status (*event_create)(Event* event);
  Status (*event_destroy)(Event event);
  Status (*event_record)(Event event, Stream stream);
  Status (*event_elapsed_ms)(Event begin, Event end, float* ms);  // waits for `end`

  Status (*graph_begin)(Stream stream);              // what follows on the stream is recorded, not run
  Status (*graph_end)(Stream stream, Graph* graph);  // an executable graph
  Status (*graph_launch)(Graph graph, Stream stream);
  Status (*graph_destroy)(Graph graph);
};

// Of this build: the CUDA runtime (cuda/launch/device.cu) or the emulator.
const DeviceApi& device_api();

}  // namespace lapidary::cuda
