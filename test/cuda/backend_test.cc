// The CUDA backend: every primitive against the reference backend, every fused stage against its unfused body, memory and errors.
#include "cuda/backend.h"

#include <algorithm>
#include <cmath>

#include "cuda/device.h"
#include "cuda/support.h"
#include "ops/ops_data.h"
#include "ops/plain.h"

namespace lapidary {

using namespace test;

namespace {

std::unique_ptr<Backend> cuda_backend() { return make_cuda_backend(api(), context().device->ordinal); }

// A tensor on the backend's device with its memory.
struct Placed {
  Buffer buffer;
  Tensor t;

  Placed(Backend& b, const Tensor& host) : buffer(b.allocate(static_cast<size_t>(host.bytes()))), t(host) {
    t.data = buffer.memory.get();
    t.device = buffer.device;
    b.upload(t, host.data);
  }
  Owned back(Backend& b) const {
    Owned host(t.dtype, {t.elements()});
    b.download(host.t.data, t);
    return host;
  }
  std::vector<float> values(Backend& b) const { return values_of(back(b).t); }
};

void expect_near(const std::string& what, const std::vector<float>& got, const std::vector<float>& want, double bar) {
  const double error = relative_error(got, want);
  CHECK_MSG(error <= bar, what << ": relative error " << error);
}

Norm norm_on(Backend& b, const Owned& weight, std::vector<Buffer>& keep) {
  const Placed placed(b, weight.t);
  keep.push_back(placed.buffer);
  return {placed.t, 1, 1e-6f};
}

}  // namespace

TEST("cuda backend: rows and elementwise primitives") {
  const auto cuda = cuda_backend(), reference = make_reference_backend();
  for (const auto& [rows, dim] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {5, 128}, {2, 1153}}) {
    const Owned x = activations(DType::f32, {rows, dim}, 1), y = activations(DType::f32, {rows, dim}, 2),
                w = activations(DType::f32, {dim}, 3);
    const Placed dx(*cuda, x.t), dy(*cuda, y.t), dw(*cuda, w.t);
    for (DType out : {DType::f32, DType::bf16}) {
      Owned want(out, {rows, dim});
      const Placed got(*cuda, want.t);
      reference->rms_norm(x.t, {w.t, 1, 1e-6f}, want.t);
      cuda->rms_norm(dx.t, {dw.t, 1, 1e-6f}, got.t);
      expect_near("rms_norm", got.values(*cuda), values_of(want.t), out == DType::f32 ? 1e-6 : 3e-3);
      reference->geglu(x.t, y.t, want.t);
      cuda->geglu(dx.t, dy.t, got.t);
      expect_near("geglu", got.values(*cuda), values_of(want.t), out == DType::f32 ? 1e-6 : 3e-3);
    }
    Owned sum(DType::f32, {rows, dim});
    std::memcpy(sum.t.data, x.t.data, static_cast<size_t>(x.t.bytes()));
    reference->add(sum.t, y.t);
    cuda->add(dx.t, dy.t);
    CHECK(bits_of(dx.back(*cuda).t) == bits_of(sum.t));
    reference->soft_cap(sum.t, 30);
    cuda->soft_cap(dx.t, 30);
    expect_near("soft_cap", dx.values(*cuda), values_of(sum.t), 1e-6);
  }
  const Owned x = activations(DType::f32, {9, 37}, 4);
  const Placed dx(*cuda, x.t), out(*cuda, Owned(DType::f32, {3, 37}).t);
  cuda->gather_rows(dx.t, std::vector<int32_t>{8, 0, 8}, out.t);
  const std::vector<float> got = out.values(*cuda), all = values_of(x.t);
  for (int i = 0; i < 37; ++i) CHECK(got[i] == all[8 * 37 + i] && got[37 + i] == all[i] && got[74 + i] == got[i]);
}

