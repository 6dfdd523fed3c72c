// Encoding: cut out added tokens, cut the rest where no merge can cross, merge the parts (remembering common ones). And decoding.
#include "runtime/tokenizer.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "runtime/bpe.h"
#include "runtime/part_cache.h"
#include "runtime/piece_table.h"
#include "runtime/token_matcher.h"

namespace lapidary {
namespace {

constexpr size_t kMaxTextBytes = std::numeric_limits<int32_t>::max();
// Working memory beyond this is given back after the text that needed it.
constexpr size_t kKeptSymbols = 1 << 16;

struct Range {
  size_t begin = 0, end = 0;
};

// The text of all parts with defects mended, and the stretches where control tokens may stand.
struct Prepared {
  std::string_view text;
  std::vector<Range> special;
  std::string storage;  // what `text` views, when it is not the caller's
};

bool ready_as_is(std::string_view text, bool spaces) { return utf8_valid(text) && (!spaces || text.find(kSpacePiece) == text.npos); }

// Mends `raw` character by character. A stretch becomes where the characters that lie wholly inside it went.
void mend(std::string_view raw, bool spaces, std::vector<Range>& special, std::string& out) {
  std::vector<Range> mended(special.size());
  size_t range = 0;
  for (size_t at = 0; at < raw.size();) {
    const std::string_view rest = raw.substr(at);
    const size_t good = utf8_character(rest), bytes = good ? good : utf8_defect(rest), before = out.size();
    if (good == 0)
      out += kReplacementCharacter;
    else if (spaces && rest.starts_with(kSpacePiece))
      out += ' ';
    else
      out += rest.substr(0, bytes);
    while (range < special.size() && special[range].end < at + bytes) ++range;
    if (range < special.size() && special[range].begin <= at) {
      if (mended[range].end == 0) mended[range].begin = before;
      mended[range].end = out.size();
    }
    at += bytes;
  }
  std::erase_if(mended, [](const Range& r) { return r.end == 0; });
  special = std::move(mended);
}

// `spaces`: U+2581 is a space from here on.
Prepared prepare(std::span<const TextPart> parts, bool spaces) {
  Prepared prepared;
  size_t bytes = 0;
  for (const TextPart& part : parts) {
    const Range range{bytes, bytes += part.text.size()};
    if (!part.special || part.text.empty()) continue;
    if (!prepared.special.empty() && prepared.special.back().end == range.begin)
      prepared.special.back().end = range.end;
    else
      prepared.special.push_back(range);
  }
  expect(bytes < kMaxTextBytes, ErrorCode::invalid_argument, "a text of ", bytes, " bytes; one call encodes less than ", kMaxTextBytes);
  if (parts.size() == 1 && ready_as_is(parts[0].text, spaces)) {
    prepared.text = parts[0].text;
    return prepared;
  }
  std::string joined;
  joined.reserve(bytes);
  for (const TextPart& part : parts) joined += part.text;
  if (ready_as_is(joined, spaces))
    prepared.storage = std::move(joined);
  else
    mend(joined, spaces, prepared.special, prepared.storage);
  prepared.text = prepared.storage;
  return prepared;
}

// The text of a run of byte pieces, as Hugging Face decodes it: all of it or nothing.
std::string byte_run_text(std::string_view bytes) {
  if (utf8_valid(bytes)) return std::string(bytes);
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) out += kReplacementCharacter;
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  // One encoding's memory; those that are free wait in `idle`. What a cache remembers depends on its keys alone.
  struct Workspace {
    Bpe::Scratch bpe;
    PartCache cache;
  };

  explicit Impl(const TokenizerData& data) : pieces(data), scored(!data.scores.empty()), bpe(pieces, data), matcher(pieces, scored) {
    const std::pair<const char*, int32_t> ids[] = {
        {"bos", data.bos_id}, {"eos", data.eos_id}, {"unknown", data.unk_id}, {"padding", data.pad_id}};
    for (const auto& [name, id] : ids) {
      expect(id >= -1 && id < pieces.size(), ErrorCode::bad_file, data.source, ": the ", name, " id is ", id, ", the vocabulary has ",
             pieces.size(), " pieces");
    }
    bos = data.bos_id, eos = data.eos_id, unk = data.unk_id, pad = data.pad_id;
    add_bos = data.add_bos;
    chat_template = data.chat_template;
  }

  std::unique_ptr<Workspace> borrow() const {
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        auto workspace = std::move(idle.back());
        idle.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>();
  }

  void give_back(std::unique_ptr<Workspace> workspace) const {
    if (std::max(workspace->bpe.symbols.capacity(), workspace->bpe.nodes.capacity()) > kKeptSymbols) workspace->bpe = {};
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(workspace));
  }

  // text[begin, end), a part that merges on its own unless the vocabulary wants whole texts.
  void encode_part(std::string_view text, size_t begin, size_t end, Workspace& workspace, std::vector<int32_t>& out) const {
    const std::string_view part = text.substr(begin, end - begin);
    if (bpe.whole_text()) return bpe.add_text(part, workspace.bpe);
    if (part.size() == 1) {
      const int32_t id = bpe.ascii_id(static_cast<unsigned char>(part[0]));
      if (id >= 0) return out.push_back(id);
    }
    if (part.size() > PartCache::kKeyBytes) return merge(part, workspace, out);
    const PartCache::Key key = PartCache::key(text, begin, end);
    if (workspace.cache.find(key, out)) return;
    const size_t before = out.size();
    merge(part, workspace, out);
    workspace.cache.keep(key, std::span(out).subspan(before));
  }

