// Read-only memory mapping of one file, and writing files so that a crash leaves the old one whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace lapidary {

class MappedFile {
 public:
  // Throws Error(bad_file): missing, a folder, empty, unreadable. The mapping lives as long as the handle.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // bytes [offset, offset + length), or Error(bad_file) naming the file and the numbers; overflow-safe.
  std::span<const std::byte> slice(uint64_t offset, uint64_t length) const;
  bool holds(const void* p) const { return p >= data_ && p < data_ + size_; }
  // These bytes of the mapping, at `first`, are not needed for now: their pages leave the process's memory. A hint: reading them again
  // fetches them from the file.
  void release(const std::byte* first, size_t length) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

std::string read_text_file(const std::string& path);  // whole, at most 1 GiB; Error(bad_file)
bool is_file(const std::string& path);
bool is_directory(const std::string& path);
std::string folder_of(const std::string& path);  // that it lies in; "." where it names none

// Writes beside the target, syncs, renames over it. Until commit() the old file is untouched; the destructor without
// commit() removes the temporary. Errors are Error(bad_file) with the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, size_t bytes);                      // after what write() has written
  void write_at(uint64_t offset, const void* data, size_t bytes);  // anywhere; what lies between is zero
  void commit();

 private:
  std::string path_, temporary_;
  int fd_ = -1;
};

}  // namespace lapidary
