#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define LAPIDARY_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LAPIDARY_ASAN 1
#endif
#endif
#ifdef LAPIDARY_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// LAPIDARY_UCONTEXT: the portable switch, ten times slower. It may be asked for, to test it.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(LAPIDARY_UCONTEXT)
#define LAPIDARY_UCONTEXT 1
#endif
#ifdef LAPIDARY_UCONTEXT
#include <ucontext.h>
#endif

namespace lapidary::emulator {
namespace {

// Kernels keep their arrays in registers, so frames are small; sanitizers and unoptimised builds need several times as much.
#ifdef LAPIDARY_ASAN
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 256 << 10;
#endif

// Stacks are kept for the next launch: mapping one costs more than a whole small thread.
struct StackPool {
  std::mutex mutex;
  std::vector<std::byte*> free;
  std::byte* take() {
    {
      const std::lock_guard lock(mutex);
      if (!free.empty()) {
        std::byte* stack = free.back();
        free.pop_back();
        return stack;
      }
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    return static_cast<std::byte*>(memory) + page;
  }
  void give(std::byte* stack) {
    const std::lock_guard lock(mutex);
    free.push_back(stack);
  }
};
StackPool& pool() {
  static StackPool* const stacks = new StackPool;  // outlives every static destructor
  return *stacks;
}

}  // namespace

#ifdef LAPIDARY_UCONTEXT

namespace {
void start_context(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
  const auto entry = reinterpret_cast<void (*)(void*)>(static_cast<uintptr_t>(static_cast<uint64_t>(entry_high) << 32 | entry_low));
  entry(reinterpret_cast<void*>(static_cast<uintptr_t>(static_cast<uint64_t>(argument_high) << 32 | argument_low)));
}
void switch_stacks(void** from, void** to) {
  if (!*from) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(*to));
}
}  // namespace

#else

// Saves the callee-saved registers on the stack, its pointer in *from, and takes up those of `to`.
extern "C" void lapidary_emulator_switch(void** from, void* to);
// Where a new fiber begins: calls the entry with the argument, both in callee-saved registers.
extern "C" void lapidary_emulator_start();

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl lapidary_emulator_switch
.hidden lapidary_emulator_switch
.type lapidary_emulator_switch, @function
lapidary_emulator_switch:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
.size lapidary_emulator_switch, .-lapidary_emulator_switch
.p2align 4
.globl lapidary_emulator_start
.hidden lapidary_emulator_start
.type lapidary_emulator_start, @function
lapidary_emulator_start:
  .cfi_startproc
  .cfi_undefined %rip
  movq %r12, %rdi
  xorl %ebp, %ebp
  callq *%r13
  ud2
  .cfi_endproc
.size lapidary_emulator_start, .-lapidary_emulator_start
)");
constexpr size_t kFrameWords = 7, kEntryWord = 2, kArgumentWord = 3, kReturnWord = 6;  // r15 r14 r13 r12 rbx rbp, return address
#else
asm(R"(
.text
.p2align 4
.globl lapidary_emulator_switch
.hidden lapidary_emulator_switch
.type lapidary_emulator_switch, %function
lapidary_emulator_switch:
  .cfi_startproc
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .cfi_endproc
.size lapidary_emulator_switch, .-lapidary_emulator_switch
.p2align 4
.globl lapidary_emulator_start
.hidden lapidary_emulator_start
.type lapidary_emulator_start, %function
lapidary_emulator_start:
  .cfi_startproc
  .cfi_undefined x30
  mov x0, x20
  mov x29, #0
  blr x19
  brk #1
  .cfi_endproc
.size lapidary_emulator_start, .-lapidary_emulator_start
)");
constexpr size_t kFrameWords = 20, kEntryWord = 0, kArgumentWord = 1, kReturnWord = 11;  // x19 x20 ... x29 x30, d8..d15
#endif

namespace {
void switch_stacks(void** from, void** to) { lapidary_emulator_switch(from, *to); }
}  // namespace

#endif

void fiber_prepare(Fiber& fiber, void (*entry)(void*), void* argument) {
  if (!fiber.stack) {
    fiber.stack = pool().take();
    fiber.stack_bytes = kStackBytes;
  }
#ifdef LAPIDARY_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
#ifdef LAPIDARY_UCONTEXT
  auto* context = fiber.saved ? static_cast<ucontext_t*>(fiber.saved) : new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = fiber.stack_bytes;
  context->uc_link = nullptr;
  const auto e = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(entry)),
             a = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(argument));
  makecontext(context, reinterpret_cast<void (*)()>(start_context), 4, static_cast<unsigned>(e >> 32), static_cast<unsigned>(e),
              static_cast<unsigned>(a >> 32), static_cast<unsigned>(a));
  fiber.saved = context;
#else
  // Some room above the frame; once it is popped the stack pointer is a multiple of 16.
  void** const words = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes - 64) - kFrameWords;
  for (size_t i = 0; i < kFrameWords; ++i) words[i] = nullptr;
  words[kEntryWord] = reinterpret_cast<void*>(entry);
  words[kArgumentWord] = argument;
  words[kReturnWord] = reinterpret_cast<void*>(lapidary_emulator_start);
  fiber.saved = words;
#endif
  fiber.fake_stack = nullptr;
}

void fiber_release(Fiber& fiber) {
#ifdef LAPIDARY_UCONTEXT
  delete static_cast<ucontext_t*>(fiber.saved);
#endif
  if (fiber.stack) pool().give(fiber.stack);
  fiber = {};
}

void fiber_switch(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
#ifdef LAPIDARY_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  switch_stacks(&from.saved, &to.saved);
#ifdef LAPIDARY_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_entered([[maybe_unused]] Fiber& from) {
#ifdef LAPIDARY_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  // Of the host thread's own stack only AddressSanitizer knows the bounds.
  if (!from.stack) {
    from.stack = static_cast<std::byte*>(const_cast<void*>(bottom));
    from.stack_bytes = bytes;
  }
#endif
}

}  // namespace lapidary::emulator
