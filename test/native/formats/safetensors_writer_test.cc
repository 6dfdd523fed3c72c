// Checkpoints written in pieces: shards, alignment, what is refused, and that nothing is left of a failure.
#include "formats/safetensors_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "check.h"
#include "formats/safetensors.h"

namespace lapidary::test {
namespace {

std::vector<SafetensorsEntry> three_entries() { return {{"a", DType::i8, {3, 5}}, {"b", DType::bf16, {7}}, {"c", DType::f32, {2, 1}}}; }

int64_t files_in(const std::string& folder) { return std::distance(std::filesystem::directory_iterator(folder), {}); }

std::vector<std::byte> pattern(int64_t bytes, int seed) {
  std::vector<std::byte> out(static_cast<size_t>(bytes));
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(seed));
  return out;
}

void write_all(SafetensorsWriter& writer, bool backwards) {
  std::vector<SafetensorsEntry> entries = three_entries();
  if (backwards) std::reverse(entries.begin(), entries.end());
  for (const SafetensorsEntry& e : entries) {
    const std::vector<std::byte> bytes = pattern(e.bytes(), e.name[0]);
    const int64_t first = e.bytes() / 3;
    writer.write(e.name, bytes.data(), first);
    writer.write(e.name, bytes.data() + first, e.bytes() - first);
  }
}

TEST("safetensors writer: any order, any limit, the same tensors") {
  for (const int64_t limit : {1, 15, 22, 23, 29, 37, 1000}) {
    for (const bool backwards : {false, true}) {
      const std::string folder = temporary_folder();
      SafetensorsWriter writer(folder, "model", three_entries(), limit, {{"format", "pt"}});
      write_all(writer, backwards);
      CHECK(!is_file(folder + "/model.safetensors") && !is_file(folder + "/model.safetensors.index.json"));
      writer.commit();
      const size_t shards = limit < 22 ? 3 : limit < 37 ? 2 : 1;
      CHECK_MSG(files_in(folder) == static_cast<int64_t>(shards == 1 ? 1 : shards + 1), limit << ": " << files_in(folder));
      const TensorFile f = open_safetensors(folder);
      CHECK(f.files.size() == shards && f.tensors.size() == 3 && f.metadata.at("format") == "pt");
      for (const SafetensorsEntry& e : three_entries()) {
        const Tensor& t = f.tensors.at(e.name).view;
        CHECK(t.dtype == e.dtype && std::equal(e.shape.begin(), e.shape.end(), t.shape, t.shape + t.rank));
        CHECK(std::memcmp(t.data, pattern(e.bytes(), e.name[0]).data(), static_cast<size_t>(e.bytes())) == 0);
        CHECK(reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(dtype_info(t.dtype).block_bytes) == 0);
      }
    }
  }
}

TEST("safetensors writer: mistakes are named and leave nothing") {
  const std::string folder = temporary_folder();
  const auto open = [&](std::vector<SafetensorsEntry> entries) { SafetensorsWriter(folder, "model", std::move(entries), 1000, {}); };
  CHECK_THROWS(open({{"a", DType::i8, {1}}, {"a", DType::i8, {1}}}), ErrorCode::invalid_argument, "\"a\" is used twice");
  CHECK_THROWS(open({{"__metadata__", DType::i8, {1}}}), ErrorCode::invalid_argument, "reserved");
  CHECK_THROWS(open({{"a", DType::q8_0, {32}}}), ErrorCode::invalid_argument, "q8_0");
  {
    SafetensorsWriter writer(folder, "model", three_entries(), 20, {});
    const std::vector<std::byte> bytes(100);
    CHECK_THROWS(writer.write("d", bytes.data(), 1), ErrorCode::internal, "no entry \"d\"");
    CHECK_THROWS(writer.write("a", bytes.data(), 16), ErrorCode::internal, "16 bytes for \"a\" of 15");
    writer.write("a", bytes.data(), 14);
    CHECK_THROWS(writer.commit(), ErrorCode::internal, "\"a\" has 14 bytes of 15");
  }
  CHECK(files_in(folder) == 0);
  CHECK_THROWS(SafetensorsWriter(folder + "/no/where", "model", three_entries(), 1000, {}), ErrorCode::bad_file,
               "must exist and be writable");
}

TEST("safetensors writer: a disk that takes no more") {
  const std::string folder = temporary_folder();
  rlimit old{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);  // so that the write fails instead
  {
    SafetensorsWriter writer(folder, "model", {{"big", DType::u8, {1 << 20}}}, 1 << 30, {});
    const rlimit low = {1 << 16, old.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &low) == 0);
    const std::vector<std::byte> bytes(1 << 20);
    CHECK_THROWS(writer.write("big", bytes.data(), 1 << 20), ErrorCode::bad_file, "cannot write " + folder + "/model.safetensors: ");
    setrlimit(RLIMIT_FSIZE, &old);
  }
  std::signal(SIGXFSZ, handler);
  CHECK(files_in(folder) == 0);
}

}  // namespace
}  // namespace lapidary::test
