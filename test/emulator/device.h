// The emulator as kernels and primitives see it: one function per primitive. Emulated kernels call these from fibers; outside a launch they
// fail. Misuse (bounds, races, divergence, deadlock, missing waits) ends the launch with an error that names kernel, block, thread and
// place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "cuda/api/status.h"

namespace lapidary::cuda {
struct Barrier;
struct TensorMap;
}  // namespace lapidary::cuda

namespace lapidary::emulator {

// The kernel line that made a call.
struct Where {
  const char* file = nullptr;
  uint32_t line = 0;
  static constexpr Where here(std::source_location at = std::source_location::current()) { return {at.file_name(), at.line()}; }
};

struct LaunchShape {
  const char* name;
  int64_t grid[3];
  int cluster, threads;
  size_t smem_bytes;
  int needs;  // lapidary::cuda::Needs
};
// Runs the grid to its end. `params` is copied, as a launch does. Any finding becomes Status::cuda(719, name, text).
cuda::Status launch(const LaunchShape& shape, const cuda::LaunchContext& context, const void* params, size_t params_bytes,
                    void (*body)(const void* params, std::byte* smem));

int thread_index();
int block_threads();
int block_index(int axis);
int grid_size(int axis);

void global_read(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
// Of memory that the launch does not write.
void global_read_readonly(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
// Sees what other blocks have written; lets other threads run, since it may be asked in a loop.
void global_read_coherent(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
void global_write(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
void shared_read(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
void shared_write(void* to, const void* from, size_t bytes, size_t alignment, Where where = {});
int atomic_add(int* p, int v, bool shared, Where where = {});
uint32_t atomic_add(uint32_t* p, uint32_t v, bool shared, Where where = {});
float atomic_add(float* p, float v, bool shared, Where where = {});
uint64_t atomic_max(uint64_t* p, uint64_t v, bool shared, Where where = {});
void fence(bool device);

void shuffle(void* to, const void* from, size_t bytes, int from_lane, Where where);
uint32_t ballot(bool predicate, Where where);
void sync_warp(Where where);
void barrier(int id, int threads, bool wait, Where where);  // id 0: the block's

float exp2_fast(float x);
float tanh_fast(float x);
float rsqrt_fast(float x);
float reciprocal_fast(float x);
float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
int dot4_s8(uint32_t a, uint32_t b, int c);
uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector);

void cp_async(void* to_shared, const void* from_global, int bytes, int valid_bytes, Where where = {});
void cp_async_commit();
void cp_async_wait(int pending);

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata, Where where);
void ldmatrix(uint32_t* r, int count, const void* shared_row, bool transposed, Where where);
void stmatrix(void* shared_row, const uint32_t* r, int count, bool transposed, Where where);
uint32_t shared_address(const void* p);  // offset in the block's shared memory, as matrix descriptors hold it

void mbarrier_init(cuda::Barrier* b, int arrivals, Where where = {});
void fence_barrier_init();
void mbarrier_arrive(cuda::Barrier* b, int expect_bytes, int rank, Where where);  // rank -1: this block's
void mbarrier_wait(cuda::Barrier* b, uint32_t parity, Where where);
void fence_proxy_async();

void bulk_load(void* to_shared, const void* from_global, int bytes, cuda::Barrier* b, Where where);
void tensor_load(void* to_shared, const cuda::TensorMap* map, cuda::Barrier* b, int rank, const int* at, uint16_t multicast, Where where);
void tensor_store(const cuda::TensorMap* map, const void* from_shared, int rank, const int* at, Where where);
void bulk_store_commit();
void bulk_store_wait(int pending, bool only_read, Where where = {});

int cluster_rank();
int cluster_size();
void cluster_arrive(Where where);
void cluster_wait(Where where);
void remote_read(void* to, const void* from, size_t bytes, int rank, Where where = {});
void remote_write(void* to, const void* from, size_t bytes, int rank, Where where = {});
void grid_dependency_wait();
void grid_dependency_launch();

// wgmma of a warpgroup (4 converged warps), m64 n k(32 bytes): d is n / 2 registers of each thread, f32 (bf16) or int32 (s8).
// a_registers null: A from shared memory by descriptor. In the lazy mode operands are read and d is written at the wait.
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);
void wgmma(void* d, int n, bool s8, const uint32_t* a_registers, uint64_t a_descriptor, uint64_t b_descriptor, bool accumulate,
           bool b_transposed, Where where);

}  // namespace lapidary::emulator
