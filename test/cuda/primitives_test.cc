// mma, ldmatrix, stmatrix and swizzles against plain products and copies, with the fragment layouts written out again here as tables.
#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "cuda/support.h"
#include "cuda/tensor_kernels.cuh"
#include "emulator/control.h"

namespace lapidary::test {

using namespace cuda;

namespace {

// --- fragment layouts as tables: where lane, register and part of the register stand in the matrix
// ------------------------------------------

struct Place {
  int row, column;
  auto operator<=>(const Place&) const = default;
};
struct Layout {
  int rows, columns, registers, parts;
  Place (*place)(int lane, int reg, int part);
};

const Layout kA16 = {16, 16, 4, 2,
                     [](int lane, int r, int part) { return Place{lane / 4 + (r % 2) * 8, lane % 4 * 2 + r / 2 * 8 + part}; }};
const Layout kB16 = {16, 8, 2, 2, [](int lane, int r, int part) { return Place{lane % 4 * 2 + r * 8 + part, lane / 4}; }};
const Layout kA8 = {16, 32, 4, 4,
                    [](int lane, int r, int part) { return Place{lane / 4 + (r % 2) * 8, lane % 4 * 4 + r / 2 * 16 + part}; }};
const Layout kB8 = {32, 8, 2, 4, [](int lane, int r, int part) { return Place{lane % 4 * 4 + r * 16 + part, lane / 4}; }};
const Layout kB8Sparse = {64, 8, 4, 4, [](int lane, int r, int part) { return Place{lane % 4 * 4 + r * 16 + part, lane / 4}; }};
const Layout kD = {16, 8, 4, 1, [](int lane, int r, int) { return Place{lane / 4 + r / 2 * 8, lane % 4 * 2 + r % 2}; }};
// The wrong one: rows g and g + 8 exchanged.
const Layout kA16Swapped = {16, 16, 4, 2,
                            [](int lane, int r, int part) { return Place{lane / 4 + (1 - r % 2) * 8, lane % 4 * 2 + r / 2 * 8 + part}; }};

// Registers [32][registers] of a matrix whose elements are `32 / parts` bits wide, and back.
std::vector<uint32_t> to_fragments(const Layout& l, const std::vector<uint32_t>& matrix) {
  std::vector<uint32_t> out(static_cast<size_t>(32) * l.registers, 0);
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < l.registers; ++r) {
      for (int part = 0; part < l.parts; ++part) {
        const Place p = l.place(lane, r, part);
        const uint32_t mask = l.parts == 1 ? ~0u : (1u << (32 / l.parts)) - 1;
        out[lane * l.registers + r] |= (matrix[p.row * l.columns + p.column] & mask) << (32 / l.parts % 32 * part);
      }
    }
  }
  return out;
}
std::vector<uint32_t> from_fragments(const Layout& l, const std::vector<uint32_t>& fragments) {
  std::vector<uint32_t> out(static_cast<size_t>(l.rows) * l.columns, 0);
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < l.registers; ++r) {
      for (int part = 0; part < l.parts; ++part) {
        const Place p = l.place(lane, r, part);
        const uint32_t mask = l.parts == 1 ? ~0u : (1u << (32 / l.parts)) - 1;
        out[p.row * l.columns + p.column] = fragments[lane * l.registers + r] >> (32 / l.parts % 32 * part) & mask;
      }
    }
  }
  return out;
}

TEST("cuda primitives: every element has one place in the fragments") {
  for (const Layout* l : {&kA16, &kB16, &kA8, &kB8, &kB8Sparse, &kD}) {
    std::set<Place> seen;
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < l->registers; ++r) {
        for (int part = 0; part < l->parts; ++part) seen.insert(l->place(lane, r, part));
      }
    }
    CHECK(static_cast<int>(seen.size()) == l->rows * l->columns && 32 * l->registers * l->parts == l->rows * l->columns);
    std::vector<uint32_t> matrix(seen.size());
    for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<uint32_t>(i * 37 % 251);
    CHECK(from_fragments(*l, to_fragments(*l, matrix)) == matrix);
  }
}