TEST("cuda backend: embedding and products of every weight kind") {
  const auto cuda = cuda_backend(), reference = make_reference_backend();
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q2_k,
                     DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k}) {
    const Owned w = weights(type, 40, 256, 5);
    const Linear host{w.t, nullptr}, device = cuda->make_linear(host);
    const std::vector<int32_t> ids = {39, 0, 17};
    Owned rows(DType::f32, {3, 256});
    reference->embed(ids, host, 2.5f, rows.t);
    const Placed embedded(*cuda, rows.t);
    cuda->embed(ids, device, 2.5f, embedded.t);
    expect_near("embed " + std::string(dtype_info(type).name), embedded.values(*cuda), values_of(rows.t), 1e-7);
    for (DType act : {DType::f32, DType::bf16}) {
      std::vector<float> alone;
      for (int64_t tokens : {1, 5, 16, 17, 40}) {
        const Owned x = activations(act, {40, 256}, 6);
        Owned want(DType::f32, {tokens, 40});
        reference->linear(x.t.rows(0, tokens), host, want.t);
        const Placed dx(*cuda, x.t.rows(0, tokens)), got(*cuda, want.t);
        cuda->linear(dx.t, device, got.t);
        const std::vector<float> values = got.values(*cuda);
        // Block weights beside bf16 rows are rounded to bf16 where many rows are computed.
        const double bar = act == DType::f32 ? 1e-5 : is_block_type(type) ? 5e-3 : 1e-5;
        expect_near("linear " + std::string(dtype_info(type).name) + " act " + std::string(dtype_info(act).name) + " tokens " +
                        std::to_string(tokens),
                    values, values_of(want.t), bar);
        if (tokens == 1) alone = values;
        if (act == DType::f32 || !is_block_type(type))
          CHECK_MSG(std::equal(alone.begin(), alone.end(), values.begin()),
                    dtype_info(type).name << ": a row's bits depend on the " << tokens << " rows");
      }
    }
  }
}

TEST("cuda backend: int8 quantisation and products are the reference's bits") {
  const auto cuda = cuda_backend(), reference = make_reference_backend();
  Owned w(DType::i8, {48, 96}), scale(DType::f32, {48});
  Random random(3);
  for (int64_t i = 0; i < 48 * 96; ++i) w.t.as<int8_t>()[i] = static_cast<int8_t>(static_cast<int>(random.bits() % 255) - 127);
  for (int64_t n = 0; n < 48; ++n) scale.t.as<float>()[n] = 0.01f + 0.001f * random.symmetric();
  for (ActScheme scheme : {ActScheme::token, ActScheme::fixed, ActScheme::none}) {
    const Linear host{w.t, nullptr, scale.t, scheme, 0.03f}, device = cuda->make_linear(host);
    for (int64_t tokens : {1, 7, 16, 33}) {
      const Owned x = activations(DType::bf16, {tokens, 96}, 8);
      Owned want(DType::f32, {tokens, 48});
      reference->linear(x.t, host, want.t);
      const Placed dx(*cuda, x.t), got(*cuda, want.t);
      cuda->linear(dx.t, device, got.t);
      if (scheme == ActScheme::none) {
        expect_near("weight-only", got.values(*cuda), values_of(want.t), 1e-5);
      } else {
        CHECK_MSG(bits_of(got.back(*cuda).t) == bits_of(want.t), "scheme " << static_cast<int>(scheme) << ", tokens " << tokens);
      }
    }
  }
  const std::vector<int32_t> ids = {47, 3};
  Owned rows(DType::f32, {2, 96});
  const Linear host{w.t, nullptr, scale.t};
  reference->embed(ids, host, 1.5f, rows.t);
  const Placed embedded(*cuda, rows.t);
  cuda->embed(ids, cuda->make_linear(host), 1.5f, embedded.t);
  expect_near("embed", embedded.values(*cuda), values_of(rows.t), 1e-7);
}

// Skinny kernels may load weights before the previous grid has ended; not when that grid makes them.
TEST("cuda backend: a product with a matrix that the kernel before has just made") {
  const auto cuda = cuda_backend(), reference = make_reference_backend();
  const Owned x = activations(DType::f32, {3, 128}, 1), w = activations(DType::f32, {32, 128}, 2);
  const auto product = [](Backend& b, const Tensor& rows, const Tensor& weight) {
    std::vector<Buffer> memory;
    const auto take = [&](DType dtype, std::initializer_list<int64_t> dims) {
      Tensor t(nullptr, dtype, dims);
      memory.push_back(b.allocate(static_cast<size_t>(t.bytes())));
      return memory.back().tensor(dtype, dims);
    };
    const Tensor q = take(DType::i8, {3, 128}), q_scales = take(DType::f32, {3}), wq = take(DType::i8, {32, 128}),
                 w_scales = take(DType::f32, {32}), out = take(DType::f32, {3, 32});
    b.quantize_rows(rows, 0, q, q_scales);
    b.quantize_rows(weight, 0, wq, w_scales);
    b.matmul_int8(q, q_scales, b.wrap_linear({wq, nullptr, w_scales, ActScheme::token}), out);
    std::vector<float> host(96);
    b.download(host.data(), out);
    return host;
  };
  const Placed dx(*cuda, x.t), dw(*cuda, w.t);
  CHECK(product(*cuda, dx.t, dw.t) == product(*reference, x.t, w.t));
}

