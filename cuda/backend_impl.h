// The CUDA backend: primitives in backend.cc, fused stages in backend_stages.cc.
//
// One stream, so calls take effect in order; nothing waits but download, sample's results, and uploads of host memory. A branch that a
// stage adds to the residual stream stays open until the next stage, whose first kernel adds it while it normalises (api/rows.h,
// AddNormParams; api/gemv.h, GemvPrologue). Whatever reads the residual stream first completes it, so no caller can see the difference;
// upload, copy and zero are not for it. `embed` begins a step and gives up what a step that was abandoned left open.
//
// Operations are one thread's. Other threads may allocate, upload, download, copy and zero meanwhile (conversations that are saved, forked
// or freed while the engine computes), as long as it is not what the operations work on.
#pragma once

#include "cuda/attention.h"
#include "cuda/backend.h"
#include "cuda/products.h"
#include "cuda/sampler.h"

namespace lapidary::cuda {

class CudaBackend final : public Backend {
 public:
  CudaBackend(const Api& api, int ordinal);
  ~CudaBackend() override;

  std::string_view name() const override { return "cuda"; }

  Buffer allocate(size_t bytes) override;
  Buffer allocate_page(size_t bytes) override;
  void upload(const Tensor& dst, const void* host_src) override;
  void download(void* host_dst, const Tensor& src) override;
  void copy(const Tensor& dst, const Tensor& src) override;
  void zero(const Tensor& dst) override;
  Linear make_linear(const Linear& host) override;
  Linear wrap_linear(const Linear& on_device) override;
  std::vector<Linear> make_linears(std::span<const Linear> host, Stack stack) override;

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override;
  void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) override;
  void linear(const Tensor& x, const Linear& w, const Tensor& out) override;
  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override;
  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override;
  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override;
  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override;
  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override;
  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override;
  void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) override;
  void add(const Tensor& x, const Tensor& y) override;
  void soft_cap(const Tensor& x, float cap) override;
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override;
  void sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results) override;

  void self_attention(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, const AttendParams& params,
                      Workspace& ws) override;
  void attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws) override;
  void feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down, const Norm& post_norm,
                    Workspace& ws) override;
  void logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out) override;

 private:
  // The residual stream of the step at hand while it is not simply in its tensor.
  struct Open {
    Tensor home;                    // where callers expect it
    float* at = nullptr;            // where it is: home, or other_
    const float* branch = nullptr;  // to be added after its post-norm; null: nothing
    const float* post_weight = nullptr;
    float offset = 0, eps = 0;
  };

  void enter(bool complete = true);  // start of every method
  void complete();                   // adds what is open, brings x home
  void discard() { exchange_open({}); }
  Open exchange_open(Open next);
  bool is_open(const Tensor& t);  // whether t lies in the residual stream that is open
  // The open branch of x, or x as it is; completes another tensor's.
  Open take(const Tensor& x);
  void leave_open(const Open& state, const Tensor& branch, const Norm& post_norm);
  // One normed input for products with these weights: rows made here, or a prologue for the products to make them.
  struct Input {
    ActRows rows;
    GemvPrologue prologue;  // x null: none
  };
  Input normed_input(Open& state, const Norm& norm, std::initializer_list<const DeviceMatrix*> readers, ActType model, int64_t tokens);
  void used_prologue(Open& state, const Input& input);
  void normed_product(Open& state, const Norm& norm, const DeviceMatrix& w, float* out, ActType model, int64_t tokens);
  ActRows act_rows(const Tensor& x);
  ActRows for_weight(const ActRows& x, const DeviceMatrix& w);  // quantised when the weight wants it
  ProductOutput store(float* out, int64_t n);

  void check(const Status& status) { device_->check(status); }
  const LaunchContext& context() const { return device_->context(); }
  const Api& api() const { return device_->api(); }

  std::shared_ptr<DeviceState> device_;
  Staging staging_;
  Products products_;
  Attention attention_;
  Sampler sampler_;
  Scratch quantized_, scales_, projections_, normed_, gated_, gate_up_, other_;
  std::mutex open_mutex_;  // of open_ itself: other threads ask whether what they read is part of it
  Open open_;
};

}  // namespace lapidary::cuda