// --- data
// -----------------------------------------------------------------------------------------------------------------------------------

float bf16(uint32_t bits) { return to_f32(BFloat16{static_cast<uint16_t>(bits)}); }

// bf16 bits: normals, now and then -0, a denormal or a large outlier.
std::vector<uint32_t> random_bf16(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<uint32_t> out(count);
  for (uint32_t& v : out) {
    const uint32_t kind = random() % 64;
    v = kind == 0 ? 0x8000u : kind == 1 ? 0x0003u : cuda::to_bf16(normal(random) * (kind == 2 ? 1000.0f : 1.0f)).bits;
  }
  return out;
}
std::vector<uint32_t> random_s8(size_t count, std::mt19937& random) {
  std::vector<uint32_t> out(count);
  for (uint32_t& v : out) v = random() & 0xff;
  return out;
}

// c + a · b of bf16 bits, in double.
struct Products {
  std::vector<double> value, magnitude;
};
Products multiply(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, const std::vector<float>& c, int m, int n, int k) {
  Products p = {std::vector<double>(c.begin(), c.end()), std::vector<double>(c.size())};
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      p.magnitude[i * n + j] = std::abs(p.value[i * n + j]);
      for (int x = 0; x < k; ++x) {
        const double product = static_cast<double>(bf16(a[i * k + x])) * bf16(b[x * n + j]);
        p.value[i * n + j] += product;
        p.magnitude[i * n + j] += std::abs(product);
      }
    }
  }
  return p;
}

// The hardware keeps at least 23 bits of the largest term: each of the terms may lose one unit there.
size_t count_wrong(const std::vector<float>& got, const Products& want) {
  size_t wrong = 0;
  for (size_t i = 0; i < got.size(); ++i) wrong += !(std::abs(got[i] - want.value[i]) <= 4e-6 * want.magnitude[i]);
  return wrong;
}

std::vector<float> as_floats(const std::vector<uint32_t>& bits) {
  std::vector<float> out(bits.size());
  std::memcpy(out.data(), bits.data(), bits.size() * 4);
  return out;
}

template <MmaForm kForm>
std::vector<uint32_t> run_mma(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, const std::vector<uint32_t>& metadata,
                              const std::vector<uint32_t>& d) {
  const DeviceArray<uint32_t> device_a(a), device_b(b), device_metadata(metadata), device_d(d);
  require_ok(launch<MmaKernel<kForm>>({}, {device_a.get(), device_b.get(), device_metadata.get(), device_d.get()}, context()));
  return device_d.download();
}

TEST("cuda primitives: mma_bf16 multiplies, and notices exchanged rows") {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    const std::vector<uint32_t> a = random_bf16(16 * 16, random), b = random_bf16(16 * 8, random);
    std::vector<float> c(16 * 8);
    for (float& v : c) v = bf16(random_bf16(1, random)[0]);
    std::vector<uint32_t> c_bits(c.size());
    std::memcpy(c_bits.data(), c.data(), c.size() * 4);
    const Products want = multiply(a, b, c, 16, 8, 16);
    const auto run = [&](const Layout& layout_a) {
      return as_floats(
          from_fragments(kD, run_mma<MmaForm::bf16>(to_fragments(layout_a, a), to_fragments(kB16, b), {0}, to_fragments(kD, c_bits))));
    };
    const size_t wrong = count_wrong(run(kA16), want);
    CHECK_MSG(wrong == 0, wrong << " wrong elements in round " << round);
    CHECK(count_wrong(run(kA16Swapped), want) > 100);
  }
}

TEST("cuda primitives: mma_s8 is exact and wraps") {
  std::mt19937 random(2);
  for (int round = 0; round < 20; ++round) {
    std::vector<uint32_t> a = random_s8(16 * 32, random), b = random_s8(32 * 8, random), c(16 * 8);
    if (round == 0) std::fill(a.begin(), a.end(), 0x80), std::fill(b.begin(), b.end(), 0x80);
    for (uint32_t& v : c) v = round % 2 ? 0x7fffff00u + random() % 256 : static_cast<uint32_t>(random());
    std::vector<uint32_t> want = c;
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        for (int k = 0; k < 32; ++k) {
          want[i * 8 + j] += static_cast<uint32_t>(static_cast<int8_t>(a[i * 32 + k]) * static_cast<int8_t>(b[k * 8 + j]));
        }
      }
    }
    CHECK(from_fragments(kD, run_mma<MmaForm::s8>(to_fragments(kA8, a), to_fragments(kB8, b), {0}, to_fragments(kD, c))) == want);
  }
}

