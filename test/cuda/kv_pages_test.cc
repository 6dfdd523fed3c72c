// Pages as memory: copies, zeros, and rows of a layer out of and into rings and growing tables, for every cache type.
#include <numeric>

#include "cuda/support.h"
#include "ops/ops_data.h"

namespace lapidary::test {

namespace {

using cuda::KvType;

std::vector<uint8_t> random_bytes(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.bits());
  return bytes;
}

// Pages that lie apart in one allocation, in an order of their own, with guards between them.
struct Pages {
  int64_t page_bytes, pitch;
  DeviceArray<uint8_t> memory;
  std::vector<void*> tables;
  DeviceArray<void*> device_table;

  Pages(int64_t bytes, int count, uint64_t seed)
      : page_bytes(bytes),
        pitch((bytes + 255) / 256 * 256 + 256),
        memory(random_bytes(static_cast<size_t>(pitch * count), seed)),
        tables(table(count)),
        device_table(tables) {}
  std::vector<void*> table(int count) const {
    std::vector<void*> t(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) t[static_cast<size_t>(i)] = memory.get() + pitch * ((i * 7 + 3) % count);
    return t;
  }
  int64_t offset(size_t page) const { return static_cast<uint8_t*>(tables[page]) - memory.get(); }
};

}  // namespace

TEST("cuda kv pages: copies copy whole pages and nothing else, zeros too") {
  for (const int64_t bytes : {16, 48, 4096, 16384, 16400, 131072 + 16}) {
    constexpr int kPages = 5;
    Pages pages(bytes, kPages, 1);
    std::vector<uint8_t> want = pages.memory.download();
    std::vector<cuda::PageCopy> copies = {{pages.tables[0], pages.tables[3]}, {pages.tables[1], pages.tables[4]}};
    for (const auto& [from, to] : {std::pair<size_t, size_t>{0, 3}, {1, 4}})
      std::copy_n(want.begin() + pages.offset(from), bytes, want.begin() + pages.offset(to));
    const DeviceArray<cuda::PageCopy> list(copies);
    require_ok(api().copy_pages({list.get(), 2, bytes}, context()));
    CHECK_MSG(pages.memory.download() == want, "copies of " << bytes << " bytes");
    std::fill_n(want.begin() + pages.offset(0), bytes, uint8_t{0});
    std::fill_n(want.begin() + pages.offset(1), bytes, uint8_t{0});
    require_ok(api().zero_pages({pages.device_table.get(), 2, bytes}, context()));
    CHECK_MSG(pages.memory.download() == want, "zeros of " << bytes << " bytes");
    require_ok(api().zero_pages({pages.device_table.get(), 0, bytes}, context()));
    CHECK(pages.memory.download() == want);
  }
  CHECK(api().copy_pages({nullptr, 1, 24}, context()).kind == cuda::Status::Kind::refused);
  CHECK(api().zero_pages({nullptr, 1, 8}, context()).kind == cuda::Status::Kind::refused);
}

