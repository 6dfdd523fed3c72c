// Weights on the device: what make_linear and make_linears turn host weights into. Plain rows for f32, bf16, f16, int8 and block kinds;
// planes (api/block_planes.h) for Q8_0 and Q4_0. Weights that share an input may form a group, one stacked matrix that a single product
// computes.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cuda/device.h"
#include "ops/ops.h"

namespace lapidary::cuda {

enum class WeightForm : uint8_t {
  rows,    // [n, k] as on the host, plain or raw blocks
  planes,  // Q8_0 and Q4_0: quants and scales apart
};

// One matrix as a product reads it.
struct DeviceMatrix {
  DType dtype = DType::f32;
  WeightForm form = WeightForm::rows;
  const void* data = nullptr;     // rows, or the planes
  const float* scales = nullptr;  // i8: f32 [n]
  int64_t n = 0, k = 0;
  ActScheme activations = ActScheme::none;
  float input_scale = 0;
  bool constant = false;  // uploaded by make_linear: no kernel writes it
};

struct WeightGroup {
  DeviceMatrix matrix;  // all rows
  Stack stack = Stack::rows;
  size_t members = 0;
};

// The PackedWeight of this backend.
struct DeviceWeight final : PackedWeight {
  DeviceMatrix matrix;                       // this weight alone; data null for a member of an interleaved group
  std::shared_ptr<const WeightGroup> group;  // null: alone
  size_t member = 0;
};

const DeviceWeight& device_weight(const Linear& linear);
// The group whose members are exactly these, in order and stacked so; else null.
const WeightGroup* group_of(std::initializer_list<const Linear*> members, Stack stack);

Linear make_device_linear(DeviceState& device, const Linear& host);
Linear wrap_device_linear(const Linear& on_device);  // rows that are there already
std::vector<Linear> make_device_linears(DeviceState& device, std::span<const Linear> host, Stack stack);

}  // namespace lapidary::cuda
