// Device memory: allocations in a reserved range of addresses that is never mixed with the host's, so that every pointer can be judged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_set>

namespace lapidary::emulator {

// Poisoned with 0xff (NaN as f32 and bf16). Null when the device is full.
void* device_allocate(size_t bytes, bool pinned = false);
// False if `memory` is not the beginning of a live allocation.
bool device_release(void* memory);
int64_t device_bytes_in_use();

// What is wrong with [p, p + bytes) as device memory, or an empty text. Pinned host memory counts as device memory.
std::string judge_device_range(const void* p, size_t bytes);
// The same question, answered fast.
bool is_device_range(const void* p, size_t bytes);

// The lines that a launch wrote, for launches that may overlap it (programmatic dependent launch).
void note_written(std::unordered_set<uintptr_t>&& lines, bool dependent);
bool written_by_previous(const void* p, size_t bytes);

}  // namespace lapidary::emulator
