// Which instruction set, and how many cores: the facts about this processor.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "base/error.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/kernels/arm64.h"
#include "cpu/self_check.h"

namespace lapidary {

namespace {

#if defined(__x86_64__) && defined(__GNUC__)
#ifndef LAPIDARY_AVX2_ONLY  // a build without the other instruction sets
// A table as its instruction set alone has it, with products that further features allow before its own.
cpu::Kernels extended(const cpu::Kernels& base, const char* name, std::initializer_list<cpu::PackedKernels> own) {
  cpu::Kernels table = base;
  table.name = name;
  size_t i = 0;
  for (const cpu::PackedKernels& list : own) table.packed[i++] = list;
  table.packed[i] = base.packed[0];
  return table;
}

const cpu::Kernels& avx512vnni_kernels() {
  static const cpu::Kernels table = extended(cpu::kAvx512Kernels, "avx512vnni", {cpu::kAvx512VnniPacked});
  return table;
}

const cpu::Kernels& avx512bf16_kernels() {
  static const cpu::Kernels table = extended(cpu::kAvx512Kernels, "avx512bf16", {cpu::kAvx512Bf16Packed, cpu::kAvx512VnniPacked});
  return table;
}

const cpu::Kernels& amx_kernels() {
  static const cpu::Kernels table = [] {
    cpu::Kernels t = extended(cpu::kAvx512Kernels, "amx", {cpu::kAmxPacked, cpu::kAvx512VnniPacked});
    t.probes.int8[0] = cpu::kAmxInt8Probe;
    t.probes.bf16 = cpu::kAmxBf16Probe;
    return t;
  }();
  return table;
}

// No other instructions depend on so much: a permission, a register state that the system must save, a configuration.
bool amx_works() {
  static const bool works = [] {
    if (!cpu::has_feature(cpu::Feature::amx)) return false;
    for (int i = 0; i < cpu::kAmxPacked.count; ++i)
      if (!cpu::multiplies_rightly(*cpu::kAmxPacked.list[i])) return false;
    return true;
  }();
  return works;
}

const cpu::Kernels& avxvnni_kernels() {
  static const cpu::Kernels table = extended(cpu::kAvx2Kernels, "avxvnni", {cpu::kAvxVnniPacked});
  return table;
}
#endif

// Best first.
std::vector<const cpu::Kernels*> available_kernels() {
  __builtin_cpu_init();
  std::vector<const cpu::Kernels*> tables;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#ifndef LAPIDARY_AVX2_ONLY
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && cpu::has_feature(cpu::Feature::avx512_vnni);
  if (vnni && amx_works()) tables.push_back(&amx_kernels());
  // An Intel core was measured to do this product at half the rate of f32 ones: widened weights are faster there.
  const bool bf16 = vnni && cpu::has_feature(cpu::Feature::avx512_bf16), fast = !__builtin_cpu_is("intel");
  if (bf16 && fast) tables.push_back(&avx512bf16_kernels());
  if (vnni) tables.push_back(&avx512vnni_kernels());
  if (bf16 && !fast) tables.push_back(&avx512bf16_kernels());
  if (avx512) tables.push_back(&cpu::kAvx512Kernels);
  if (avx2 && cpu::has_feature(cpu::Feature::avx_vnni)) tables.push_back(&avxvnni_kernels());
#endif
  if (avx2) tables.push_back(&cpu::kAvx2Kernels);
  tables.push_back(&cpu::kScalarKernels);
  return tables;
}
#else
std::vector<const cpu::Kernels*> available_kernels() {
  std::vector<const cpu::Kernels*> tables;
  for (int i = 0; cpu::arm64_table(i) != nullptr; ++i) tables.push_back(cpu::arm64_table(i));
  tables.push_back(&cpu::kScalarKernels);
  return tables;
}
#endif

// "avx512" stands for the best of its kind.
bool is_called(const cpu::Kernels& table, std::string_view wanted) {
  return table.name == wanted || (wanted == "avx512" && std::string_view(table.name).starts_with("avx512"));
}

#ifdef __linux__
// "0-3" or "0,4": how the kernel names the logical processors of one core; equal text, equal core.
std::string siblings_of(int processor) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/thread_siblings_list");
  std::string line;
  std::getline(file, line);
  return line;
}

// Cores among the processors this process may run on; 0 when the system does not say.
int cores_allowed() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (!CPU_ISSET(i, &allowed)) continue;
    const std::string siblings = siblings_of(i);
    if (siblings.empty()) return CPU_COUNT(&allowed);
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// The processor time that a container may use, in processors rounded up; 0 for no limit.
int quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double time = 0, period = 0;
  if (!(file >> time >> period) || !(time > 0) || !(period > 0)) return 0;  // "max 100000" is no number
  return static_cast<int>((time + period - 1) / period);
}
#else
int cores_allowed() { return 0; }
int quota() { return 0; }
#endif

}  // namespace

namespace cpu {

namespace {

// Whether the process may use tiles of int8 and bf16: the processor has them, the system saves them, and has given its permission, which
// holds for all threads from then on.
bool amx_permitted() {
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8, kOsSaves = 1u << 27;
  constexpr uint32_t kTileStates = 3u << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsSaves)) return false;
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_feature(Feature feature) {
  if (feature == Feature::none) return true;
  if (feature == Feature::amx) {
    static const bool permitted = amx_permitted();
    return permitted;
  }
#if defined(__x86_64__) && defined(__GNUC__)
  // Leaf 7; that the system saves the registers is what a table was chosen by.
  unsigned a0 = 0, b = 0, c0 = 0, d = 0, a1 = 0, c1 = 0;
  if (!__get_cpuid_count(7, 0, &a0, &b, &c0, &d)) return false;
  if (a0 >= 1) __get_cpuid_count(7, 1, &a1, &b, &c1, &d);
  if (feature == Feature::avx512_vnni) return c0 >> 11 & 1;
  if (feature == Feature::avx_vnni) return a1 >> 4 & 1;
  if (feature == Feature::avx512_bf16) return a1 >> 5 & 1;
#endif
  return false;
}

const Kernels& select_kernels() {
  const std::vector<const Kernels*> tables = available_kernels();
  const char* wanted = std::getenv("LAPIDARY_CPU");
  if (!wanted || !*wanted) return *tables.front();
  for (const Kernels* table : tables) {
    if (is_called(*table, wanted)) return *table;
  }
  fail(ErrorCode::invalid_argument, "LAPIDARY_CPU=", wanted,
       " is not an instruction set of this processor; choose one of: ", cpu_instruction_sets());
}

}  // namespace cpu

std::string cpu_instruction_set() { return cpu::select_kernels().name; }

std::string cpu_instruction_sets() {
  std::string names;
  for (const cpu::Kernels* table : available_kernels()) {
    if (!names.empty()) names += ' ';
    names += table->name;
  }
  return names;
}

int physical_cores() {
  int cores = cores_allowed();
  if (cores == 0) cores = static_cast<int>(std::thread::hardware_concurrency());
  if (const int limit = quota(); limit > 0) cores = std::min(cores, limit);
  return std::max(cores, 1);
}

}  // namespace lapidary
