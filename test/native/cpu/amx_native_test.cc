// The AMX kernels as they ship, instructions and all: natively where the processor has them, else through the trap of amx_trap.h.
#include <cstdio>

#include "check.h"

#if defined(__x86_64__) && defined(__linux__) && !defined(LAPIDARY_AVX2_ONLY)
#include <sstream>

#include "cpu/amx_trap.h"
#include "cpu/packed_data.h"
#include "cpu/probe.h"
#include "cpu/self_check.h"

#define LAPIDARY_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))

namespace lapidary::cpu {

using namespace test;

extern const PackedKernel kEmulatedAmxBf16;  // amx_test.cc

namespace {

bool runs_natively() { return has_feature(Feature::amx); }

// The kernels need AVX-512 with VNNI besides.
bool applies() {
  if ((" " + cpu_instruction_sets() + " ").find(" avx512vnni ") != std::string::npos) return true;
  std::printf("    skipped: this processor has no AVX-512 VNNI, which the AMX kernels need\n");
  return false;
}
bool traps() {
  if (!runs_natively()) return true;
  std::printf("    skipped: this processor has AMX, so that nothing is trapped\n");
  return false;
}

std::string told(const TileRun& run) {
  std::ostringstream text;
  text << run.refused << "; code" << std::hex;
  for (unsigned byte : run.code) text << ' ' << byte;
  return text.str();
}

// Natively the counts stay 0.
template <typename Fn>
TileRun run_tiles(const Fn& fn, std::span<const Extent> memory = {}) {
  if (!runs_natively()) return run_trapped(fn, memory);
  fn();
  return {};
}

LAPIDARY_AMX void store_configuration(TileConfig* config) { asm volatile("sttilecfg %0" : "=m"(*config)); }

// As the instructions tell it: released tiles have a configuration of zeros.
bool tiles_released() {
  TileConfig config;  // not of zeros
  const TileRun run = run_tiles([&] { store_configuration(&config); });
  REQUIRE(!run.refused);
  const uint8_t zeros[sizeof config] = {};
  return std::memcmp(&config, zeros, sizeof config) == 0;
}

const PackedKernel& kernel_of(DType weight) {
  for (int i = 0; i < kAmxPacked.count; ++i)
    if (kAmxPacked.list[i]->weight == weight) return *kAmxPacked.list[i];
  fail(ErrorCode::internal, "no such kernel");
}

int64_t products_done = 0;

// The kernel's multiply, which may touch the task's memory alone and must release the tiles.
template <DType kWeight>
void multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  const PackedKernel& kernel = kernel_of(kWeight);
  const Extent memory[] = {{task.input, task.tokens * kernel.input_bytes(task.k), false},
                           {task.panels, (task.n + kPackedRows - 1) / kPackedRows * task.panel_bytes, false},
                           {scratch, static_cast<int64_t>(kernel.scratch_floats(task.tokens, task.k) * sizeof(float)), true}};
  const TileRun run = run_tiles([&] { kernel.multiply(task, p0, p1, scratch); }, memory);
  CHECK_MSG(!run.refused, told(run) << "; [" << task.tokens << ", " << task.k << "] x " << task.n);
  REQUIRE(!run.refused);
  CHECK_MSG(tiles_released(), "after [" << task.tokens << ", " << task.k << "] x " << task.n);
  products_done += run.counts[TileInstruction::dot_u8_i8] + run.counts[TileInstruction::dot_bf16];
}

template <DType kWeight>
PackedKernel shipped() {
  PackedKernel kernel = kernel_of(kWeight);
  kernel.multiply = multiply<kWeight>;
  products_done = 0;
  return kernel;
}

void check_bf16(const PackedKernel& kernel, int64_t n, int64_t k, int64_t tokens) {
  const Owned weight = weights(DType::bf16, n, k, static_cast<uint64_t>(n * k));
  const Linear w = packed({weight.t, nullptr});
  const std::vector<float> x = values_of(activations(DType::f32, {tokens, k}, static_cast<uint64_t>(n + k + tokens)).t);
  const std::vector<float> want = run_packed(kEmulatedAmxBf16, w, x.data(), tokens, {0, true});
  for (int64_t panels_at_once : {int64_t{1} << 20, int64_t{tokens % 3 + 1}}) {
    CHECK_MSG(same_bits(run_packed(kernel, w, x.data(), tokens, {0, true}, panels_at_once), want),
              "bf16 [" << tokens << ", " << k << "] x " << n << ", panels by " << panels_at_once);
    if (k > 1000) break;
  }
}

// What a processor refuses, or a trap with bounds.
LAPIDARY_AMX void zero_unconfigured() { asm volatile("tilezero %%tmm3" : :); }
LAPIDARY_AMX void store_far(const TileConfig* config, void* out) {
  asm volatile("ldtilecfg %0; tilezero %%tmm0; tilestored %%tmm0, (%1,%2,1)" : : "m"(*config), "r"(out), "r"(int64_t{64}) : "memory");
}
LAPIDARY_AMX void multiply_misshapen(const TileConfig* config) {
  asm volatile("ldtilecfg %0; tdpbusd %%tmm2, %%tmm1, %%tmm0" : : "m"(*config) : "memory");
}
void not_of_tiles() { asm volatile("ud2"); }

// Encodings by the assembler, decoded and not run: a base of every number, then an index of every number but rsp's, then the rest.
LAPIDARY_AMX const uint8_t* encodings() {
  const uint8_t* code = nullptr;
  asm volatile(
      "jmp 2f\n"
      "1:\n"
      ".irp name, rax,rcx,rdx,rbx,rsp,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15\n"
      "tileloadd (%%\\name,%%rdi,1), %%tmm5\n"
      "tilestored %%tmm6, -8(%%\\name,%%r9,2)\n"
      "tileloaddt1 0x12345(%%\\name,%%rax,4), %%tmm7\n"
      "ldtilecfg 0x40(%%\\name)\n"
      ".endr\n"
      ".irp name, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15\n"
      "tileloadd 0x40(%%rcx,%%\\name,8), %%tmm1\n"
      "sttilecfg (%%r13,%%\\name,2)\n"
      ".endr\n"
      "tileloadd 0x123(,%%r8,1), %%tmm2\n"
      "tileloadd (%%r15), %%tmm2\n"
      "ldtilecfg 1b(%%rip)\n"
      "tdpbusd %%tmm1, %%tmm7, %%tmm4\n"
      "tdpbf16ps %%tmm0, %%tmm5, %%tmm2\n"
      "tilezero %%tmm6\n"
      "tilerelease\n"
      "tdpbssd %%tmm1, %%tmm7, %%tmm4\n"
      "2: lea 1b(%%rip), %0"
      : "=r"(code));
  return code;
}

}  // namespace

