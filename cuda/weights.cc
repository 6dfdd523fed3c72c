#include "cuda/weights.h"

#include <algorithm>
#include <cstring>

#include "cuda/api/block_planes.h"
#include "cuda/api/gemm.h"

namespace lapidary::cuda {

namespace {

constexpr int64_t kAlign = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

bool is_plane_kind(DType dtype) { return dtype == DType::q8_0 || dtype == DType::q4_0; }
PlaneKind plane_kind(DType dtype) { return dtype == DType::q8_0 ? PlaneKind::q8_0 : PlaneKind::q4_0; }

void check_host(const Linear& host) {
  const Tensor& w = host.weight;
  expect(w.rank == 2 && w.device == Device::host, ErrorCode::internal, "make_linear: weight ", w.shape_text(),
         " must be [out, in] in host memory");
  expect(w.dtype != DType::i32 && w.dtype != DType::u8, ErrorCode::unsupported, "make_linear: the cuda backend has no product with ",
         dtype_info(w.dtype).name, " weights; use f32, bf16, f16, int8 or a GGUF block type");
  expect(
      host.activations != ActScheme::sequence, ErrorCode::unsupported,
      "the cuda backend has no int8 products with one input scale per sequence (per-tensor dynamic): load the model with device 'cpu', or "
      "quantise it with activations 'token' or 'static'");
  expect(w.dtype != DType::i8 || host.scale.elements() == w.shape[0], ErrorCode::internal, "make_linear: i8 weight ", w.shape_text(),
         ", scales ", host.scale.shape_text());
}

// One matrix in device memory, made of host rows in the order of `row_of`.
struct Uploaded {
  Buffer memory;
  DeviceMatrix matrix;
};

// The rows of host weights in the order of a stack, as one host matrix. Gathered in host memory once, then sent in one copy.
std::vector<std::byte> stacked_rows(std::span<const Linear> host, Stack stack, std::vector<float>& scales) {
  const int64_t row_bytes = host[0].weight.row_bytes();
  int64_t rows = 0;
  for (const Linear& h : host) rows += h.out();
  std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes));
  int64_t at = 0;
  const auto take = [&](const Linear& h, int64_t first, int64_t count) {
    std::memcpy(bytes.data() + at * row_bytes, h.weight.data + first * row_bytes, static_cast<size_t>(count * row_bytes));
    if (h.scale) std::copy_n(h.scale.as<float>() + first, count, scales.begin() + at);
    at += count;
  };
  scales.assign(host[0].scale ? static_cast<size_t>(rows) : 0, 0);
  if (stack == Stack::rows) {
    for (const Linear& h : host) take(h, 0, h.out());
  } else {
    for (int64_t row = 0; row < host[0].out(); row += kGegluBlock) {
      for (const Linear& h : host) take(h, row, kGegluBlock);
    }
  }
  return bytes;
}

Uploaded upload_matrix(DeviceState& device, DType dtype, int64_t n, int64_t k, const void* rows, const float* scales, const Linear& like) {
  Uploaded up;
  up.matrix = {dtype, WeightForm::rows, nullptr, nullptr, n, k, like.activations, like.input_scale};
  up.matrix.constant = true;
  if (is_plane_kind(dtype)) {
    const PlaneLayout layout = plane_layout(plane_kind(dtype), n, k);
    std::vector<std::byte> planes(static_cast<size_t>(layout.bytes));
    pack_planes(plane_kind(dtype), rows, n, k, planes.data());
    up.memory = device.allocate(planes.size());
    device.upload(up.memory.memory.get(), planes.data(), planes.size());
    up.matrix.form = WeightForm::planes;
    up.matrix.data = up.memory.memory.get();
    return up;
  }
  const int64_t bytes = dtype_bytes(dtype, n * k), scales_at = aligned(bytes);
  up.memory = device.allocate(static_cast<size_t>(scales_at + (scales ? n * 4 : 0)));
  std::byte* memory = up.memory.memory.get();
  device.upload(memory, rows, static_cast<size_t>(bytes));
  up.matrix.data = memory;
  if (scales) {
    device.upload(memory + scales_at, scales, static_cast<size_t>(n * 4));
    up.matrix.scales = reinterpret_cast<const float*>(memory + scales_at);
  }
  return up;
}

// The Linear that the model sees: shape and dtype of the host's, data on the device.
Linear linear_of(const Linear& host, std::shared_ptr<const void> keep, std::shared_ptr<const DeviceWeight> packed) {
  Linear linear = host;
  linear.weight = Tensor(packed->matrix.data, host.weight.dtype, {host.out(), host.in()}, Device::cuda);
  linear.scale = host.scale ? Tensor(packed->matrix.scales, DType::f32, {host.out()}, Device::cuda) : Tensor{};
  linear.keep = std::move(keep);
  linear.packed = std::move(packed);
  return linear;
}

