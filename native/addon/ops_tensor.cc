// NativeTensor and NativeKvCache: creating, reading, appending, letting go.
#include "addon/ops_tensor.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "addon/functions.h"
#include "addon/promise_worker.h"
#include "addon/results.h"
#include "cpu/backend.h"
#include "cuda/backend.h"

namespace lapidary::addon {

namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;

std::vector<int64_t> to_shape(Napi::Value value, const std::string& name) {
  const Napi::Array dims = to_array(value, name);
  expect(dims.Length() >= 1 && dims.Length() <= 4, ErrorCode::invalid_argument, name, ": expected 1 to 4 dimensions, got ", dims.Length());
  std::vector<int64_t> shape;
  int64_t elements = 1;
  for (uint32_t i = 0; i < dims.Length(); ++i) {
    shape.push_back(to_integer(dims.Get(i), name, 0, kMaxElements));
    expect(shape.back() == 0 || elements <= kMaxElements / shape.back(), ErrorCode::invalid_argument, name, ": too large");
    elements *= std::max<int64_t>(shape.back(), 1);
  }
  return shape;
}

// The bytes of a typed array; an empty vector for null.
std::vector<std::byte> to_bytes(Napi::Value value, const std::string& name) {
  if (value.IsNull() || value.IsUndefined()) return {};
  expect(value.IsTypedArray(), ErrorCode::invalid_argument, name, ": expected a typed array, got ", describe(value));
  const Napi::TypedArray array = value.As<Napi::TypedArray>();
  const auto* data = static_cast<const std::byte*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  return {data, data + array.ByteLength()};
}

Tensor shaped(DType dtype, const std::vector<int64_t>& shape) {
  Tensor t(nullptr, dtype, {});
  t.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape);
  return t;
}

}  // namespace

std::shared_ptr<OpsDevice> OpsDevice::open(const std::string& kind) {
  static std::mutex mutex;
  static auto& opened = *new std::map<std::string, std::shared_ptr<OpsDevice>>;  // never destroyed: other threads may still work at exit
  const std::lock_guard lock(mutex);
  if (opened.contains(kind)) return opened.at(kind);
  auto device = std::make_shared<OpsDevice>();
  device->kind = kind;
  expect(kind == "reference" || kind == "cpu" || kind == "cuda", ErrorCode::invalid_argument,
         "device: expected 'cpu', 'cuda' or 'reference', got '", kind, "'");
  device->backend = kind == "reference" ? make_reference_backend() : kind == "cpu" ? make_cpu_backend() : make_cuda_backend();
  opened.emplace(kind, device);
  return device;
}

DType to_dtype(const std::string& name, const std::string& what) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (dtype_info(static_cast<DType>(i)).name == name) return static_cast<DType>(i);
  }
  fail(ErrorCode::invalid_argument, what, ": there is no dtype '", name, "'");
}

std::shared_ptr<OpsTensor> make_ops_tensor(std::shared_ptr<OpsDevice> device, DType dtype, const std::vector<int64_t>& shape) {
  auto out = std::make_shared<OpsTensor>();
  out->t = shaped(dtype, shape);
  const int64_t block = dtype_info(dtype).block_elements;
  expect(out->t.shape[out->t.rank - 1] % block == 0, ErrorCode::invalid_argument, "shape ", out->t.shape_text(), ": rows of ",
         dtype_info(dtype).name, " are whole blocks of ", block);
  out->buffer = device->backend->allocate(static_cast<size_t>(std::max<int64_t>(out->t.bytes(), 1)));
  out->t.data = out->buffer.memory.get();
  out->t.device = out->buffer.device;
  out->device = std::move(device);
  return out;
}

OpsTensorPtr to_ops_tensor(Napi::Value value, const std::string& name) {
  if (value.IsNull() || value.IsUndefined()) return nullptr;
  return to_handle<TensorObject>(value.Env(), value, name).get();
}

// --- NativeTensor -------------------------------------------------------------------------------------------------------

