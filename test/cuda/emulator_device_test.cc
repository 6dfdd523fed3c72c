// The emulated device around the kernels: memory, streams, graphs, order of blocks, statistics, and the approximate functions' errors.
#include <bit>
#include <cmath>
#include <ctime>
#include <random>
#include <stdexcept>

#include "cuda/emulator_kernels.h"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/math.cuh"

namespace lapidary::test {

using namespace cuda;

namespace {

const DeviceApi& device() { return api().device; }
Stream stream() { return context().stream; }

constexpr auto kAddOne = [](const Args& p, std::byte*) {
  const int i = block_x() * 64 + thread_index();
  if (i < p.n) store_global(p.out + i, load_global(p.in + i) + 1);
};

}  // namespace

// --- memory -----------------------------------------------------------------------------------------------------------------------------

TEST("emulator: fresh memory is NaN, aligned to 256 and no more") {
  const DeviceArray<float> a(size_t{1000});
  for (const float v : a.download()) CHECK(std::isnan(v));
  CHECK(reinterpret_cast<uintptr_t>(a.get()) % 256 == 0);
  CHECK(reinterpret_cast<uintptr_t>(a.get()) % 512 != 0);
}

TEST("emulator: copies are checked") {
  const DeviceArray<float> a(counting(16)), b(size_t{16});
  float host[17] = {};
  CHECK_CLEAN(device().copy_on_device(b.get(), a.get(), 64, stream()));
  CHECK(b.download() == counting(16));
  CHECK_CLEAN(device().fill(b.get() + 8, 0, 32, stream()));
  CHECK(b.download()[7] == 7 && b.download()[8] == 0);
  CHECK_FINDS(device().copy_to_device(a.get(), host, 68, stream()), "out of bounds");
  CHECK_FINDS(device().copy_to_host(host, a.get() + 1, 64, stream()), "out of bounds");
  CHECK_FINDS(device().copy_on_device(host, a.get(), 64, stream()), "not device memory");
  CHECK_FINDS(device().fill(nullptr, 0, 4, stream()), "null");
  CHECK_CLEAN(device().fill(nullptr, 0, 0, stream()));
}

TEST("emulator: memory is given back once, and counted") {
  int64_t free_before = 0, free_after = 0, total = 0;
  require_ok(device().memory_info(&free_before, &total));
  void* p = nullptr;
  require_ok(device().allocate(&p, 1000, stream()));
  require_ok(device().memory_info(&free_after, &total));
  CHECK(free_before - free_after == 1000);
  CHECK_FINDS(device().release(static_cast<char*>(p) + 256, stream()), "not the beginning");
  CHECK_CLEAN(device().release(p, stream()));
  CHECK_FINDS(device().release(p, stream()), "not the beginning of a live");
  CHECK_CLEAN(device().release(nullptr, stream()));
  DeviceFacts small = emulator::device();
  const DeviceFacts before = small;
  small.memory_bytes = total - free_before + 4096;
  emulator::set_device(small);
  CHECK_FINDS(device().allocate(&p, 4097, stream()), "out of memory");
  CHECK_CLEAN(device().allocate(&p, 4096, stream()));
  CHECK_CLEAN(device().release(p, stream()));
  emulator::set_device(before);
}

TEST("emulator: stale handles are errors") {
  Stream s = nullptr;
  require_ok(device().stream_create(&s));
  require_ok(device().stream_synchronize(s));
  require_ok(device().stream_destroy(s));
  CHECK(!device().stream_synchronize(s).ok());
  CHECK(!device().stream_destroy(s).ok());
  Event a = nullptr, b = nullptr;
  require_ok(device().event_create(&a));
  require_ok(device().event_create(&b));
  float ms = -1;
  CHECK(!device().event_elapsed_ms(a, b, &ms).ok());
  require_ok(device().event_record(a, stream()));
  require_ok(device().event_record(b, stream()));
  require_ok(device().event_elapsed_ms(a, b, &ms));
  CHECK(ms >= 0);
  require_ok(device().event_destroy(a));
  CHECK(!device().event_record(a, stream()).ok());
  require_ok(device().event_destroy(b));
  DeviceFacts facts;
  CHECK(!device().device_facts(1, &facts).ok());
  CHECK(!device().use_device(1).ok());
}

TEST("emulator: a graph replays launches and copies") {
  const DeviceArray<float> a(std::vector<float>(100, 0.0f)), b(std::vector<float>(100, 0.0f));
  Graph graph = nullptr;
  require_ok(device().graph_begin(stream()));
  CHECK_CLEAN(run(kAddOne, {a.get(), b.get(), 100}, {2}));
  CHECK_CLEAN(device().copy_on_device(a.get(), b.get(), 400, stream()));
  CHECK(!device().stream_synchronize(stream()).ok());
  CHECK(!device().graph_begin(stream()).ok());
  void* p = nullptr;
  CHECK(!device().allocate(&p, 4, stream()).ok());
  require_ok(device().graph_end(stream(), &graph));
  CHECK(a.download() == std::vector<float>(100, 0.0f));  // recorded, not run
  for (int i = 0; i < 3; ++i) require_ok(device().graph_launch(graph, stream()));
  CHECK(a.download() == std::vector<float>(100, 3.0f));
  require_ok(device().graph_destroy(graph));
  CHECK(!device().graph_launch(graph, stream()).ok());
  CHECK(!device().graph_end(stream(), &graph).ok());
}

TEST("emulator: a lazy stream works when it is waited for") {
  emulator::set_stream_mode(emulator::StreamMode::lazy);
  DeviceArray<float> a(size_t{4});
  std::vector<float> host = {1, 2, 3, 4};
  require_ok(device().copy_to_device(a.get(), host.data(), 16, stream()));
  host[0] = 9;  // too early: this is what arrives
  require_ok(device().stream_synchronize(stream()));
  CHECK(a.download() == host);
  // Memory is released in the order of the stream, and a finding is the status of the wait.
  void* p = nullptr;
  require_ok(device().allocate(&p, 256, stream()));
  auto* const f = static_cast<float*>(p);
  CHECK_CLEAN(run(kAddOne, {a.get(), f, 4}));
  require_ok(device().copy_on_device(a.get(), f, 16, stream()));
  require_ok(device().release(p, stream()));
  require_ok(device().stream_synchronize(stream()));
  CHECK(a.download() == (std::vector<float>{10, 3, 4, 5}));
  CHECK_CLEAN(run(kAddOne, {a.get(), f, 4}));
  CHECK_FINDS(device().stream_synchronize(stream()), "memory that has been released");
  CHECK_CLEAN(device().stream_synchronize(stream()));
  emulator::set_stream_mode(emulator::StreamMode::eager);
}

TEST("emulator: a broken device fails every call from the one that was asked for") {
  const DeviceArray<float> a(counting(4)), b(size_t{4});
  emulator::break_device(700, 2);
  CHECK_CLEAN(run(kAddOne, {a.get(), b.get(), 4}));
  CHECK_CLEAN(device().stream_synchronize(stream()));
  for (int i = 0; i < 2; ++i) {
    const cuda::Status s = run(kAddOne, {a.get(), b.get(), 4});
    CHECK(s.kind == cuda::Status::Kind::cuda && s.code == 700);
    CHECK(device().stream_synchronize(stream()).code == 700);
  }
  emulator::break_device(0);
  CHECK_CLEAN(device().stream_synchronize(stream()));
}

// --- blocks -----------------------------------------------------------------------------------------------------------------------------

TEST("emulator: a block may not rely on another one without a flag between them") {
  const DeviceArray<float> out(std::vector<float>(64, 0.0f));
  // Every block writes all of it. n: what it writes is 0 the same, 1 its own number.
  const auto overlap = [](const Args& p, std::byte*) { store_global(p.out + thread_index(), p.n ? static_cast<float>(block_x()) : 5.0f); };
  // Block 1 reads what block 0 writes. n: 0 through a counter, 1 without.
  const auto hand_over = [](const Args& p, std::byte*) {
    if (block_x() == 0) {
      store_global(p.out + thread_index(), 7.0f);
      fence_device();
      sync_threads();
      if (thread_index() == 0) atomic_add_global(p.counter, 1);
    } else {
      if (p.n == 0 && thread_index() == 0) {
        while (load_coherent(p.counter) == 0) {
        }
      }
      sync_threads();
      store_global(p.out + 64 + thread_index(), load_global(p.out + thread_index()));
    }
  };
  each_mode([&] {
    CHECK_CLEAN(run(overlap, {nullptr, out.get(), 0}, {3}));
    CHECK_FINDS(run(overlap, {nullptr, out.get(), 1}, {3}), "race between blocks: a write");
    const DeviceArray<float> both(size_t{128});
    const DeviceArray<int> counter(std::vector<int>{0});
    CHECK_CLEAN(run(hand_over, {nullptr, both.get(), 0, counter.get()}, {2}));
    const std::vector<float> got = both.download();
    CHECK(std::vector<float>(got.begin() + 64, got.end()) == std::vector<float>(64, 7.0f));
  });
  const DeviceArray<float> both(size_t{128});
  const DeviceArray<int> counter(std::vector<int>{0});
  CHECK_FINDS(run(hand_over, {nullptr, both.get(), 1, counter.get()}, {2}), "race between blocks: a read");
}

TEST("emulator: memory that a launch writes is not read as read-only") {
  const DeviceArray<float> a(counting(64)), b(size_t{64});
  const auto body = [](const Args& p, std::byte*) {
    const int i = thread_index();
    store_global(p.out + i, load_readonly(p.in + i));
    if (p.n) (void)load_streaming(p.out + i);
  };
  each_mode([&] {
    CHECK_CLEAN(run(body, {a.get(), b.get(), 0}));
    CHECK_CLEAN(run(body, {b.get(), a.get(), 0}));  // the next launch may
    CHECK_FINDS(run(body, {a.get(), b.get(), 1}), "of memory that the same launch writes");
  });
}

TEST("emulator: blocks write the bytes of one word side by side") {
  const DeviceArray<int8_t> out(size_t{100});
  each_mode([&] {
    CHECK_CLEAN(run(
        [](const Args& p, std::byte*) {
          if (thread_index() == 0) store_global(reinterpret_cast<int8_t*>(p.out) + block_x(), static_cast<int8_t>(block_x()));
        },
        {nullptr, reinterpret_cast<float*>(out.get())}, {100}));
  });
  const std::vector<int8_t> got = out.download();
  for (int i = 0; i < 100; ++i) CHECK(got[i] == i);
}

TEST("emulator: many blocks are fast") {
  // 100 blocks of 256 threads with ten barriers; the bound is a hundred times what a quiet machine takes.
  const auto begin = std::clock();
  CHECK_CLEAN(run<256>(
      [](const Args&, std::byte*) {
        for (int i = 0; i < 10; ++i) sync_threads();
      },
      {}, {100}));
  CHECK(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC < 1.0);
  CHECK(emulator::last_launch().blocks == 100);
}

TEST("emulator: statistics count bytes and what is in flight") {
  const DeviceArray<float> in(counting(64 * 4 * 4)), out(size_t{64});
  CHECK_CLEAN(run(
      [](const Args& p, std::byte* smem) {
        for (int i = 0; i < 4; ++i) {
          copy_async_16(smem + (i * 64 + thread_index()) * 16, p.in + (i * 64 + thread_index()) * 4);
          copy_async_commit();
          if (i == 2) copy_async_wait<0>();
        }
        copy_async_wait<0>();
        store_global(p.out + thread_index(), load_shared(reinterpret_cast<float*>(smem + thread_index() * 16)));
      },
      {in.get(), out.get()}));
  const emulator::LaunchStatistics& s = emulator::last_launch();
  CHECK(s.global_read_bytes == 4 * 64 * 16);
  CHECK(s.global_write_bytes == 64 * 4);
  CHECK(s.shared_write_bytes == 4 * 64 * 16);
  CHECK(s.shared_read_bytes == 64 * 4);
  CHECK_MSG(s.most_bytes_in_flight >= 3 * 16 && s.most_bytes_in_flight <= 3 * 64 * 16, s.most_bytes_in_flight);
}

TEST("emulator: bank conflicts and sectors are counted") {
  const DeviceArray<float> in(counting(32 * 32));
  // n: the distance between lanes, in floats.
  const auto strided = [](const Args& p, std::byte* smem) {
    auto* const s = reinterpret_cast<float*>(smem);
    store_shared(s + lane() * p.n, load_global(p.in + lane() * p.n));
  };
  const auto wide = [](const Args& p, std::byte* smem) { store_shared(reinterpret_cast<F32x4*>(smem) + lane() * p.n, F32x4{}); };
  const auto same = [](const Args& p, std::byte*) { (void)load_global(p.in); };
  const auto half = [](const Args&, std::byte* smem) {
    if (lane() < 16) store_shared(reinterpret_cast<float*>(smem) + lane() * 2, 0.0f);
  };
  emulator::set_request_counting(true);
  each_mode([&] {
    const auto counted = [&](const auto& body, int n) {
      CHECK_CLEAN(run<32>(body, {in.get(), nullptr, n}, {1, 1, 32 << 10}));
      return emulator::last_launch();
    };
    for (const int n : {1, 2, 3, 8, 31, 32}) {
      const int conflicts = n == 2 ? 2 : n == 8 ? 8 : n == 32 ? 32 : 1;
      const emulator::LaunchStatistics s = counted(strided, n);
      CHECK_MSG(s.shared_wavefronts == conflicts && s.shared_wavefronts_ideal == 1, n << ": " << s.shared_wavefronts);
      const int sectors = n >= 8 ? 32 : n * 4;  // arrays begin on a sector
      CHECK_MSG(s.global_sectors == sectors && s.global_sectors_ideal == 4, n << ": " << s.global_sectors);
    }
    CHECK(counted(wide, 1).shared_wavefronts == 4 && emulator::last_launch().shared_wavefronts_ideal == 4);
    CHECK(counted(wide, 2).shared_wavefronts == 8);
    CHECK(counted(wide, 8).shared_wavefronts == 32);
    CHECK(counted(same, 0).global_sectors == 1 && emulator::last_launch().global_sectors_ideal == 1);
    CHECK(counted(half, 0).shared_wavefronts == 1);
  });
  emulator::set_request_counting(false);
}

TEST("emulator: primitives outside a launch are refused") {
  bool threw = false;
  try {
    (void)thread_index();
  } catch (const std::logic_error& e) {
    threw = std::string(e.what()).find("outside a launch") != std::string::npos;
  }
  CHECK(threw);
}

// --- arithmetic -------------------------------------------------------------------------------------------------------------------------

namespace {

double ulps(float got, double want) {
  const float w = static_cast<float>(want);
  return std::abs(got - want) / (std::nextafter(std::abs(w), INFINITY) - static_cast<double>(std::abs(w)));
}

}  // namespace

TEST("emulator: approximate functions stay within their stated errors and use them") {
  std::mt19937 random(5);
  double worst_exp = 0, worst_rsqrt = 0, worst_reciprocal = 0, worst_tanh = 0;
  for (int i = 0; i < 100000; ++i) {
    const float x = std::uniform_real_distribution<float>(-100, 100)(random), positive = std::exp2(x / 2);
    worst_exp = std::max(worst_exp, ulps(exp2_fast(x), std::exp2(double(x))));
    worst_rsqrt = std::max(worst_rsqrt, ulps(rsqrt_fast(positive), 1 / std::sqrt(double(positive))));
    worst_reciprocal = std::max(worst_reciprocal, ulps(reciprocal_fast(x), 1 / double(x)));
    const float small = x / 20;
    worst_tanh = std::max(worst_tanh, std::abs(tanh_fast(small) / std::tanh(double(small)) - 1));
  }
  CHECK_MSG(worst_exp > 1 && worst_exp <= 2, worst_exp);
  CHECK_MSG(worst_rsqrt > 1 && worst_rsqrt <= 2, worst_rsqrt);
  CHECK_MSG(worst_reciprocal <= 1, worst_reciprocal);
  CHECK_MSG(worst_tanh > 0x1p-13 && worst_tanh <= 0x1p-11, worst_tanh);
  for (int e = -126; e <= 127; ++e) CHECK(exp2_fast(static_cast<float>(e)) == std::ldexp(1.0f, e));
  CHECK(exp2_fast(-INFINITY) == 0 && exp2_fast(-127) == 0 && exp2_fast(INFINITY) == INFINITY && std::isnan(exp2_fast(NAN)));
  CHECK(tanh_fast(0) == 0 && tanh_fast(INFINITY) == 1 && tanh_fast(-40) == -1 && std::isnan(tanh_fast(NAN)));
}

TEST("emulator: half precision, every value and every rounding") {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float f = to_f32(Half{static_cast<uint16_t>(bits)});
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    const double magnitude = exponent ? std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25) : std::ldexp(double(fraction), -24);
    const bool finite = exponent != 31;
    if (finite && f != (bits & 0x8000 ? -magnitude : magnitude)) ++wrong;
    if (!finite && (fraction ? !std::isnan(f) : f != (bits & 0x8000 ? -INFINITY : INFINITY))) ++wrong;
    if (finite && to_half(f).bits != bits) ++wrong;
    if (finite && std::signbit(f) != (bits >> 15 == 1)) ++wrong;
    // Halfway to the next value goes to the even one, a little more or less to the nearer.
    if (finite && bits < 0x7bff) {
      const float next = to_f32(Half{static_cast<uint16_t>(bits + 1)}), middle = (f + next) / 2;
      const auto even = static_cast<uint16_t>(bits % 2 ? bits + 1 : bits);
      if (to_half(middle).bits != even) ++wrong;
      if (to_half(std::nextafter(middle, 0.0f)).bits != bits) ++wrong;
      if (to_half(std::nextafter(middle, INFINITY)).bits != bits + 1) ++wrong;
    }
  }
  CHECK_MSG(wrong == 0, wrong << " are wrong");
  CHECK(to_half(65519.99f).bits == 0x7bff && to_half(65520.0f).bits == 0x7c00 && to_half(-1e10f).bits == 0xfc00);
}

TEST("emulator: byte operations") {
  CHECK(dot4_s8(0x80ff7f01, 0x80017f02, 5) == 16384 - 1 + 127 * 127 + 2 + 5);
  CHECK(byte_permute(0x33221100, 0x77665544, 0x7531) == 0x77553311);
  CHECK(byte_permute(0x80221180, 0x77665544, 0xb908) == 0xff0080ff);
}

}  // namespace lapidary::test
