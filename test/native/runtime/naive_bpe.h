// Tokenization again, from the definitions, with strings and whole-list scans: what the real one is compared with.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/tokenizer_file.h"

namespace lapidary::test {

// Control tokens are parsed when `special`. The text is valid UTF-8.
class NaiveBpe {
 public:
  explicit NaiveBpe(const TokenizerData& data) : data_(data), scored_(!data.scores.empty()) {
    for (size_t i = 0; i < data.pieces.size(); ++i) ids_[data.pieces[i]] = static_cast<int32_t>(i);
    for (size_t rank = 0; rank < data.merges.size(); ++rank) {
      const auto [left, right] = data.merges[rank];
      const std::string& l = data.pieces[static_cast<size_t>(left)];
      const std::string& r = data.pieces[static_cast<size_t>(right)];
      const PieceType made = type(ids_.at(l + r));
      if (made != PieceType::control && made != PieceType::unknown) ranks_[{l, r}] = -static_cast<double>(rank);
    }
  }

  std::vector<int32_t> encode(std::string text, bool special) const {
    if (scored_) text = replace(text, "▁", " ");
    std::vector<Symbol> symbols;
    std::vector<int32_t> out;
    std::string plain;
    for (size_t at = 0; at < text.size();) {
      const int32_t token = added_at(text, at, special);
      if (token < 0) {
        const size_t bytes = character_bytes(text[at]);
        symbols.push_back({replace(text.substr(at, bytes), " ", "▁"), -1});
        at += bytes;
        continue;
      }
      symbols.push_back({"", token});
      at += added_text(token).size();
    }
    merge(symbols, out);
    return out;
  }

 private:
  struct Symbol {
    std::string text;
    int32_t fixed;  // >= 0: comes out as it is
  };

  PieceType type(int32_t id) const { return data_.types[static_cast<size_t>(id)]; }
  static size_t character_bytes(char first) {
    const unsigned char c = static_cast<unsigned char>(first);
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
  }
  static std::string replace(std::string text, std::string_view from, std::string_view to) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const bool here = std::string_view(text).substr(at).starts_with(from);
      out += here ? to : std::string_view(text).substr(at, 1);
      at += here ? from.size() : 1;
    }
    return out;
  }
  std::string added_text(int32_t id) const {
    const std::string& piece = data_.pieces[static_cast<size_t>(id)];
    return scored_ ? replace(piece, "▁", " ") : piece;
  }
  int32_t added_at(const std::string& text, size_t at, bool special) const {
    int32_t best = -1;
    for (int32_t id = 0; id < static_cast<int32_t>(data_.pieces.size()); ++id) {
      const bool control = type(id) == PieceType::control || type(id) == PieceType::unknown;
      if (type(id) != PieceType::user_defined && !(control && special)) continue;
      const bool here = text.compare(at, added_text(id).size(), added_text(id)) == 0;
      if (here && (best < 0 || added_text(id).size() > added_text(best).size())) best = id;
    }
    return best;
  }

  // How eagerly two neighbours merge, higher first; false when they do not.
  bool strength(const Symbol& left, const Symbol& right, double& out) const {
    if (left.fixed >= 0 || right.fixed >= 0) return false;
    if (!scored_) {
      const auto found = ranks_.find({left.text, right.text});
      if (found == ranks_.end() || !mergeable(left.text) || !mergeable(right.text)) return false;
      out = found->second;
      return true;
    }
    const auto found = ids_.find(left.text + right.text);
    if (found == ids_.end() || (type(found->second) != PieceType::normal && type(found->second) != PieceType::unused)) return false;
    out = data_.scores[static_cast<size_t>(found->second)];
    return true;
  }
  bool mergeable(const std::string& text) const {
    const auto found = ids_.find(text);
    return found != ids_.end() && type(found->second) != PieceType::control && type(found->second) != PieceType::unknown;
  }

  void merge(std::vector<Symbol>& symbols, std::vector<int32_t>& out) const {
    std::map<std::string, std::pair<std::string, std::string>> splits;
    double strong = 0;
    const auto see = [&](size_t i) {
      if (i + 1 < symbols.size() && strength(symbols[i], symbols[i + 1], strong))
        splits[symbols[i].text + symbols[i + 1].text] = {symbols[i].text, symbols[i + 1].text};
    };
    for (size_t i = 0; i < symbols.size(); ++i) see(i);
    for (;;) {
      size_t best = symbols.size();
      double best_strength = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (strength(symbols[i], symbols[i + 1], strong) && (best == symbols.size() || strong > best_strength))
          best = i, best_strength = strong;
      }
      if (best == symbols.size()) break;
      symbols[best].text += symbols[best + 1].text;
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      if (best > 0) see(best - 1);
      see(best);
    }
    for (const Symbol& symbol : symbols) emit(symbol, splits, out);
  }

  void emit(const Symbol& symbol, const std::map<std::string, std::pair<std::string, std::string>>& splits,
            std::vector<int32_t>& out) const {
    if (symbol.fixed >= 0) return out.push_back(symbol.fixed);
    const auto found = ids_.find(symbol.text);
    const PieceType kind = found == ids_.end() ? PieceType::control : type(found->second);
    if (kind == PieceType::normal || (kind == PieceType::user_defined && !scored_)) return out.push_back(found->second);
    if (const auto split = splits.find(symbol.text); kind == PieceType::unused && split != splits.end()) {
      emit({split->second.first, -1}, splits, out);
      return emit({split->second.second, -1}, splits, out);
    }
    constexpr char kDigits[] = "0123456789ABCDEF";
    for (const char c : symbol.text) {
      const unsigned char b = static_cast<unsigned char>(c);
      out.push_back(ids_.at(std::string("<0x") + kDigits[b >> 4] + kDigits[b & 15] + ">"));
    }
  }

  const TokenizerData& data_;
  bool scored_;
  std::map<std::string, int32_t> ids_;
  std::map<std::pair<std::string, std::string>, double> ranks_;
};

}  // namespace lapidary::test