std::vector<Method> TensorObject::methods() {
  return {{"read", call_member<TensorObject, &TensorObject::read>},
          {"dispose", call_member<TensorObject, &TensorObject::dispose>},
          {"shape", call_member<TensorObject, &TensorObject::shape>, true},
          {"dtype", call_member<TensorObject, &TensorObject::dtype>, true},
          {"device", call_member<TensorObject, &TensorObject::device>, true},
          {"packed", call_member<TensorObject, &TensorObject::packed>, true}};
}

TensorObject::TensorObject(Environment& environment, OpsTensorPtr tensor)
    : environment_(environment.shared_from_this()), tensor_(std::move(tensor)) {
  environment_->report_bytes(tensor_->t.bytes());
}

const OpsTensorPtr& TensorObject::get() const {
  expect(tensor_ != nullptr, ErrorCode::disposed, "the tensor is disposed");
  return tensor_;
}

void TensorObject::release() {
  if (!tensor_) return;
  environment_->report_bytes(-tensor_->t.bytes());
  environment_->release_elsewhere(std::const_pointer_cast<OpsTensor>(std::move(tensor_)));
  tensor_.reset();
}

// The bytes as they are, in an ArrayBuffer.
napi_value TensorObject::read(const Napi::CallbackInfo& info) {
  expect(!get()->packed, ErrorCode::unsupported, "a packed weight cannot be read: keep the tensor that it was made of");
  auto read = [tensor = get()] {
    std::vector<std::byte> bytes(static_cast<size_t>(tensor->t.bytes()));
    const std::lock_guard lock(tensor->device->mutex);
    tensor->device->backend->download(bytes.data(), tensor->t);
    return bytes;
  };
  auto wrap = [](Napi::Env env, std::vector<std::byte> bytes) -> napi_value {
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, bytes.size());
    if (!bytes.empty()) std::memcpy(buffer.Data(), bytes.data(), bytes.size());
    return buffer;
  };
  return promise_work(info.Env(), "lapidary read tensor", std::move(read), std::move(wrap));
}

napi_value TensorObject::dispose(const Napi::CallbackInfo& info) {
  release();
  return info.Env().Undefined();
}

napi_value TensorObject::shape(const Napi::CallbackInfo& info) {
  const Tensor& t = get()->t;
  const Napi::Array dims = Napi::Array::New(info.Env(), static_cast<size_t>(t.rank));
  for (int i = 0; i < t.rank; ++i) dims.Set(static_cast<uint32_t>(i), static_cast<double>(t.shape[i]));
  return dims;
}
napi_value TensorObject::dtype(const Napi::CallbackInfo& info) { return text(info.Env(), dtype_info(get()->t.dtype).name); }
napi_value TensorObject::device(const Napi::CallbackInfo& info) { return text(info.Env(), get()->device->kind); }
napi_value TensorObject::packed(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), get()->packed != nullptr); }

// tensor(device, dtype, shape, data | null): data holds the elements in memory order, exactly as many bytes as the shape takes.
napi_value create_tensor(const Napi::CallbackInfo& info) {
  auto make = [kind = to_text(info[0], "device"), dtype = to_dtype(to_text(info[1], "dtype"), "dtype"), shape = to_shape(info[2], "shape"),
               bytes = to_bytes(info[3], "data"), given = !info[3].IsNull() && !info[3].IsUndefined()]() -> OpsTensorPtr {
    std::shared_ptr<OpsDevice> device = OpsDevice::open(kind);
    const std::lock_guard lock(device->mutex);
    const std::shared_ptr<OpsTensor> out = make_ops_tensor(device, dtype, shape);
    expect(!given || static_cast<int64_t>(bytes.size()) == out->t.bytes(), ErrorCode::invalid_argument, "data: a ", dtype_info(dtype).name,
           " tensor of shape ", out->t.shape_text(), " takes ", out->t.bytes(), " bytes, got ", bytes.size());
    given ? device->backend->upload(out->t, bytes.data()) : device->backend->zero(out->t);
    return out;
  };
  auto wrap = [](Napi::Env env, OpsTensorPtr tensor) -> napi_value {
    return make_handle(env, std::make_unique<TensorObject>(Environment::of(env), std::move(tensor)));
  };
  return promise_work(info.Env(), "lapidary tensor", std::move(make), std::move(wrap));
}

