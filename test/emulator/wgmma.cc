// wgmma of a warpgroup: matrix descriptors decoded, operands read and accumulators written when the operation runs (at its issue or at the
// wait that completes it), and the rules between: a fence before each group, hands off the accumulators until the wait.
#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/primitives/swizzle.cuh"
#include "emulator/grid.h"
#include "emulator/tensor_core.h"

namespace lapidary::emulator {

namespace {

using cuda::Swizzle;

constexpr int kRows = 64, kMostColumns = 256, kThreads = 128;
// What accumulator registers hold while an operation is in flight: a NaN, and an odd number as an integer.
constexpr uint32_t kPoison = 0xffc0deadu;

// --- descriptors ------------------------------------------------------------------------------------------------------------------------

struct Operand {
  uint32_t start, leading, stride;
  Swizzle swizzle;
};

Operand decode(uint64_t descriptor) {
  const auto field = [&](int bit) { return static_cast<uint32_t>((descriptor >> bit) & 0x3fff) << 4; };
  return {field(0), field(16), field(32), static_cast<Swizzle>(descriptor >> 62)};
}

// The hardware's rule, on address bits.
uint32_t swizzle_address(uint32_t address, Swizzle s) {
  switch (s) {
    case Swizzle::none:
      return address;
    case Swizzle::bytes32:
      return cuda::swizzled<Swizzle::bytes32>(address);
    case Swizzle::bytes64:
      return cuda::swizzled<Swizzle::bytes64>(address);
    case Swizzle::bytes128:
      return cuda::swizzled<Swizzle::bytes128>(address);
  }
  return address;
}

// Address of the 16 bytes with k chunk `chunk` (0, 1) of row `row` of a K-major operand.
uint32_t k_major(const Operand& o, int row, int chunk) {
  const uint32_t group = o.start + row / 8 * o.stride;
  if (o.swizzle == Swizzle::none) return group + row % 8 * 16 + chunk * o.leading;
  return swizzle_address(group + row % 8 * cuda::swizzle_span(o.swizzle) + chunk * 16, o.swizzle);
}
// Address of the 16 bytes with columns 8 chunk .. 8 chunk + 7 of row k of an N-major operand.
uint32_t n_major(const Operand& o, int k, int chunk) {
  if (o.swizzle == Swizzle::none) return o.start + chunk * o.stride + k % 8 * 16 + k / 8 * o.leading;
  const int span = cuda::swizzle_span(o.swizzle), chunks = span / 16;
  return swizzle_address(o.start + chunk / chunks * o.leading + chunk % chunks * 16 + k / 8 * o.stride + k % 8 * span, o.swizzle);
}

void check_operand(const char* name, uint64_t descriptor, const Operand& o, bool n_is_contiguous, int rows, Where where) {
  const auto refuse = [&](const std::string& what) { fail(where, std::string("wgmma: the descriptor of ") + name + ": " + what); };
  if (descriptor & 0x3fffc000c000c000u) refuse("bits outside the fields are set (a stride or offset too large?)");
  if (o.swizzle == Swizzle::none) return;
  const uint32_t span = cuda::swizzle_span(o.swizzle), atom = cuda::swizzle_atom(o.swizzle), inside = n_is_contiguous ? 0 : o.start % span;
  if ((o.start - inside) % atom != 0) {
    refuse("the tile starts at shared address " + std::to_string(o.start) + ", not on its swizzle atom of " + std::to_string(atom) +
           " bytes");
  }
  if (inside + 32 > span) refuse("the step of 32 bytes crosses the end of the swizzle span");
  if ((rows > 8 || n_is_contiguous) && o.stride % atom != 0) {
    refuse("stride " + std::to_string(o.stride) + " is not a multiple of the swizzle atom");
  }
  if (n_is_contiguous && rows > static_cast<int>(span) / 2 && o.leading % atom != 0) {
    refuse("leading offset " + std::to_string(o.leading) + " is not a multiple of the swizzle atom");
  }
}

class Ranges {
 public:
  // 16 bytes, joined to the last range if they touch it.
  void add(uint32_t address) {
    const std::byte* p = shared_pointer(address);
    if (!list_.empty()) {
      SharedRange& last = list_.back();
      const std::byte* begin = static_cast<const std::byte*>(last.begin);
      if (p == begin + last.bytes) return void(last.bytes += 16);
      if (p + 16 == begin) return void(last = {p, last.bytes + 16});
    }
    list_.push_back({p, 16});
  }
  std::span<const SharedRange> list() const { return list_; }

 private:
  std::vector<SharedRange> list_;
};

// --- operations -------------------------------------------------------------------------------------------------------------------------

// Accumulator registers of the group that operations in flight will write: the values so far, [64][n].
struct Accumulator {
  void* registers[kThreads];
  int n;
  bool s8;
  int in_flight = 0;
  std::vector<uint32_t> values;