  void merge(std::string_view part, Workspace& workspace, std::vector<int32_t>& out) const {
    bpe.begin(workspace.bpe);
    bpe.add_text(part, workspace.bpe);
    bpe.finish(workspace.bpe, out);
  }

  void put(int32_t id, Workspace& workspace, std::vector<int32_t>& out) const {
    if (bpe.whole_text())
      bpe.add_id(id, workspace.bpe);
    else
      out.push_back(id);
  }

  void encode(const Prepared& prepared, Workspace& workspace, std::vector<int32_t>& out) const {
    const std::string_view text = prepared.text;
    const size_t n = text.size();
    auto range = prepared.special.begin();
    size_t start = 0;        // of the part at hand
    size_t change = 0;       // where `kinds` and `control_end` are next decided
    size_t control_end = 0;  // control tokens may end here at most
    uint8_t kinds = TokenMatcher::kUserDefined;
    uint32_t left = 0;
    const auto close_part = [&](size_t end) {
      if (end > start) encode_part(text, start, end, workspace, out);
    };
    bpe.begin(workspace.bpe);
    for (size_t at = 0; at < n;) {
      if (at >= change) {
        while (range != prepared.special.end() && range->end <= at) ++range;
        const bool inside = range != prepared.special.end() && range->begin <= at;
        control_end = inside ? range->end : 0;
        kinds = inside ? TokenMatcher::kUserDefined | TokenMatcher::kControl : TokenMatcher::kUserDefined;
        change = inside ? range->end : range != prepared.special.end() ? range->begin : n;
      }
      const unsigned char byte = static_cast<unsigned char>(text[at]);
      if (matcher.starts(byte) & kinds) {
        const TokenMatcher::Match match = matcher.longest(text, at, control_end);
        if (match.id >= 0) {
          close_part(at);
          put(match.id, workspace, out);
          start = at += match.bytes;
          continue;
        }
      }
      const size_t here = at;
      const uint32_t right = byte < 128 ? (++at, byte) : Bpe::plain(utf8_next(text, at));
      if (here > start && !bpe.joins(left, right)) {
        close_part(here);
        start = here;
      }
      left = right;
    }
    close_part(n);
    if (bpe.whole_text()) bpe.finish(workspace.bpe, out);
  }

  // Hands the pieces of `ids` on as text; bytes gather in `held` until another piece ends their run.
  void append_piece(int32_t id, bool with_special, std::string& held, std::string& out) const {
    expect(id >= 0 && id < pieces.size(), ErrorCode::invalid_argument, "token id ", id, " is outside the vocabulary of ", pieces.size(),
           " pieces");
    if (!with_special && pieces.is_control(id)) return;
    const std::string_view text = pieces.text(id);
    if (pieces.type(id) == PieceType::byte) {
      held += static_cast<char>(byte_of_piece(text));
      return;
    }
    end_run(held, out);
    append_plain(out, text);
  }

  static void end_run(std::string& held, std::string& out) {
    if (held.empty()) return;
    out += byte_run_text(held);
    held.clear();
  }

  PieceTable pieces;
  bool scored;
  Bpe bpe;
  TokenMatcher matcher;
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  bool add_bos = true;
  std::string chat_template;
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Workspace>> idle;
};

Tokenizer::Tokenizer(TokenizerData data) : impl_(std::make_unique<Impl>(data)) {}
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::string& path) {
  if (path.ends_with(".gguf")) return std::make_shared<Tokenizer>(read_tokenizer_gguf(*GgufFile::open(path)));
  return std::make_shared<Tokenizer>(read_tokenizer_json(path));
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextPart> parts) const {
  const Prepared prepared = prepare(parts, impl_->scored);
  std::vector<int32_t> out;
  out.reserve(prepared.text.size() / 4 + 8);
  auto workspace = impl_->borrow();
  impl_->encode(prepared, *workspace, out);
  impl_->give_back(std::move(workspace));
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  const TextPart part{text, special};
  return encode(std::span(&part, 1));
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool with_special) const {
  std::string held, out;
  for (const int32_t id : ids) impl_->append_piece(id, with_special, held, out);
  Impl::end_run(held, out);
  return out;
}

Tokenizer::Stream::Stream(std::shared_ptr<const Tokenizer> tokenizer, bool with_special)
    : tokenizer_(std::move(tokenizer)), with_special_(with_special) {}

std::string Tokenizer::Stream::push(int32_t id) {
  std::string out;
  tokenizer_->impl_->append_piece(id, with_special_, held_, out);
  return out;
}

std::string Tokenizer::Stream::flush() {
  std::string out;
  Impl::end_run(held_, out);
  return out;
}

int64_t Tokenizer::size() const { return impl_->pieces.size(); }

std::string_view Tokenizer::piece(int32_t id) const {
  expect(id >= 0 && id < size(), ErrorCode::invalid_argument, "token id ", id, " is outside the vocabulary of ", size(), " pieces");
  return impl_->pieces.text(id);
}

int32_t Tokenizer::find(std::string_view piece) const { return impl_->pieces.find(piece); }

bool Tokenizer::is_control(int32_t id) const { return id >= 0 && id < size() && impl_->pieces.is_control(id); }

int32_t Tokenizer::bos_id() const { return impl_->bos; }
int32_t Tokenizer::eos_id() const { return impl_->eos; }
int32_t Tokenizer::unk_id() const { return impl_->unk; }
int32_t Tokenizer::pad_id() const { return impl_->pad; }
bool Tokenizer::add_bos() const { return impl_->add_bos; }
const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }

}  // namespace lapidary
