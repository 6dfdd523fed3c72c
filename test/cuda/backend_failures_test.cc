// The backend when the device fails: out of memory fails one call, a fault that ends the context fails every later one, and nothing ends
// the process. Over the emulator alone, which can be told to fail.
#include "cuda/backend.h"
#include "cuda/support.h"
#include "emulator/control.h"
#include "ops/ops_data.h"

namespace lapidary {

using namespace test;

namespace {

constexpr int kIllegalAddress = 700, kOutOfMemory = 2, kInvalidValue = 1;

// Broken after `calls` more calls, and whole again when this goes.
struct Broken {
  Broken(int code, int calls) { emulator::break_device(code, calls); }
  ~Broken() { emulator::break_device(0); }
};

std::unique_ptr<Backend> backend() { return make_cuda_backend(api(), 0); }

}  // namespace

TEST("cuda failures: a lost context fails that call and every later one, with the reason") {
  for (int calls : {0, 1, 2, 3}) {
    const auto cuda = backend();
    const Buffer memory = cuda->allocate(1024);
    const Tensor x = memory.tensor(DType::f32, {1, 256});
    const std::vector<float> zeros(256);
    cuda->upload(x, zeros.data());
    {
      const Broken broken(kIllegalAddress, calls);
      bool failed = false;
      try {
        for (int i = 0; i < 4; ++i) cuda->add(x, x);
      } catch (const Error& e) {
        failed = true;
        CHECK(e.code() == ErrorCode::cuda);
        CHECK_MSG(std::string(e.what()).find("700") != std::string::npos, e.what());
      }
      CHECK(failed);
    }
    // The emulated device works again, but a real context would not: the backend stays away from it.
    CHECK_THROWS(cuda->add(x, x), ErrorCode::cuda, "lost");
    CHECK_THROWS(cuda->allocate(16), ErrorCode::cuda, "load the model again");
  }
  const auto fresh = backend();
  const Buffer memory = fresh->allocate(64);
  fresh->zero(memory.tensor(DType::f32, {16}));
}

TEST("cuda failures: out of memory and refusals of one call leave the backend usable") {
  const auto cuda = backend();
  for (int code : {kOutOfMemory, kInvalidValue}) {
    {
      const Broken broken(code, 0);
      CHECK_THROWS(cuda->allocate(1024), code == kOutOfMemory ? ErrorCode::out_of_memory : ErrorCode::cuda, "");
    }
    const Buffer memory = cuda->allocate(1024);
    const Tensor x = memory.tensor(DType::f32, {1, 256});
    cuda->zero(x);
    cuda->add(x, x);
    std::vector<float> back(256, 7.0f);
    cuda->download(back.data(), x);
    CHECK(back == std::vector<float>(256));
  }
}

TEST("cuda failures: a failure in the middle of a stage does not spoil the next step") {
  const auto cuda = backend();
  const Buffer memory = cuda->allocate(4096);
  const Tensor x = memory.tensor(DType::f32, {2, 64}), out = Tensor(x.data + 1024, DType::f32, {2, 64}, x.device);
  const Owned values = activations(DType::f32, {2, 64}, 1), weight = activations(DType::f32, {64}, 2);
  const Buffer norm_memory = cuda->allocate(256);
  const Tensor w = norm_memory.tensor(DType::f32, {64});
  cuda->upload(w, weight.t.data);
  cuda->upload(x, values.t.data);
  {
    const Broken broken(kInvalidValue, 0);
    CHECK_THROWS(cuda->rms_norm(x, {w, 1, 1e-6f}, out), ErrorCode::cuda, "");
  }
  cuda->rms_norm(x, {w, 1, 1e-6f}, out);
  Owned want(DType::f32, {2, 64}), got(DType::f32, {2, 64});
  make_reference_backend()->rms_norm(values.t, {weight.t, 1, 1e-6f}, want.t);
  cuda->download(got.t.data, out);
  CHECK_CLOSE(values_of(got.t), values_of(want.t), 1e-5, 1e-6);
}

}  // namespace lapidary
