// The scheduler of a launch: clusters come and go, fibers take turns.
#include "emulator/grid.h"

#include <algorithm>
#include <numeric>

#include "emulator/settings.h"

namespace lapidary::emulator {

constinit thread_local Grid* active_grid = nullptr;
constinit thread_local Thread* running_thread = nullptr;

namespace {

// Actors of a block beside its threads: mbarriers, bulk stores of threads, wgmma of warpgroups.
constexpr int kEnginesPerBlock = 112;
// A grid in which threads only look at memory and nothing changes for this many rounds will not go on; nor one that looks at this many
// places.
constexpr int64_t kFruitlessRounds = 200, kMostLooks = 4 << 20;
constexpr size_t kMostThreads = 16384;  // alive at once: each is a mapped stack

}  // namespace

void place_block(int64_t number, const int64_t (&grid)[3], int64_t (&index)[3]) {
  index[0] = number % grid[0];
  index[1] = number / grid[0] % grid[1];
  index[2] = number / grid[0] / grid[1];
}

void thread_main(void* argument) {
  Thread& t = *static_cast<Thread*>(argument);
  Grid& g = *active_grid;
  fiber_entered(*g.switched_from_);
  running_thread = &t;
  try {
    g.body_(g.params_, t.block->smem);
    check_ended(t);
    for (const Rendezvous* r : {&t.block->warps[t.index / 32], &t.block->warpgroups[t.index / 128]}) {
      if (r->arrived)
        fail(t.where, "divergence: the thread ends while thread " + std::to_string(r->first) + " waits in " + r->operation + " at " +
                          text_of(r->where));
    }
    if (const NamedBarrier& b = t.block->barriers[0]; b.arrived) {
      fail(t.where,
           "divergence: the thread ends while thread " + std::to_string(b.first) + " waits at the block's barrier at " + text_of(b.where));
    }
  } catch (const Abandon&) {
  } catch (const std::exception& e) {
    g.report(&t, t.where, std::string("an exception: ") + e.what());
  }
  t.state = Thread::State::done;
  g.progress();
  Block& block = *t.block;
  Cluster& cluster = *block.cluster;
  if (block.first_exited < 0) block.first_exited = t.index;
  ++block.warps[t.index / 32].ended;
  ++block.warpgroups[t.index / 128].ended;
  --cluster.live;
  if (--block.live == 0 && g.finding_.empty()) {
    block.requests.finish(g.statistics);
    try {
      check_ended(block);
    } catch (const Abandon&) {
    }
  }
  if (cluster.live == 0) g.finished_ = &cluster;
  running_thread = nullptr;
  Thread* next = g.finished_ ? nullptr : g.pick();
  g.switched_from_ = &t.fiber;
  fiber_switch(t.fiber, next ? next->fiber : g.main_, true);
}

Grid::Grid(const LaunchShape& s, const void* params, void (*body)(const void*, std::byte*), bool is_dependent)
    : shape(s), dependent(is_dependent), params_(params), body_(body), random_(settings().schedule != 0), generator_(settings().schedule) {
  const int64_t blocks = s.grid[0] * s.grid[1] * s.grid[2];
  clusters_ = blocks / s.cluster;
  const cuda::DeviceFacts& device = settings().device;
  const int64_t by_threads = (device.major == 8 && device.minor != 0) || device.major >= 12 ? 1536 / s.threads : 2048 / s.threads;
  const int64_t by_memory = device.smem_per_sm / static_cast<int64_t>(s.smem_bytes + 1024);
  most_resident_ = device.sm_count * std::max<int64_t>(1, std::min({by_threads, by_memory, int64_t{16}}));
  most_resident_ = std::max<int64_t>(std::min<int64_t>(most_resident_, kMostThreads / s.threads), s.cluster);
  if (random_) {
    // A fixed permutation of the clusters: i * factor + offset modulo their number.
    order_offset_ = static_cast<int64_t>(generator_() % clusters_);
    do order_factor_ = 1 + static_cast<int64_t>(generator_() % clusters_);
    while (std::gcd(order_factor_, clusters_) != 1);
    until_switch_ = 1 + static_cast<int>(generator_() % 64);
  }
}

Grid::~Grid() {
  for (auto* list : {&running_, &spare_}) {
    for (const auto& cluster : *list) {
      for (const auto& block : cluster->blocks) {
        for (int i = 0; i < shape.threads; ++i) fiber_release(block->threads[i].fiber);
      }
    }
  }
}

LaunchStatistics& statistics() { return grid().statistics; }

// --- clusters and blocks ----------------------------------------------------------------------------------------------------------------

std::unique_ptr<Cluster> Grid::make_cluster() {
  const size_t actors = static_cast<size_t>(shape.cluster) * (shape.threads + kEnginesPerBlock);
  auto cluster = std::make_unique<Cluster>((actors + 7) / 8 * 8);
  for (int rank = 0; rank < shape.cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->rank = rank;
    block->smem_bytes = shape.smem_bytes;
    block->smem_storage = std::make_unique<std::byte[]>(shape.smem_bytes + 2048);
    block->smem = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(block->smem_storage.get()) + 1023) / 1024 * 1024);
    block->threads = std::make_unique<Thread[]>(shape.threads);
    for (int i = 0; i < shape.threads; ++i) {
      Thread& t = block->threads[i];
      t.block = block.get();
      t.index = i;
      t.actor = static_cast<Actor>(rank * shape.threads + i);
    }
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

void Grid::start(Cluster& cluster, int64_t first_block) {
  cluster.engines.clear();
  cluster.place = first_block / shape.cluster;
  cluster.synchronised = false;
  cluster.fenced.assign(cluster.clocks.width(), 0);
  cluster.live = shape.cluster * shape.threads;
  cluster.arrived = 0;
  cluster.phase = 0;
  cluster.waiting.clear();
  cluster.meeting.take();
  const Knowledge nothing = Knowledge::nothing(cluster.clocks);
  cluster.lesson.set({});
  for (int rank = 0; rank < shape.cluster; ++rank) {
    Block& b = *cluster.blocks[rank];
    place_block(first_block + rank, shape.grid, b.index);
    std::memset(b.smem, 0xff, shape.smem_bytes);  // NaN as f32 and bf16
    b.shadow.reset(shape.smem_bytes);
    b.warps.assign(shape.threads / 32, {});
    b.warpgroups.assign((shape.threads + 127) / 128, {});
    b.wgmma.clear();
    b.wgmma.resize(b.warpgroups.size());
    b.barriers = {};
    b.mbarriers.clear();
    b.live = shape.threads;
    b.first_exited = -1;
    b.bytes_in_flight = 0;
    b.waited_for_previous.clear();
    ++statistics.blocks;
    for (int k = 0; k < shape.threads; ++k) {
      Thread& t = b.threads[k];
      t.where = {};
      t.looked_at = nullptr;
      t.clock = 1;
      t.known = nothing;
      t.known_at_fence = {};
      t.copies.clear();
      t.copy_groups.clear();
      t.open_copies = 0;
      t.stores.reset();
      t.cluster_arrivals = t.cluster_waits = 0;
      std::fill(std::begin(t.barrier_phase), std::end(t.barrier_phase), 0u);
      t.waited_for_previous = false;
      fiber_prepare(t.fiber, thread_main, &t);
      push(t);
    }
  }
}

bool Grid::admit() {
  if (admitted_ == clusters_) return false;
  if (static_cast<int64_t>(running_.size() + 1) * shape.cluster > most_resident_) return false;
  if (spare_.empty()) spare_.push_back(make_cluster());
  running_.push_back(std::move(spare_.back()));
  spare_.pop_back();
  const auto place = static_cast<int64_t>((static_cast<__int128>(admitted_) * order_factor_ + order_offset_) % clusters_);
  ++admitted_;
  // Clusters are made of neighbours along x.
  start(*running_.back(), place * shape.cluster);
  progress();
  return true;
}

void Grid::retire(Cluster& cluster) {
  const auto it = std::find_if(running_.begin(), running_.end(), [&](const auto& c) { return c.get() == &cluster; });
  std::erase_if(loading_, [&](const MBarrier* b) { return b->block->cluster == &cluster; });
  spare_.push_back(std::move(*it));
  running_.erase(it);
  finished_ = nullptr;
}

Actor Grid::new_actor(Cluster& cluster, std::string name) {
  const size_t actor = static_cast<size_t>(shape.threads) * shape.cluster + cluster.engines.size();
  if (actor >= cluster.clocks.width()) fail({}, "more mbarriers and bulk-storing threads than the emulator has clocks for");
  cluster.engines.push_back(std::move(name));
  return static_cast<Actor>(actor);
}

bool Grid::issue_now() {
  switch (settings().async) {
    case AsyncMode::eager:
      return true;
    case AsyncMode::lazy:
      return false;
    case AsyncMode::random:
      return coin(2);
  }
  return true;
}

// --- who runs ---------------------------------------------------------------------------------------------------------------------------

void Grid::push(Thread& t) {
  if (queued_ == queue_.size()) {
    std::vector<Thread*> larger(std::max<size_t>(64, queue_.size() * 2));
    for (size_t i = 0; i < queued_; ++i) larger[i] = queue_[(head_ + i) & (queue_.size() - 1)];
    queue_ = std::move(larger);
    head_ = 0;
  }
  queue_[(head_ + queued_++) & (queue_.size() - 1)] = &t;
  t.state = Thread::State::ready;
}

// Nobody who can run seems to get anywhere.
bool Grid::stuck() const { return fruitless_ > static_cast<int64_t>(2 * queued_ + 16) || looks_ > kMostLooks; }

// The next thread, or null when the main loop has to look after something first.
Thread* Grid::pick() {
  if (!queued_ || !finding_.empty() || finished_) return nullptr;
  if (stuck()) return nullptr;
  const size_t mask = queue_.size() - 1;
  if (random_) {
    std::swap(queue_[head_ & mask], queue_[(head_ + generator_() % queued_) & mask]);
  }
  if (settings().async == AsyncMode::random && !loading_.empty() && coin(16)) return nullptr;
  Thread* t = queue_[head_ & mask];
  ++head_;
  --queued_;
  ++statistics.switches;
  return t;
}

void Grid::resume_from(Fiber& from, Thread* next) {
  switched_from_ = &from;
  running_thread = next;
  fiber_switch(from, next ? next->fiber : main_);
}

void Grid::wait(Thread& t, const char* for_what, int on, Where where) {
  t.state = Thread::State::waiting;
  t.waits_for = for_what;
  t.waits_on = on;
  t.where = where;
  resume_from(t.fiber, pick());
  running_thread = &t;
}

void Grid::wake(Thread& t) {
  push(t);
  progress();
}

void Grid::switch_now(Thread& t) {
  until_switch_ = 1 + static_cast<int>(generator_() % 64);
  push(t);
  Thread* next = pick();
  if (next == &t) return;
  resume_from(t.fiber, next);
  running_thread = &t;
}

// Most loops that wait look at one place. Others give way now and then.
void Grid::look(Thread& t, const void* p) {
  ++looks_;
  if (p == t.looked_at) {
    ++fruitless_;
  } else {
    t.looked_at = p;
    if (looks_ % 16) return;
  }
  push(t);
  Thread* next = pick();
  if (next == &t) return;
  resume_from(t.fiber, next);
  running_thread = &t;
}

// Nobody can go on by himself: finishes a load that someone waits for.
bool Grid::complete_something() {
  for (size_t i = 0; i < loading_.size(); ++i) {
    MBarrier& b = *loading_[i];
    if (b.waiting.empty() || b.pending > 0) continue;
    loading_.erase(loading_.begin() + static_cast<std::ptrdiff_t>(i));
    complete_loads(b);
    return true;
  }
  return false;
}

void Grid::run_loop() {
  const int64_t window = random_ ? 1 + static_cast<int64_t>(generator_() % 4) : 1;
  int64_t rounds = 0, changes = 0;
  while (finding_.empty()) {
    if (finished_) {
      retire(*finished_);
      continue;
    }
    if (static_cast<int64_t>(running_.size()) < window && admit()) continue;
    if (running_.empty()) return;
    if (settings().async == AsyncMode::random && !loading_.empty() && coin(4)) {
      MBarrier& b = *loading_[generator_() % loading_.size()];
      std::erase(loading_, &b);
      complete_loads(b);
      continue;
    }
    if (changes != changes_) rounds = 0;
    changes = changes_;
    if (!queued_ || stuck()) {
      if (complete_something() || admit()) {
        progress();
        continue;
      }
      if (!queued_ || ++rounds > kFruitlessRounds || looks_ > kMostLooks) {
        report_standstill();
        return;
      }
      fruitless_ = 0;
    }
    Thread* next = pick();
    if (!next) continue;
    resume_from(main_, next);
    running_thread = nullptr;
  }
}

const std::string& Grid::run() {
  active_grid = this;
  try {
    run_loop();
  } catch (const Abandon&) {
  }
  active_grid = nullptr;
  running_thread = nullptr;
  return finding_;
}

}  // namespace lapidary::emulator