TEST("cuda backend: rope tables, rotation, append and attention") {
  const auto cuda = cuda_backend(), reference = make_reference_backend();
  const std::vector<int32_t> positions = {0, 1, 63, 64, 32767, 131071};
  std::vector<float> inv_freq;
  for (int j = 0; j < 16; ++j) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(j) / 16));
  Owned cos(DType::f32, {6, 16}), sin(DType::f32, {6, 16});
  reference->rope_angles(positions, inv_freq, cos.t, sin.t);
  const Placed dcos(*cuda, cos.t), dsin(*cuda, sin.t);
  cuda->zero(dcos.t), cuda->zero(dsin.t);
  cuda->rope_angles(positions, inv_freq, dcos.t, dsin.t);
  CHECK_CLOSE(dcos.values(*cuda), values_of(cos.t), 2e-7, 1e-7);
  CHECK_CLOSE(dsin.values(*cuda), values_of(sin.t), 2e-7, 1e-7);

  for (DType kv : {DType::f32, DType::bf16, DType::i8}) {
    for (int64_t window : {int64_t{5}, int64_t{64}, kNoWindow}) {
      for (int variant = 0; variant < 3; ++variant) {  // plain, soft-cap and prefix, image blocks
        const int64_t heads = 4, kv_heads = 2, dim = 32, tokens = 90;
        AttentionShape shape{heads, kv_heads, dim, 0.2f, variant == 1 ? 10.0f : 0.0f, window};
        const auto bells = [](std::initializer_list<int64_t> dims, uint64_t seed) {
          Owned a(DType::f32, dims);
          Random random(seed);
          for (int64_t i = 0; i < a.t.elements(); ++i) a.t.as<float>()[i] = round_to_bf16(random.bell());
          return a;
        };
        const Owned q = bells({tokens, heads * dim}, 1), k = bells({tokens, kv_heads * dim}, 2), v = bells({tokens, kv_heads * dim}, 3),
                    pk = bells({kv_heads, 3, dim}, 4), pv = bells({kv_heads, 3, dim}, 5), q2 = bells({tokens, heads * dim}, 6);
        std::vector<ImageBlock> images(static_cast<size_t>(tokens));
        for (int32_t t = 20; t < 37; ++t) images[static_cast<size_t>(t)] = {20, 37};
        AttentionExtras on_host, on_device;
        const Placed dpk(*cuda, pk.t), dpv(*cuda, pv.t), dq2(*cuda, q2.t);
        if (variant == 1) on_host = {pk.t, pv.t, q2.t, {}}, on_device = {dpk.t, dpv.t, dq2.t, {}};
        if (variant == 2) on_host.image_blocks = images, on_device.image_blocks = images;

        const auto run = [&](Backend& b, const AttentionExtras& extras) {
          // Two steps of one sequence, so that a short one (decode) follows a long one; rows of a second sequence beside them.
          const int64_t page_bytes = kv_page_bytes(kv, kv_heads, dim);
          std::vector<Buffer> memory;
          std::vector<void*> pages;
          for (int i = 0; i < 4; ++i) {
            memory.push_back(b.allocate_page(static_cast<size_t>(page_bytes)));
            b.zero(memory.back().tensor(DType::u8, {page_bytes}));
            pages.push_back(memory.back().memory.get());
          }
          shape.extras = variant == 0 ? nullptr : &extras;
          const Placed dq(b, q.t), dk(b, k.t), dv(b, v.t);
          const Placed out(b, Owned(DType::f32, {tokens, heads * dim}).t);
          const KvView first{kv, pages.data(), 2}, second{kv, pages.data() + 2, 2};
          const int64_t cut = 80;  // decode: 80..84 of the first sequence, 85..89 are the first tokens of the second
          const AttentionSpan one[] = {{0, cut, 0, first}};
          const AttentionSpan two[] = {{cut, 5, cut, first}, {cut + 5, 5, 0, second}};
          b.append_kv(dk.t, dv.t, one, shape);
          b.attention(dq.t, one, shape, out.t);
          b.append_kv(dk.t, dv.t, two, shape);
          b.attention(dq.t, two, shape, out.t);
          return out.values(b);
        };
        const std::vector<float> want = run(*reference, on_host), got = run(*cuda, on_device);
        expect_near("attention, cache " + std::string(dtype_info(kv).name) + ", window " + std::to_string(window) + ", variant " +
                        std::to_string(variant),
                    got, want, kv == DType::f32 ? 1e-5 : 4e-3);
      }
    }
  }
}

