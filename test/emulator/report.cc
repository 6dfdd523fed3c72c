// What the emulator says: names of threads, blocks and places, findings, and who waits for what when nobody goes on.
#include <stdexcept>
#include <string_view>

#include "emulator/grid.h"

namespace lapidary::emulator {

namespace {

std::string block_name(const int64_t (&i)[3]) {
  return "block (" + std::to_string(i[0]) + ", " + std::to_string(i[1]) + ", " + std::to_string(i[2]) + ")";
}
std::string block_name(const Block& b) { return block_name(b.index); }

}  // namespace

// The file with its folder.
std::string text_of(Where where) {
  if (!where.file) return "an unknown place";
  const char* slash = where.file;
  for (const char* p = where.file; *p; ++p) {
    if (*p == '/' && std::string_view(p + 1).find('/') != std::string_view::npos) slash = p + 1;
  }
  return std::string(slash) + ":" + std::to_string(where.line);
}

std::string Grid::block_at(int64_t cluster) const {
  int64_t index[3];
  place_block(cluster * shape.cluster, shape.grid, index);
  return block_name(index);
}

std::string Grid::name(const Cluster& cluster, Actor actor) const {
  if (actor == kNobody) return "nobody";
  const size_t threads = static_cast<size_t>(shape.threads) * shape.cluster;
  if (actor >= threads) return cluster.engines[actor - threads];
  const Block& b = *cluster.blocks[actor / shape.threads];
  const std::string thread = "thread " + std::to_string(actor % shape.threads);
  return shape.cluster == 1 ? thread : thread + " of " + block_name(b);
}

void Grid::report(const Thread* t, Where where, const std::string& what) {
  if (!finding_.empty()) return;
  finding_ = std::string("kernel ") + shape.name;
  if (t) {
    finding_ += ", " + block_name(*t->block) + ", thread " + std::to_string(t->index);
    finding_ += where.file ? " at " + text_of(where) : t->where.file ? " after " + text_of(t->where) : "";
  }
  finding_ += ": " + what;
}

void fail(Where where, const std::string& what) {
  if (!active_grid) throw std::logic_error(what);
  grid().report(running_thread, where, what);
  throw Abandon{};
}

Thread& self(const char* operation) {
  if (!running_thread) throw std::logic_error(std::string(operation) + " outside a launch");
  return *running_thread;
}

// Who waits where, neighbours that wait alike together.
void Grid::report_standstill() {
  std::string text = queued_ ? "threads wait in loops for memory that nobody changes" : "deadlock";
  int groups = 0;
  for (const auto& cluster : running_) {
    for (const auto& block : cluster->blocks) {
      for (int i = 0; i < shape.threads;) {
        const Thread& t = block->threads[i];
        int end = i + 1;
        const auto alike = [&](const Thread& o) {
          return o.state == t.state && o.waits_for == t.waits_for && o.waits_on == t.waits_on && o.where.line == t.where.line &&
                 o.where.file == t.where.file;
        };
        while (end < shape.threads && alike(block->threads[end])) ++end;
        if (t.state != Thread::State::done && ++groups <= 12) {
          text += groups == 1 ? ": " : "; ";
          text += end - i == 1 ? "thread " + std::to_string(i) : "threads " + std::to_string(i) + ".." + std::to_string(end - 1);
          text += " of " + block_name(*block);
          if (t.state == Thread::State::ready) {
            text += " run in a loop after " + text_of(t.where);
          } else {
            text += std::string(" wait for ") + t.waits_for + (t.waits_on >= 0 ? " " + std::to_string(t.waits_on) : "") + " at " +
                    text_of(t.where);
          }
        }
        i = end;
      }
    }
  }
  if (groups > 12) text += "; and " + std::to_string(groups - 12) + " more groups";
  if (admitted_ < clusters_) {
    text += "; " + std::to_string((clusters_ - admitted_) * shape.cluster) + " blocks cannot start, the device holds " +
            std::to_string(most_resident_) + " of them at once";
  }
  report(nullptr, {}, text);
}

}  // namespace lapidary::emulator
