// The machine code of the AMX instructions that the kernels use (VEX-encoded, Intel's manual, volume 2), taken apart. x86-64 alone.
#pragma once

#include <cstdint>
#include <cstring>

namespace lapidary::cpu {

struct TileInstruction {
  enum Kind { unknown, configure, store_configuration, release, zero, load, store, dot_u8_i8, dot_bf16 };
  Kind kind = unknown;
  int c = 0, a = 0, b = 0;  // C += A · B; the one tile of a load, a store and a zero is c
  uint64_t address = 0;     // of the first row, or of the configuration
  int64_t stride = 0;       // bytes from row to row
  int length = 0;           // bytes of code; of what is unknown, 0
};

struct MemoryOperand {
  int64_t base = 0, index = 0;  // base and displacement; index times scale
  int length = 0;               // bytes from the ModRM byte on
};

// `modrm` begins the operand, which ends the instruction; x and b are bit 3 of the numbers of the index and of the base register.
inline MemoryOperand decode_memory(const uint8_t* modrm, bool x, bool b, const int64_t (&registers)[16]) {
  const int mod = *modrm >> 6, rm = *modrm & 7;
  const uint8_t* at = modrm + 1;
  MemoryOperand operand;
  int base = rm;
  if (rm == 4) {
    const uint8_t sib = *at++;
    const int index = (sib >> 3 & 7) | x << 3;
    base = sib & 7;
    if (index != 4) operand.index = registers[index] * (int64_t{1} << (sib >> 6));
  }
  const bool no_base = mod == 0 && base == 5;
  int64_t displacement = 0;
  if (mod == 1) displacement = static_cast<int8_t>(*at++);
  if (mod == 2 || no_base) {
    int32_t wide;
    std::memcpy(&wide, at, sizeof wide);
    displacement = wide, at += sizeof wide;
  }
  if (!no_base) operand.base = registers[base | b << 3];
  if (no_base && rm != 4) operand.base = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at));  // relative to the next instruction
  operand.base += displacement;
  operand.length = static_cast<int>(at - modrm);
  return operand;
}

// The code at `code`, as it would run there; registers in the order of their numbers: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 .. r15.
inline TileInstruction decode_tile_instruction(const uint8_t* code, const int64_t (&registers)[16]) {
  using I = TileInstruction;
  constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;
  if (code[0] != 0xc4) return {};
  const bool r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  const int map = code[1] & 31, third = ~code[2] >> 3 & 15, prefix = code[2] & 3, opcode = code[3];
  const int reg = code[4] >> 3 & 7, rm = code[4] & 7;
  const bool wide = code[2] & 0x84, registers_only = code[4] >> 6 == 3;  // W and L
  if (map != 2 || wide || r) return {};

  if (opcode == 0x5c || opcode == 0x5e) {
    if (!registers_only || b || third > 7 || prefix != (opcode == 0x5c ? kF3 : k66)) return {};
    return {opcode == 0x5c ? I::dot_bf16 : I::dot_u8_i8, reg, rm, third, 0, 0, 5};
  }
  if (third != 0) return {};
  if (registers_only) {
    if (opcode == 0x49 && prefix == kNone && code[4] == 0xc0) return {I::release, 0, 0, 0, 0, 0, 5};
    if (opcode == 0x49 && prefix == kF2 && rm == 0 && !b) return {I::zero, reg, 0, 0, 0, 0, 5};
    return {};
  }
  const MemoryOperand memory = decode_memory(code + 4, x, b, registers);
  const int length = 4 + memory.length;
  if (opcode == 0x49 && reg == 0 && (prefix == kNone || prefix == k66))
    return {prefix == kNone ? I::configure : I::store_configuration, 0, 0, 0, static_cast<uint64_t>(memory.base + memory.index), 0, length};
  // F2: tileloadd, 66: tileloaddt1, F3: tilestored; the index is the stride.
  if (opcode == 0x4b && rm == 4 && prefix != kNone)
    return {prefix == kF3 ? I::store : I::load, reg, 0, 0, static_cast<uint64_t>(memory.base), memory.index, length};
  return {};
}

}  // namespace lapidary::cpu
