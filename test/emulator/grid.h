// A running launch: its threads as fibers, blocks, clusters, and the scheduler that decides who runs.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <random>
#include <string>
#include <unordered_set>

#include "emulator/core.h"
#include "emulator/fiber.h"
#include "emulator/global_shadow.h"
#include "emulator/requests.h"
#include "emulator/shadow.h"

namespace lapidary::emulator {

struct Block;
struct Cluster;
class Grid;

// Ends the fiber that found something; caught where the fiber began.
struct Abandon {};

// A committed or open group of operations that are completed together.
struct AsyncGroup {
  std::vector<std::function<void()>> operations;  // those that have not run
  int issued = 0;
  uint32_t clock = 0;  // of the actor that reads shared memory for them
};

// cp.async of one thread.
struct ThreadCopy {
  std::byte* to;
  const std::byte* from;
  int bytes, valid;  // zeros after the valid ones
  bool done;         // the bytes have been moved
};

// Bulk stores of one thread.
struct BulkStores {
  Actor actor = kNobody;  // reads shared memory for them
  uint32_t clock = 1;     // of the open group
  std::deque<AsyncGroup> groups;
  AsyncGroup open;
};

struct Thread {
  enum class State : uint8_t { ready, waiting, done };
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;
  Actor actor = 0;
  State state = State::ready;
  const char* waits_for = nullptr;
  int waits_on = 0;  // a barrier's id or offset
  Where where = {};  // the last place that is known
  const void* looked_at = nullptr;

  uint32_t clock = 1;
  Knowledge known, known_at_fence;
  std::vector<ThreadCopy> copies;     // not yet waited for, oldest first
  std::vector<uint32_t> copy_groups;  // sizes of the committed groups among them
  uint32_t open_copies = 0;           // issued since the last commit
  std::unique_ptr<BulkStores> stores;
  uint32_t cluster_arrivals = 0, cluster_waits = 0;
  uint32_t barrier_phase[16] = {};  // 1 + the phase of each barrier in which this thread arrived last
  bool waited_for_previous = false;
};

// 32 or 128 threads that meet.
struct Rendezvous {
  int arrived = 0;
  int first = 0;  // index of the first thread to come
  int ended = 0;  // of its threads
  const char* operation = nullptr;
  Where where = {};
  void* payloads[128];
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  uint32_t phase = 0;
  Where where = {};
  int first = 0;
  std::vector<Thread*> waiting;
  Meeting meeting;
};

struct BulkLoad {
  std::byte* to;
  int bytes;
  std::function<void(std::byte*)> copy;
  Where where;
};

struct MBarrier {
  Block* block = nullptr;
  uint32_t offset = 0;
  int expected = 0, pending = 0;
  int64_t bytes = 0;  // expected and not yet complete in this phase
  uint32_t phase = 0;
  Actor actor = kNobody;  // writes shared memory for the bulk copies that complete on it
  uint32_t clock = 0;     // of that actor: completed phases since the block began
  Actor initialised_by = kNobody;
  uint32_t initialised_at = 0;
  bool fenced = false;  // its initialisation, for the async proxy and other blocks
  Meeting meeting;
  Lesson lesson;
  std::vector<Thread*> waiting;
  int not_resumed = 0;  // threads let go by the last completion that have not run since
  std::vector<BulkLoad> loads;
  uint32_t loaded = 0, seen = 0;  // 1 + the last phase that a load completed in, and that a thread waited for
};

struct Wgmma {
  Actor actor = kNobody;
  uint32_t clock = 1;  // of the open group
  std::deque<AsyncGroup> groups;
  AsyncGroup open;
  std::shared_ptr<void> registers;  // wgmma.cc: accumulators in flight
};

struct Block {
  Cluster* cluster = nullptr;
  int rank = 0;
  int64_t index[3] = {};
  std::byte* smem = nullptr;
  size_t smem_bytes = 0;
  Shadow shadow;
  Requests requests;
  std::unique_ptr<Thread[]> threads;
  std::vector<Rendezvous> warps, warpgroups;
  std::vector<Wgmma> wgmma;
  std::array<NamedBarrier, 16> barriers;
  std::deque<MBarrier> mbarriers;
  int live = 0;
  int first_exited = -1;
  int64_t bytes_in_flight = 0;
  std::vector<std::pair<Actor, uint32_t>> waited_for_previous;
  std::unique_ptr<std::byte[]> smem_storage;
};

struct Cluster {
  explicit Cluster(size_t width) : clocks(width) {}
  ClockPool clocks;
  std::vector<uint32_t> fenced;      // of every actor: its clock at its last proxy fence
  std::vector<std::string> engines;  // names of the actors after the threads
  std::vector<std::unique_ptr<Block>> blocks;
  int64_t place = 0;          // of the cluster in the grid
  bool synchronised = false;  // has looked at other blocks' progress: an atomic or a coherent load of global memory
  int live = 0;
  // The barrier of the cluster.
  int arrived = 0;
  uint32_t phase = 0;
  std::vector<Thread*> waiting;
  Meeting meeting;
  Lesson lesson;
};

class Grid {
 public:
  Grid(const LaunchShape& shape, const void* params, void (*body)(const void*, std::byte*), bool dependent);
  ~Grid();
  // Runs everything; the finding, or an empty text.
  const std::string& run();

