// For the emulator's own tests: small kernels written as lambdas, and what is expected of their launches.
#pragma once

#include <string>

#include "cuda/primitives/launch.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/support.h"
#include "emulator/control.h"

namespace lapidary::test {

// The parameters of all of them.
struct Args {
  float* in = nullptr;
  float* out = nullptr;
  int n = 0;
  int* counter = nullptr;
};

struct Shape {
  int blocks = 1, cluster = 1;
  size_t smem_bytes = 4096;
  bool dependent = false;
};

// `Body` is a lambda without captures: (const Args&, std::byte* smem).
template <class Body, int kThreadCount, cuda::Needs kNeedsOfDevice>
struct LambdaKernel {
  using Params = Args;
  static constexpr const char* kName = "test_kernel";
  static constexpr cuda::Needs kNeeds = kNeedsOfDevice;
  static constexpr int kThreads = kThreadCount, kBlocksPerSm = 1;
  static void run(const Args& p, std::byte* smem) { Body{}(p, smem); }
};

template <int kThreads = 64, cuda::Needs kNeeds = cuda::Needs::sm80, class Body>
cuda::Status run(Body, const Args& args = {}, const Shape& shape = {}) {
  cuda::LaunchContext c = context();
  c.dependent = shape.dependent;
  return cuda::launch<LambdaKernel<Body, kThreads, kNeeds>>({shape.blocks, 1, 1, shape.cluster, shape.smem_bytes}, args, c);
}

inline std::string text(const cuda::Status& s) { return s.ok() ? "nothing found" : s.what; }

// The launch ends with a finding that has this text in it.
#define CHECK_FINDS(status, part)                                                                                  \
  do {                                                                                                             \
    const ::lapidary::cuda::Status s_ = (status);                                                                  \
    CHECK_MSG(!s_.ok() && ::lapidary::test::text(s_).find(part) != std::string::npos, ::lapidary::test::text(s_)); \
  } while (0)
#define CHECK_CLEAN(status)                         \
  do {                                              \
    const ::lapidary::cuda::Status s_ = (status);   \
    CHECK_MSG(s_.ok(), ::lapidary::test::text(s_)); \
  } while (0)

inline std::vector<float> counting(size_t n) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i);
  return v;
}

}  // namespace lapidary::test
