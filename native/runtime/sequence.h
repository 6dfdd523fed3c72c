// A conversation as the engine sees it: tokens, their cache, and whether a run uses it. Internal to runtime/.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/engine_core.h"

namespace lapidary {

class SequenceImpl final : public Sequence {
 public:
  explicit SequenceImpl(std::shared_ptr<EngineCore> core);
  ~SequenceImpl() override;

  int64_t length() const override;
  std::vector<int32_t> tokens() const override;
  std::shared_ptr<Sequence> fork() override;
  void rewind(int64_t length) override;
  void save(const std::string& path) override;
  int64_t bytes() const override;

  static std::shared_ptr<SequenceImpl> restore(std::shared_ptr<EngineCore> core, const std::string& path);

  const EngineCore* core() const { return core_.get(); }

  // --- for the one run that has claimed it ----------------------------------------------------------------------------
  // Claims it for a run that will append `prompt` tokens; Error(invalid_argument) when busy or when they do not fit.
  void claim(int64_t prompt);
  // Appends the prompt. `cache`, if any, holds the beginning of it (a sequence without tokens).
  void begin(std::span<const int32_t> prompt, std::unique_ptr<KvCache> cache = nullptr);
  void reserve(int64_t rows);  // Error(out_of_memory) changes nothing
  void advance(int64_t rows);
  void push(int32_t token);
  // Gives up the claim. A prompt that was not computed to its end is forgotten beyond what is cached.
  void end_run();
  std::unique_ptr<KvCache> take_cache();

  // Without the lock: only the claiming run's thread changes these.
  std::span<const int32_t> token_view() const { return tokens_; }
  std::span<const KvView> views() const { return cache_->views(); }
  int64_t cached() const { return cache_ ? cache_->length() : 0; }
  int64_t prompt_end() const { return prompt_end_; }

  void drop_cache();  // with the lock held, when the engine shuts

 private:
  void check_idle() const;  // with the lock held

  const std::shared_ptr<EngineCore> core_;
  std::vector<int32_t> tokens_;     // the last one generated is not in the cache: the next run feeds it first
  std::unique_ptr<KvCache> cache_;  // null: nothing cached
  bool busy_ = false;
  int64_t prompt_begin_ = 0, prompt_end_ = 0;  // of the last run's prompt within tokens_
};

}  // namespace lapidary