TEST("amx instructions: the trap reads every operand as the assembler wrote it") {
  if (!applies()) return;
  using I = TileInstruction;
  int64_t registers[16];
  for (int i = 0; i < 16; ++i) registers[i] = (i % 2 ? -1 : 1) * (int64_t{i + 1} << 33) + i;
  constexpr int kRax = 0, kRcx = 1, kRsp = 4, kRdi = 7, kR8 = 8, kR9 = 9, kR13 = 13, kR15 = 15;
  const uint8_t *const first = encodings(), *code = first;
  const auto next = [&](I::Kind kind, int c, int a, int b, int64_t address, int64_t stride) {
    const I i = decode_tile_instruction(code, registers);
    CHECK_MSG(i.kind == kind && i.c == c && i.a == a && i.b == b && static_cast<int64_t>(i.address) == address && i.stride == stride,
              "at byte " << code - first << ": kind " << i.kind << " of tiles " << i.c << ' ' << i.a << ' ' << i.b << ", address "
                         << static_cast<int64_t>(i.address) << ", want " << address << ", stride " << i.stride << ", want " << stride);
    code += i.length;
  };
  for (const int64_t base : registers) {
    next(I::load, 5, 0, 0, base, registers[kRdi]);
    next(I::store, 6, 0, 0, base - 8, registers[kR9] * 2);
    next(I::load, 7, 0, 0, base + 0x12345, registers[kRax] * 4);
    next(I::configure, 0, 0, 0, base + 0x40, 0);
  }
  for (int i = 0; i < 16; ++i) {
    if (i == kRsp) continue;
    next(I::load, 1, 0, 0, registers[kRcx] + 0x40, registers[i] * 8);
    next(I::store_configuration, 0, 0, 0, registers[kR13] + registers[i] * 2, 0);
  }
  next(I::load, 2, 0, 0, 0x123, registers[kR8]);
  next(I::load, 2, 0, 0, registers[kR15], 0);
  next(I::configure, 0, 0, 0, static_cast<int64_t>(reinterpret_cast<uintptr_t>(first)), 0);
  next(I::dot_u8_i8, 4, 7, 1, 0, 0);
  next(I::dot_bf16, 2, 5, 0, 0, 0);
  next(I::zero, 6, 0, 0, 0, 0);
  next(I::release, 0, 0, 0, 0, 0);
  next(I::unknown, 0, 0, 0, 0, 0);  // of bytes that are both signed: the kernels have none
}

