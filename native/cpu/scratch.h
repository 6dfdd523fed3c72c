// Working memory of the calling thread, kept between calls and freed when the thread ends.
#pragma once

#include <cstddef>

namespace lapidary::cpu {

// What may be in use at the same time has different names.
enum class ScratchUse {
  input,    // a product's input, widened; read by all threads of the loop that follows
  partial,  // attention states of split contexts; likewise
  kernel,   // of one kernel call
};

// At least `floats` floats, 64-byte aligned, contents undefined; valid until this thread's next call with the same use.
float* thread_scratch(ScratchUse use, size_t floats);

}  // namespace lapidary::cpu
