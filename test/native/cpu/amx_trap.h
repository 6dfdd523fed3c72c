// Code with AMX instructions, run on a processor without them: each raises SIGILL, is taken apart, done as simd/amx_emulated.h defines it,
// and stepped over. So the machine code that ships is what is tested: encodings, operands, configurations in memory. Linux on x86-64.
#pragma once

#define LAPIDARY_EMULATED_AMX
#include <ucontext.h>

#include <csetjmp>
#include <csignal>
#include <span>

#include "cpu/amx_decode.h"
#include "cpu/simd/amx.h"

namespace lapidary::cpu {
namespace {

struct Extent {
  const void* begin;
  int64_t bytes;
  bool writable;
};

// What one run of trapped code did.
struct TileRun {
  int64_t counts[TileInstruction::dot_bf16 + 1] = {};  // instructions done, by kind
  const char* refused = nullptr;                       // the rule that an instruction broke, which ended the run
  unsigned char code[8] = {};                          // of that instruction
};

// Everything that the handler touches. It may run anywhere, so it neither allocates nor locks.
struct TileTrap {
  TileRun run;
  std::span<const Extent> memory;  // what loads and stores may touch; empty: anything
  sigjmp_buf leave;
};
thread_local TileTrap* current_trap = nullptr;

[[noreturn]] void refuse_instruction(const char* rule) {
  current_trap->run.refused = rule;
  siglongjmp(current_trap->leave, 1);
}

void require_memory(const TileInstruction& i, bool writes) {
  const TileConfig& config = tiles_with(i.c).config;
  for (int64_t r = 0; r < config.rows[i.c] && !current_trap->memory.empty(); ++r) {
    const uint64_t first = i.address + static_cast<uint64_t>(r * i.stride), bytes = config.row_bytes[i.c];
    bool inside = false;
    for (const Extent& e : current_trap->memory) {
      const uint64_t begin = reinterpret_cast<uintptr_t>(e.begin);
      inside |= first >= begin && first + bytes <= begin + static_cast<uint64_t>(e.bytes) && (e.writable || !writes);
    }
    require(inside, writes ? "stores go to memory that is the kernel's to write" : "loads come from memory that the kernel was given");
  }
}

void execute(const TileInstruction& i) {
  void* const memory = reinterpret_cast<void*>(i.address);
  TileConfig config;
  switch (i.kind) {
    case TileInstruction::configure:
      std::memcpy(&config, memory, sizeof config);
      return tile_configure(config);
    case TileInstruction::store_configuration:
      tiles().configured ? std::memcpy(memory, &tiles().config, sizeof config) : std::memset(memory, 0, sizeof config);
      return;
    case TileInstruction::release:
      return tile_release();
    case TileInstruction::zero:
      return tile_zero(i.c);
    case TileInstruction::load:
      require_memory(i, false);
      return tile_load(i.c, memory, i.stride);
    case TileInstruction::store:
      require_memory(i, true);
      return tile_store(i.c, memory, i.stride);
    case TileInstruction::dot_u8_i8:
      return tile_dot_u8_i8(i.c, i.a, i.b);
    case TileInstruction::dot_bf16:
      return tile_dot_bf16(i.c, i.a, i.b);
    case TileInstruction::unknown:
      refuse_instruction("an illegal instruction is one of the tiles'");
  }
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  if (!current_trap) {  // of another thread: run again, it ends the process
    std::signal(SIGILL, SIG_DFL);
    return;
  }
  constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  auto& saved = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  int64_t registers[16];
  for (int i = 0; i < 16; ++i) registers[i] = saved[kOrder[i]];
  const uint8_t* code = reinterpret_cast<const uint8_t*>(saved[REG_RIP]);
  std::memcpy(current_trap->run.code, code, sizeof current_trap->run.code);
  const TileInstruction instruction = decode_tile_instruction(code, registers);
  execute(instruction);
  ++current_trap->run.counts[instruction.kind];
  saved[REG_RIP] += instruction.length;
}

// Runs fn(), whose own frames and those it calls have nothing to destroy: a refused instruction leaves them by a jump, tiles released. The
// handler of SIGILL is then what it was.
template <typename Fn>
TileRun run_trapped(const Fn& fn, std::span<const Extent> memory = {}) {
  TileTrap trap;
  trap.memory = memory;
  struct sigaction action = {}, before = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  tiles().refuse = refuse_instruction;
  current_trap = &trap;
  sigaction(SIGILL, &action, &before);
  if (sigsetjmp(trap.leave, 1) == 0) {
    fn();
  } else {
    tile_release();
  }
  sigaction(SIGILL, &before, nullptr);
  current_trap = nullptr;
  return trap.run;
}

}  // namespace
}  // namespace lapidary::cpu
