// Which tables a 64-bit ARM processor can run.
#include "cpu/kernels/arm64.h"

#if defined(__aarch64__) && defined(__GNUC__)

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lapidary::cpu {

namespace {

struct Features {
  bool dot, matrix;  // SDOT; SMMLA and BFMMLA
};

#if defined(__linux__)
// The bits of the kernel's interface; older headers do not name them all.
Features processor_features() {
  constexpr unsigned long kDotProduct = 1ul << 20, kInt8Matrix = 1ul << 13, kBf16 = 1ul << 14;
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  return {(first & kDotProduct) != 0, (second & kInt8Matrix) != 0 && (second & kBf16) != 0};
}
#elif defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
Features processor_features() {
  return {has("hw.optional.arm.FEAT_DotProd"), has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16")};
}
#else
Features processor_features() { return {}; }
#endif

// The table of NEON with kernels looked for before its own, and another probe.
Kernels extended(const char* name, const PackedKernels& own, const ProbeLoop& int8, const ProbeLoop& bf16) {
  Kernels table = kNeonKernels;
  table.name = name;
  table.packed[0] = own;
  table.packed[1] = kNeonKernels.packed[0];
  table.probes.int8[0] = int8;
  table.probes.bf16 = bf16;
  return table;
}

}  // namespace

const Kernels* arm64_table(int i) {
  static const Kernels matrix = extended("neoni8mm", kNeonI8mmPacked, kNeonI8mmProbe, kNeonBf16Probe);
  static const Kernels dot = extended("neondot", kNeonDotPacked, kNeonDotProbe, {});
  static const Kernels* const tables[] = {&matrix, &dot, &kNeonKernels, nullptr};
  static const Features features = processor_features();
  return tables[i + (!features.dot ? 2 : features.matrix ? 0 : 1)];
}

}  // namespace lapidary::cpu

#else

namespace lapidary::cpu {
const Kernels* arm64_table(int) { return nullptr; }
}  // namespace lapidary::cpu

#endif
