// The emulator finds misuse of asynchronous copies, mbarriers, clusters and dependent launches, and lets the correct twins pass, in every
// mode.
#include "cuda/emulator_kernels.h"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/barrier.cuh"
#include "cuda/primitives/bulk_copy.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::test {

using namespace cuda;
using emulator::AsyncMode;

namespace {

float* floats(std::byte* smem) { return reinterpret_cast<float*>(smem); }

// A pipeline of three stages of 64 x 16 bytes: every thread copies 16 bytes per step and reads its neighbour's. n chooses what is wrong:
// 0 nothing, 1 no wait, 2 a wait that leaves the needed group pending, 3 no barrier after the wait, 4 no barrier before a stage is filled
// again.
struct CopyPipeline {
  void operator()(const Args& p, std::byte* smem) const {
    constexpr int kStages = 3, kSteps = 8;
    auto* const stages = reinterpret_cast<F32x4*>(smem);
    const int i = thread_index();
    const auto load = [&](int step) {
      if (step < kSteps) copy_async_16(stages + step % kStages * 64 + i, p.in + (step * 64 + i) * 4);
      copy_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) load(step);
    float sum = 0;
    for (int step = 0; step < kSteps; ++step) {
      if (p.n == 2) copy_async_wait<kStages - 1>();
      if (p.n != 1 && p.n != 2) copy_async_wait<kStages - 2>();
      if (p.n != 3) sync_threads();
      const F32x4 v = load_shared(stages + step % kStages * 64 + (i + 1) % 64);
      sum += v[0] + v[1] + v[2] + v[3];
      if (p.n == 4) load(step + kStages);
      if (p.n != 4) load(step + kStages - 1);
    }
    copy_async_wait<0>();
    store_global(p.out + i, sum);
  }
};

std::vector<float> pipeline_sums() {
  std::vector<float> want(64);
  for (int i = 0; i < 64; ++i) {
    for (int step = 0; step < 8; ++step) {
      for (int k = 0; k < 4; ++k) want[i] += static_cast<float>((step * 64 + (i + 1) % 64) * 4 + k);
    }
  }
  return want;
}

}  // namespace

// --- cp.async ---------------------------------------------------------------------------------------------------------------------------

TEST("emulator: a cp.async pipeline, and what can be wrong with it") {
  const DeviceArray<float> in(counting(8 * 64 * 4)), out(size_t{64});
  each_mode([&] {
    CHECK_CLEAN(run(CopyPipeline{}, {in.get(), out.get(), 0}));
    CHECK(out.download() == pipeline_sums());
    for (const int wrong : {1, 2}) CHECK_FINDS(run(CopyPipeline{}, {in.get(), out.get(), wrong}), "missing wait");
    for (const int wrong : {3, 4}) CHECK_MSG(!run(CopyPipeline{}, {in.get(), out.get(), wrong}).ok(), "variant " << wrong << " passes");
  });
}

TEST("emulator: without its checks a missing wait still shows as a difference between eager and lazy copies") {
  const DeviceArray<float> in(counting(8 * 64 * 4)), out(size_t{64});
  const auto sums = [&](AsyncMode mode, int wrong) {
    emulator::set_checks(emulator::Checks::bounds);
    emulator::set_async_mode(mode);
    const cuda::Status s = run(CopyPipeline{}, {in.get(), out.get(), wrong});
    emulator::set_async_mode(AsyncMode::eager);
    emulator::set_checks(emulator::Checks::full);
    CHECK_CLEAN(s);
    return out.download();
  };
  CHECK(sums(AsyncMode::eager, 0) == pipeline_sums());
  CHECK(sums(AsyncMode::lazy, 0) == pipeline_sums());
  CHECK(sums(AsyncMode::eager, 2) == pipeline_sums());
  CHECK(sums(AsyncMode::lazy, 2) != pipeline_sums());
}

TEST("emulator: cp.async is checked") {
  const DeviceArray<float> in(counting(8));
  const auto copy = [](const Args& p, std::byte* smem) {
    if (thread_index() != 0) return;
    copy_async_16(smem + p.n % 100, p.in + p.n / 100, p.counter == nullptr);
    copy_async_commit();
    if (p.out == nullptr) copy_async_wait<0>();
  };
  float* const no_wait = in.get();
  int* const invalid = reinterpret_cast<int*>(in.get());
  each_mode([&] {
    CHECK_CLEAN(run(copy, {in.get(), nullptr, 400}));
    CHECK_FINDS(run(copy, {in.get(), nullptr, 8}), "shared memory of 16 bytes is not aligned");
    CHECK_FINDS(run(copy, {in.get(), nullptr, 200}), "global memory of 16 bytes is not aligned");
    CHECK_FINDS(run(copy, {in.get(), nullptr, 800}), "out of bounds");
    CHECK_FINDS(run(copy, {in.get(), no_wait, 0}), "missing wait: the thread ends with 1 copy_async in flight");
    CHECK_CLEAN(run(copy, {in.get(), nullptr, 800, invalid}));  // zeros are written, the source is not read
  });
  const DeviceArray<float> out(std::vector<float>(4, 7.0f));
  CHECK_CLEAN(run(
      [](const Args& p, std::byte* smem) {
        if (thread_index() != 0) return;
        copy_async_16(smem, p.in, false);
        copy_async_commit();
        copy_async_wait<0>();
        store_global(reinterpret_cast<F32x4*>(p.out), load_shared(reinterpret_cast<F32x4*>(smem)));
      },
      {in.get(), out.get()}));
  CHECK(out.download() == std::vector<float>(4, 0.0f));
}

