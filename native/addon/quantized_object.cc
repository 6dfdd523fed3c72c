// NativeModel.quantize and what comes of it.
#include "addon/quantized_object.h"

#include "addon/cushion_object.h"
#include "addon/evaluation_job.h"
#include "addon/model_object.h"
#include "addon/results.h"
#include "cpu/backend.h"

namespace lapidary::addon {

namespace {

template <typename T>
T one_of(const Fields& fields, const char* key, std::initializer_list<std::pair<const char*, T>> known) {
  const std::string found = fields.text(key);
  for (const auto& [name, value] : known)
    if (found == name) return value;
  fail(ErrorCode::invalid_argument, fields.name(key), ": '", found, "' is none of the known values");
}

QuantizeOptions to_quantize_options(const Fields& fields) {
  QuantizeOptions out;
  out.per_channel = one_of<bool>(fields, "weights", {{"channel", true}, {"tensor", false}});
  out.activations = one_of<ActScheme>(
      fields, "activations",
      {{"token", ActScheme::token}, {"tensor", ActScheme::sequence}, {"static", ActScheme::fixed}, {"none", ActScheme::none}});
  out.clip = one_of<ClipRule>(fields, "clip", {{"absmax", ClipRule::absmax}, {"percentile", ClipRule::percentile}, {"mse", ClipRule::mse}});
  out.smooth = fields.number("smooth");
  out.embedding = fields.boolean("embedding");
  out.window = fields.integer("window", 1, kMaxSafeInteger);
  const auto threads = static_cast<int>(fields.integer("threads", 0, 1024));
  out.threads = threads > 0 ? threads : physical_cores();
  return out;
}

// Which cushion stands before the texts: the model's own, one at hand, that of a file, tokens computed like a prompt, or none.
struct CushionChoice {
  bool own = false;
  std::shared_ptr<const Cushion> given;
  std::string file;
  std::vector<int32_t> tokens;
};

CushionChoice to_cushion_choice(const Fields& fields) {
  const Napi::Value value = fields.get("cushion");
  CushionChoice choice;
  if (value.IsString())
    choice.file = to_text(value, fields.name("cushion"));
  else if (const CushionObject* object = find_handle<CushionObject>(value.Env(), value))
    choice.given = object->cushion();
  else if (value.IsObject())
    choice.tokens = to_int32s(value, fields.name("cushion"));
  else
    choice.own = to_boolean(value, fields.name("cushion"));
  return choice;
}

std::shared_ptr<const Cushion> find(const CushionChoice& choice, const SharedSubject& shared, const EvaluationWatch& watch) {
  if (choice.given) return choice.given;
  if (choice.own) return shared.share.weights->cushion;
  if (!choice.file.empty()) return std::make_shared<const Cushion>(read_cushion(choice.file, shared.share.weights->config));
  if (choice.tokens.empty()) return nullptr;
  TextPass pass(*shared.share.backend, *shared.share.weights, {.turns = shared.share.turns.get()});
  pass.run(choice.tokens, nullptr, {.stop = watch.stop});
  return std::make_shared<const Cushion>(pass.to_cushion(CushionWindow::pinned));
}

}  // namespace

napi_value ModelObject::quantize(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  const Fields fields(info[2], "options");
  std::vector<TextIds> texts;
  const Napi::Array list = to_array(info[1], "texts");
  for (uint32_t i = 0; i < list.Length(); ++i) texts.push_back(to_int32s(list.Get(i), "texts[" + std::to_string(i) + "]"));
  auto work = [shared, path = to_text(info[0], "path"), texts = std::move(texts), options = to_quantize_options(fields),
               choice = to_cushion_choice(fields)](const EvaluationWatch& watch) mutable -> Convert {
    options.cushion = find(choice, shared, watch);
    Subject original = shared.subject();
    original.cushion = options.cushion.get();
    std::shared_ptr<QuantizedModel> model = quantize_model(path, &original, texts, options, watch);
    const std::weak_ptr<const ModelWeights> weights = shared.share.weights;
    return [model, weights, device = std::string(shared.share.backend->name())](Napi::Env env) -> napi_value {
      return make_handle(env, std::make_unique<QuantizedObject>(model, weights, device));
    };
  };
  return start_evaluation(info.Env(), {state_}, info[3], std::move(work));
}

std::vector<Method> QuantizedObject::methods() {
  return {{"report", call_member<QuantizedObject, &QuantizedObject::report>, true},
          {"save", call_member<QuantizedObject, &QuantizedObject::save>},
          {"load", call_member<QuantizedObject, &QuantizedObject::load>}};
}

napi_value QuantizedObject::report(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array sites = Napi::Array::New(env, model_->scales().size());
  for (size_t i = 0; i < model_->scales().size(); ++i) {
    const SiteScale& scale = model_->scales()[i];
    Napi::Object site = Napi::Object::New(env);
    site.Set("layer", static_cast<double>(scale.layer));
    site.Set("site", site_name(scale.site));
    site.Set("max", scale.absmax);
    site.Set("tokenRatio", scale.token_ratio);
    site.Set("clip", scale.clip);
    site.Set("scale", scale.scale);
    sites.Set(static_cast<uint32_t>(i), site);
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("calibrationTokens", static_cast<double>(model_->calibration_rows()));
  const std::shared_ptr<const Cushion> cushion = model_->cushion(nullptr);
  out.Set("cushion", cushion ? text(env, cushion_fingerprint(*cushion)) : Napi::Value(env.Null()));
  out.Set("sites", sites);
  return out;
}

napi_value QuantizedObject::save(const Napi::CallbackInfo& info) {
  auto work = [model = model_, target = to_text(info[0], "path")](const EvaluationWatch& watch) -> Convert {
    model->save(target, watch);
    return [](Napi::Env env) -> napi_value { return env.Undefined(); };
  };
  return start_evaluation(info.Env(), {}, info[1], std::move(work));
}

napi_value QuantizedObject::load(const Napi::CallbackInfo& info) {
  auto work = [model = model_, weights = original_, device = device_,
               options = to_load_options(info[0])](const EvaluationWatch& watch) -> Convert {
    const LoadProgress progress = [&watch](int64_t done, int64_t total) {
      expect(!watch.stop(), ErrorCode::aborted, "the loading was stopped");
      watch.progress(done, total);
    };
    // Memory of a device belongs to one backend; the host's to nobody.
    const std::shared_ptr<const ModelWeights> original = device == options.device && device != "cuda" ? weights.lock() : nullptr;
    auto loaded = std::make_shared<LoadedModel>(load_model(model->path(), options, progress, model.get(), original));
    return [loaded](Napi::Env env) -> napi_value { return make_model(env, std::move(*loaded)); };
  };
  return start_evaluation(info.Env(), {}, info[1], std::move(work));
}

}  // namespace lapidary::addon