  // f(register, value) of every register of every thread; both as bits, for the registers are float or int.
  template <typename F>
  void each(F f) {
    for (int thread = 0; thread < kThreads; ++thread) {
      const int g = thread % 32 / 4, t = thread % 4, row = thread / 32 * 16 + g;
      for (int j = 0; j < n / 8; ++j) {
        std::byte* memory = static_cast<std::byte*>(registers[thread]) + 16 * j;
        uint32_t r[4];
        std::memcpy(r, memory, 16);
        uint32_t* at = values.data() + row * n + 8 * j + 2 * t;
        f(r[0], at[0]), f(r[1], at[1]), f(r[2], at[8 * n]), f(r[3], at[8 * n + 1]);
        std::memcpy(memory, r, 16);
      }
    }
  }
};

// Of a warpgroup, while its block lives.
struct Registers {
  bool fenced = false;  // since the last commit
  std::vector<std::shared_ptr<Accumulator>> in_flight;
};

Registers& registers_of(Thread& t) {
  std::shared_ptr<void>& slot = t.block->wgmma[t.index / kThreads].registers;
  if (!slot) slot = std::make_shared<Registers>();
  return *static_cast<Registers*>(slot.get());
}

struct Call {
  void* d;
  int n;
  bool s8;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
  bool accumulate, b_transposed;
  Where where;
};

struct Operation {
  std::shared_ptr<Accumulator> d;
  Registers* registers;
  const std::byte* smem;  // address 0 of the block's shared memory
  bool a_in_registers, accumulate, b_transposed;
  Operand a, b;
  std::vector<uint32_t> a_words;  // [128][4]
  Where where;

  void read_a(double* a_out, float* a_s8) const;
  void read_b(double* b_out, float* b_s8) const;
  void run();
};

double bf16_at(const std::byte* p, int i) {
  uint16_t bits;
  std::memcpy(&bits, p + 2 * i, 2);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
float s8_at(const std::byte* p, int i) { return static_cast<float>(static_cast<int8_t>(p[i])); }

// As [64][16] or [64][32].
void Operation::read_a(double* a_out, float* a_s8) const {
  for (int row = 0; row < kRows; ++row) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      std::byte bytes[16];
      if (a_in_registers) {
        // Register j of lane (g, t): row g + 8 (j % 2), bytes 4 t .. of chunk j / 2.
        const int first = row / 16 * 32 + row % 8 * 4, j = (row % 16) / 8 + 2 * chunk;
        for (int t = 0; t < 4; ++t) std::memcpy(bytes + 4 * t, &a_words[(first + t) * 4 + j], 4);
      } else {
        std::memcpy(bytes, smem + k_major(a, row, chunk), 16);
      }
      if (d->s8) {
        for (int i = 0; i < 16; ++i) a_s8[row * 32 + chunk * 16 + i] = s8_at(bytes, i);
      } else {
        for (int i = 0; i < 8; ++i) a_out[row * 16 + chunk * 8 + i] = bf16_at(bytes, i);
      }
    }
  }
}

// As [n / 8][16][8] or [n / 8][32][8].
void Operation::read_b(double* b_out, float* b_s8) const {
  const int n = d->n;
  if (b_transposed) {
    for (int k = 0; k < 16; ++k) {
      for (int chunk = 0; chunk < n / 8; ++chunk) {
        const std::byte* p = smem + n_major(b, k, chunk);
        for (int i = 0; i < 8; ++i) b_out[(chunk * 16 + k) * 8 + i] = bf16_at(p, i);
      }
    }
    return;
  }
  for (int column = 0; column < n; ++column) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      const std::byte* p = smem + k_major(b, column, chunk);
      if (d->s8) {
        for (int i = 0; i < 16; ++i) b_s8[(column / 8 * 32 + chunk * 16 + i) * 8 + column % 8] = s8_at(p, i);
      } else {
        for (int i = 0; i < 8; ++i) b_out[(column / 8 * 16 + chunk * 8 + i) * 8 + column % 8] = bf16_at(p, i);
      }
    }
  }
}

void Operation::run() {
  static thread_local double a_values[kRows * 16], b_values[16 * kMostColumns];
  static thread_local float a_s8[kRows * 32], b_s8[32 * kMostColumns];
  read_a(a_values, a_s8);
  read_b(b_values, b_s8);
  if (!accumulate) std::fill(d->values.begin(), d->values.end(), 0u);
  // uint32_t words hold the bits of int32_t, and of float through memory of its own.
  if (d->s8) {
    multiply_s8(reinterpret_cast<int32_t*>(d->values.data()), a_s8, b_s8, kRows, d->n, 32);
  } else {
    static thread_local float sums[kRows * kMostColumns];
    std::memcpy(sums, d->values.data(), d->values.size() * 4);
    multiply_bf16(sums, a_values, b_values, kRows, d->n, 16);
    std::memcpy(d->values.data(), sums, d->values.size() * 4);
  }
  if (--d->in_flight > 0) return;
  bool touched = false;
  d->each([&](uint32_t& r, uint32_t& value) { touched |= std::exchange(r, value) != kPoison; });
  std::erase(registers->in_flight, d);
  if (touched) {
    fail(where, "wgmma: an accumulator register was written while an operation that writes it was in flight (before wgmma_wait)");
  }
}

