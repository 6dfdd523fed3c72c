// A conversation on disk: one safetensors file with the tokens and what the next token needs of the KV cache, so that a
// restored conversation goes on with the very bits of the saved one.
//
//   tokens          I32 [tokens]                              all of them; the first `cached` are in the cache
//   layer.N.k, .v   F32, BF16 or I8 [positions, kv_heads, head_dim]  positions [first, cached); local layers keep their window only
//   layer.N.k_scale, .v_scale   F32 [positions, kv_heads]       with I8 alone
//   metadata        format, version, model (fingerprint), precision, cached, checksum
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "runtime/kv_cache.h"

namespace lapidary {

// What a file must agree with.
struct SessionModel {
  const ModelConfig* config = nullptr;
  std::string fingerprint;
  DType kv_dtype = DType::f32;
  int64_t context = 0;
};

// A conversation in host memory: owned after capture, views into the mapped file after reading.
struct SessionImage {
  std::vector<int32_t> tokens;
  int64_t cached = 0;
  struct Layer {
    Tensor k, v;              // [positions, kv_heads, head_dim]
    Tensor k_scale, v_scale;  // of i8: f32 [positions, kv_heads]; else empty
    KvRows rows() const { return {k.data, v.data, k_scale.data, v_scale.data}; }
  };
  std::vector<Layer> layers;  // none when nothing is cached
  std::vector<Buffer> owned;
  TensorFile file;
};

SessionImage capture_session(const SessionModel& model, std::span<const int32_t> tokens, const KvCache* cache);
void write_session(const std::string& path, const SessionModel& model, const SessionImage& image);  // atomic

// Error(bad_file): damaged, cut off, changed, of another model, precision or version, or longer than the context.
SessionImage read_session(const std::string& path, const SessionModel& model);
void restore_cache(const SessionImage& image, KvCache& cache);  // an empty one; Error(out_of_memory)

}  // namespace lapidary