// --- mbarriers and bulk loads -----------------------------------------------------------------------------------------------------------

namespace {

// Warp 0 fills stages of 512 bytes by bulk loads, warps 1 and 2 read them. n: 0 correct, 1 the consumers' parity is wrong, 2 no wait for
// "empty", 3 arrival for "empty" without the warp's other lanes having read, 4 too few bytes expected, 5 no fence after the initialisation,
// 6 no barrier after it, 7 the last stage is never waited for.
struct BulkPipeline {
  static constexpr int kStages = 3, kSteps = 10, kStageFloats = 128;
  void operator()(const Args& p, std::byte* smem) const {
    auto* const full = reinterpret_cast<Barrier*>(smem);
    Barrier* const empty = full + kStages;
    float* const stages = floats(smem + 128);
    if (thread_index() == 0) {
      for (int s = 0; s < kStages; ++s) {
        barrier_init(full + s, 1);
        barrier_init(empty + s, 2);
      }
      if (p.n != 5) fence_barrier_init();
    }
    if (p.n != 6) sync_threads();
    if (warp() == 0) {
      if (!elect_one()) return;
      for (int step = 0; step < kSteps; ++step) {
        const int s = step % kStages;
        if (p.n != 2) barrier_wait(empty + s, (step / kStages + 1) % 2);
        barrier_arrive_expect(full + s, p.n == 4 ? 256 : 512);
        bulk_load(stages + s * kStageFloats, p.in + step * kStageFloats, 512, full + s);
      }
      return;
    }
    const int i = thread_index() - 32;
    float sum = 0;
    for (int step = 0; step < kSteps - (p.n == 7); ++step) {
      const int s = step % kStages;
      barrier_wait(full + s, (step / kStages + (p.n == 1)) % 2);
      sum += load_shared(stages + s * kStageFloats + i) + load_shared(stages + s * kStageFloats + 64 + i);
      if (p.n != 3) sync_warp();
      if (elect_one()) barrier_arrive(empty + s);
    }
    store_global(p.out + i, sum);
  }
};

}  // namespace

TEST("emulator: a pipeline of bulk loads and mbarriers, and what can be wrong with it") {
  const DeviceArray<float> in(counting(BulkPipeline::kSteps * BulkPipeline::kStageFloats)), out(size_t{64});
  std::vector<float> want(64);
  for (int i = 0; i < 64; ++i) {
    for (int step = 0; step < BulkPipeline::kSteps; ++step) want[i] += static_cast<float>(2 * (step * 128 + i) + 64);
  }
  each_mode([&] {
    const auto result = [&](int n) { return run<96, Needs::sm90>(BulkPipeline{}, {in.get(), out.get(), n}); };
    CHECK_CLEAN(result(0));
    CHECK(out.download() == want);
    for (int wrong = 1; wrong <= 7; ++wrong) CHECK_MSG(!result(wrong).ok(), "variant " << wrong << " passes");
  });
  const auto result = [&](int n) { return run<96, Needs::sm90>(BulkPipeline{}, {in.get(), out.get(), n}); };
  for (const AsyncMode mode : {AsyncMode::eager, AsyncMode::lazy}) {
    emulator::set_async_mode(mode);
    CHECK_MSG(text(result(1)).find("uninitialised") != std::string::npos || text(result(1)).find("missing wait") != std::string::npos ||
                  text(result(1)).find("race") != std::string::npos,
              text(result(1)));
    CHECK_FINDS(result(4), "deadlock");
    CHECK_FINDS(result(5), "without fence_barrier_init");
  }
  emulator::set_async_mode(AsyncMode::eager);
  CHECK_FINDS(result(2), "race: a write of byte");
  CHECK_FINDS(result(3), "race: a write of byte");
  CHECK_FINDS(result(6), "mbarrier");
  emulator::set_async_mode(AsyncMode::lazy);
  CHECK_FINDS(result(7), "missing wait: the block ends with bulk loads in flight");
  emulator::set_async_mode(AsyncMode::eager);
}

