// Text <-> token ids for Gemma: byte-fallback BPE over the whole text, incremental decoding. Const after construction;
// any number of threads may encode at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_file.h"

namespace lapidary {

// A stretch of text and whether control tokens written in it ("<start_of_turn>") are parsed as such. Adjacent parts are one
// text for merging: parts only say where control tokens may come from.
struct TextPart {
  std::string_view text;
  bool special;
};

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerData data);
  ~Tokenizer();
  // From a model folder (tokenizer.json), a tokenizer.json, or a .gguf. Error(bad_file) says what is missing.
  static std::shared_ptr<const Tokenizer> load(const std::string& path);

  // No BOS is added. Invalid UTF-8 becomes U+FFFD, one per maximal bad sequence, before encoding.
  std::vector<int32_t> encode(std::span<const TextPart> parts) const;
  std::vector<int32_t> encode(std::string_view text, bool special) const;

  // The text of ids; control tokens are left out unless `with_special`. A run of byte pieces that is not valid UTF-8 as a whole
  // becomes one U+FFFD per byte, as in Hugging Face. Error(invalid_argument) for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, bool with_special = false) const;

  // Decodes a growing sequence. What push() returns and flush() at the end, joined, equals decode(). Byte pieces are held back
  // until their run ends, since one bad byte changes the whole run; so no character is ever split.
  class Stream {
   public:
    explicit Stream(std::shared_ptr<const Tokenizer> tokenizer, bool with_special = false);
    std::string push(int32_t id);
    std::string flush();

   private:
    std::shared_ptr<const Tokenizer> tokenizer_;
    bool with_special_;
    std::string held_;
  };

  int64_t size() const;
  std::string_view piece(int32_t id) const;    // as stored
  int32_t find(std::string_view piece) const;  // -1 when absent
  bool is_control(int32_t id) const;
  int32_t bos_id() const;  // -1 when the vocabulary has none; likewise eos, unk, pad
  int32_t eos_id() const;
  int32_t unk_id() const;
  int32_t pad_id() const;
  bool add_bos() const;
  const std::string& chat_template() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