namespace {

// One layer's weights, made for a backend from the same host numbers.
struct Layer {
  std::vector<Owned> host;
  std::vector<Buffer> keep;
  Norm norms[4], q_norm, k_norm;
  Linear q, k, v, o, gate, up, down;
};

// `uneven`: int8 weights of one input that quantise it in different ways.
Layer make_layer(Backend& b, DType kind, bool stacked, int64_t hidden, int64_t ffn, int64_t heads, int64_t kv_heads, int64_t dim,
                 bool uneven = false) {
  Layer layer;
  layer.host.reserve(32);
  const auto norm = [&](int64_t n, uint64_t seed) {
    Owned w(DType::f32, {n});
    Random random(seed);
    for (int64_t i = 0; i < n; ++i) w.t.as<float>()[i] = 0.2f * random.bell();
    return norm_on(b, layer.host.emplace_back(std::move(w)), layer.keep);
  };
  for (int i = 0; i < 4; ++i) layer.norms[i] = norm(hidden, static_cast<uint64_t>(10 + i));
  layer.q_norm = norm(dim, 20), layer.k_norm = norm(dim, 21);
  const auto host = [&](int64_t out, int64_t in, uint64_t seed) -> Linear {
    Owned& w = layer.host.emplace_back(kind == DType::i8 ? Owned(DType::i8, {out, in}) : weights(kind, out, in, seed));
    if (kind != DType::i8) return {w.t, nullptr};
    Random random(seed);
    for (int64_t i = 0; i < out * in; ++i) w.t.as<int8_t>()[i] = static_cast<int8_t>(static_cast<int>(random.bits() % 255) - 127);
    Owned& s = layer.host.emplace_back(DType::f32, std::initializer_list<int64_t>{out});
    for (int64_t n = 0; n < out; ++n) s.t.as<float>()[n] = 0.002f;
    return {w.t, nullptr, s.t, ActScheme::token};
  };
  Linear q = host(heads * dim, hidden, 1), k = host(kv_heads * dim, hidden, 2), v = host(kv_heads * dim, hidden, 3),
         o = host(hidden, heads * dim, 4), gate = host(ffn, hidden, 5), up = host(ffn, hidden, 6), down = host(hidden, ffn, 7);
  if (uneven) {
    for (const auto& [linear, scale] : {std::pair(&q, 0.031f), {&k, 0.024f}, {&gate, 0.027f}, {&up, 0.035f}})
      linear->activations = ActScheme::fixed, linear->input_scale = scale;
  }
  if (stacked) {
    std::vector<Linear> qkv = b.make_linears(std::vector<Linear>{q, k, v}, Stack::rows),
                        both = b.make_linears(std::vector<Linear>{gate, up}, Stack::interleaved);
    layer.q = qkv[0], layer.k = qkv[1], layer.v = qkv[2], layer.gate = both[0], layer.up = both[1];
  } else {
    layer.q = b.make_linear(q), layer.k = b.make_linear(k), layer.v = b.make_linear(v), layer.gate = b.make_linear(gate),
    layer.up = b.make_linear(up);
  }
  layer.o = b.make_linear(o), layer.down = b.make_linear(down);
  return layer;
}

// Three layers over a prompt and two single tokens; with the backend's own stages, or with the unfused bodies. Gives x after each step.
std::vector<float> run_layers(Backend& b, const Layer& layer, DType act, bool fused, int64_t hidden, int64_t ffn, int64_t heads,
                              int64_t kv_heads, int64_t dim, int64_t prompt) {
  const DType kv = act == DType::f32 ? DType::f32 : DType::bf16;
  std::vector<Buffer> memory;
  std::vector<void*> pages;
  for (int i = 0; i < 3; ++i) {
    memory.push_back(b.allocate_page(static_cast<size_t>(kv_page_bytes(kv, kv_heads, dim))));
    b.zero(memory.back().tensor(DType::u8, {kv_page_bytes(kv, kv_heads, dim)}));
    pages.push_back(memory.back().memory.get());
  }
  const auto take = [&](DType dtype, int64_t rows, int64_t columns) {
    return memory.emplace_back(b.allocate(static_cast<size_t>(dtype_bytes(dtype, rows * columns)))).tensor(dtype, {rows, columns});
  };
  const int64_t most = std::max<int64_t>(prompt, 1);
  Workspace ws;
  ws.normed = take(act, most, hidden), ws.q = take(DType::f32, most, heads * dim), ws.k = take(DType::f32, most, kv_heads * dim);
  ws.v = take(DType::f32, most, kv_heads * dim), ws.attended = take(act, most, heads * dim), ws.branch = take(DType::f32, most, hidden);
  ws.gate = take(DType::f32, most, ffn), ws.up = take(DType::f32, most, ffn), ws.gated = take(act, most, ffn);
  const Tensor cos = take(DType::f32, most, dim / 2), sin = take(DType::f32, most, dim / 2), whole = take(DType::f32, most, hidden);
  std::vector<float> inv_freq;
  for (int64_t j = 0; j < dim / 2; ++j) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(2 * j) / static_cast<float>(dim)));
  std::vector<float> all;
  int64_t pos = 0;
  for (int64_t tokens : {prompt, int64_t{1}, int64_t{1}}) {
    const Owned start = activations(DType::f32, {tokens, hidden}, static_cast<uint64_t>(50 + pos));
    const Tensor x = whole.rows(0, tokens);
    b.upload(x, start.t.data);
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int32_t>(pos + t));
    b.rope_angles(positions, inv_freq, cos.rows(0, tokens), sin.rows(0, tokens));
    for (int l = 0; l < 3; ++l) {
      const AttentionSpan span{0, tokens, pos, {kv, pages.data() + l, 1}};
      AttendParams params;
      params.shape = {heads, kv_heads, dim, 1.0f / std::sqrt(static_cast<float>(dim)), 0, l == 1 ? 7 : kNoWindow};
      params.q_norm = &layer.q_norm, params.k_norm = &layer.k_norm;
      params.cos = cos.rows(0, tokens), params.sin = sin.rows(0, tokens);
      params.spans = {&span, 1};
      if (fused) {
        b.self_attention(x, layer.norms[0], layer.q, layer.k, layer.v, params, ws);
        b.attention_output(layer.o, layer.norms[1], x, ws);
        b.feed_forward(x, layer.norms[2], layer.gate, layer.up, layer.down, layer.norms[3], ws);
      } else {
        b.Backend::self_attention(x, layer.norms[0], layer.q, layer.k, layer.v, params, ws);
        b.Backend::attention_output(layer.o, layer.norms[1], x, ws);
        b.Backend::feed_forward(x, layer.norms[2], layer.gate, layer.up, layer.down, layer.norms[3], ws);
      }
    }
    std::vector<float> result(static_cast<size_t>(x.elements()));
    b.download(result.data(), x);
    all.insert(all.end(), result.begin(), result.end());
    pos += tokens;
  }
  return all;
}

}  // namespace