  // --- what the running thread does with itself
  void wait(Thread& t, const char* for_what, int on, Where where);  // until someone wakes it
  void wake(Thread& t);
  void look(Thread& t, const void* p);  // at a look at memory that others may change: lets them run if it may be a loop that waits
  void progress() { fruitless_ = looks_ = 0, ++changes_; }  // something changed that such a loop may see
  void touch(Thread& t) {                                   // at every access to memory
    if (random_ && --until_switch_ == 0) switch_now(t);
  }

  Actor new_actor(Cluster& cluster, std::string name);
  uint64_t random() { return generator_(); }
  bool coin(unsigned one_in) { return generator_() % one_in == 0; }
  bool issue_now();  // whether an operation issued now is done at once
  void begin_loading(MBarrier& b) {
    if (std::find(loading_.begin(), loading_.end(), &b) == loading_.end()) loading_.push_back(&b);
  }
  std::string name(const Cluster& cluster, Actor actor) const;
  std::string block_at(int64_t cluster) const;  // the first block of the cluster at this place of the grid
  void report(const Thread* t, Where where, const std::string& what);

  const LaunchShape shape;
  const bool dependent;
  LaunchStatistics statistics;
  // 128-byte lines of global memory that this grid has written.
  std::unordered_set<uintptr_t> written;
  uintptr_t last_written = 0;
  GlobalShadow global;

 private:
  friend void thread_main(void*);
  bool admit();
  void retire(Cluster& cluster);
  Thread* pick();
  bool stuck() const;
  void push(Thread& t);
  void switch_now(Thread& t);
  void resume_from(Fiber& from, Thread* next);
  bool complete_something();
  void report_standstill();
  void run_loop();
  std::unique_ptr<Cluster> make_cluster();
  void start(Cluster& cluster, int64_t first_block);

  const void* params_;
  void (*body_)(const void*, std::byte*);
  Fiber main_;
  Fiber* switched_from_ = nullptr;
  std::string finding_;

  std::vector<std::unique_ptr<Cluster>> running_, spare_;
  Cluster* finished_ = nullptr;
  int64_t clusters_, admitted_ = 0, most_resident_;
  int64_t order_factor_ = 1, order_offset_ = 0;

  std::vector<Thread*> queue_;  // a ring
  size_t head_ = 0, queued_ = 0;
  std::vector<MBarrier*> loading_;  // barriers with loads in flight

  bool random_;
  std::mt19937_64 generator_;
  int until_switch_ = 1;
  // Since something changed: looks at the place a thread looked at before, and all looks.
  int64_t fruitless_ = 0, looks_ = 0;
  int64_t changes_ = 0;
};

// The launch that runs on this host thread, if any.
extern constinit thread_local Grid* active_grid;
extern constinit thread_local Thread* running_thread;
inline Grid& grid() { return *active_grid; }

std::string text_of(Where where);  // file:line
// The coordinates of the block with this number in the grid, x fastest.
void place_block(int64_t number, const int64_t (&grid)[3], int64_t (&index)[3]);
void complete_loads(MBarrier& b);  // mbarrier.cc: all that are in flight
void check_ended(Thread& t);       // async.cc: a thread leaves with nothing of its own in flight
void check_ended(Block& b);        // the same of the whole block

}  // namespace lapidary::emulator