TEST("cuda primitives: mma_sparse_s8 multiplies by the places in the metadata") {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    std::vector<uint32_t> dense(16 * 64, 0), stored(16 * 32), b = random_s8(64 * 8, random), c(16 * 8);
    std::vector<int> index(16 * 32);
    for (uint32_t& v : c) v = static_cast<uint32_t>(random());
    for (int row = 0; row < 16; ++row) {
      for (int chunk = 0; chunk < 16; ++chunk) {
        const int first = static_cast<int>(random() % 3), second = first + 1 + static_cast<int>(random() % (3 - first));
        for (const auto& [s, at] : {std::pair{2 * chunk, first}, std::pair{2 * chunk + 1, second}}) {
          index[row * 32 + s] = at;
          dense[row * 64 + 4 * chunk + at] = stored[row * 32 + s] = random() & 0xff;
        }
      }
    }
    std::vector<uint32_t> metadata(32, 0);
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4 + (lane % 2) * 8, first = lane % 4 / 2 * 16;
      CHECK(row == sparse_metadata_row(lane) && first * 2 == sparse_metadata_k(lane));
      for (int s = 0; s < 16; ++s) metadata[lane] |= static_cast<uint32_t>(index[row * 32 + first + s]) << (2 * s);
    }
    std::vector<uint32_t> want = c;
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        for (int k = 0; k < 64; ++k) {
          want[i * 8 + j] += static_cast<uint32_t>(static_cast<int8_t>(dense[i * 64 + k]) * static_cast<int8_t>(b[k * 8 + j]));
        }
      }
    }
    const auto run = [&] {
      return from_fragments(
          kD, run_mma<MmaForm::sparse_s8>(to_fragments(kA8, stored), to_fragments(kB8Sparse, b), metadata, to_fragments(kD, c)));
    };
    CHECK(run() == want);
    std::swap(metadata[0], metadata[1]);
    CHECK(run() != want);
  }
}

#ifdef LAPIDARY_EMULATED
TEST("cuda primitives: metadata that does not rise is refused") {
  const std::vector<uint32_t> zeros(128, 0);
  const DeviceArray<uint32_t> a(zeros), b(zeros), bad(std::vector<uint32_t>(32, 0x44444440u)), d(zeros);
  const Status s = launch<MmaKernel<MmaForm::sparse_s8>>({}, {a.get(), b.get(), bad.get(), d.get()}, context());
  CHECK(!s.ok() && std::string(s.what).find("must rise") != std::string::npos);
}
#endif

// --- ldmatrix, stmatrix, swizzles
// -----------------------------------------------------------------------------------------------------------

template <MatrixForm kForm>
Status run_matrix(std::vector<uint16_t>& tile, const std::vector<uint32_t>& offsets, std::vector<uint32_t>& registers) {
  const int bytes = static_cast<int>(tile.size()) * 2;
  const DeviceArray<uint16_t> device_tile(tile);
  const DeviceArray<uint32_t> device_offsets(offsets), device_registers(registers);
  Grid grid;
  grid.smem_bytes = static_cast<size_t>(bytes);
  const Status s = launch<MatrixKernel<kForm>>(
      grid, {reinterpret_cast<U32x4*>(device_tile.get()), device_offsets.get(), device_registers.get(), bytes}, context());
  if (s.ok()) {
    tile = device_tile.download();
    registers = device_registers.download();
  }
  return s;
}