TEST("cuda backend: fused stages do what their unfused bodies and the reference do") {
  const int64_t hidden = 64, ffn = 96, heads = 4, kv_heads = 2, dim = 32;
  const auto reference = make_reference_backend();
  for (DType kind : {DType::bf16, DType::f32, DType::i8, DType::q8_0, DType::f16}) {
    for (DType act : {DType::bf16, DType::f32}) {
      for (int64_t prompt : {5, 33}) {
        const auto cuda = cuda_backend();
        const std::string what = std::string(dtype_info(kind).name) + " weights, act " + std::string(dtype_info(act).name) + ", prompt " +
                                 std::to_string(prompt);
        const Layer on_host = make_layer(*reference, kind, false, hidden, ffn, heads, kv_heads, dim);
        const Layer apart = make_layer(*cuda, kind, false, hidden, ffn, heads, kv_heads, dim),
                    stacked = make_layer(*cuda, kind, true, hidden, ffn, heads, kv_heads, dim);
        const std::vector<float> want = run_layers(*reference, on_host, act, true, hidden, ffn, heads, kv_heads, dim, prompt);
        const std::vector<float> plain = run_layers(*cuda, apart, act, false, hidden, ffn, heads, kv_heads, dim, prompt);
        const std::vector<float> fused = run_layers(*cuda, apart, act, true, hidden, ffn, heads, kv_heads, dim, prompt);
        const std::vector<float> grouped = run_layers(*cuda, stacked, act, true, hidden, ffn, heads, kv_heads, dim, prompt);
        const double bar = act == DType::f32 && kind != DType::i8 ? 1e-5 : 2e-2;
        expect_near(what + ", unfused", plain, want, bar);
        expect_near(what + ", fused", fused, want, bar);
        expect_near(what + ", grouped", grouped, want, bar);
        if (act == DType::f32) expect_near(what + ", fused to unfused", fused, plain, kind == DType::i8 ? 2e-2 : 2e-6);
      }
    }
  }
}

