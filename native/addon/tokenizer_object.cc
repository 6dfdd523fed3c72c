// The methods of NativeTokenizer and of the stream it makes.
#include "addon/tokenizer_object.h"

#include <limits>

#include "addon/args.h"
#include "addon/id_lists.h"
#include "addon/results.h"

namespace lapidary::addon {

namespace {

// What a piece takes with its share of the tables, roughly: for the garbage collector, which cannot see it.
constexpr int64_t kBytesPerPiece = 128;

class TokenStreamObject {
 public:
  static constexpr const char* kName = "NativeTokenStream";
  static constexpr const napi_type_tag& kTag = kTokenStreamTag;
  static std::vector<Method> methods() {
    return {{"push", call_member<TokenStreamObject, &TokenStreamObject::push>},
            {"flush", call_member<TokenStreamObject, &TokenStreamObject::flush>}};
  }

  TokenStreamObject(std::shared_ptr<const Tokenizer> tokenizer, bool special)
      : size_(tokenizer->size()), stream_(std::move(tokenizer), special) {}

 private:
  napi_value push(const Napi::CallbackInfo& info) {
    return text(info.Env(), stream_.push(static_cast<int32_t>(to_integer(info[0], "id", 0, size_ - 1))));
  }
  napi_value flush(const Napi::CallbackInfo& info) { return text(info.Env(), stream_.flush()); }

  int64_t size_;
  Tokenizer::Stream stream_;
};

Napi::Number number(const Napi::CallbackInfo& info, int64_t value) { return Napi::Number::New(info.Env(), static_cast<double>(value)); }

}  // namespace

std::vector<Method> TokenizerObject::methods() {
  return {{"encode", call_member<TokenizerObject, &TokenizerObject::encode>},
          {"encodeAsync", call_member<TokenizerObject, &TokenizerObject::encode_async>},
          {"encodeBatch", call_member<TokenizerObject, &TokenizerObject::encode_batch>},
          {"decode", call_member<TokenizerObject, &TokenizerObject::decode>},
          {"piece", call_member<TokenizerObject, &TokenizerObject::piece>},
          {"find", call_member<TokenizerObject, &TokenizerObject::find>},
          {"isControl", call_member<TokenizerObject, &TokenizerObject::is_control>},
          {"stream", call_member<TokenizerObject, &TokenizerObject::stream>},
          {"size", call_member<TokenizerObject, &TokenizerObject::size>, true},
          {"bosId", call_member<TokenizerObject, &TokenizerObject::bos_id>, true},
          {"eosId", call_member<TokenizerObject, &TokenizerObject::eos_id>, true},
          {"padId", call_member<TokenizerObject, &TokenizerObject::pad_id>, true},
          {"unkId", call_member<TokenizerObject, &TokenizerObject::unk_id>, true},
          {"addBos", call_member<TokenizerObject, &TokenizerObject::add_bos>, true},
          {"chatTemplate", call_member<TokenizerObject, &TokenizerObject::chat_template>, true}};
}

TokenizerObject::TokenizerObject(Environment& environment, std::shared_ptr<const Tokenizer> tokenizer)
    : environment_(environment.shared_from_this()), tokenizer_(std::move(tokenizer)) {
  environment_->report_bytes(tokenizer_->size() * kBytesPerPiece);
}

void TokenizerObject::dispose() {
  if (!tokenizer_) return;
  environment_->report_bytes(-tokenizer_->size() * kBytesPerPiece);
  environment_->release_elsewhere(std::const_pointer_cast<Tokenizer>(std::move(tokenizer_)));
}

const std::shared_ptr<const Tokenizer>& TokenizerObject::tokenizer() const {
  expect(tokenizer_ != nullptr, ErrorCode::disposed, "the model of this tokenizer is closed");
  return tokenizer_;
}

int32_t TokenizerObject::id_argument(const Napi::CallbackInfo& info) const {
  return static_cast<int32_t>(to_integer(info[0], "id", 0, tokenizer()->size() - 1));
}

napi_value TokenizerObject::encode(const Napi::CallbackInfo& info) {
  const std::vector<OwnedPart> parts = to_parts(info[0], "parts");
  return id_array(info.Env(), tokenizer()->encode(views(parts)));
}

napi_value TokenizerObject::encode_async(const Napi::CallbackInfo& info) {
  auto encode = [tokenizer = tokenizer(), parts = to_parts(info[0], "parts")] { return tokenizer->encode(views(parts)); };
  return promise_id_list(info.Env(), "lapidary encode", std::move(encode));
}

napi_value TokenizerObject::encode_batch(const Napi::CallbackInfo& info) {
  const Napi::Array list = to_array(info[0], "texts");
  std::vector<std::vector<OwnedPart>> texts;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    texts.push_back(to_parts(list.Get(i), "texts[" + std::to_string(i) + "]"));
  }
  auto encode = [tokenizer = tokenizer(), texts = std::move(texts)] {
    IdLists out;
    for (const std::vector<OwnedPart>& parts : texts) out.push_back(tokenizer->encode(views(parts)));
    return out;
  };
  return promise_id_lists(info.Env(), "lapidary encode", std::move(encode));
}

napi_value TokenizerObject::decode(const Napi::CallbackInfo& info) {
  const std::vector<int32_t> ids = to_ids(info[0], "ids");
  return text(info.Env(), tokenizer()->decode(ids, to_boolean(info[1], "special")));
}

napi_value TokenizerObject::piece(const Napi::CallbackInfo& info) { return text(info.Env(), tokenizer()->piece(id_argument(info))); }

napi_value TokenizerObject::find(const Napi::CallbackInfo& info) { return number(info, tokenizer()->find(to_text(info[0], "piece"))); }

napi_value TokenizerObject::is_control(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), tokenizer()->is_control(id_argument(info)));
}

napi_value TokenizerObject::stream(const Napi::CallbackInfo& info) {
  return make_handle(info.Env(), std::make_unique<TokenStreamObject>(tokenizer(), to_boolean(info[0], "special")));
}

napi_value TokenizerObject::size(const Napi::CallbackInfo& info) { return number(info, tokenizer()->size()); }
napi_value TokenizerObject::bos_id(const Napi::CallbackInfo& info) { return number(info, tokenizer()->bos_id()); }
napi_value TokenizerObject::eos_id(const Napi::CallbackInfo& info) { return number(info, tokenizer()->eos_id()); }
napi_value TokenizerObject::pad_id(const Napi::CallbackInfo& info) { return number(info, tokenizer()->pad_id()); }
napi_value TokenizerObject::unk_id(const Napi::CallbackInfo& info) { return number(info, tokenizer()->unk_id()); }
napi_value TokenizerObject::add_bos(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), tokenizer()->add_bos()); }
napi_value TokenizerObject::chat_template(const Napi::CallbackInfo& info) { return text(info.Env(), tokenizer()->chat_template()); }

Napi::Object make_tokenizer(Napi::Env env, std::shared_ptr<const Tokenizer> tokenizer) {
  return make_handle(env, std::make_unique<TokenizerObject>(Environment::of(env), std::move(tokenizer)));
}

}  // namespace lapidary::addon