// Registers of the 8 x 8 matrices whose rows stand at these offsets of the tile.
std::vector<uint32_t> matrices(const std::vector<uint16_t>& tile, const std::vector<uint32_t>& offsets, int count, bool transposed) {
  std::vector<uint32_t> out(128, 0);
  for (int m = 0; m < count; ++m) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        const int r = transposed ? column : row, c = transposed ? row : column;
        const uint32_t value = tile[offsets[8 * m + row] / 2 + column];
        out[(4 * r + c / 2) * 4 + m] |= value << (16 * (c % 2));
      }
    }
  }
  return out;
}

std::vector<uint16_t> numbered(size_t count) {
  std::vector<uint16_t> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<uint16_t>(i * 40503u);
  return out;
}

TEST("cuda primitives: ldmatrix and stmatrix place rows in registers") {
  std::mt19937 random(4);
  for (int round = 0; round < 8; ++round) {
    std::vector<uint32_t> offsets(32);
    for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>(i) * 16;
    std::shuffle(offsets.begin(), offsets.end(), random);
    std::vector<uint16_t> tile = numbered(256);
    std::vector<uint32_t> r(128, 0);
    require_ok(run_matrix<MatrixForm::load_x4>(tile, offsets, r));
    CHECK(r == matrices(tile, offsets, 4, false));
    require_ok(run_matrix<MatrixForm::load_x4_transposed>(tile, offsets, r));
    CHECK(r == matrices(tile, offsets, 4, true));
    std::vector<uint32_t> halves = offsets;
    for (int i = 16; i < 32; ++i) halves[i] = 3;  // not looked at
    require_ok(run_matrix<MatrixForm::load_x2>(tile, halves, r));
    CHECK(r == matrices(tile, offsets, 2, false));
    require_ok(run_matrix<MatrixForm::load_x2_transposed>(tile, halves, r));
    CHECK(r == matrices(tile, offsets, 2, true));

    if (!context().device->has_clusters()) continue;  // stmatrix
    for (const bool transposed : {false, true}) {
      std::vector<uint32_t> values = matrices(tile, offsets, 4, transposed);
      std::vector<uint16_t> stored(256, 0);
      require_ok(transposed ? run_matrix<MatrixForm::store_x4_transposed>(stored, offsets, values)
                            : run_matrix<MatrixForm::store_x4>(stored, offsets, values));
      CHECK(stored == tile);
    }
    std::vector<uint32_t> values = matrices(tile, offsets, 2, false);
    std::vector<uint16_t> stored(256, 0xffff);
    require_ok(run_matrix<MatrixForm::store_x2>(stored, halves, values));
    size_t wrong = 0;
    for (int i = 0; i < 32; ++i) {
      for (int j = 0; j < 8; ++j) wrong += stored[offsets[i] / 2 + j] != (i < 16 ? tile[offsets[i] / 2 + j] : 0xffff);
    }
    CHECK(wrong == 0);
  }
}

// The recipes in mma.cuh: ldmatrix addresses that give the fragments of mma from tiles in shared memory.
TEST("cuda primitives: ldmatrix gives mma its fragments") {
  std::mt19937 random(5);
  const std::vector<uint32_t> values = random_bf16(16 * 16, random);
  std::vector<uint16_t> tile(values.begin(), values.end());  // [16 rows][32 bytes]
  std::vector<uint32_t> offsets(32), r(128, 0);
  const auto registers = [&](int count) {
    std::vector<uint32_t> out;
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < count; ++i) out.push_back(r[lane * 4 + i]);
    }
    return out;
  };
  for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>(i % 16 * 32 + i / 16 * 16);
  require_ok(run_matrix<MatrixForm::load_x4>(tile, offsets, r));
  CHECK(registers(4) == to_fragments(kA16, values));

  // B of two n-tiles, [n][k] and [k][n].
  std::vector<uint32_t> first(16 * 8), second(16 * 8), first_k(16 * 8), second_k(16 * 8);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) {
      first[k * 8 + n] = values[n * 16 + k], second[k * 8 + n] = values[(n + 8) * 16 + k];
      first_k[k * 8 + n] = values[k * 16 + n], second_k[k * 8 + n] = values[k * 16 + n + 8];
    }
  }
  const auto pairs = [&](const std::vector<uint32_t>& x, const std::vector<uint32_t>& y) {
    const std::vector<uint32_t> fx = to_fragments(kB16, x), fy = to_fragments(kB16, y);
    std::vector<uint32_t> out;
    for (int lane = 0; lane < 32; ++lane) out.insert(out.end(), {fx[lane * 2], fx[lane * 2 + 1], fy[lane * 2], fy[lane * 2 + 1]});
    return out;
  };
  for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>((i % 8 + i / 16 * 8) * 32 + i / 8 % 2 * 16);
  require_ok(run_matrix<MatrixForm::load_x4>(tile, offsets, r));
  CHECK(r == pairs(first, second));
  for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>(i % 16 * 32 + i / 16 * 16);
  require_ok(run_matrix<MatrixForm::load_x4_transposed>(tile, offsets, r));
  CHECK(r == pairs(first_k, second_k));
}