TEST("cuda backend: weights of one input may quantise it in different ways") {
  const int64_t hidden = 64, ffn = 96, heads = 4, kv_heads = 2, dim = 32;
  const auto reference = make_reference_backend();
  for (DType act : {DType::bf16, DType::f32}) {
    for (int64_t prompt : {5, 33}) {
      const auto cuda = cuda_backend();
      const Layer on_host = make_layer(*reference, DType::i8, false, hidden, ffn, heads, kv_heads, dim, true);
      const std::vector<float> want = run_layers(*reference, on_host, act, true, hidden, ffn, heads, kv_heads, dim, prompt);
      for (const bool stacked : {false, true}) {
        const Layer layer = make_layer(*cuda, DType::i8, stacked, hidden, ffn, heads, kv_heads, dim, true);
        const std::string what = std::string("act ") + std::string(dtype_info(act).name) + ", prompt " + std::to_string(prompt);
        expect_near(what, run_layers(*cuda, layer, act, true, hidden, ffn, heads, kv_heads, dim, prompt), want, 2e-2);
      }
    }
  }
}

TEST("cuda backend: sampling draws the reference's tokens and refuses what it refuses") {
  const auto cuda = cuda_backend();
  const int64_t vocab = 1000, rows = 4;
  const Owned logits = activations(DType::f32, {rows, vocab}, 2);
  const Placed device(*cuda, logits.t);
  SamplingSettings greedy, warm, narrow;
  greedy.temperature = 0;
  warm.temperature = 0.8f, warm.top_p = 0.9f, warm.repetition_penalty = 1.3f;
  warm.logit_bias = {{5, 3.0f}, {2, -INFINITY}};
  narrow.top_k = 5;
  const std::vector<int32_t> history = {1, 2, 3, 3};
  std::vector<uint32_t> mask((vocab + 31) / 32, 0);
  mask[3] = 0x10;
  for (uint64_t counter = 0; counter < 20; ++counter) {
    SampleRequest requests[] = {{&greedy, {}, 0, {}, 1, counter, 3},
                                {&warm, history, 2, {}, 2, counter, -1},
                                {&narrow, {}, 0, {}, 3, counter, 0},
                                {&greedy, {}, 0, mask, 4, counter, -1}};
    std::vector<SampleResult> got(rows);
    cuda->sample(device.t, requests, got);
    for (int64_t r = 0; r < rows; ++r) {
      const SampleResult want = sample_token({logits.t.as<float>() + r * vocab, static_cast<size_t>(vocab)}, requests[r]);
      CHECK_MSG(got[static_cast<size_t>(r)].id == want.id,
                "row " << r << ", draw " << counter << ": " << got[static_cast<size_t>(r)].id << ", not " << want.id);
      CHECK(got[static_cast<size_t>(r)].top.size() == want.top.size() &&
            std::abs(got[static_cast<size_t>(r)].logprob - want.logprob) < 1e-4);
    }
  }
  const SampleRequest nothing[] = {{&greedy, {}, 0, {}, 0, 0, -1}};
  SampleResult result[1];
  Owned bad(DType::f32, {1, vocab});  // NaN everywhere
  const Placed broken(*cuda, bad.t);
  CHECK_THROWS(cuda->sample(broken.t, nothing, result), ErrorCode::internal, "damaged");
  std::fill(mask.begin(), mask.end(), 0);
  const SampleRequest closed[] = {{&greedy, {}, 0, mask, 0, 0, -1}};
  CHECK_THROWS(cuda->sample(device.t.rows(0, 1), closed, result), ErrorCode::invalid_argument, "no token is left");
}