TEST("emulator: mbarriers are checked") {
  const auto result = [](int n) {
    return run<32, Needs::sm90>(
        [](const Args& p, std::byte* smem) {
          auto* const b = reinterpret_cast<Barrier*>(smem);
          if (p.n == 0) barrier_arrive(b);
          if (lane() == 0) barrier_init(b, p.n == 1 ? 16 : 32);
          if (p.n == 2 && lane() == 0) barrier_init(b, 32);
          fence_barrier_init();
          sync_threads();
          if (p.n == 3) (void)load_shared(smem);
          if (p.n == 4) store_shared(smem + 4, std::byte{});
          if (p.n == 5) barrier_arrive(reinterpret_cast<Barrier*>(smem + 8));
          if (p.n == 6) barrier_arrive(reinterpret_cast<Barrier*>(smem + 4));
          if (p.n == 7 && lane() == 0) barrier_arrive_expect(b, -1);
          if (p.n == 8 && lane() == 0) barrier_arrive_expect(b, 1 << 20);
          barrier_arrive(b);
          barrier_wait(b, 0);
          if (p.n == 9) barrier_wait(b, 2);
          if (p.n == 10) barrier_wait(b, 0);  // complete already
          if (p.n == 11) barrier_wait(b, 1);  // never completes
        },
        {nullptr, nullptr, n});
  };
  CHECK_FINDS(result(0), "has not been initialised");
  CHECK_FINDS(result(1), "completes a phase before a thread that waited for the one before has gone on");
  CHECK_FINDS(result(2), "initialised twice");
  CHECK_FINDS(result(3), "belongs to an mbarrier");
  CHECK_FINDS(result(4), "belongs to an mbarrier");
  CHECK_FINDS(result(5), "has not been initialised");
  CHECK_FINDS(result(6), "not aligned to 8");
  CHECK_FINDS(result(7), "expects");
  CHECK_FINDS(result(8), "expects");
  CHECK_FINDS(result(9), "parity 2");
  CHECK_CLEAN(result(10));
  CHECK_FINDS(result(11), "deadlock: threads 0..31 of block (0, 0, 0) wait for the mbarrier at offset 0 at cuda/emulator_async_test.cc:");
}

TEST("emulator: more arrivals than a phase takes") {
  // The phase cannot complete, since its bytes do not come.
  CHECK_FINDS((run<32, Needs::sm90>([](const Args&, std::byte* smem) {
                auto* const b = reinterpret_cast<Barrier*>(smem);
                if (lane() != 0) return;
                barrier_init(b, 1);
                barrier_arrive_expect(b, 16);
                barrier_arrive(b);
              })),
              "more than its 1 arrivals");
}

TEST("emulator: bytes that threads wrote need a proxy fence before a bulk load overwrites them") {
  const DeviceArray<float> in(counting(32));
  const auto body = [](const Args& p, std::byte* smem) {
    auto* const b = reinterpret_cast<Barrier*>(smem);
    store_shared(floats(smem + 128) + lane(), 1.0f);
    if (lane() == 0) {
      barrier_init(b, 1);
      fence_barrier_init();
    }
    if (p.n == 0) fence_proxy_async();
    sync_threads();
    if (lane() == 0) {
      if (p.n == 1) fence_proxy_async();
      barrier_arrive_expect(b, 128);
      bulk_load(smem + 128, p.in, 128, b);
    }
    barrier_wait(b, 0);
    (void)load_shared(floats(smem + 128) + lane());
  };
  each_mode([&] {
    CHECK_CLEAN((run<32, Needs::sm90>(body, {in.get(), nullptr, 0})));
    CHECK_CLEAN((run<32, Needs::sm90>(body, {in.get(), nullptr, 1})));
    CHECK_FINDS((run<32, Needs::sm90>(body, {in.get(), nullptr, 2})), "missing proxy fence");
  });
}

// --- clusters ---------------------------------------------------------------------------------------------------------------------------

namespace {

// Every block adds up the values of all blocks of its cluster. n: 0 correct, 1 no barrier before reading, 2 none after it, 3 neither arrive
// nor wait, 4 wait without arrive.
struct ClusterSum {
  void operator()(const Args& p, std::byte* smem) const {
    const int i = thread_index();
    store_shared(floats(smem) + i, static_cast<float>(block_x() * 1000 + i));
    if (p.n == 4) cluster_wait();
    if (p.n == 0 || p.n == 2) cluster_sync();
    float sum = 0;
    for (int rank = 0; rank < cluster_size(); ++rank) sum += load_remote(floats(smem) + i, rank);
    if (p.n != 2 && p.n != 3) cluster_sync();
    store_global(p.out + block_x() * 64 + i, sum);
  }
};

}  // namespace