TEST("amx instructions: what the processor would refuse is refused, and the handler of the signal is what it was") {
  if (!applies() || !traps()) return;
  struct sigaction action = {}, before = {}, now = {};
  action.sa_handler = [](int) { std::abort(); };
  sigaction(SIGILL, &action, &before);
  const auto refusal = [&](const auto& fn, std::span<const Extent> memory = {}) {
    const TileRun run = run_trapped(fn, memory);
    sigaction(SIGILL, nullptr, &now);
    CHECK(now.sa_handler == action.sa_handler);
    CHECK(tiles_released());
    return std::string(run.refused ? run.refused : "nothing");
  };
  TileConfig config;
  config.rows[0] = 3, config.row_bytes[0] = 64, config.rows[1] = 3, config.row_bytes[1] = 16, config.rows[2] = 5, config.row_bytes[2] = 64;
  alignas(64) char out[4][64];
  std::memset(out, 1, sizeof out);
  const Extent all[] = {{out, sizeof out, true}}, few[] = {{out, 3 * 64 - 1, true}}, fixed[] = {{out, sizeof out, false}};
  CHECK(refusal(zero_unconfigured) == "a tile is configured before it is used");
  CHECK(refusal(not_of_tiles) == "an illegal instruction is one of the tiles'");
  CHECK(refusal([&] { multiply_misshapen(&config); }) == "shapes of a product fit");
  CHECK(refusal([&] { store_far(&config, out); }, few) == "stores go to memory that is the kernel's to write");
  CHECK(refusal([&] { store_far(&config, out); }, fixed) == "stores go to memory that is the kernel's to write");
  CHECK(out[0][0] == 1);
  run_trapped([&] { store_far(&config, out); }, all);
  CHECK(!tiles_released());
  CHECK(out[0][0] == 0 && out[2][63] == 0 && out[3][0] == 1);
  config.start_row = 1;
  CHECK(refusal([&] { store_far(&config, out); }) == "a configuration is of palette 1, from row 0");
  sigaction(SIGILL, &before, nullptr);
}

TEST("amx instructions: int8 products are exact on awkward sizes, tiles are released after each") {
  if (!applies()) return;
  const PackedKernel kernel = shipped<DType::i8>();
  const NamedKernel named = {"amx", &kernel};
  const int64_t rows[] = {1, 7, 15, 16, 17, 31, 32, 33, 48, 50};
  int i = 0;
  for (int64_t tokens : {1, 15, 16, 17, 31, 32, 33, 47, 64, 100}) {
    for (int64_t k : {1, 63, 64, 65, 150, 1152, 2100}) check_int8_product(named, rows[i++ % 10], k, tokens, k % 2 ? 0.02f : 0);
  }
  for (int64_t n = 1; n <= 50; ++n) check_int8_product(named, n, 65, 33, 0);
  check_int8_product(named, 100, 1000, 1090, 0);  // inputs that fill half a second-level cache
  CHECK(runs_natively() || products_done > 0);
}

TEST("amx instructions: int8 sums that fill 32 bits") {
  if (!applies()) return;
  const PackedKernel kernel = shipped<DType::i8>();
  check_int8_extremes({"amx", &kernel});
  CHECK(runs_natively() || products_done > 0);
}

TEST("amx instructions: bf16 products have the bits of the emulated ones on awkward sizes") {
  if (!applies()) return;
  const PackedKernel kernel = shipped<DType::bf16>();
  const int64_t rows[] = {1, 7, 15, 16, 17, 31, 32, 33, 48, 50};
  int i = 0;
  for (int64_t tokens : {1, 15, 16, 17, 31, 32, 33, 47, 64, 100}) {
    for (int64_t k : {1, 31, 32, 33, 63, 64, 65, 150}) check_bf16(kernel, rows[i++ % 10], k, tokens);
  }
  for (int64_t n = 1; n <= 50; ++n) check_bf16(kernel, n, 33, 17);
  for (int64_t tokens : {1, 16, 31, 47, 100}) check_bf16(kernel, 33, 1152, tokens);
  check_bf16(kernel, 50, 2100, 33);
  check_bf16(kernel, 50, 530, 1090);
  CHECK(runs_natively() || products_done > 0);
}

TEST("amx instructions: the check that decides whether they are used takes them, the probes do the operations they say") {
  if (!applies()) return;
  CHECK(multiplies_rightly(shipped<DType::i8>()));
  CHECK(multiplies_rightly(shipped<DType::bf16>()));
  for (const ProbeLoop* loop : {&kAmxInt8Probe, &kAmxBf16Probe}) {
    const ProbeData data(loop->dtype);
    for (int64_t rounds : {1, 3}) {
      double total = 0;
      const TileRun run = run_tiles([&] { total = loop->run(data.bytes, rounds); });
      CHECK_MSG(!run.refused, told(run));
      CHECK_MSG(2 * total == static_cast<double>(loop->operations * rounds), dtype_info(loop->dtype).name << ": " << total);
      CHECK(tiles_released());
    }
  }
}

}  // namespace lapidary::cpu
#else
TEST("amx instructions: kernels as they ship") { std::printf("    skipped: this build has no AMX kernels, or no way to trap them\n"); }
#endif
