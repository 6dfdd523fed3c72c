// Merging itself: short runs by scanning for the best pair, long ones with a heap.
#include "runtime/bpe.h"

#include <algorithm>
#include <functional>
#include <string>

#include "base/utf8.h"

namespace lapidary {
namespace {

// Up to here, scanning all pairs for the best one is faster than keeping a heap.
constexpr size_t kFewSymbols = 48;
constexpr uint32_t kNone = UINT32_MAX;

}  // namespace

size_t Bpe::slot(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const uint64_t mixed = (key ^ key >> 29) * 0x9e3779b97f4a7c15u;
  return static_cast<size_t>(((mixed >> 32) * table_.size()) >> 32);
}

const Bpe::Pair* Bpe::find(int32_t left, int32_t right) const {
  for (size_t at = slot(left, right);;) {
    const Pair& pair = table_[at];
    if (pair.left == left && pair.right == right) return &pair;
    if (pair.product < 0) return nullptr;
    if (++at == table_.size()) at = 0;
  }
}

int32_t Bpe::character(uint32_t code_point) const {
  return characters_[static_cast<size_t>(character_pages_[code_point >> 8]) << 8 | (code_point & 0xff)];
}

void Bpe::add_text(std::string_view text, Scratch& scratch) const {
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const uint32_t code = utf8_next(text, at);
    const int32_t symbol = character(code == ' ' ? 0x2581 : code);
    if (symbol >= 0) {
      scratch.symbols.push_back(symbol);
      continue;
    }
    const std::string_view bytes = code == ' ' ? kSpacePiece : text.substr(start, at - start);
    for (const char byte : bytes) scratch.symbols.push_back(bytes_[static_cast<unsigned char>(byte)]);
  }
}

void Bpe::finish(Scratch& scratch, std::vector<int32_t>& out) const {
  if (resegment_) {
    merge_many(scratch);
    for (const int32_t symbol : scratch.symbols) emit_resegmented(symbol, scratch, out);
    return;
  }
  if (scratch.symbols.size() <= kFewSymbols)
    merge_few(scratch);
  else
    merge_many(scratch);
  for (const int32_t symbol : scratch.symbols) emit(symbol, out);
}

void Bpe::merge_few(Scratch& scratch) const {
  std::vector<int32_t>& symbols = scratch.symbols;
  size_t n = symbols.size();
  uint32_t ranks[kFewSymbols];
  int32_t products[kFewSymbols];
  const auto look_at = [&](size_t i) {
    const Pair* pair = find(symbols[i], symbols[i + 1]);
    ranks[i] = pair ? pair->rank : kNoRank;
    products[i] = pair ? pair->product : -1;
  };
  for (size_t i = 0; i + 1 < n; ++i) look_at(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = products[best];
    --n;
    for (size_t i = best + 1; i < n; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best; i + 1 < n; ++i) ranks[i] = ranks[i + 1], products[i] = products[i + 1];
    if (best > 0) look_at(best - 1);
    if (best + 1 < n) look_at(best);
  }
  symbols.resize(n);
}

// Looks up the pair that starts at `at` and queues it.
void Bpe::look(Scratch& scratch, uint32_t at) const {
  Scratch::Node& node = scratch.nodes[at];
  node.rank = kNoRank;
  if (node.next == kNone) return;
  const int32_t right = scratch.nodes[node.next].symbol;
  const Pair* pair = find(node.symbol, right);
  if (!pair) return;
  node.rank = pair->rank;
  node.product = pair->product;
  if (resegment_ && unused_[static_cast<size_t>(pair->product)]) scratch.splits[pair->product] = {node.symbol, right};
}

void Bpe::merge_many(Scratch& scratch) const {
  const uint32_t n = static_cast<uint32_t>(scratch.symbols.size());
  auto& nodes = scratch.nodes;
  auto& heap = scratch.heap;
  nodes.resize(n);
  heap.clear();
  scratch.splits.clear();
  const auto entry = [&](uint32_t at) { return static_cast<uint64_t>(nodes[at].rank) << 32 | at; };
  for (uint32_t i = 0; i < n; ++i) nodes[i] = {scratch.symbols[i], i == 0 ? kNone : i - 1, i + 1 == n ? kNone : i + 1, kNoRank, -1};
  for (uint32_t i = 0; i < n; ++i) {
    look(scratch, i);
    if (nodes[i].rank != kNoRank) heap.push_back(entry(i));
  }
  const std::greater<uint64_t> later;
  std::make_heap(heap.begin(), heap.end(), later);
  const auto queue = [&](uint32_t at) {
    look(scratch, at);
    if (nodes[at].rank == kNoRank) return;
    heap.push_back(entry(at));
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    const uint32_t at = static_cast<uint32_t>(top);
    // An entry is stale when its pair has changed since: symbols only grow, so a pair never returns to what it was.
    if (nodes[at].rank != top >> 32) continue;
    const uint32_t eaten = nodes[at].next;
    nodes[at].symbol = nodes[at].product;
    nodes[at].next = nodes[eaten].next;
    nodes[eaten].rank = kNoRank;
    if (nodes[at].next != kNone) nodes[nodes[at].next].previous = at;
    if (nodes[at].previous != kNone) queue(nodes[at].previous);
    queue(at);
  }
  scratch.symbols.clear();
  for (uint32_t i = 0; i < n && i != kNone; i = nodes[i].next) scratch.symbols.push_back(nodes[i].symbol);
}

void Bpe::emit(int32_t symbol, std::vector<int32_t>& out) const {
  if (symbol < stand_ins_) return out.push_back(symbol);
  if (symbol >= fixed_) return out.push_back(symbol - fixed_);
  std::string bytes;
  append_utf8(bytes, stand_in_characters_[static_cast<size_t>(symbol - stand_ins_)]);
  for (const char byte : bytes) out.push_back(bytes_[static_cast<unsigned char>(byte)]);
}

// SentencePiece merges through unused pieces and takes them apart at the end, where it last saw them put together.
void Bpe::emit_resegmented(int32_t symbol, const Scratch& scratch, std::vector<int32_t>& out) const {
  std::vector<int32_t> waiting = {symbol};
  while (!waiting.empty()) {
    const int32_t next = waiting.back();
    waiting.pop_back();
    const bool unused = next < stand_ins_ && unused_[static_cast<size_t>(next)];
    if (!unused) {
      emit(next, out);
      continue;
    }
    const auto split = scratch.splits.at(next);
    waiting.push_back(split.second);
    waiting.push_back(split.first);
  }
}

}  // namespace lapidary
