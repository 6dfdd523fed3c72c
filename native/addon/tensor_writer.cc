// writeSafetensors: typed arrays to a file, off the JavaScript thread.
#include <algorithm>

#include "addon/args.h"
#include "addon/functions.h"
#include "addon/promise_worker.h"
#include "formats/safetensors.h"

namespace lapidary::addon {

namespace {

// One tensor to be written, with a copy of its data.
struct OwnedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int32_t> integers;
  bool is_float = false;

  Tensor view() const {
    Tensor out = is_float ? Tensor(floats.data(), DType::f32, {}) : Tensor(integers.data(), DType::i32, {});
    out.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), out.shape);
    return out;
  }
};

OwnedTensor to_tensor(Napi::Value value, const std::string& name) {
  const Fields fields(value, name);
  OwnedTensor out;
  out.name = fields.text("name");
  const Napi::Array dims = to_array(fields.get("shape"), fields.name("shape"));
  expect(dims.Length() >= 1 && dims.Length() <= 4, ErrorCode::invalid_argument, fields.name("shape"), ": expected 1 to 4 dimensions, got ",
         dims.Length());
  int64_t elements = 1;
  for (uint32_t i = 0; i < dims.Length(); ++i) {
    out.shape.push_back(to_integer(dims.Get(i), fields.name("shape"), 0, int64_t{1} << 40));
    expect(out.shape.back() == 0 || elements <= (int64_t{1} << 40) / out.shape.back(), ErrorCode::invalid_argument, fields.name("shape"),
           ": too large");
    elements *= out.shape.back();
  }
  const Napi::Value data = fields.get("data");
  out.is_float = data.IsTypedArray() && data.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array;
  if (out.is_float) {
    out.floats = to_floats(data, fields.name("data"));
  } else {
    out.integers = to_int32s(data, fields.name("data"));
  }
  const size_t given = out.floats.size() + out.integers.size();
  expect(given == static_cast<size_t>(elements), ErrorCode::invalid_argument, fields.name("data"), ": the shape asks for ", elements,
         " elements, got ", given);
  return out;
}

}  // namespace

napi_value write_tensors(const Napi::CallbackInfo& info) {
  const Napi::Array list = to_array(info[1], "tensors");
  std::vector<OwnedTensor> tensors;
  for (uint32_t i = 0; i < list.Length(); ++i) tensors.push_back(to_tensor(list.Get(i), "tensors[" + std::to_string(i) + "]"));
  auto write = [path = to_text(info[0], "path"), tensors = std::move(tensors), metadata = to_text_map(info[2], "metadata")] {
    std::vector<std::pair<std::string, Tensor>> named;
    for (const OwnedTensor& tensor : tensors) named.emplace_back(tensor.name, tensor.view());
    write_safetensors(path, named, metadata);
    return Nothing{};
  };
  return promise_work(info.Env(), "lapidary write", std::move(write), to_undefined);
}

}  // namespace lapidary::addon
