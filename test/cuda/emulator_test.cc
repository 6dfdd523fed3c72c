// The emulator finds what it is there to find in kernels of threads, warps and barriers, and lets their correct twins pass, in every mode.
#include "cuda/emulator_kernels.h"

namespace lapidary::test {

using namespace cuda;

namespace {
float* floats(std::byte* smem) { return reinterpret_cast<float*>(smem); }
}  // namespace

// --- races and barriers -----------------------------------------------------------------------------------------------------------------

TEST("emulator: values pass through shared memory behind a barrier") {
  each_mode([] {
    const DeviceArray<float> in(counting(64)), out(size_t{64});
    CHECK_CLEAN(run(
        [](const Args& p, std::byte* smem) {
          const int i = thread_index();
          store_shared(floats(smem) + i, load_global(p.in + i));
          sync_threads();
          store_global(p.out + i, load_shared(floats(smem) + 63 - i));
        },
        {in.get(), out.get()}));
    const std::vector<float> got = out.download();
    for (int i = 0; i < 64; ++i) CHECK(got[i] == 63 - i);
  });
}

TEST("emulator: a missing barrier is found") {
  each_mode([] {
    const cuda::Status s = run([](const Args&, std::byte* smem) {
      const int i = thread_index();
      store_shared(floats(smem) + i, 1.0f);
      (void)load_shared(floats(smem) + 63 - i);
    });
    CHECK_MSG(text(s).find("race") != std::string::npos || text(s).find("uninitialised") != std::string::npos, text(s));
  });
}

TEST("emulator: a race names both threads, byte and places") {
  const cuda::Status s = run([](const Args&, std::byte* smem) {
    if (thread_index() < 2) store_shared(floats(smem) + 3, 1.0f);
  });
  CHECK_FINDS(s, "kernel test_kernel, block (0, 0, 0), thread 1 at cuda/emulator_test.cc:");
  CHECK_FINDS(s, "race: a write of byte 12 of shared memory is not ordered after the write by thread 0 at cuda/emulator_test.cc:");
}

TEST("emulator: overwriting what another thread may still read is a race") {
  const auto body = [](const Args& p, std::byte* smem) {
    const int i = thread_index();
    store_shared(floats(smem) + i, 1.0f);
    sync_threads();
    (void)load_shared(floats(smem) + (i + 1) % 64);
    if (p.n) sync_threads();
    store_shared(floats(smem) + i, 2.0f);
  };
  each_mode([&] {
    CHECK_CLEAN(run(body, {nullptr, nullptr, 1}));
    CHECK_FINDS(run(body, {nullptr, nullptr, 0}), "race: a");
  });
}

TEST("emulator: all readers count, not the last one alone") {
  // Thread 63 writes after a barrier with warp 1 only: the readers of warp 0 are not ordered before it, though warp 1's were the last.
  CHECK_FINDS(run<96>([](const Args&, std::byte* smem) {
                if (thread_index() == 64) store_shared(floats(smem), 1.0f);
                sync_threads();
                if (warp() == 0) (void)load_shared(floats(smem));
                if (warp() == 0) named_barrier_sync(2, 32);
                if (warp() == 1) (void)load_shared(floats(smem));
                if (warp() >= 1) named_barrier_sync(1, 64);
                if (thread_index() == 64) store_shared(floats(smem), 2.0f);
              }),
              "race: a write");
}

TEST("emulator: bytes of one word are told apart") {
  const auto body = [](const Args& p, std::byte* smem) {
    const int i = thread_index();
    auto* bytes = reinterpret_cast<int8_t*>(smem);
    store_shared(bytes + (p.n ? i / 2 : i), static_cast<int8_t>(i));
    sync_threads();
    if (i < 16) (void)load_shared(reinterpret_cast<int*>(smem) + i % (p.n ? 8 : 16));
  };
  each_mode([&] {
    CHECK_CLEAN(run(body, {nullptr, nullptr, 0}));
    CHECK_FINDS(run(body, {nullptr, nullptr, 1}), "race: a write");
  });
}

TEST("emulator: lanes of a warp need sync_warp, and a shuffle is none") {
  const auto body = [](const Args& p, std::byte* smem) {
    const int i = thread_index();
    store_shared(floats(smem) + i, 1.0f);
    if (p.n == 0) sync_warp();
    if (p.n == 1) (void)shuffle_xor(1, 1);
    (void)load_shared(floats(smem) + (p.n == 2 ? i ^ 32 : i ^ 1));
    if (p.n == 2) sync_warp();
  };
  each_mode([&] {
    CHECK_CLEAN(run(body, {nullptr, nullptr, 0}));
    for (const int wrong : {1, 2}) {
      const cuda::Status s = run(body, {nullptr, nullptr, wrong});
      CHECK_MSG(text(s).find("race") != std::string::npos || text(s).find("uninitialised") != std::string::npos, text(s));
    }
  });
}

TEST("emulator: sync_warp of one warp does not order another") {
  each_mode([] {
    const cuda::Status s = run([](const Args&, std::byte* smem) {
      const int i = thread_index();
      store_shared(floats(smem) + i, 1.0f);
      sync_warp();
      (void)load_shared(floats(smem) + (i ^ 32));
    });
    CHECK_MSG(text(s).find("race") != std::string::npos || text(s).find("uninitialised") != std::string::npos, text(s));
  });
}

TEST("emulator: named barriers pass data from producers to consumers and back") {
  // Warp 0 fills, warp 1 reads: "full" is barrier 1, "empty" barrier 2. n = 1: the producer does not wait for "empty".
  const auto body = [](const Args& p, std::byte* smem) {
    const int lane_index = lane();
    for (int round = 0; round < 5; ++round) {
      if (warp() == 0) {
        if (round > 0 && p.n != 1) named_barrier_sync(2, 64);
        store_shared(floats(smem) + lane_index, static_cast<float>(round * 32 + lane_index));
        named_barrier_arrive(1, 64);
      } else {
        named_barrier_sync(1, 64);
        store_global(p.out + round * 32 + lane_index, load_shared(floats(smem) + 31 - lane_index));
        if (round < 4 && p.n != 1) named_barrier_arrive(2, 64);
      }
    }
  };
  each_mode([&] {
    const DeviceArray<float> out(size_t{160});
    CHECK_CLEAN(run(body, {nullptr, out.get(), 0}));
    std::vector<float> want(160);
    for (int i = 0; i < 160; ++i) want[i] = static_cast<float>(i / 32 * 32 + 31 - i % 32);
    CHECK(out.download() == want);
    CHECK(!run(body, {nullptr, out.get(), 1}).ok());
  });
}

TEST("emulator: barriers with wrong counts") {
  CHECK_FINDS(run([](const Args&, std::byte*) { named_barrier_sync(1, 33); }), "whole warps");
  CHECK_FINDS(run([](const Args&, std::byte*) { named_barrier_sync(1, 128); }), "among 128 threads");
  CHECK_FINDS(run([](const Args&, std::byte*) { named_barrier_sync(16, 64); }), "barriers are 0..15");
  CHECK_FINDS(run<96>([](const Args&, std::byte*) { named_barrier_sync(1, warp() == 0 ? 96 : 64); }), "came to it among");
  CHECK_FINDS(run([](const Args&, std::byte*) {
                if (warp() == 0) {
                  named_barrier_arrive(1, 64);
                  named_barrier_arrive(1, 64);
                }
              }),
              "twice");
}

// --- divergence and deadlock ------------------------------------------------------------------------------------------------------------

// The kernels stand outside the macros, whose arguments all have the macro's line.
TEST("emulator: divergence at a warp collective") {
  const auto half = [](const Args&, std::byte*) {
    if (lane() < 16) (void)shuffle_xor(1, 1);
  };
  const auto two_places = [](const Args&, std::byte*) {
    if (lane() < 16) {
      (void)shuffle_xor(1, 1);
    } else {
      (void)shuffle_xor(1, 1);
    }
  };
  const auto early_end = [](const Args&, std::byte*) {
    if (lane() == 5) return;
    sync_warp();
  };
  each_mode([&] {
    CHECK_FINDS(run(half), "divergence");
    CHECK_FINDS(run(two_places), "divergence");
    CHECK_FINDS(run(early_end), "divergence");
  });
}

TEST("emulator: divergence at the block's barrier") {
  const auto early_end = [](const Args&, std::byte*) {
    if (thread_index() == 7) return;
    sync_threads();
  };
  const auto two_places = [](const Args&, std::byte*) {
    if (warp() == 0) {
      sync_threads();
    } else {
      sync_threads();
    }
  };
  each_mode([&] {
    CHECK_FINDS(run(early_end), "divergence");
    CHECK_FINDS(run(two_places), "divergence");
  });
}

TEST("emulator: a deadlock says who waits where") {
  each_mode([] {
    const cuda::Status s = run([](const Args&, std::byte*) {
      if (warp() == 0) {
        named_barrier_sync(1, 64);
      } else {
        named_barrier_sync(2, 64);
      }
    });
    CHECK_FINDS(s, "deadlock");
    CHECK_FINDS(s, "threads 0..31 of block (0, 0, 0) wait for barrier 1 at cuda/emulator_test.cc:");
    CHECK_FINDS(s, "threads 32..63 of block (0, 0, 0) wait for barrier 2 at cuda/emulator_test.cc:");
  });
}

TEST("emulator: blocks may wait for each other if they fit on the device") {
  // Every block waits until all have come.
  const auto body = [](const Args& p, std::byte*) {
    if (thread_index() == 0) {
      atomic_add_global(p.counter, 1);
      while (load_coherent(p.counter) < p.n) {
      }
    }
    sync_threads();
  };
  each_mode([&] {
    for (const int blocks : {1, 2, 37}) {
      const DeviceArray<int> counter(std::vector<int>{0});
      CHECK_CLEAN(run(body, {nullptr, nullptr, blocks, counter.get()}, {blocks}));
      CHECK(counter.download()[0] == blocks);
    }
  });
  DeviceArray<int> counter(std::vector<int>{0});
  CHECK_FINDS(run(body, {nullptr, nullptr, 3, counter.get()}, {2}), "threads wait in loops for memory that nobody changes");
  // One block per multiprocessor at most, and more of them than there are.
  DeviceFacts small = emulator::facts_of(emulator::Preset::sm80);
  small.sm_count = 4;
  const DeviceFacts before = emulator::device();
  emulator::set_device(small);
  counter.upload(std::vector<int>{0});
  CHECK_CLEAN(run(body, {nullptr, nullptr, 4, counter.get()}, {4, 1, 100 << 10}));
  counter.upload(std::vector<int>{0});
  CHECK_FINDS(run(body, {nullptr, nullptr, 5, counter.get()}, {5, 1, 100 << 10}), "1 blocks cannot start");
  emulator::set_device(before);
}

TEST("emulator: looking at much memory is not waiting, and waiting for two places in turn is") {
  const DeviceArray<int> counters(std::vector<int>(20000, 0));
  CHECK_CLEAN(run(
      [](const Args& p, std::byte*) {
        if (thread_index() != 0) return;
        for (int i = 0; i < p.n; ++i) (void)load_coherent(p.counter + i);
      },
      {nullptr, nullptr, 20000, counters.get()}));
  const auto wait_for_two = [](const Args& p, std::byte*) {
    if (block_x() == 0) {
      while (load_coherent(p.counter) == 0 && load_coherent(p.counter + 1) == 0) {
      }
    } else if (p.n) {
      atomic_add_global(p.counter + 1, 1);
    }
  };
  CHECK_FINDS(run<32>(wait_for_two, {nullptr, nullptr, 0, counters.get()}, {2}), "threads wait in loops");
  CHECK_CLEAN(run<32>(wait_for_two, {nullptr, nullptr, 1, counters.get()}, {2}));
}

// --- bounds, alignment, lifetime, initialisation ----------------------------------------------------------------------------------------

TEST("emulator: global memory is checked") {
  const DeviceArray<float> in(counting(10));
  const auto read = [](const Args& p, std::byte*) {
    if (thread_index() == 40) (void)load_global(p.in + p.n);
  };
  CHECK_CLEAN(run(read, {in.get(), nullptr, 9}));
  CHECK_FINDS(run(read, {in.get(), nullptr, 10}), "out of bounds: bytes 40..43 of an allocation of 40");
  CHECK_FINDS(run(read, {in.get(), nullptr, 10}), "thread 40 at cuda/emulator_test.cc:");
  CHECK_FINDS(run(read, {in.get(), nullptr, -1}), "out of bounds: bytes -4..-1");
  CHECK_FINDS(run(read, {in.get(), nullptr, 1 << 30}), "not device memory");
  CHECK_FINDS(run(read, {nullptr, nullptr, 0}), "a null pointer");
  float host = 0;
  CHECK_FINDS(run(read, {&host, nullptr, 0}), "not device memory");
  const auto write = [](const Args& p, std::byte*) {
    if (thread_index() == 0) store_global(p.out + p.n, 1.0f);
  };
  CHECK_CLEAN(run(write, {nullptr, in.get(), 0}));
  CHECK_FINDS(run(write, {nullptr, in.get(), 10}), "a write of 4 bytes of global memory: out of bounds");
  const auto wide = [](const Args& p, std::byte*) { (void)load_global(reinterpret_cast<const F32x4*>(p.in + p.n)); };
  CHECK_CLEAN(run(wide, {in.get(), nullptr, 4}));
  CHECK_FINDS(run(wide, {in.get(), nullptr, 1}), "not aligned to 16: the address is 4 past");
  CHECK_FINDS(run(wide, {in.get(), nullptr, 8}), "out of bounds: bytes 32..47");
}

TEST("emulator: released memory stays dead") {
  float* gone = nullptr;
  {
    const DeviceArray<float> a(counting(10));
    gone = a.get();
  }
  const DeviceArray<float> next(counting(10));
  CHECK(next.get() != gone);
  CHECK_FINDS(run([](const Args& p, std::byte*) { (void)load_global(p.in); }, {gone}), "memory that has been released");
}

TEST("emulator: shared memory is checked") {
  const auto write = [](const Args& p, std::byte* smem) {
    if (thread_index() == 0) store_shared(floats(smem) + p.n, 1.0f);
  };
  CHECK_CLEAN(run(write, {nullptr, nullptr, 3}, {1, 1, 16}));
  CHECK_FINDS(run(write, {nullptr, nullptr, 4}, {1, 1, 16}), "out of bounds: bytes 16..19 of the 16 bytes of shared memory");
  CHECK_FINDS(run(write, {nullptr, nullptr, -1}, {1, 1, 16}), "out of bounds");
  CHECK_FINDS(run([](const Args&, std::byte* smem) { store_shared(reinterpret_cast<F32x4*>(smem + 8), F32x4{}); }), "not aligned to 16");
  CHECK_FINDS(run([](const Args&, std::byte* smem) { (void)load_shared(floats(smem) + (1 << 28)); }), "not in the block's");
  CHECK_FINDS(run([](const Args&, std::byte* smem) {
                if (thread_index() == 0) store_shared(smem + 3, std::byte{1});
                sync_threads();
                (void)load_shared(reinterpret_cast<int*>(smem));
              }),
              "uninitialised: a read of byte 0");
  // A block finds nothing of the block before it.
  CHECK_FINDS(run(
                  [](const Args&, std::byte* smem) {
                    if (block_x() == 0) store_shared(floats(smem) + thread_index(), 1.0f);
                    if (block_x() == 1) (void)load_shared(floats(smem) + thread_index());
                  },
                  {}, {2}),
              "uninitialised");
}

// --- atomics ----------------------------------------------------------------------------------------------------------------------------

TEST("emulator: atomics add up and are ordered among themselves") {
  each_mode([] {
    const DeviceArray<int> counter(std::vector<int>{0});
    CHECK_CLEAN(run(
        [](const Args& p, std::byte* smem) {
          auto* sum = reinterpret_cast<int*>(smem);
          if (thread_index() == 0) store_shared(sum, 0);
          sync_threads();
          atomic_add_shared(sum, thread_index());
          sync_threads();
          if (thread_index() == 0) atomic_add_global(p.counter, load_shared(sum));
        },
        {nullptr, nullptr, 0, counter.get()}, {3}));
    CHECK(counter.download()[0] == 3 * 63 * 64 / 2);
  });
  CHECK_FINDS(run([](const Args&, std::byte* smem) {
                auto* sum = reinterpret_cast<int*>(smem);
                if (thread_index() == 0) store_shared(sum, 0);
                sync_threads();
                if (thread_index() != 9) atomic_add_shared(sum, 1);
                if (thread_index() == 9) store_shared(sum, 0);
              }),
              "race");
}

// --- schedules --------------------------------------------------------------------------------------------------------------------------

TEST("emulator: a seed gives another order, the same seed the same") {
  const auto order = [](uint64_t seed) {
    emulator::set_schedule(seed);
    const DeviceArray<int> counter(std::vector<int>{0});
    const DeviceArray<float> out(size_t{256});
    CHECK_CLEAN(run(
        [](const Args& p, std::byte*) {
          const int place = atomic_add_global(p.counter, 1);
          store_global(p.out + place, static_cast<float>(block_x() * 64 + thread_index()));
        },
        {nullptr, out.get(), 0, counter.get()}, {4}));
    emulator::set_schedule(0);
    return out.download();
  };
  CHECK(order(0) == counting(256));
  CHECK(order(1) != order(0));
  CHECK(order(1) != order(2));
  CHECK(order(1) == order(1));
}

TEST("emulator: with a seed blocks start in any order") {
  const auto farthest = [](uint64_t seed) {
    emulator::set_schedule(seed);
    const DeviceArray<int> counter(std::vector<int>{0});
    const DeviceArray<float> out(size_t{64});
    CHECK_CLEAN(run<32>(
        [](const Args& p, std::byte*) {
          if (lane() == 0) store_global(p.out + atomic_add_global(p.counter, 1), static_cast<float>(block_x()));
        },
        {nullptr, out.get(), 0, counter.get()}, {64}));
    emulator::set_schedule(0);
    const std::vector<float> order = out.download();
    float most = 0;
    for (int i = 0; i < 64; ++i) most = std::max(most, std::abs(order[i] - static_cast<float>(i)));
    return most;
  };
  CHECK(farthest(0) == 0);
  for (const uint64_t seed : {1, 2, 3}) CHECK_MSG(farthest(seed) > 8, farthest(seed));  // at most four run at once
}

TEST("emulator: warp-synchronous code that only works in order is found by a random schedule") {
  // Without checks of races, and right by luck when threads take turns.
  const auto wrong_results = [](uint64_t seed) {
    emulator::set_checks(emulator::Checks::bounds);
    emulator::set_schedule(seed);
    const DeviceArray<float> out(size_t{64});
    CHECK_CLEAN(run(
        [](const Args& p, std::byte* smem) {
          const int i = thread_index();
          store_shared(floats(smem) + i, 1.0f);
          if (i % 32 != 0) store_global(p.out + i, load_shared(floats(smem) + i - 1));
        },
        {nullptr, out.get()}));
    emulator::set_schedule(0);
    emulator::set_checks(emulator::Checks::full);
    const std::vector<float> got = out.download();
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += i % 32 != 0 && got[i] != 1;
    return wrong;
  };
  CHECK(wrong_results(0) == 0);
  CHECK(wrong_results(1) > 0);
}

TEST("emulator: collectives compute") {
  each_mode([] {
    const DeviceArray<float> out(size_t{64});
    CHECK_CLEAN(run(
        [](const Args& p, std::byte* smem) {
          const int i = thread_index();
          const float sum = block_reduce<64>(static_cast<float>(i), Sum{}, 0.0f, floats(smem));
          const uint32_t odd = ballot(i % 2 == 1);
          const int below = shuffle_up(i, 1), above = shuffle_down(i, 3), of_five = shuffle(i, 5);
          bool good = sum == 63 * 32 && odd == 0xaaaaaaaau && below == (lane() == 0 ? i : i - 1) && above == (lane() > 28 ? i : i + 3);
          good = good && of_five == i / 32 * 32 + 5 && warp_any(lane() == 3) && !warp_all(lane() == 3);
          store_global(p.out + i, good ? 1.0f : 0.0f);
        },
        {nullptr, out.get()}));
    CHECK(out.download() == std::vector<float>(64, 1.0f));
  });
}

TEST("emulator: a launch is judged before it starts") {
  const auto nothing = [](const Args&, std::byte*) {};
  each_device({Capability::sm80, Capability::sm86, Capability::sm89, Capability::sm120}, [&] {
    const auto most = static_cast<size_t>(context().device->smem_per_block);
    CHECK_CLEAN(run(nothing, {}, {1, 1, most}));
    CHECK_FINDS(run(nothing, {}, {1, 1, most + 1}), "more shared memory");
    CHECK(!(run<64, Needs::sm90a>(nothing).ok()));
    CHECK((run<64, Needs::sm90>(nothing).ok()) == context().device->has_clusters());
    CHECK(run(nothing, {}, {2, 2}).ok() == context().device->has_clusters());
  });
  each_device({Capability::sm90}, [&] {
    CHECK_CLEAN((run<64, Needs::sm90a>(nothing, {}, {1, 1, 227 << 10})));
    CHECK_CLEAN(run(nothing, {}, {4, 2}));
    CHECK_FINDS(run(nothing, {}, {3, 2}), "not a multiple of the cluster");
    CHECK_FINDS(run<48>(nothing), "whole warps");
  });
}

}  // namespace lapidary::test
