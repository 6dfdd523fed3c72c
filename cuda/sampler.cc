#include "cuda/sampler.h"

#include <algorithm>

namespace lapidary::cuda {

namespace {

[[noreturn]] void fail_row(const SampledToken& token, int64_t vocab) {
  switch (token.error) {
    case SampleError::bad_logit:
      fail(ErrorCode::internal, "the model's logit of token ", token.id,
           " is no finite number: its weights or inputs are damaged, no token can be drawn");
    case SampleError::beyond_range:
      fail(ErrorCode::invalid_argument, "logit bias and penalties together are beyond the range of a float: use smaller ones");
    case SampleError::no_token:
      fail(ErrorCode::invalid_argument, "no token is left to draw from: mask or bias exclude all ", vocab);
    default:
      fail(ErrorCode::internal, "cuda: a row of the sampler was not planned for");
  }
}

}  // namespace

bool Sampler::takes(std::span<const SampleRequest> requests) {
  return std::all_of(requests.begin(), requests.end(), [](const SampleRequest& r) { return r.top_logprobs <= kSampleMaxTop; });
}

SampleRow Sampler::row_of(const SampleRequest& request) {
  const SamplingSettings& s = *request.settings;
  SampleRow row = {};
  row.temperature = s.temperature, row.top_p = s.top_p, row.min_p = s.min_p;
  row.top_k = static_cast<int32_t>(std::min<int64_t>(s.top_k, INT32_MAX));
  row.repetition_penalty = s.repetition_penalty, row.presence_penalty = s.presence_penalty, row.frequency_penalty = s.frequency_penalty;
  row.top_logprobs = request.top_logprobs;
  row.seed = request.seed, row.counter = request.counter;
  if (s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0) {
    row.history = staging_.put(request.history);
    row.history_tokens = static_cast<int32_t>(request.history.size());
    row.prompt_tokens = static_cast<int32_t>(request.prompt_tokens);
  }
  if (!request.mask.empty()) row.mask = staging_.put(request.mask);
  row.first_bias = static_cast<int32_t>(bias_ids_.size());
  row.num_bias = static_cast<int32_t>(s.logit_bias.size());
  std::vector<std::pair<int32_t, float>> bias = s.logit_bias;
  std::stable_sort(bias.begin(), bias.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [id, value] : bias) bias_ids_.push_back(id), bias_values_.push_back(value);
  return row;
}

// The layout depends on max_rows and vocab, and its counters start at zero.
void* Sampler::workspace(int64_t rows, int64_t vocab) {
  if (rows > max_rows_ || vocab != vocab_) {
    const int64_t most = std::max(rows, vocab == vocab_ ? 2 * max_rows_ : int64_t{1});
    workspace_ = {};
    max_rows_ = 0;
    Buffer grown = device_->allocate(sample_workspace_bytes(most, vocab, /*adjusts=*/true));
    device_->check(device_->api().device.fill(grown.memory.get(), 0, grown.bytes, device_->stream()));
    workspace_ = std::move(grown);
    max_rows_ = most;
    vocab_ = vocab;
  }
  return workspace_.memory.get();
}

void Sampler::sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results) {
  const int64_t rows = logits.shape[0], vocab = logits.shape[1];
  if (rows == 0) return;
  bias_ids_.clear(), bias_values_.clear();
  SampleParams p = {};
  std::vector<SampleRow> settings;
  for (const SampleRequest& request : requests) {
    check_sample_request(request, vocab);
    settings.push_back(row_of(request));
    note_row(p.needs, settings.back(), static_cast<int32_t>(vocab));
  }
  p.logits = logits.as<const float>();
  p.stride = vocab;
  p.rows = static_cast<int32_t>(rows), p.vocab = static_cast<int32_t>(vocab);
  p.settings = staging_.put(std::span<const SampleRow>(settings));
  p.bias_ids = staging_.put(std::span<const int32_t>(bias_ids_));
  p.bias_values = staging_.put(std::span<const float>(bias_values_));
  p.workspace = workspace(rows, vocab);
  p.max_rows = static_cast<int32_t>(max_rows_);

  const int64_t top = p.needs.most_top, out_bytes = rows * static_cast<int64_t>(sizeof(SampledToken)), list_bytes = rows * top * 4;
  std::byte* memory = static_cast<std::byte*>(results_.at_least(static_cast<size_t>(out_bytes + 2 * list_bytes)));
  p.out = reinterpret_cast<SampledToken*>(memory);
  p.top_stride = static_cast<int32_t>(top);
  if (top > 0) {
    p.top_ids = reinterpret_cast<int32_t*>(memory + out_bytes);
    p.top_logprobs = reinterpret_cast<float*>(memory + out_bytes + list_bytes);
  }
  device_->check(device_->api().sample(p, device_->context()));

  std::vector<std::byte> host(static_cast<size_t>(out_bytes + 2 * list_bytes));
  device_->download(host.data(), memory, host.size());
  const auto* tokens = reinterpret_cast<const SampledToken*>(host.data());
  const auto* ids = reinterpret_cast<const int32_t*>(host.data() + out_bytes);
  const auto* logprobs = reinterpret_cast<const float*>(host.data() + out_bytes + list_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    if (tokens[r].error != SampleError::none) fail_row(tokens[r], vocab);
    SampleResult& result = results[static_cast<size_t>(r)];
    result = {tokens[r].id, 0, {}};
    const int64_t wanted = requests[static_cast<size_t>(r)].top_logprobs;
    if (wanted < 0) continue;
    result.logprob = tokens[r].logprob;
    for (int64_t i = 0; i < std::min(wanted, vocab); ++i) result.top.push_back({ids[r * top + i], logprobs[r * top + i]});
  }
}

}  // namespace lapidary::cuda