// --- NativeKvCache ------------------------------------------------------------------------------------------------------

std::vector<Method> KvCacheObject::methods() {
  return {{"append", call_member<KvCacheObject, &KvCacheObject::append>},
          {"length", call_member<KvCacheObject, &KvCacheObject::length>, true},
          {"dispose", call_member<KvCacheObject, &KvCacheObject::dispose>}};
}

const std::shared_ptr<OpsCache>& KvCacheObject::get() const {
  expect(cache_ != nullptr, ErrorCode::disposed, "the cache is disposed");
  return cache_;
}

void KvCacheObject::release() {
  if (cache_) environment_->release_elsewhere(std::move(cache_));
  cache_.reset();
}

// append(k, v): f32 [tokens, kv heads, head dim] at the positions that follow.
napi_value KvCacheObject::append(const Napi::CallbackInfo& info) {
  auto work = [cache = get(), k = to_ops_tensor(info[0], "k"), v = to_ops_tensor(info[1], "v")] {
    expect(k && v, ErrorCode::invalid_argument, "append: k and v must be given");
    for (const OpsTensorPtr& side : {k, v}) {
      const Tensor& t = side->t;
      expect(side->device == cache->device, ErrorCode::invalid_argument, "append: k and v must be on the cache's device, '",
             cache->device->kind, "'");
      expect(t.dtype == DType::f32 && t.rank == 3 && t.shape[1] == cache->num_kv_heads && t.shape[2] == cache->head_dim &&
                 t.shape[0] == k->t.shape[0],
             ErrorCode::invalid_argument, "append: k and v must be f32 [tokens, ", cache->num_kv_heads, ", ", cache->head_dim, "], got ",
             dtype_info(t.dtype).name, " ", t.shape_text());
    }
    const std::lock_guard lock(cache->device->mutex);
    Backend& backend = *cache->device->backend;
    const int64_t tokens = k->t.shape[0], end = cache->length + tokens,
                  bytes = kv_page_bytes(cache->dtype, cache->num_kv_heads, cache->head_dim);
    while (static_cast<int64_t>(cache->pages.size()) * kPageTokens < end) {
      cache->buffers.push_back(backend.allocate_page(static_cast<size_t>(bytes)));
      backend.zero(cache->buffers.back().tensor(DType::u8, {bytes}));
      cache->pages.push_back(cache->buffers.back().memory.get());
    }
    const AttentionSpan span{0, tokens, cache->length, cache->view()};
    backend.append_kv(k->t, v->t, {&span, 1}, {cache->num_kv_heads, cache->num_kv_heads, cache->head_dim});
    cache->length = end;
    return Nothing{};
  };
  return promise_work(info.Env(), "lapidary append", std::move(work), to_undefined);
}

napi_value KvCacheObject::length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(get()->length));
}

napi_value KvCacheObject::dispose(const Napi::CallbackInfo& info) {
  release();
  return info.Env().Undefined();
}

// kvCache(device, dtype, kvHeads, headDim)
napi_value create_kv_cache(const Napi::CallbackInfo& info) {
  auto make = [kind = to_text(info[0], "device"), dtype = to_dtype(to_text(info[1], "dtype"), "dtype"),
               heads = to_integer(info[2], "kvHeads", 1, 1 << 16), dim = to_integer(info[3], "headDim", 1, 1 << 16)] {
    expect(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::i8, ErrorCode::invalid_argument,
           "dtype: a cache is f32, bf16 or i8");
    auto cache = std::make_shared<OpsCache>();
    cache->device = OpsDevice::open(kind);
    cache->dtype = dtype, cache->num_kv_heads = heads, cache->head_dim = dim;
    return cache;
  };
  auto wrap = [](Napi::Env env, std::shared_ptr<OpsCache> cache) -> napi_value {
    return make_handle(env, std::make_unique<KvCacheObject>(Environment::of(env), std::move(cache)));
  };
  return promise_work(info.Env(), "lapidary cache", std::move(make), std::move(wrap));
}

}  // namespace lapidary::addon