TEST("cuda backend: what a call hands to its kernels stays through the call, however much it is") {
  const auto device = std::make_shared<cuda::DeviceState>(api(), context().device->ordinal);
  cuda::Staging staging(device, 1024);
  for (int call = 0; call < 5; ++call) {
    staging.begin();
    std::vector<std::vector<int32_t>> sent;
    std::vector<const int32_t*> at;
    for (size_t count : {1, 100, 0, 300, 7, 256, 5}) {  // the largest does not fit a chunk
      sent.emplace_back(count, static_cast<int32_t>(1000 * call + static_cast<int>(count)));
      at.push_back(staging.put(std::span<const int32_t>(sent.back())));
      CHECK(reinterpret_cast<uintptr_t>(at.back()) % 64 == 0);
    }
    for (size_t i = 0; i < sent.size(); ++i) {
      std::vector<int32_t> back(sent[i].size());
      device->download(back.data(), at[i], back.size() * sizeof(int32_t));
      CHECK_MSG(back == sent[i], "call " << call << ", array " << i);
    }
  }
}

TEST("cuda backend: what cannot be done is said") {
  const auto cuda = cuda_backend();
  const Owned odd(DType::i8, {4, 24}), scale(DType::f32, {4}), raw(DType::i32, {4, 4});
  CHECK_THROWS(cuda->make_linear({raw.t, nullptr}), ErrorCode::unsupported, "i32");
  const Linear narrow = cuda->make_linear({odd.t, nullptr, scale.t, ActScheme::token});
  const Placed x(*cuda, activations(DType::f32, {2, 24}, 1).t), out(*cuda, Owned(DType::f32, {2, 4}).t);
  CHECK_THROWS(cuda->linear(x.t, narrow, out.t), ErrorCode::unsupported, "multiple of 16");
  CHECK_THROWS(cuda->linear(x.t, cuda->make_linear({weights(DType::bf16, 4, 16, 1).t, nullptr}), out.t), ErrorCode::internal, "[4, 16]");
  CHECK_THROWS(cuda->make_linear({odd.t, nullptr, scale.t, ActScheme::sequence}), ErrorCode::unsupported, "device 'cpu'");
  const Linear pair[] = {{odd.t, nullptr, scale.t, ActScheme::sequence}, {odd.t, nullptr, scale.t, ActScheme::sequence}};
  CHECK_THROWS(cuda->make_linears(pair, Stack::rows), ErrorCode::unsupported, "device 'cpu'");
  CHECK_THROWS(cuda->training(), ErrorCode::unsupported, "device 'cpu'");
  for (const DType kv : {DType::f32, DType::bf16, DType::i8}) {
    const int64_t page_bytes = kv_page_bytes(kv, 1, 32);
    const Buffer page = cuda->allocate_page(static_cast<size_t>(page_bytes));
    void* pages[] = {page.memory.get()};
    const AttentionSpan span = {0, 2, 0, {kv, pages, 1}};
    const Placed q(*cuda, activations(DType::f32, {2, 64}, 1).t), prefix(*cuda, activations(DType::f32, {1, 3, 32}, 2).t);
    const Placed attended(*cuda, Owned(DType::f32, {2, 64}).t);
    AttentionExtras extras{prefix.t, prefix.t, {}, true};
    CHECK_THROWS(cuda->attention(q.t, {&span, 1}, {2, 1, 32, 0.2f, 0, 40, &extras}, attended.t), ErrorCode::unsupported, "window 'pinned'");
  }
  CHECK_THROWS(cuda->allocate(size_t{1} << 60), ErrorCode::out_of_memory, "free");
}

}  // namespace lapidary