// Groups exist where every row starts on 16 bytes and one kernel takes them all.
bool fit_together(std::span<const Linear> host, Stack stack) {
  const Linear& first = host[0];
  const DType dtype = first.weight.dtype;
  if (dtype != DType::bf16 && dtype != DType::i8 && !(is_plane_kind(dtype) && stack == Stack::interleaved)) return false;
  if (dtype == DType::i8 && first.activations == ActScheme::none) return false;
  return std::all_of(host.begin(), host.end(), [&](const Linear& h) {
    return h.weight.dtype == dtype && h.in() == first.in() && h.activations == first.activations && h.input_scale == first.input_scale &&
           h.weight.row_bytes() % 16 == 0 && h.out() % 2 == 0 &&
           (stack == Stack::rows || (h.out() == first.out() && h.out() % kGegluBlock == 0));
  });
}

}  // namespace

const DeviceWeight& device_weight(const Linear& linear) {
  const auto* weight = dynamic_cast<const DeviceWeight*>(linear.packed.get());
  expect(weight != nullptr, ErrorCode::internal, "the cuda backend got a weight ", linear.weight.shape_text(), " that it did not make");
  return *weight;
}

const WeightGroup* group_of(std::initializer_list<const Linear*> members, Stack stack) {
  const WeightGroup* group = device_weight(**members.begin()).group.get();
  if (!group || group->stack != stack || group->members != members.size()) return nullptr;
  size_t at = 0;
  for (const Linear* linear : members) {
    const DeviceWeight& weight = device_weight(*linear);
    if (weight.group.get() != group || weight.member != at++) return nullptr;
  }
  return group;
}

Linear make_device_linear(DeviceState& device, const Linear& host) {
  check_host(host);
  Uploaded up = upload_matrix(device, host.weight.dtype, host.out(), host.in(), host.weight.data,
                              host.scale ? host.scale.as<float>() : nullptr, host);
  auto weight = std::make_shared<DeviceWeight>();
  weight->matrix = up.matrix;
  return linear_of(host, up.memory.memory, std::move(weight));
}

Linear wrap_device_linear(const Linear& on_device) {
  const Tensor& w = on_device.weight;
  expect(w.rank == 2 && w.device == Device::cuda, ErrorCode::internal, "wrap_linear: weight ", w.shape_text(),
         " must be [out, in] on the device");
  auto weight = std::make_shared<DeviceWeight>();
  weight->matrix = {w.dtype,
                    WeightForm::rows,
                    w.data,
                    on_device.scale ? on_device.scale.as<const float>() : nullptr,
                    w.shape[0],
                    w.shape[1],
                    on_device.activations,
                    on_device.input_scale};
  Linear linear = on_device;
  linear.packed = std::move(weight);
  return linear;
}

std::vector<Linear> make_device_linears(DeviceState& device, std::span<const Linear> host, Stack stack) {
  for (const Linear& h : host) check_host(h);
  std::vector<Linear> made;
  if (host.size() < 2 || !fit_together(host, stack)) {
    for (const Linear& h : host) made.push_back(make_device_linear(device, h));
    return made;
  }
  int64_t rows = 0;
  for (const Linear& h : host) rows += h.out();
  std::vector<float> scales;
  const std::vector<std::byte> bytes = stacked_rows(host, stack, scales);
  const Uploaded up =
      upload_matrix(device, host[0].weight.dtype, rows, host[0].in(), bytes.data(), scales.empty() ? nullptr : scales.data(), host[0]);
  auto group = std::make_shared<WeightGroup>();
  *group = {up.matrix, stack, host.size()};
  int64_t first = 0;
  for (size_t i = 0; i < host.size(); ++i) {
    auto weight = std::make_shared<DeviceWeight>();
    weight->group = group;
    weight->member = i;
    weight->matrix = up.matrix;
    weight->matrix.n = host[i].out();
    if (stack == Stack::rows) {
      weight->matrix.data = static_cast<const std::byte*>(up.matrix.data) + first * host[i].weight.row_bytes();
      if (up.matrix.scales) weight->matrix.scales = up.matrix.scales + first;
    } else {
      weight->matrix.data = nullptr;
    }
    first += host[i].out();
    made.push_back(linear_of(host[i], up.memory.memory, std::move(weight)));
  }
  return made;
}

}  // namespace lapidary::cuda