template <int kRowBytes, Swizzle kSwizzle>
void check_chunks() {
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < kRowBytes / 16; ++chunk) {
      CHECK(swizzled_chunk<kRowBytes>(row, chunk) ==
            static_cast<int>(swizzled<kSwizzle>(static_cast<uint32_t>(row * kRowBytes + chunk * 16))));
    }
  }
  // Any eight rows that ldmatrix takes at once (row 8 i .. 8 i + 7, one chunk column) and any two rows of 64 bytes, or one of 128, that
  // eight lanes of cp.async write at once.
  for (int row = 0; row < 64; row += 8) {
    for (int chunk = 0; chunk < kRowBytes / 16; ++chunk) {
      std::set<int> groups;
      for (int i = 0; i < 8; ++i) groups.insert(swizzled_chunk<kRowBytes>(row + i, chunk) % 128 / 16);
      CHECK(groups.size() == 8);
    }
  }
  for (int first = 0; first < 64 * kRowBytes / 16; first += 8) {
    std::set<int> groups;
    for (int i = first; i < first + 8; ++i) groups.insert(swizzled_chunk<kRowBytes>(i / (kRowBytes / 16), i % (kRowBytes / 16)) % 128 / 16);
    CHECK(groups.size() == 8);
  }
}

TEST("cuda primitives: swizzles are free of bank conflicts") {
  check_chunks<128, Swizzle::bytes128>();
  check_chunks<64, Swizzle::bytes64>();
  static_assert(swizzled<Swizzle::none>(4080) == 4080 && swizzled<Swizzle::bytes32>(128) == 144 && swizzled<Swizzle::bytes32>(256) == 256);
}

#ifdef LAPIDARY_EMULATED
TEST("cuda primitives: bank conflicts of ldmatrix are counted") {
  std::vector<uint16_t> tile = numbered(32 * 64);
  std::vector<uint32_t> offsets(32), r(128, 0);
  for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>(swizzled_chunk<128>(i, 3));
  require_ok(run_matrix<MatrixForm::load_x4>(tile, offsets, r));
  CHECK(emulator::last_launch().matrix_wavefronts == 4 && emulator::last_launch().matrix_wavefronts_ideal == 4);
  for (int i = 0; i < 32; ++i) offsets[i] = static_cast<uint32_t>(i * 128 + 48);
  require_ok(run_matrix<MatrixForm::load_x4>(tile, offsets, r));
  CHECK(emulator::last_launch().matrix_wavefronts == 32 && emulator::last_launch().matrix_wavefronts_ideal == 4);
}

TEST("cuda primitives: wrong row addresses of ldmatrix are found") {
  std::vector<uint16_t> tile = numbered(512);
  std::vector<uint32_t> offsets(32, 0), r(128, 0);
  offsets[17] = 8;
  const Status misaligned = run_matrix<MatrixForm::load_x4>(tile, offsets, r);
  CHECK(!misaligned.ok() && std::string(misaligned.what).find("not aligned") != std::string::npos);
  offsets[17] = 1024;
  const Status outside = run_matrix<MatrixForm::load_x4>(tile, offsets, r);
  CHECK(!outside.ok() && std::string(outside.what).find("out of bounds") != std::string::npos);
}
#endif

}  // namespace

}  // namespace lapidary::test
