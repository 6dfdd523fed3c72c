// The tables of 64-bit ARM and what they are put together from: a processor feature beyond NEON adds products and probes to the table of
// NEON.
#pragma once

#include "cpu/kernels.h"

namespace lapidary::cpu {

extern const Kernels kNeonKernels;
extern const PackedKernels kNeonDotPacked, kNeonI8mmPacked;
extern const ProbeLoop kNeonDotProbe, kNeonI8mmProbe, kNeonBf16Probe;

// The i-th table that this processor can run, best first; null behind the last. None on other architectures.
const Kernels* arm64_table(int i);

}  // namespace lapidary::cpu
