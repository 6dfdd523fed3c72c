#include "cuda/device.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lapidary::cuda {

namespace {

constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation

// Failures after which the context answers nothing any more: illegal address, launch failure and their like.
bool poisons(int code) {
  constexpr int kSticky[] = {700, 702, 710, 714, 715, 716, 717, 718, 719, 214, 220, 226};
  return std::find(std::begin(kSticky), std::end(kSticky), code) != std::end(kSticky);
}

bool is_out_of_memory(const Status& status) { return status.kind == Status::Kind::cuda && status.code == kOutOfMemory; }

std::string text_of(const Status& status) {
  std::string text = "cuda: ";
  if (status.where) text += std::string(status.where) + ": ";
  text += status.what ? status.what : "failed";
  if (status.kind == Status::Kind::cuda) text += " (CUDA error " + std::to_string(status.code) + ")";
  return text;
}

}  // namespace

DeviceState::DeviceState(const Api& api, int ordinal) : api_(api) {
  check(api_.device.use_device(ordinal));
  check(api_.device.device_facts(ordinal, &facts_));
  expect(facts_.major >= 8, ErrorCode::unsupported, "cuda: ", facts_.name, " has compute capability ", facts_.major, ".", facts_.minor,
         "; 8.0 or newer is needed");
  context_.device = &facts_;
  check(api_.device.stream_create(&context_.stream));
  chained_ = context_;
  chained_.dependent = facts_.has_clusters();
}

DeviceState::~DeviceState() {
  (void)api_.device.use_device(facts_.ordinal);
  (void)api_.device.stream_synchronize(context_.stream);
  (void)api_.device.stream_destroy(context_.stream);
  (void)api_.device.trim(0);  // what the model held goes back to the system
}

void DeviceState::enter() {
  {
    const std::lock_guard lock(mutex_);
    if (!lost_.empty()) fail(ErrorCode::cuda, "the device was lost earlier: ", lost_, "; load the model again");
  }
  check(api_.device.use_device(facts_.ordinal));
}

void DeviceState::check(const Status& status) {
  if (status.ok()) return;
  const std::string text = text_of(status);
  if (status.kind == Status::Kind::refused) fail(ErrorCode::internal, text);
  if (is_out_of_memory(status)) fail(ErrorCode::out_of_memory, text);
  if (poisons(status.code)) {
    const std::lock_guard lock(mutex_);
    if (lost_.empty()) lost_ = text;
  }
  fail(ErrorCode::cuda, text);
}

Buffer DeviceState::allocate(size_t bytes) {
  enter();
  void* memory = nullptr;
  Status status = api_.device.allocate(&memory, std::max<size_t>(bytes, 1), stream());
  if (is_out_of_memory(status)) {  // pooled memory may be in the way
    (void)api_.device.stream_synchronize(stream());
    (void)api_.device.trim(0);
    status = api_.device.allocate(&memory, std::max<size_t>(bytes, 1), stream());
  }
  if (is_out_of_memory(status)) {
    int64_t free_bytes = 0, total_bytes = 0;
    (void)api_.device.memory_info(&free_bytes, &total_bytes);
    fail(ErrorCode::out_of_memory, "cuda: ", bytes, " bytes are wanted, ", free_bytes, " of ", total_bytes, " are free on ", facts_.name);
  }
  check(status);
  auto release = [self = shared_from_this()](std::byte* p) {
    (void)self->api_.device.use_device(self->facts_.ordinal);
    (void)self->api_.device.release(p, self->stream());
  };
  return {std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), std::move(release)), bytes, Device::cuda};
}

void DeviceState::upload(void* to, const void* host, size_t bytes) {
  if (bytes == 0) return;
  enter();
  check(api_.device.copy_to_device(to, host, bytes, stream()));
  synchronize();
}

void DeviceState::download(void* host, const void* from, size_t bytes) {
  if (bytes == 0) return;
  enter();
  check(api_.device.copy_to_host(host, from, bytes, stream()));
  synchronize();
}

void DeviceState::synchronize() { check(api_.device.stream_synchronize(stream())); }

// --- Staging ------------------------------------------------------------------------------------------------------------

Staging::~Staging() {
  (void)device_->api().device.stream_synchronize(device_->stream());
  for (const Chunk& chunk : chunks_) (void)device_->api().device.release_pinned(chunk.pinned);
}

void Staging::begin() {
  if (used_ <= chunk_bytes_ / 2) return;
  device_->synchronize();
  current_ = at_ = used_ = 0;
}

void Staging::add_chunk(size_t bytes) {
  Chunk chunk;
  chunk.memory = device_->allocate(bytes);
  chunks_.reserve(chunks_.size() + 1);
  void* pinned = nullptr;
  device_->check(device_->api().device.allocate_pinned(&pinned, bytes));
  chunk.pinned = static_cast<std::byte*>(pinned);
  chunks_.insert(chunks_.begin() + static_cast<std::ptrdiff_t>(current_), std::move(chunk));
}

const void* Staging::put_bytes(const void* host, size_t bytes) {
  const size_t room = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (current_ < chunks_.size() && at_ + room > chunks_[current_].memory.bytes) ++current_, at_ = 0;
  if (current_ == chunks_.size() || room > chunks_[current_].memory.bytes) add_chunk(std::max(room, chunk_bytes_));
  const Chunk& chunk = chunks_[current_];
  std::byte* on_device = chunk.memory.memory.get() + at_;
  if (bytes > 0) {
    std::memcpy(chunk.pinned + at_, host, bytes);
    device_->check(device_->api().device.copy_to_device(on_device, chunk.pinned + at_, bytes, device_->stream()));
  }
  at_ += room;
  used_ += room;
  return on_device;
}

// --- Scratch ------------------------------------------------------------------------------------------------------------

void* Scratch::at_least(size_t bytes) {
  if (memory_.memory && memory_.bytes >= bytes) return memory_.memory.get();
  memory_ = {};
  Buffer grown = device_->allocate(std::max<size_t>(bytes, 4096));
  if (holds_ == Holds::counters) device_->check(device_->api().device.fill(grown.memory.get(), 0, grown.bytes, device_->stream()));
  memory_ = std::move(grown);
  return memory_.memory.get();
}

}  // namespace lapidary::cuda
