// POSIX mapping of files, whole-file reading, and atomic replacement.
#include "formats/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace lapidary {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;

std::string system_reason() { return std::generic_category().message(errno); }

// A file descriptor that closes itself.
struct Descriptor {
  int fd = -1;
  explicit Descriptor(int value) : fd(value) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

int open_for_reading(const std::string& path) {
  // A path with a zero byte would open another file than the one it names.
  expect(path.find('\0') == path.npos, ErrorCode::bad_file, "a file name with a zero byte in it");
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  expect(fd >= 0, ErrorCode::bad_file, "cannot open ", path, ": ", system_reason());
  return fd;
}

uint64_t regular_file_size(int fd, const std::string& path) {
  struct stat info;
  expect(::fstat(fd, &info) == 0, ErrorCode::bad_file, "cannot read ", path, ": ", system_reason());
  expect(!S_ISDIR(info.st_mode), ErrorCode::bad_file, path, " is a folder, not a file");
  expect(S_ISREG(info.st_mode), ErrorCode::bad_file, path, " is not a regular file");
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const Descriptor file(open_for_reading(path));
  const uint64_t size = regular_file_size(file.fd, path);
  expect(size > 0, ErrorCode::bad_file, path, " is empty; the download may be incomplete");
  expect(size <= SIZE_MAX, ErrorCode::unsupported, path, " has ", size, " bytes, more than this machine can address");
  void* memory = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, file.fd, 0);
  expect(memory != MAP_FAILED, errno == ENOMEM ? ErrorCode::out_of_memory : ErrorCode::bad_file, "cannot map ", path, " (", size,
         " bytes): ", system_reason());
  std::shared_ptr<MappedFile> mapped(new MappedFile);
  mapped->path_ = path;
  mapped->data_ = static_cast<const std::byte*>(memory);
  mapped->size_ = static_cast<size_t>(size);
  return mapped;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

std::span<const std::byte> MappedFile::slice(uint64_t offset, uint64_t length) const {
  expect(offset <= size_ && length <= size_ - offset, ErrorCode::bad_file, path_, ": needs ", length, " bytes at offset ", offset,
         ", but the file has ", size_, " bytes; the download may be incomplete");
  return {data_ + offset, static_cast<size_t>(length)};
}

void MappedFile::release(const std::byte* first, size_t length) const {
#ifdef MADV_DONTNEED
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(first) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(first) + length) / page * page;
  // Nothing is lost: the mapping is read-only, so each of its pages is as the file has it.
  if (begin < end && holds(first) && length <= static_cast<size_t>(data_ + size_ - first))
    (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#endif
}

std::string read_text_file(const std::string& path) {
  const Descriptor file(open_for_reading(path));
  const uint64_t size = regular_file_size(file.fd, path);
  expect(size <= kMaxTextBytes, ErrorCode::bad_file, path, " has ", size, " bytes; text files are read up to ", kMaxTextBytes);
  std::string text(static_cast<size_t>(size), '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(file.fd, text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    expect(got >= 0, ErrorCode::bad_file, "cannot read ", path, ": ", system_reason());
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  text.resize(filled);
  return text;
}

bool is_file(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool is_directory(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  static std::atomic<uint64_t> counter{0};
  expect(!path.empty() && path.find('\0') == path.npos, ErrorCode::bad_file, "an empty file name, or one with a zero byte in it");
  // A name of its own, not the target's with a suffix, so that long target names still fit.
  do {
    temporary_ = folder_of(path) + "/.lapidary-" + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".tmp";
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) fail(ErrorCode::bad_file, "cannot write ", path_, ": ", system_reason(), " (its folder must exist and be writable)");
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  expect(fd_ >= 0, ErrorCode::internal, "writing to ", path_, " after its commit");
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, at, bytes);
    if (written < 0 && errno == EINTR) continue;
    expect(written > 0, ErrorCode::bad_file, "cannot write ", path_, ": ", system_reason());
    at += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t bytes) {
  expect(fd_ >= 0, ErrorCode::internal, "writing to ", path_, " after its commit");
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd_, at, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    expect(written > 0, ErrorCode::bad_file, "cannot write ", path_, ": ", system_reason());
    at += written;
    offset += static_cast<uint64_t>(written);
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  expect(fd_ >= 0, ErrorCode::internal, "a second commit of ", path_);
  expect(::fsync(fd_) == 0, ErrorCode::bad_file, "cannot sync ", path_, ": ", system_reason());
  expect(::close(std::exchange(fd_, -1)) == 0, ErrorCode::bad_file, "cannot write ", path_, ": ", system_reason());
  expect(::rename(temporary_.c_str(), path_.c_str()) == 0, ErrorCode::bad_file, "cannot replace ", path_, ": ", system_reason());
  temporary_.clear();
  // The rename itself becomes durable with the folder. Some file systems cannot sync folders; the file is whole all the same.
  const Descriptor folder(::open(folder_of(path_).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  if (folder.fd >= 0) (void)::fsync(folder.fd);
}

}  // namespace lapidary