TEST("emulator: a cluster reads each other's shared memory") {
  each_mode([] {
    const DeviceArray<float> out(size_t{8 * 64});
    const auto result = [&](int n) { return run<64, Needs::sm90>(ClusterSum{}, {nullptr, out.get(), n}, {8, 4}); };
    CHECK_CLEAN(result(0));
    std::vector<float> want(8 * 64);
    for (int b = 0; b < 8; ++b) {
      for (int i = 0; i < 64; ++i) want[b * 64 + i] = static_cast<float>(b / 4 * 16000 + 6000 + 4 * i);
    }
    CHECK(out.download() == want);
    CHECK_FINDS(result(1), "before a barrier of the cluster");
    CHECK_FINDS(result(3), "before a barrier of the cluster");
    CHECK_FINDS(result(4), "cluster_wait without cluster_arrive");
  });
}

TEST("emulator: a block that ends takes its shared memory with it") {
  each_mode([] {
    const auto result = [](int n) {
      return run<32, Needs::sm90>(
          [](const Args& p, std::byte* smem) {
            store_shared(floats(smem) + lane(), 1.0f);
            cluster_sync();
            // Block 1 takes longer: its first read comes when block 0 has nothing left to do.
            if (cluster_rank() == 1) {
              for (int k = 0; k < 200; ++k) sync_warp();
              (void)load_remote(floats(smem) + lane(), 0);
            }
            if (p.n == 0) cluster_sync();
          },
          {nullptr, nullptr, n}, {2, 2});
    };
    CHECK_CLEAN(result(0));
    CHECK_FINDS(result(1), "has ended, its shared memory is gone");
  });
}

TEST("emulator: remote arrivals order what was written to another block") {
  const auto body = [](const Args& p, std::byte* smem) {
    auto* const b = reinterpret_cast<Barrier*>(smem);
    if (lane() == 0) {
      barrier_init(b, 32);
      fence_barrier_init();
    }
    cluster_sync();
    const int other = 1 - cluster_rank();
    store_remote(floats(smem + 64) + lane(), other, static_cast<float>(cluster_rank() * 100 + lane()));
    barrier_arrive_remote(b, other);
    if (p.n == 0) barrier_wait(b, 0);
    if (p.n == 1) cluster_sync();
    store_global(p.out + block_x() * 32 + lane(), load_shared(floats(smem + 64) + (lane() + 1) % 32));
    if (p.n != 1) cluster_sync();
  };
  each_mode([&] {
    const DeviceArray<float> out(size_t{64});
    for (const int n : {0, 1}) {
      CHECK_CLEAN((run<32, Needs::sm90>(body, {nullptr, out.get(), n}, {2, 2})));
      const std::vector<float> got = out.download();
      int wrong = 0;
      for (int i = 0; i < 64; ++i) wrong += got[i] != static_cast<float>((1 - i / 32) * 100 + (i % 32 + 1) % 32);
      CHECK_MSG(wrong == 0, wrong << " values are wrong");
    }
    CHECK(!(run<32, Needs::sm90>(body, {nullptr, out.get(), 2}, {2, 2}).ok()));
  });
}

// --- dependent launches -----------------------------------------------------------------------------------------------------------------

TEST("emulator: a dependent launch waits before it touches what the launch before it writes") {
  const DeviceArray<float> a(counting(64)), b(size_t{64}), weights(counting(64));
  const auto produce = [](const Args& p, std::byte*) { store_global(p.out + thread_index(), load_global(p.in + thread_index())); };
  // n: 0 all threads wait, 1 one thread and a barrier, 2 nobody, 3 only constant data is read before, 4 one thread and no barrier.
  const auto consume = [](const Args& p, std::byte*) {
    if (p.n == 3) (void)load_global(reinterpret_cast<float*>(p.counter) + thread_index());
    if (p.n == 0 || p.n == 3) wait_for_previous_grids();
    if ((p.n == 1 || p.n == 4) && thread_index() == 0) wait_for_previous_grids();
    if (p.n == 1) sync_threads();
    (void)load_global(p.in + thread_index());
  };
  const auto result = [&](int n, bool dependent) {
    CHECK_CLEAN(run(produce, {a.get(), b.get()}));
    Shape shape;
    shape.dependent = dependent;
    return run<64, Needs::sm90>(consume, {b.get(), nullptr, n, reinterpret_cast<int*>(weights.get())}, shape);
  };
  each_mode([&] {
    for (const int right : {0, 1, 3}) CHECK_CLEAN(result(right, true));
    for (const int wrong : {2, 4}) CHECK_FINDS(result(wrong, true), "has not waited for it");
    CHECK_CLEAN(result(2, false));
  });
  Shape dependent;
  dependent.dependent = true;
  CHECK_FINDS((run<64, Needs::sm90>(produce, {a.get(), b.get()}, dependent)), "writes global memory before it waits");
}

}  // namespace lapidary::test
