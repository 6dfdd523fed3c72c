// The arithmetic of the emulated tensor cores, shared by mma and wgmma so that both give equal bits.
#pragma once

#include <cstdint>

namespace lapidary::emulator {

// One step of a matrix product, m x n x k: d is [m][n], a is [m][k], b is [n / 8][k][8] (eight columns together, so that they stream
// through the cache). m and n are multiples of 8.
//
// bf16: the operands are bf16 values in double. Products are exact, their sum over the step's 16 k's is made in double in rising k, the
// accumulator is added last and the result rounded once to f32. (The hardware keeps fewer bits of the sum and truncates, in an order that
// is not documented: results differ in the last bits, so tests that compare with a device need a tolerance.)
void multiply_bf16(float* d, const double* a, const double* b, int m, int n, int k);
// int8: the operands are integers in float, whose sums over one step (32 or 64) are exact; the accumulator wraps.
void multiply_s8(int32_t* d, const float* a, const float* b, int m, int n, int k);

}  // namespace lapidary::emulator
