// How tests steer the emulator: which device it is, when asynchronous operations complete, in which order threads run, what is checked; and
// what the last launch did. Settings hold until changed; launches of all host threads share them.
#pragma once

#include <cstdint>

#include "cuda/api/status.h"

namespace lapidary::emulator {

// Compute capabilities with the limits of a well-known device of each.
enum class Preset { sm80, sm86, sm89, sm90, sm120 };
cuda::DeviceFacts facts_of(Preset preset);
void set_device(const cuda::DeviceFacts& facts);
const cuda::DeviceFacts& device();

// eager: an asynchronous operation is done when it is issued. lazy: as late as is allowed. random: at a random moment in between.
enum class AsyncMode { eager, lazy, random };
void set_async_mode(AsyncMode mode);

// 0: round-robin, blocks in rising order. Otherwise a random order of threads and blocks drawn from this seed, with switches between memory
// accesses too.
void set_schedule(uint64_t seed);

// bounds: range, alignment, lifetime. full: also initialisation, races and copies in flight in shared memory.
enum class Checks { bounds, full };
void set_checks(Checks level);

// Counts bank conflicts and sectors too, which makes accesses to memory several times slower.
void set_request_counting(bool on);

// eager: a stream does what it is given at once, and a call has the status of what it started. lazy: when it is waited for; a failure is
// then the status of the wait. Host memory and device memory that a call names must live until then.
enum class StreamMode { eager, lazy };
void set_stream_mode(StreamMode mode);

// Lets `after` more calls of launchers and of the device API pass; from then on each fails with this CUDA code, as after a fault that ended
// the context. Code 0: the device works again.
void break_device(int code, int after = 0);

struct LaunchStatistics {
  int64_t blocks = 0, switches = 0;
  int64_t global_read_bytes = 0, global_write_bytes = 0;  // as asked for by threads and copies, caches not considered
  int64_t shared_read_bytes = 0, shared_write_bytes = 0;  // likewise
  // With set_request_counting: passes over the banks by loads and stores of shared memory, and one for every 128 bytes a warp asks for at
  // once; 32-byte sectors touched by loads and stores of global memory, and the fewest that hold as many bytes.
  int64_t shared_wavefronts = 0, shared_wavefronts_ideal = 0, global_sectors = 0, global_sectors_ideal = 0;
  int64_t matrix_wavefronts = 0, matrix_wavefronts_ideal = 0;  // of ldmatrix and stmatrix: 128-byte passes over the banks
  int64_t mma_instructions = 0, wgmma_instructions = 0;
  int64_t most_bytes_in_flight = 0;  // of one block: issued by cp.async and bulk loads and not yet waited for
};
const LaunchStatistics& last_launch();

}  // namespace lapidary::emulator
