// What the simd/*.h headers share: compiler words and the constants of exp's range reduction.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define LAPIDARY_TARGET(features) __attribute__((target(features)))  // one function more than its file's flags allow
#define LAPIDARY_INLINE inline __attribute__((always_inline))
#define LAPIDARY_NOINLINE __attribute__((noinline))
#define LAPIDARY_PREFETCH(p) __builtin_prefetch(p, 0, 2)       // into the second-level cache
#define LAPIDARY_PREFETCH_NEAR(p) __builtin_prefetch(p, 0, 3)  // into the first
#else
#define LAPIDARY_TARGET(features)
#define LAPIDARY_INLINE inline
#define LAPIDARY_NOINLINE
#define LAPIDARY_PREFETCH(p)
#define LAPIDARY_PREFETCH_NEAR(p)
#endif
#if defined(__clang__)
#define LAPIDARY_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LAPIDARY_UNROLL _Pragma("GCC unroll 16")
#else
#define LAPIDARY_UNROLL
#endif

namespace lapidary::cpu {

// 1.5 * 2^23: adding it rounds a small f32 to an integer, which then stands in the low bits.
inline constexpr float kRoundingMagic = 12582912.0f;
inline constexpr int32_t kRoundingMagicBits = 0x4b400000;

}  // namespace lapidary::cpu