void issue(void* const (&lanes)[kThreads]) {
  const Call& call = *static_cast<const Call*>(lanes[0]);
  for (int i = 1; i < kThreads; ++i) {
    const Call& other = *static_cast<const Call*>(lanes[i]);
    if (other.n != call.n || other.a_descriptor != call.a_descriptor || other.b_descriptor != call.b_descriptor ||
        other.accumulate != call.accumulate || other.b_transposed != call.b_transposed) {
      fail(call.where, "wgmma: threads 0 and " + std::to_string(i) + " of the warpgroup differ in shape, descriptors or `accumulate`");
    }
  }
  Registers& registers = registers_of(self("wgmma"));
  if (!registers.fenced) fail(call.where, "wgmma without wgmma_fence since the last wgmma_commit");

  std::shared_ptr<Accumulator> d;
  for (const auto& other : registers.in_flight) {
    if (other->registers[0] == call.d) d = other;
  }
  if (d && (d->n != call.n || d->s8 != call.s8)) {
    fail(call.where, "wgmma: the accumulator is in flight with another shape; wait for it first");
  }
  if (!d) {
    d = std::make_shared<Accumulator>();
    d->n = call.n;
    d->s8 = call.s8;
    d->values.resize(static_cast<size_t>(kRows) * call.n);
    for (int i = 0; i < kThreads; ++i) d->registers[i] = static_cast<const Call*>(lanes[i])->d;
    d->each([&](uint32_t& r, uint32_t& value) {
      if (call.accumulate) value = r;
      r = kPoison;
    });
    registers.in_flight.push_back(d);
  }
  ++d->in_flight;

  auto operation = std::make_shared<Operation>();
  operation->d = d;
  operation->registers = &registers;
  operation->smem = shared_pointer(0);
  operation->a_in_registers = call.a != nullptr;
  operation->accumulate = call.accumulate;
  operation->b_transposed = call.b_transposed;
  operation->where = call.where;
  Ranges ranges;
  if (call.a) {
    operation->a_words.resize(kThreads * 4);
    for (int i = 0; i < kThreads; ++i) std::memcpy(&operation->a_words[i * 4], static_cast<const Call*>(lanes[i])->a, 16);
  } else {
    operation->a = decode(call.a_descriptor);
    check_operand("A", call.a_descriptor, operation->a, false, kRows, call.where);
    for (int row = 0; row < kRows; ++row) {
      for (int chunk = 0; chunk < 2; ++chunk) ranges.add(k_major(operation->a, row, chunk));
    }
  }
  operation->b = decode(call.b_descriptor);
  check_operand("B", call.b_descriptor, operation->b, call.b_transposed, call.n, call.where);
  if (call.b_transposed) {
    for (int k = 0; k < 16; ++k) {
      for (int chunk = 0; chunk < call.n / 8; ++chunk) ranges.add(n_major(operation->b, k, chunk));
    }
  } else {
    for (int column = 0; column < call.n; ++column) {
      for (int chunk = 0; chunk < 2; ++chunk) ranges.add(k_major(operation->b, column, chunk));
    }
  }
  ++statistics().wgmma_instructions;
  issue_wgmma(ranges.list(), [operation] { operation->run(); }, call.where);
}

}  // namespace

uint32_t shared_address(const void* p) { return shared_offset(p, Where::here()); }

void wgmma(void* d, int n, bool s8, const uint32_t* a_registers, uint64_t a_descriptor, uint64_t b_descriptor, bool accumulate,
           bool b_transposed, Where where) {
  Call call = {d, n, s8, a_registers, a_descriptor, b_descriptor, accumulate, b_transposed, where};
  warpgroup_collective(s8 ? "wgmma_s8" : "wgmma_bf16", where, &call, issue);
}

void wgmma_fence(Where where) {
  warpgroup_collective("wgmma_fence", where, nullptr, [](void* const(&)[kThreads]) { registers_of(self("wgmma_fence")).fenced = true; });
}

void wgmma_commit(Where where) {
  warpgroup_collective("wgmma_commit", where, nullptr, [](void* const(&)[kThreads]) {
    registers_of(self("wgmma_commit")).fenced = false;
    commit_wgmma();
  });
}

void wgmma_wait(int pending, Where where) {
  warpgroup_collective("wgmma_wait", where, &pending,
                       [](void* const(&lanes)[kThreads]) { complete_wgmma(*static_cast<const int*>(lanes[0])); });
}

}  // namespace lapidary::emulator
