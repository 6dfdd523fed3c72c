// The CPU backend: threaded, vectorised by cpuid at run time. The only header of cpu/ that others include.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"

namespace lapidary {

// threads: 0 = one per physical core. The pool is shared by all CPU backends of the process with the same count.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

// The instruction set in use, "amx", "avx512bf16", "avx512vnni", "avx512bw", "avx2", "neon", "scalar", ...; LAPIDARY_CPU names one that the
// processor has, to force it. An unknown or absent one is Error(invalid_argument) from make_cpu_backend.
std::string cpu_instruction_set();

// Every instruction set this processor can run, best first, "scalar" last.
std::string cpu_instruction_sets();  // space-separated

int physical_cores();

}  // namespace lapidary