TEST("cuda kv pages: rows go out of pages and into other pages as they are") {
  struct Shape {
    int heads, dim, num_pages, first, end;
  };
  // A growing table, a ring past its seam (position 300 of 3 pages lies in page 1), one position, none, odd sizes.
  for (const Shape& s :
       {Shape{2, 32, 4, 0, 200}, Shape{1, 256, 3, 150, 300}, Shape{4, 20, 2, 70, 71}, Shape{1, 8, 1, 5, 5}, Shape{3, 7, 3, 100, 292}}) {
    for (const KvType type : {KvType::f32, KvType::bf16, KvType::int8}) {
      for (const int shift : {0, 1}) {  // rows that are aligned to nothing but their element
        const int64_t element = cuda::kv_element_bytes(type), page_bytes = cuda::kv_page_bytes(type, s.heads, s.dim);
        const int64_t tokens = s.end - s.first, row_bytes = s.heads * s.dim * element;
        const Pages from(page_bytes, s.num_pages, 2);
        const std::vector<uint8_t> source = from.memory.download();
        const size_t count = static_cast<size_t>(tokens * row_bytes + shift * element);
        DeviceArray<uint8_t> k(std::vector<uint8_t>(count + 16, 0xee)), v(std::vector<uint8_t>(count + 16, 0xee));
        const size_t num_scales = type == KvType::int8 ? static_cast<size_t>(tokens * s.heads) : 0;
        DeviceArray<uint32_t> k_scales(num_scales + 1), v_scales(num_scales + 1);
        const auto scales_of = [&](const DeviceArray<uint32_t>& a) {
          return type == KvType::int8 ? reinterpret_cast<float*>(a.get()) : nullptr;
        };
        cuda::KvRowsParams p = {from.device_table.get(),
                                k.get() + shift * element,
                                v.get() + shift * element,
                                scales_of(k_scales),
                                scales_of(v_scales),
                                type,
                                s.num_pages,
                                s.heads,
                                s.dim,
                                s.first,
                                s.end};
        require_ok(api().kv_export(p, context()));
        const std::vector<uint8_t> got_k = k.download(), got_v = v.download();
        const std::vector<uint32_t> got_ks = k_scales.download(), got_vs = v_scales.download();

        const Pages to(page_bytes, s.num_pages, 3);
        std::vector<uint8_t> want = to.memory.download();
        bool same = true;
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t pos = s.first + t, side = s.heads * cuda::kPageTokens * s.dim * element;
          const size_t page = static_cast<size_t>(pos / cuda::kPageTokens % s.num_pages);
          for (int h = 0; h < s.heads; ++h) {
            const int64_t head_row = h * cuda::kPageTokens + pos % cuda::kPageTokens, bytes = s.dim * element, at = head_row * bytes;
            const int64_t in_rows = (t * s.heads + h) * bytes + shift * element;
            for (const bool value : {false, true}) {
              const auto place = source.begin() + from.offset(page) + at + (value ? side : 0);
              same &= std::equal(place, place + bytes, (value ? got_v : got_k).begin() + in_rows);
              std::copy_n(place, bytes, want.begin() + to.offset(page) + at + (value ? side : 0));
              if (type != KvType::int8) continue;
              const int64_t scale_at = 2 * side + ((value ? s.heads * cuda::kPageTokens : 0) + head_row) * 4;
              const auto scale = source.begin() + from.offset(page) + scale_at;
              same &= std::memcmp(&*scale, &(value ? got_vs : got_ks)[static_cast<size_t>(t * s.heads + h)], 4) == 0;
              std::copy_n(scale, 4, want.begin() + to.offset(page) + scale_at);
            }
          }
        }
        const std::string what =
            std::to_string(s.heads) + " heads of " + std::to_string(s.dim) + ", type " + std::to_string(static_cast<int>(type));
        CHECK_MSG(same, what << ": exported rows differ");
        CHECK_MSG(got_k[count] == 0xee && got_v[count] == 0xee, what << ": written beyond the rows");
        p.pages = to.device_table.get();
        require_ok(api().kv_import(p, context()));
        CHECK_MSG(to.memory.download() == want, what << ": imported pages differ");
      }
    }
  }
  const auto refused = [](cuda::KvRowsParams p) { return api().kv_export(p, context()).kind == cuda::Status::Kind::refused; };
  CHECK(refused({nullptr, nullptr, nullptr, nullptr, nullptr, KvType::bf16, 1, 1, 8, 0, 65}));
  CHECK(refused({nullptr, nullptr, nullptr, nullptr, nullptr, KvType::int8, 1, 1, 8, 0, 5}));
  CHECK(refused({nullptr, nullptr, nullptr, nullptr, nullptr, KvType::bf16, 0, 1, 8, 0, 5}));
  CHECK(refused({nullptr, nullptr, nullptr, nullptr, nullptr, KvType::bf16, 1, 1, 8, 5, 4}));
}

}  // namespace lapidary::test
