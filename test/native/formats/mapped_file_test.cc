// Mappings: what they hold, and pages given back.
#include "formats/mapped_file.h"

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "check.h"

namespace lapidary {

using namespace test;

namespace {

constexpr size_t kBytes = (size_t{8} << 20) + 77;

std::string pattern() {
  std::string text(kBytes, '\0');
  for (size_t i = 0; i < kBytes; ++i) text[i] = static_cast<char>(i * 2654435761u >> 16);
  return text;
}

#if defined(__linux__)
// Of this process, pages of files.
int64_t file_bytes_in_memory() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0, shared = 0;
  file >> size >> resident >> shared;
  return shared * static_cast<int64_t>(::sysconf(_SC_PAGESIZE));
}
#endif

}  // namespace

TEST("mapped file: released bytes leave memory, and are read again as they were") {
  const std::string path = temporary_folder() + "/file", text = pattern();
  std::ofstream(path, std::ios::binary) << text;
  const auto file = MappedFile::open(path);
  const std::span<const std::byte> bytes = file->bytes();
  REQUIRE(bytes.size() == kBytes);
  CHECK(file->holds(bytes.data()) && file->holds(bytes.data() + kBytes - 1) && !file->holds(bytes.data() + kBytes) &&
        !file->holds(nullptr));
  CHECK(std::memcmp(bytes.data(), text.data(), kBytes) == 0);
#if defined(__linux__)
  const int64_t before = file_bytes_in_memory();
  file->release(bytes.data() + 5, kBytes - 9);
  const int64_t gone = before - file_bytes_in_memory();
  CHECK_MSG(gone >= int64_t{7} << 20, "only " << gone << " bytes have left memory");
#endif
  CHECK(std::memcmp(bytes.data(), text.data(), kBytes) == 0);
  // Ranges with no whole page, empty ones, and ones that reach beyond the file or begin outside of it.
  file->release(bytes.data() + 1, 100);
  file->release(bytes.data(), 0);
  file->release(bytes.data() + kBytes - 10, 11);
  file->release(bytes.data() + 1, SIZE_MAX);
  file->release(nullptr, size_t{1} << 20);
  CHECK(std::memcmp(bytes.data(), text.data(), kBytes) == 0);
}

}  // namespace lapidary
