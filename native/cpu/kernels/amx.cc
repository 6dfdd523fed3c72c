// The products for AMX, on top of AVX-512 with VNNI; compiled with those flags. Empty where the compiler has no GNU assembly.
#if defined(__GNUC__)
#if !defined(__clang__)
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/avx512.h and kernels/math.h

#define LAPIDARY_VNNI
#define LAPIDARY_SIMD_HEADER "cpu/simd/avx512.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_avx512.h"
#include "cpu/kernels/amx_probe.h"
#include "cpu/kernels/packed_int8.h"

namespace lapidary::cpu {

namespace {

// Below, a tile would be mostly empty, and the panels stream as fast without.
struct FewByVnni {
  static constexpr int64_t kTokens = 16;
  static void multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) { multiply_panels<Int8Form>(task, p0, p1, scratch); }
  static size_t scratch_floats(int64_t tokens, int64_t k) {
    size_t most = 0;  // it need not grow with the tokens
    for (int64_t t = 1; t <= tokens; ++t)
      most = panels_scratch_floats<Int8Form>(t, k) > most ? panels_scratch_floats<Int8Form>(t, k) : most;
    return most;
  }
};
static_assert(sizeof(IntNumber) == 1, "both read the same prepared rows");

constexpr const PackedKernel* kList[] = {&kAmxBf16Kernel, &kAmxInt8Kernel<FewByVnni>};

}  // namespace

extern const PackedKernels kAmxPacked = {kList, sizeof kList / sizeof *kList};
extern const ProbeLoop kAmxInt8Probe = kAmxInt8Loop, kAmxBf16Probe = kAmxBf16Loop;

}  // namespace lapidary::cpu
#endif
