// Fibers: a stack and a saved stack pointer. Switching is a dozen instructions on x86-64 and AArch64, ucontext elsewhere.
#pragma once

#include <cstddef>

namespace lapidary::emulator {

struct Fiber {
  void* saved = nullptr;       // the stack pointer while it does not run (a ucontext_t elsewhere)
  std::byte* stack = nullptr;  // lowest usable byte; below it lies a guard page
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's, while it does not run
};

// Makes `fiber` begin with entry(argument) when it is first switched to. `entry` never returns. Takes a stack from the pool.
void fiber_prepare(Fiber& fiber, void (*entry)(void*), void* argument);
// Gives the stack back. The fiber is not running; if it has not ended, its frames are forgotten.
void fiber_release(Fiber& fiber);
// Saves the running context in `from` and goes on with `to`. `last`: `from` will never be switched to again.
void fiber_switch(Fiber& from, Fiber& to, bool last = false);
// First thing on a new fiber; `from` is who switched to it.
void fiber_entered(Fiber& from);

}  // namespace lapidary::emulator
