// Every block kind against the format's own values, bit for bit, from rows at odd addresses.
#include "tensor/blocks.h"

#include <bit>
#include <cstring>
#include <vector>

#include "check.h"
#include "formats/safetensors.h"

namespace lapidary {
namespace {

struct Kind {
  const char* name;  // in the golden file
  DType dtype;
};
constexpr Kind kKinds[] = {
    {"Q8_0", DType::q8_0}, {"Q4_0", DType::q4_0}, {"Q4_1", DType::q4_1}, {"Q5_0", DType::q5_0}, {"Q5_1", DType::q5_1},
    {"Q2_K", DType::q2_k}, {"Q3_K", DType::q3_k}, {"Q4_K", DType::q4_k}, {"Q5_K", DType::q5_k}, {"Q6_K", DType::q6_k},
};

TEST("blocks: values equal the format's, bit for bit") {
  const TensorFile file = open_safetensors(test::golden("gguf-blocks/expected.safetensors"));
  size_t checked = 0;
  for (const Kind& kind : kKinds) {
    REQUIRE(file.tensors.count(std::string(kind.name) + ".blocks") == 1);
    const Tensor blocks = file.tensors.at(std::string(kind.name) + ".blocks").view;
    const Tensor values = file.tensors.at(std::string(kind.name) + ".values").view;
    REQUIRE(values.dtype == DType::f32 && blocks.bytes() == dtype_bytes(kind.dtype, values.elements()));
    // One byte past an aligned address, so that no load may rely on alignment.
    std::vector<std::byte> shifted(static_cast<size_t>(blocks.bytes()) + 1);
    std::memcpy(shifted.data() + 1, blocks.data, static_cast<size_t>(blocks.bytes()));
    std::vector<float> got(static_cast<size_t>(values.elements()), NAN);
    dequantize_row(kind.dtype, shifted.data() + 1, values.elements(), got.data());
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      uint32_t want;
      std::memcpy(&want, values.data + 4 * i, 4);
      wrong += std::bit_cast<uint32_t>(got[i]) != want;
    }
    CHECK_MSG(wrong == 0, kind.name << ": " << wrong << " of " << got.size() << " values differ");
    checked += got.size();
  }
  CHECK(checked > 0);
}

// Two blocks per kind written by hand: the smallest case in which a slip in element order shows.
TEST("blocks: hand-made Q4_0, Q5_1 and Q8_0 blocks") {
  std::vector<uint8_t> q4(36, 0);
  q4[0] = 0x00, q4[1] = 0x3c;    // d = 1
  q4[2] = 0xf0;                  // element 0: 0 - 8, element 16: 15 - 8
  q4[18] = 0x00, q4[19] = 0xc0;  // second block: d = -2
  q4[20 + 15] = 0x9a;            // element 15: 10 - 8, element 31: 9 - 8
  float out[64];
  dequantize_row(DType::q4_0, q4.data(), 64, out);
  CHECK(out[0] == -8 && out[16] == 7 && out[1] == -8);
  CHECK(out[32 + 15] == -4 && out[32 + 31] == -2 && out[32] == 16);

  std::vector<uint8_t> q5(24, 0);
  q5[0] = 0x00, q5[1] = 0x38;  // d = 0.5
  q5[2] = 0x00, q5[3] = 0x3c;  // m = 1
  q5[4] = 0x02, q5[7] = 0x80;  // fifth bits of the elements 1 and 31
  q5[8 + 1] = 0x03, q5[8 + 15] = 0x40;
  dequantize_row(DType::q5_1, q5.data(), 32, out);
  CHECK(out[0] == 1 && out[1] == 0.5f * 19 + 1 && out[31] == 0.5f * 20 + 1 && out[30] == 1);

  std::vector<uint8_t> q8(34, 0);
  q8[1] = 0x3c, q8[2] = 0x80, q8[33] = 0x7f;
  dequantize_row(DType::q8_0, q8.data(), 32, out);
  CHECK(out[0] == -128 && out[31] == 127 && out[1] == 0);
}

TEST("blocks: plain float types widen exactly, subnormals and infinities too") {
  const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, 0x8000};
  const float want_half[] = {1, -2, 0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f, 65504, INFINITY, -0.0f};
  float out[8];
  dequantize_row(DType::f16, half, 8, out);
  CHECK(std::memcmp(out, want_half, sizeof(out)) == 0);
  const uint16_t brain[] = {0x3f80, 0xc000, 0x0001, 0x7f7f};
  dequantize_row(DType::bf16, brain, 4, out);
  CHECK(out[0] == 1 && out[1] == -2 && out[2] == std::bit_cast<float>(0x00010000u) && out[3] == std::bit_cast<float>(0x7f7f0000u));
  const float plain[] = {1.5f, -0.0f};
  dequantize_row(DType::f32, plain, 2, out);
  CHECK(std::memcmp(out, plain, sizeof(plain)) == 0);
}

TEST("blocks: broken rows and integer types are refused") {
  float out[64];
  const uint8_t bytes[256] = {};
  CHECK_THROWS(dequantize_row(DType::q4_0, bytes, 31, out), ErrorCode::invalid_argument, "31");
  CHECK_THROWS(dequantize_row(DType::q4_k, bytes, 128, out), ErrorCode::invalid_argument, "q4_k");
  CHECK_THROWS(dequantize_row(DType::i8, bytes, 32, out), ErrorCode::invalid_argument, "i8");
  dequantize_row(DType::q4_k, bytes, 0, out);
}

}  // namespace
}  // namespace lapidary
