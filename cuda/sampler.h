// Sampling of the backend: requests become settings on the device, one launch sequence draws every row, and only ids come back.
#pragma once

#include "cuda/api/sampling.h"
#include "cuda/device.h"
#include "ops/sampling.h"

namespace lapidary::cuda {

class Sampler {
 public:
  Sampler(std::shared_ptr<DeviceState> device, Staging& staging) : device_(std::move(device)), staging_(staging), results_(device_) {}

  // Whether the device draws these; else the caller takes the reference.
  static bool takes(std::span<const SampleRequest> requests);
  // logits f32 [requests, vocab] on the device. Errors are those of sample_token.
  void sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results);

 private:
  SampleRow row_of(const SampleRequest& request);
  void* workspace(int64_t rows, int64_t vocab);

  std::shared_ptr<DeviceState> device_;
  Staging& staging_;
  Scratch results_;
  Buffer workspace_;
  int64_t max_rows_ = 0, vocab_ = 0;
  std::vector<int32_t> bias_ids_;
  std::vector<float> bias_values_;
};

}  // namespace lapidary::cuda
