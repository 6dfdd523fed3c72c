// op(name, tensors, numbers, ids, dtype): one operation of the backends, by name, off the JavaScript thread. Shapes are checked here, since
// backends trust theirs.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>

#include "addon/functions.h"
#include "addon/ops_tensor.h"
#include "addon/promise_worker.h"
#include "addon/results.h"

namespace lapidary::addon {

namespace {

using Results = std::vector<OpsTensorPtr>;

// What one call brought; null where an optional tensor is absent.
struct OpCall {
  std::string name;
  std::vector<OpsTensorPtr> tensors;
  std::shared_ptr<OpsCache> cache;
  std::vector<double> numbers;
  std::vector<int32_t> ids;
  DType dtype = DType::f32;  // of the result
  std::shared_ptr<OpsDevice> device;
  OpsTensorPtr memory;  // taken for the result where it fits; null: the result is new

  Backend& backend() const { return *device->backend; }
  bool has(size_t i) const { return i < tensors.size() && tensors[i]; }
  const Tensor& tensor(size_t i, const char* what) const {
    expect(!has(i) || !tensors[i]->packed, ErrorCode::invalid_argument, name, ": ", what, " is a packed weight, which only products take");
    return weight(i, what);
  }
  // The same; packed weights too.
  const Tensor& weight(size_t i, const char* what) const {
    expect(has(i), ErrorCode::invalid_argument, name, ": ", what, " is missing");
    return tensors[i]->t;
  }
  // Of one of these dtypes and this rank (0: any).
  const Tensor& tensor(size_t i, const char* what, std::initializer_list<DType> dtypes, int rank) const {
    return checked(tensor(i, what), what, dtypes, rank);
  }
  const Tensor& weight(size_t i, const char* what, std::initializer_list<DType> dtypes, int rank) const {
    return checked(weight(i, what), what, dtypes, rank);
  }
  const Tensor& checked(const Tensor& t, const char* what, std::initializer_list<DType> dtypes, int rank) const {
    std::string allowed;
    for (DType d : dtypes) allowed += (allowed.empty() ? "" : " or ") + std::string(dtype_info(d).name);
    expect(std::find(dtypes.begin(), dtypes.end(), t.dtype) != dtypes.end(), ErrorCode::invalid_argument, name, ": ", what, " must be ",
           allowed, ", it is ", dtype_info(t.dtype).name);
    expect(rank == 0 || t.rank == rank, ErrorCode::invalid_argument, name, ": ", what, " must have ", rank, " dimensions, its shape is ",
           t.shape_text());
    return t;
  }
  std::shared_ptr<OpsTensor> result(DType type, const std::vector<int64_t>& shape) const {
    const bool fits =
        memory && memory->t.dtype == type && std::equal(shape.begin(), shape.end(), memory->t.shape, memory->t.shape + memory->t.rank);
    return fits ? std::make_shared<OpsTensor>(*memory) : make_ops_tensor(device, type, shape);
  }
  std::shared_ptr<OpsTensor> result_like(const Tensor& t, DType type) const { return result(type, {t.shape, t.shape + t.rank}); }
  DType act() const {
    expect(dtype == DType::f32 || dtype == DType::bf16, ErrorCode::invalid_argument, name, ": the result is f32 or bf16, not ",
           dtype_info(dtype).name);
    return dtype;
  }
};

// A tensor seen as a matrix of its last dimension.
Tensor as_rows(const Tensor& t) {
  const int64_t dim = t.shape[t.rank - 1];
  return Tensor(t.data, t.dtype, {dim == 0 ? 0 : t.elements() / dim, dim}, t.device);
}

void same_shape(const OpCall& c, const Tensor& a, const Tensor& b, const char* names) {
  expect(a.rank == b.rank && std::equal(a.shape, a.shape + a.rank, b.shape), ErrorCode::invalid_argument, c.name, ": ", names,
         " have shapes ", a.shape_text(), " and ", b.shape_text(), ", which must be equal");
}

Results rms_norm(const OpCall& c) {
  const Tensor &x = c.tensor(0, "x", {DType::f32}, 0), &w = c.tensor(1, "weight", {DType::f32}, 1);
  expect(x.shape[x.rank - 1] == w.shape[0], ErrorCode::invalid_argument, "rmsNorm: x ", x.shape_text(), " has rows of ",
         x.shape[x.rank - 1], ", weight has ", w.shape[0]);
  const auto out = c.result_like(x, c.act());
  c.backend().rms_norm(as_rows(x), {w, static_cast<float>(c.numbers.at(1)), static_cast<float>(c.numbers.at(0))}, as_rows(out->t));
  return {out};
}

Linear weight_of(const OpCall& c, size_t weight, size_t scale, ActScheme scheme, float input_scale) {
  const Tensor& w = c.weight(weight, "weight");
  expect(w.rank == 2, ErrorCode::invalid_argument, c.name, ": weight must be [out, in], its shape is ", w.shape_text());
  Linear linear = {w, nullptr};
  if (w.dtype == DType::i8) {
    linear.scale = c.tensor(scale, "weight scales", {DType::f32}, 1);
    expect(linear.scale.shape[0] == w.shape[0], ErrorCode::invalid_argument, c.name, ": weight ", w.shape_text(), " needs ", w.shape[0],
           " scales, got ", linear.scale.shape[0]);
    linear.activations = scheme;
    linear.input_scale = input_scale;
  }
  linear.packed = c.tensors[weight]->packed;
  return linear.packed ? linear : c.backend().wrap_linear(linear);
}

Results linear(const OpCall& c) {
  const Tensor &x = c.tensor(0, "x", {DType::f32, DType::bf16}, 2), &w = c.weight(1, "weight");
  const double input_scale = c.numbers.at(0);  // < 0: weight-only; 0: a scale per row; > 0: that scale
  expect(w.rank == 2 && x.shape[1] == w.shape[1], ErrorCode::invalid_argument, "linear: x ", x.shape_text(), " and weight ", w.shape_text(),
         ": the last dimensions must be equal");
  const auto out = c.result(DType::f32, {x.shape[0], w.shape[0]});
  const ActScheme scheme = input_scale < 0 ? ActScheme::none : input_scale == 0 ? ActScheme::token : ActScheme::fixed;
  c.backend().linear(x, weight_of(c, 1, 2, scheme, static_cast<float>(input_scale)), out->t);
  return {out};
}

Results gemm_int8(const OpCall& c) {
  const Tensor &a = c.tensor(0, "a", {DType::i8}, 2), &a_scales = c.tensor(1, "a scales", {DType::f32}, 1),
               &b = c.weight(2, "b", {DType::i8}, 2);
  expect(a.shape[1] == b.shape[1], ErrorCode::invalid_argument, "gemmInt8: a ", a.shape_text(), " and b ", b.shape_text(),
         ": both are K-major, so the last dimensions, ", a.shape[1], " and ", b.shape[1], ", must be equal");
  expect(a_scales.shape[0] == a.shape[0], ErrorCode::invalid_argument, "gemmInt8: a ", a.shape_text(), " needs ", a.shape[0],
         " scales, got ", a_scales.shape[0]);
  const auto out = c.result(DType::f32, {a.shape[0], b.shape[0]});
  c.backend().matmul_int8(a, a_scales, weight_of(c, 2, 3, ActScheme::token, 0), out->t);
  return {out};
}

// The form that a model's weights are given, where it is another than plain rows in host memory; else the same memory once more.
Results pack(const OpCall& c) {
  const OpsTensorPtr source = c.tensors.at(0);
  const Tensor& w = c.weight(0, "weight");
  expect(w.rank == 2 && w.dtype != DType::i32 && w.dtype != DType::u8, ErrorCode::invalid_argument,
         "pack: weight must be [out, in] of a type ", "that products take, it is ", dtype_info(w.dtype).name, " ", w.shape_text());
  auto out = std::make_shared<OpsTensor>(*source);
  if (!source->packed && w.device == Device::host && w.elements() > 0) {
    const Linear made = c.backend().make_linear({w, nullptr});
    if (made.packed) {
      out->packed = made.packed;
      out->buffer = {};
      out->t.data = nullptr;
    }
  }
  return {out};
}

Results quantize_rows(const OpCall& c) {
  const Tensor& x = c.tensor(0, "x", {DType::f32, DType::bf16}, 2);
  const auto q = c.result_like(x, DType::i8), scales = c.result(DType::f32, {x.shape[0]});
  c.backend().quantize_rows(x, static_cast<float>(c.numbers.at(0)), q->t, scales->t);
  return {q, scales};
}

Results embed(const OpCall& c) {
  const Tensor& table = c.weight(0, "table");
  expect(table.rank == 2, ErrorCode::invalid_argument, "embed: table must be [vocab, dim], its shape is ", table.shape_text());
  for (int32_t id : c.ids)
    expect(id >= 0 && id < table.shape[0], ErrorCode::invalid_argument, "embed: id ", id, " is outside the table's ", table.shape[0],
           " rows");
  const auto out = c.result(DType::f32, {static_cast<int64_t>(c.ids.size()), table.shape[1]});
  c.backend().embed(c.ids, weight_of(c, 0, 1, ActScheme::none, 0), static_cast<float>(c.numbers.at(0)), out->t);
  return {out};
}

Results geglu(const OpCall& c) {
  const Tensor &gate = c.tensor(0, "gate", {DType::f32}, 0), &up = c.tensor(1, "up", {DType::f32}, 0);
  same_shape(c, gate, up, "gate and up");
  const auto out = c.result_like(gate, c.act());
  c.backend().geglu(as_rows(gate), as_rows(up), as_rows(out->t));
  return {out};
}

// A new tensor that `change` works on in place.
template <typename Change>
Results changed(const OpCall& c, const Tensor& x, const Change& change) {
  const auto out = c.result_like(x, DType::f32);
  c.backend().copy(out->t, x);
  change(out->t);
  return {out};
}

Results add(const OpCall& c) {
  const Tensor &x = c.tensor(0, "x", {DType::f32}, 0), &y = c.tensor(1, "y", {DType::f32}, 0);
  same_shape(c, x, y, "x and y");
  return changed(c, x, [&](const Tensor& out) { c.backend().add(as_rows(out), as_rows(y)); });
}

Results soft_cap(const OpCall& c) {
  return changed(c, c.tensor(0, "x", {DType::f32}, 0),
                 [&](const Tensor& out) { c.backend().soft_cap(as_rows(out), static_cast<float>(c.numbers.at(0))); });
}

Results rope(const OpCall& c) {
  const Tensor& x = c.tensor(0, "x", {DType::f32}, 3);
  const int64_t tokens = x.shape[0], half = x.shape[2] / 2;
  expect(x.shape[2] % 2 == 0, ErrorCode::invalid_argument, "rope: x ", x.shape_text(), " must have an even last dimension");
  expect(static_cast<int64_t>(c.ids.size()) == tokens, ErrorCode::invalid_argument, "rope: ", tokens,
         " tokens need as many positions, got ", c.ids.size());
  std::vector<float> inv_freq;
  for (int64_t j = 0; j < half; ++j)
    inv_freq.push_back(1.0f / std::pow(static_cast<float>(c.numbers.at(0)), static_cast<float>(2 * j) / static_cast<float>(2 * half)) /
                       static_cast<float>(c.numbers.at(1)));
  const auto cos = c.result(DType::f32, {tokens, half}), sin = c.result(DType::f32, {tokens, half});
  c.backend().rope_angles(c.ids, inv_freq, cos->t, sin->t);
  return changed(c, x, [&](const Tensor& out) { c.backend().rope(out, cos->t, sin->t); });
}

// tensors: q, prefix k, prefix v, q as the prefix sees it. numbers: scale, softcap, window (0: none), first position. ids: pairs of image
// blocks.
Results attention(const OpCall& c) {
  const Tensor& q = c.tensor(0, "q", {DType::f32}, 3);
  OpsCache& cache = *c.cache;
  const int64_t tokens = q.shape[0], heads = q.shape[1], first_pos = static_cast<int64_t>(c.numbers.at(3)), end = first_pos + tokens;
  expect(q.shape[2] == cache.head_dim && heads % cache.num_kv_heads == 0, ErrorCode::invalid_argument, "attention: q ", q.shape_text(),
         " over a cache of ", cache.num_kv_heads, " heads of ", cache.head_dim,
         ": head_dim must be equal and the heads a multiple of the cache's");
  expect(first_pos >= 0 && end <= cache.length, ErrorCode::invalid_argument, "attention: queries at positions ", first_pos, " to ", end - 1,
         ", the cache holds ", cache.length, " keys: append them first");
  AttentionExtras extras;
  if (c.has(1) || c.has(2)) {
    extras.prefix_k = c.tensor(1, "prefix k", {DType::f32, DType::bf16}, 3),
    extras.prefix_v = c.tensor(2, "prefix v", {DType::f32, DType::bf16}, 3);
    same_shape(c, extras.prefix_k, extras.prefix_v, "prefix k and v");
    expect(extras.prefix_k.dtype == extras.prefix_v.dtype && extras.prefix_k.shape[0] == cache.num_kv_heads &&
               extras.prefix_k.shape[2] == cache.head_dim,
           ErrorCode::invalid_argument, "attention: the prefix must be [", cache.num_kv_heads, ", tokens, ", cache.head_dim,
           "], k and v of one dtype, it is ", extras.prefix_k.shape_text());
  }
  if (c.has(3)) {
    extras.q_prefix = c.tensor(3, "prefix query", {DType::f32}, 3);
    same_shape(c, q, extras.q_prefix, "q and the prefix query");
  }
  std::vector<ImageBlock> images;
  if (!c.ids.empty()) {
    images.resize(static_cast<size_t>(tokens));
    for (size_t i = 0; i + 1 < c.ids.size(); i += 2) {
      const int32_t first = c.ids[i], last = c.ids[i + 1];
      expect(first >= 0 && first <= last && last <= cache.length, ErrorCode::invalid_argument, "attention: image block [", first, ", ",
             last, ") of a cache of ", cache.length);
      for (int64_t p = std::max<int64_t>(first, first_pos); p < std::min<int64_t>(last, end); ++p)
        images[static_cast<size_t>(p - first_pos)] = {first, last};
    }
    extras.image_blocks = images;
  }
  AttentionShape shape{heads,
                       cache.num_kv_heads,
                       cache.head_dim,
                       static_cast<float>(c.numbers.at(0)),
                       static_cast<float>(c.numbers.at(1)),
                       c.numbers.at(2) > 0 ? static_cast<int64_t>(c.numbers.at(2)) : kNoWindow};
  if (extras.prefix_k || !images.empty()) shape.extras = &extras;
  const auto out = c.result(c.act(), {tokens, heads, cache.head_dim});
  const AttentionSpan span{0, tokens, first_pos, cache.view()};
  c.backend().attention(q, {&span, 1}, shape, Tensor(out->t.data, out->t.dtype, {tokens, heads * cache.head_dim}, out->t.device));
  return {out};
}

Results synchronize(const OpCall& c) {
  float one = 0;
  const auto small = c.result(DType::f32, {1});
  c.backend().zero(small->t);
  c.backend().download(&one, small->t);  // waits for everything before it
  return {};
}

const std::map<std::string, Results (*)(const OpCall&)>& table() {
  static const std::map<std::string, Results (*)(const OpCall&)> ops = {
      {"rmsNorm", rms_norm},           {"linear", linear}, {"gemmInt8", gemm_int8},  {"pack", pack},
      {"quantizeRows", quantize_rows}, {"embed", embed},   {"geglu", geglu},         {"add", add},
      {"softCap", soft_cap},           {"rope", rope},     {"attention", attention}, {"synchronize", synchronize}};
  return ops;
}

}  // namespace

namespace {

auto find_op(const std::string& name) {
  const auto found = table().find(name);
  expect(found != table().end(), ErrorCode::invalid_argument, "there is no operation '", name, "'");
  return found->second;
}

std::vector<OpsTensorPtr> to_tensors(Napi::Value value, const std::string& op, const std::string& kind) {
  std::vector<OpsTensorPtr> result;
  const Napi::Array tensors = to_array(value, "tensors");
  for (uint32_t i = 0; i < tensors.Length(); ++i) {
    result.push_back(to_ops_tensor(tensors.Get(i), op));
    expect(!result.back() || result.back()->device->kind == kind, ErrorCode::invalid_argument, op,
           ": all tensors must be on one device, got '", kind, "' and '", result.back() ? result.back()->device->kind : kind, "'");
  }
  return result;
}

}  // namespace

// op(name, device, tensors, cache | null, numbers, ids, dtype): Promise<NativeTensor[]>
napi_value run_op(const Napi::CallbackInfo& info) {
  OpCall call;
  call.name = to_text(info[0], "name");
  const std::string kind = to_text(info[1], "device");
  call.tensors = to_tensors(info[2], call.name, kind);
  if (!info[3].IsNull() && !info[3].IsUndefined()) call.cache = to_handle<KvCacheObject>(info.Env(), info[3], "cache").get();
  expect(!call.cache || call.cache->device->kind == kind, ErrorCode::invalid_argument, call.name,
         ": the cache must be on the tensors' device");
  const Napi::Array numbers = to_array(info[4], "numbers");
  for (uint32_t i = 0; i < numbers.Length(); ++i) call.numbers.push_back(to_number(numbers.Get(i), "numbers"));
  call.ids = to_int32s(info[5], "ids");
  call.dtype = to_dtype(to_text(info[6], "dtype"), call.name);

  auto work = [op = find_op(call.name), call = std::move(call), kind]() mutable {
    call.device = OpsDevice::open(kind);
    const std::lock_guard lock(call.device->mutex);
    return op(call);
  };
  auto wrap = [](Napi::Env env, Results results) -> napi_value {
    const Napi::Array out = Napi::Array::New(env, results.size());
    for (size_t i = 0; i < results.size(); ++i)
      out.Set(static_cast<uint32_t>(i), make_handle(env, std::make_unique<TensorObject>(Environment::of(env), std::move(results[i]))));
    return out;
  };
  return promise_work(info.Env(), "lapidary op", std::move(work), std::move(wrap));
}

// timeOp(name, device, inputs: tensors[], numbers, calls): Promise<number[]>: the seconds of each call, the inputs taken in turn.
napi_value time_op(const Napi::CallbackInfo& info) {
  const std::string name = to_text(info[0], "name"), kind = to_text(info[1], "device");
  const Napi::Array inputs = to_array(info[2], "inputs"), numbers = to_array(info[3], "numbers");
  const int64_t count = to_integer(info[4], "calls", 1, kMaxSafeInteger);
  expect(inputs.Length() > 0, ErrorCode::invalid_argument, name, ": there are no inputs to time it on");
  std::vector<OpCall> calls(inputs.Length());
  for (uint32_t i = 0; i < inputs.Length(); ++i) {
    calls[i].name = name;
    calls[i].tensors = to_tensors(inputs.Get(i), name, kind);
    for (uint32_t j = 0; j < numbers.Length(); ++j) calls[i].numbers.push_back(to_number(numbers.Get(j), "numbers"));
  }
  auto work = [op = find_op(name), calls = std::move(calls), kind, count]() mutable {
    using Clock = std::chrono::steady_clock;
    const std::shared_ptr<OpsDevice> device = OpsDevice::open(kind);
    const std::lock_guard lock(device->mutex);
    std::vector<double> seconds;
    OpsTensorPtr memory;
    for (int64_t i = -1; i < count; ++i) {  // the first one makes the result's memory
      OpCall& call = calls[static_cast<size_t>(std::max<int64_t>(i, 0)) % calls.size()];
      call.device = device;
      call.memory = memory;
      const Clock::time_point start = Clock::now();
      memory = op(call).at(0);
      if (i >= 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    return seconds;
  };
  auto wrap = [](Napi::Env env, std::vector<double> seconds) -> napi_value {
    const Napi::Array out = Napi::Array::New(env, seconds.size());
    for (size_t i = 0; i < seconds.size(); ++i) out.Set(static_cast<uint32_t>(i), seconds[i]);
    return out;
  };
  return promise_work(info.Env(), "lapidary timed op", std::move(work), std::move(wrap));
}

// sampleOp(logits, settings[], seeds: bigint[], counter): Promise<Int32Array>: one token per row.
napi_value sample_op(const Napi::CallbackInfo& info) {
  const OpsTensorPtr logits = to_ops_tensor(info[0], "logits");
  expect(logits != nullptr, ErrorCode::invalid_argument, "sample: logits are missing");
  const Tensor& t = logits->t;
  expect(t.dtype == DType::f32 && t.rank == 2, ErrorCode::invalid_argument, "sample: logits must be f32 [rows, vocab], they are ",
         dtype_info(t.dtype).name, " ", t.shape_text());
  const Napi::Array list = to_array(info[1], "settings"), seeds = to_array(info[2], "seeds");
  expect(list.Length() == t.shape[0] && seeds.Length() == t.shape[0], ErrorCode::invalid_argument, "sample: ", t.shape[0],
         " rows need as many settings and seeds");
  std::vector<SamplingSettings> settings;
  std::vector<uint64_t> seed_values;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    settings.push_back(to_sampling(list.Get(i), "settings"));
    seed_values.push_back(to_seed(seeds.Get(i), "seeds"));
  }
  auto work = [logits, settings = std::move(settings), seed_values = std::move(seed_values),
               counter = static_cast<uint64_t>(to_integer(info[3], "counter", 0, kMaxSafeInteger))] {
    std::vector<SampleRequest> requests;
    for (size_t i = 0; i < settings.size(); ++i) {
      SampleRequest request;
      request.settings = &settings[i];
      request.seed = seed_values[i];
      request.counter = counter;
      requests.push_back(request);
    }
    std::vector<SampleResult> results(requests.size());
    const std::lock_guard lock(logits->device->mutex);
    logits->device->backend->sample(logits->t, requests, results);
    std::vector<int32_t> ids;
    for (const SampleResult& r : results) ids.push_back(r.id);
    return ids;
  };
  auto wrap = [](Napi::Env env, std::vector<int32_t> ids) -> napi_value { return int32_array(env, ids); };
  return promise_work(info.Env(), "lapidary sample", std::move(work), std::move(wrap));
}

}  // namespace lapidary::addon
