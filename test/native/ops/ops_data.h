// Data for tests of the operations: seeded numbers, tensors that own their memory, weights of every storage kind.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/float16.h"
#include "ops/ops.h"
#include "tensor/blocks.h"

namespace lapidary::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float symmetric() { return static_cast<float>(bits()) * 0x1p-31f - 1.0f; }  // [-1, 1)
  float bell() { return symmetric() + symmetric() + symmetric(); }

 private:
  uint64_t state_;
};

// A host tensor with its memory, `misaligned` bytes after a 64-byte boundary.
struct Owned {
  Buffer buffer;
  Tensor t;

  Owned(DType dtype, std::initializer_list<int64_t> dims, int misaligned = 0) {
    t = Tensor(nullptr, dtype, dims);
    buffer = allocate_host(static_cast<size_t>(t.bytes() + misaligned));
    t.data = buffer.memory.get() + misaligned;
    std::memset(t.data, 0xff, static_cast<size_t>(t.bytes()));  // NaN in every float format: what is not written shows
  }
};

inline std::vector<uint8_t> bits_of(const Tensor& t) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(t.data);
  return std::vector<uint8_t>(p, p + t.bytes());
}

inline std::vector<float> values_of(const Tensor& t) {
  std::vector<float> v(static_cast<size_t>(t.elements()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = t.dtype == DType::bf16 ? to_f32(t.as<bf16>()[i]) : t.as<float>()[i];
  return v;
}

inline void set_value(const Tensor& t, int64_t i, float value) {
  if (t.dtype == DType::bf16) {
    const bf16 rounded = to_bf16(value);
    std::memcpy(t.data + 2 * i, &rounded, 2);
  } else {
    std::memcpy(t.data + 4 * i, &value, 4);
  }
}

// Bell-shaped numbers, f32 or bf16, with outliers, subnormals and -0 among them.
inline Owned activations(DType dtype, std::initializer_list<int64_t> dims, uint64_t seed) {
  Owned a(dtype, dims);
  Random random(seed);
  for (int64_t i = 0; i < a.t.elements(); ++i) {
    float x = random.bell();
    const uint32_t kind = random.bits() % 64;
    if (kind == 0) x *= 300;
    if (kind == 1) x = -0.0f;
    if (kind == 2) x *= 1e-39f;
    set_value(a.t, i, x);
  }
  return a;
}

// A weight of any kind that `linear` takes, at an odd address.
inline Owned weights(DType dtype, int64_t out, int64_t in, uint64_t seed) {
  Owned w(dtype, {out, in}, 1);
  Random random(seed);
  if (!is_block_type(dtype)) {
    for (int64_t i = 0; i < out * in; ++i) {
      const float x = 0.3f * random.bell();
      if (dtype == DType::f16) {
        const uint16_t half = static_cast<uint16_t>((random.bits() & 0x8000u) | (random.bits() % 0x3c00u));  // below 1, subnormals too
        std::memcpy(w.t.data + 2 * i, &half, 2);
      } else {
        set_value(w.t, i, x);
      }
    }
    return w;
  }
  // Where a block's f16 scales stand; everything else may be any bytes.
  const std::vector<int> scales = dtype == DType::q2_k                                                   ? std::vector<int>{80, 82}
                                  : dtype == DType::q3_k                                                 ? std::vector<int>{108}
                                  : dtype == DType::q6_k                                                 ? std::vector<int>{208}
                                  : dtype == DType::q8_0 || dtype == DType::q4_0 || dtype == DType::q5_0 ? std::vector<int>{0}
                                                                                                         : std::vector<int>{0, 2};
  const int64_t block_bytes = dtype_info(dtype).block_bytes;
  for (int64_t at = 0; at < w.t.bytes(); at += block_bytes) {
    for (int64_t i = 0; i < block_bytes; ++i) w.t.data[at + i] = static_cast<std::byte>(random.bits() >> 8);
    for (int offset : scales) {
      const uint16_t half = static_cast<uint16_t>((random.bits() & 0x8000u) | 0x2000u | (random.bits() & 0x7ffu));  // 2^-7 .. 2^-5
      std::memcpy(w.t.data + at + offset, &half, 2);
    }
  }
  return w;
}

// Any int8, at an odd address; -128, which the int8 rule never gives, among them.
inline Owned int8_numbers(std::initializer_list<int64_t> dims, uint64_t seed) {
  Owned q(DType::i8, dims, 1);
  Random random(seed);
  for (int64_t i = 0; i < q.t.elements(); ++i) q.t.as<int8_t>()[i] = static_cast<int8_t>(random.bits() >> 8);
  return q;
}

struct Int8Weight {
  Owned q, scale;
  Linear linear;
};

inline Int8Weight int8_weight(int64_t out, int64_t in, uint64_t seed) {
  Int8Weight w{int8_numbers({out, in}, seed), Owned(DType::f32, {out}), {}};
  Random random(seed + 1);
  for (int64_t n = 0; n < out; ++n) w.scale.t.as<float>()[n] = 0.001f + 0.01f * std::abs(random.symmetric());
  w.linear = {w.q.t, nullptr, w.scale.t};
  return w;
}

inline std::vector<std::string> instruction_sets(const std::string& spaced) {
  std::vector<std::string> names(1);
  for (char c : spaced) c == ' ' ? names.emplace_back() : (names.back() += c, names.back());
  return names;
}

// LAPIDARY_CPU for as long as this lives.
class ForcedCpu {
 public:
  explicit ForcedCpu(const std::string& name) {
    if (const char* before = std::getenv("LAPIDARY_CPU")) before_ = before;
    setenv("LAPIDARY_CPU", name.c_str(), 1);
  }
  ~ForcedCpu() { before_.empty() ? unsetenv("LAPIDARY_CPU") : setenv("LAPIDARY_CPU", before_.c_str(), 1); }
  ForcedCpu(const ForcedCpu&) = delete;
  ForcedCpu& operator=(const ForcedCpu&) = delete;

 private:
  std::string before_;
};

// One backend per instruction set of this machine and thread count, the first being the fastest set with one thread.
struct NamedBackend {
  std::string label;
  std::unique_ptr<Backend> backend;
};
std::vector<NamedBackend> cpu_backends();

// A conversation's keys and values run through append_kv and attention in chunks, for one layer.
struct AttentionProblem {
  int64_t heads = 1, kv_heads = 1, dim = 32, tokens = 1;
  int64_t window = kNoWindow;
  float softcap = 0;
  DType kv = DType::f32, out = DType::f32;
  uint64_t seed = 1;

  AttentionShape shape() const { return {heads, kv_heads, dim, 1.0f / std::sqrt(static_cast<float>(dim)), softcap, window}; }
};

// The output of all tokens, [tokens, heads * dim], with pages in a ring just large enough for the largest chunk (all pages if `ring` is
// false). Page memory that is never written holds NaN.
Owned attend_in_chunks(Backend& backend, const AttentionProblem& problem, const std::vector<int64_t>& chunks, bool ring);

}  // namespace lapidary::test
