// What lapidary/ops works on: a backend of each kind that was asked for, arrays in its memory, and caches of keys and values.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "addon/args.h"
#include "addon/handles.h"
#include "ops/ops.h"

namespace lapidary::addon {

// One backend of the process, shared by every environment; a backend is used by one thread at a time.
struct OpsDevice {
  std::string kind;  // "reference", "cpu", "cuda"
  std::unique_ptr<Backend> backend;
  std::mutex mutex;

  // Opened once and kept. Error(cuda) when there is no such device.
  static std::shared_ptr<OpsDevice> open(const std::string& kind);
};

struct OpsTensor {
  std::shared_ptr<OpsDevice> device;
  Buffer buffer;
  Tensor t;
  std::shared_ptr<const PackedWeight> packed{};  // then `t` has a type and a shape, and no memory
};
using OpsTensorPtr = std::shared_ptr<const OpsTensor>;

// Pages of one sequence, filled from position 0.
struct OpsCache {
  std::shared_ptr<OpsDevice> device;
  DType dtype = DType::f32;
  int64_t num_kv_heads = 0, head_dim = 0, length = 0;
  std::vector<Buffer> buffers;
  std::vector<void*> pages;

  KvView view() { return {dtype, pages.data(), static_cast<int64_t>(pages.size())}; }
};

class TensorObject {
 public:
  static constexpr const char* kName = "NativeTensor";
  static constexpr const napi_type_tag& kTag = kTensorTag;
  static std::vector<Method> methods();

  TensorObject(Environment& environment, OpsTensorPtr tensor);
  ~TensorObject() { release(); }
  const OpsTensorPtr& get() const;  // Error(disposed)

 private:
  napi_value read(const Napi::CallbackInfo& info);
  napi_value dispose(const Napi::CallbackInfo& info);
  napi_value shape(const Napi::CallbackInfo& info);
  napi_value dtype(const Napi::CallbackInfo& info);
  napi_value device(const Napi::CallbackInfo& info);
  napi_value packed(const Napi::CallbackInfo& info);
  void release();

  std::shared_ptr<Environment> environment_;
  OpsTensorPtr tensor_;
};

class KvCacheObject {
 public:
  static constexpr const char* kName = "NativeKvCache";
  static constexpr const napi_type_tag& kTag = kKvCacheTag;
  static std::vector<Method> methods();

  KvCacheObject(Environment& environment, std::shared_ptr<OpsCache> cache)
      : environment_(environment.shared_from_this()), cache_(std::move(cache)) {}
  ~KvCacheObject() { release(); }
  const std::shared_ptr<OpsCache>& get() const;  // Error(disposed)

 private:
  napi_value append(const Napi::CallbackInfo& info);
  napi_value length(const Napi::CallbackInfo& info);
  napi_value dispose(const Napi::CallbackInfo& info);
  void release();

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<OpsCache> cache_;
};

DType to_dtype(const std::string& name, const std::string& what);
// Uninitialised, on a device that the caller holds the lock of.
std::shared_ptr<OpsTensor> make_ops_tensor(std::shared_ptr<OpsDevice> device, DType dtype, const std::vector<int64_t>& shape);
OpsTensorPtr to_ops_tensor(Napi::Value value, const std::string& name);  // null for null and undefined

}  // namespace lapidary::addon
