// What a thread knows of the others' past: vector clocks, shared between threads that know the same. An actor is a thread of the cluster or
// something that acts on a thread's behalf (a bulk-copy barrier, the wgmma of a warpgroup, a thread's bulk stores). Actor a's access at its
// clock c happened before whatever a thread does that knows a >= c.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace lapidary::emulator {

using Actor = uint16_t;
inline constexpr Actor kNobody = 0xffff;

// Gives out vectors of one width and takes them back.
class ClockPool {
 public:
  struct Vector {
    ClockPool* pool;
    uint32_t users, serial;  // serial: never used twice, so that it stands for the contents once they are shared
    uint32_t at[1];          // [width]
  };
  explicit ClockPool(size_t width) : width_(width) {}
  ClockPool(const ClockPool&) = delete;
  ClockPool& operator=(const ClockPool&) = delete;
  size_t width() const { return width_; }
  Vector* take() {
    if (free_.empty()) {
      memory_.push_back(std::make_unique<uint64_t[]>((sizeof(Vector) + width_ * sizeof(uint32_t) + 7) / 8));
      free_.push_back(reinterpret_cast<Vector*>(memory_.back().get()));
    }
    Vector* v = free_.back();
    free_.pop_back();
    v->pool = this;
    v->users = 0;
    v->serial = ++serial_;
    return v;
  }
  void give(Vector* v) { free_.push_back(v); }

 private:
  size_t width_;
  uint32_t serial_ = 0;
  std::vector<std::unique_ptr<uint64_t[]>> memory_;
  std::vector<Vector*> free_;
};

// A shared vector clock. Change it only while nobody else holds it.
class Knowledge {
 public:
  Knowledge() = default;
  Knowledge(const Knowledge& other) : v_(other.v_) {
    if (v_) ++v_->users;
  }
  Knowledge(Knowledge&& other) noexcept : v_(std::exchange(other.v_, nullptr)) {}
  Knowledge& operator=(Knowledge other) noexcept {
    std::swap(v_, other.v_);
    return *this;
  }
  ~Knowledge() {
    if (v_ && --v_->users == 0) v_->pool->give(v_);
  }
  static Knowledge nothing(ClockPool& pool) {
    Knowledge k(pool.take());
    std::memset(k.v_->at, 0, pool.width() * sizeof(uint32_t));
    return k;
  }
  Knowledge copy() const {
    Knowledge k(v_->pool->take());
    std::memcpy(k.v_->at, v_->at, v_->pool->width() * sizeof(uint32_t));
    return k;
  }
  explicit operator bool() const { return v_ != nullptr; }
  bool same(const Knowledge& other) const { return v_ == other.v_; }
  uint32_t serial() const { return v_->serial; }
  uint32_t of(Actor actor) const { return v_->at[actor]; }
  void learn(Actor actor, uint32_t clock) { v_->at[actor] = std::max(v_->at[actor], clock); }
  void learn(const Knowledge& other) {
    const size_t width = v_->pool->width();
    uint32_t* __restrict mine = v_->at;
    const uint32_t* __restrict theirs = other.v_->at;
    for (size_t i = 0; i < width; ++i) mine[i] = std::max(mine[i], theirs[i]);
  }

 private:
  explicit Knowledge(ClockPool::Vector* v) : v_(v) { ++v_->users; }
  ClockPool::Vector* v_ = nullptr;
};

// Collects what the arrivers at a meeting know, then is what everyone who leaves it learns.
class Meeting {
 public:
  void add(const Knowledge& known, Actor actor, uint32_t clock) {
    if (!sum_) {
      sum_ = known.copy();
    } else if (!known.same(last_)) {
      sum_.learn(known);
    }
    last_ = known;
    sum_.learn(actor, clock);
  }
  // Something that happened with nobody coming for it; the meeting is not empty.
  void note(Actor actor, uint32_t clock) { sum_.learn(actor, clock); }
  bool empty() const { return !sum_; }
  // The sum; the meeting is empty again.
  Knowledge take() {
    last_ = {};
    return std::move(sum_);
  }

 private:
  Knowledge sum_, last_;
};

// What leaving a meeting teaches: known + learnt, the last answer remembered, since many threads ask with the same knowledge.
class Lesson {
 public:
  void set(Knowledge learnt) { learnt_ = std::move(learnt), before_ = {}, after_ = {}; }
  const Knowledge& learnt() const { return learnt_; }
  void teach(Knowledge& known) {
    if (!learnt_ || known.same(learnt_)) return;
    if (!before_ || !before_.same(known)) {
      Knowledge sum = known.copy();
      sum.learn(learnt_);
      before_ = known;
      after_ = std::move(sum);
    }
    known = after_;
  }

 private:
  Knowledge learnt_, before_, after_;
};

}  // namespace lapidary::emulator
