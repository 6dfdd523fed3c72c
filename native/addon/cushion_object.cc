// NativeModel's searchCushion, tuneCushion and readCushion, and what comes of them.
#include "addon/cushion_object.h"

#include "addon/evaluation_job.h"
#include "addon/model_object.h"
#include "addon/results.h"
#include "compress/cushion_rivals.h"
#include "compress/cushion_search.h"
#include "compress/cushion_state.h"
#include "train/cushion_tuning.h"

namespace lapidary::addon {

namespace {

std::vector<TextIds> to_text_ids(Napi::Value value) {
  std::vector<TextIds> texts;
  const Napi::Array list = to_array(value, "texts");
  for (uint32_t i = 0; i < list.Length(); ++i) texts.push_back(to_int32s(list.Get(i), "texts[" + std::to_string(i) + "]"));
  return texts;
}

CushionWindow to_window(const Fields& fields) { return fields.text("window") == "native" ? CushionWindow::native : CushionWindow::pinned; }

CushionSearchOptions to_search_options(const Fields& fields) {
  CushionSearchOptions o;
  const auto natural = [&](const char* key) { return fields.integer(key, 0, kMaxSafeInteger); };
  o.window = to_window(fields);
  o.init = to_int32s(fields.get("init"), fields.name("init"));
  o.candidates = to_int32s(fields.get("candidates"), fields.name("candidates"));
  o.max_tokens = natural("maxTokens");
  o.tau = fields.number("tau");
  o.text_tokens = natural("textTokens");
  o.texts = natural("texts");
  o.held_out = natural("heldOut");
  o.rows = natural("rows");
  o.seed = static_cast<uint64_t>(natural("seed"));
  o.model_id = fields.text("modelId");
  o.state_file = fields.text("stateFile");
  o.stages.clear();
  const Napi::Array stages = to_array(fields.get("stages"), fields.name("stages"));
  for (uint32_t i = 0; i < stages.Length(); ++i) {
    const Fields stage(stages.Get(i), fields.name("stages") + "[" + std::to_string(i) + "]");
    const auto count = [&](const char* key) { return stage.integer(key, 0, kMaxSafeInteger); };
    o.stages.push_back({count("tokens"), count("texts"), count("layers"), count("keep")});
  }
  return o;
}

CushionTuningOptions to_tuning_options(const Fields& fields) {
  CushionTuningOptions o;
  const auto natural = [&](const char* key) { return fields.integer(key, 0, kMaxSafeInteger); };
  o.steps = natural("steps");
  o.batch = natural("batch");
  o.text_tokens = natural("textTokens");
  o.held_out = natural("heldOut");
  o.every = natural("every");
  o.patience = natural("patience");
  o.calibration_texts = natural("calibrationTexts");
  o.lambda = fields.number("lambda");
  const std::string gradient = fields.text("gradient");
  o.gradient = gradient == "literal"         ? QuantErrorGradient::literal
               : gradient == "through-scale" ? QuantErrorGradient::through_scale
                                             : QuantErrorGradient::straight_through;
  o.learning_rate = fields.number("learningRate");
  o.warmup = natural("warmup");
  o.clip = fields.number("clip");
  o.seed = static_cast<uint64_t>(natural("seed"));
  o.model_id = fields.text("modelId");
  o.state_file = fields.text("stateFile");
  return o;
}

// What the search's result is compared with, on the same held-out texts.
std::string rivals_json(const Subject& subject, std::span<const TextIds> texts, const CushionSearchOptions& options, int64_t found_tokens,
                        int64_t random, const EvaluationWatch& watch) {
  const std::vector<TextIds> held_out = split_texts(texts, options).held_out;
  ExactError exact(subject, options.text_tokens);
  const auto error_of = [&](const std::vector<int32_t>& tokens) {
    const Cushion cushion = exact.make(tokens, options.window);
    return exact.measure(&cushion, held_out, watch.stop).total();
  };
  const std::vector<int32_t> bos = {subject.weights.config.bos_id};
  std::vector<int32_t> frequent = frequent_outliers(subject, split_texts(texts, options).pool, 64, {.progress = {}, .stop = watch.stop});
  const int64_t size = std::max<int64_t>(found_tokens, 1);
  const RandomPrefixes chance =
      random_prefixes(subject, held_out, random, size, options.window, options.seed, {.progress = {}, .stop = watch.stop});
  return "{\"bos\":" + json_number(error_of(bos)) + ",\"frequent\":{\"tokens\":" + json_list(frequent) +
         ",\"error\":" + json_number(error_of(frequent)) + "},\"random\":{\"median\":" + json_number(chance.median()) +
         ",\"errors\":" + json_list(chance.errors) + "}}";
}

Convert converted(Cushion cushion, std::string report) {
  auto shared = std::make_shared<const Cushion>(std::move(cushion));
  return [shared, report = std::move(report)](Napi::Env env) -> napi_value {
    return make_handle(env, std::make_unique<CushionObject>(shared, report));
  };
}

}  // namespace

napi_value ModelObject::search_cushion(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  const Fields fields(info[1], "options");
  auto work = [shared, texts = to_text_ids(info[0]), options = to_search_options(fields),
               random = fields.integer("rivals", 0, 1000)](const EvaluationWatch& watch) -> Convert {
    const Subject subject = shared.subject();
    CushionSearchResult found = lapidary::search_cushion(
        subject, texts, options, {.progress = [&](const CushionProgress& p) { watch.progress(p.done, p.total); }, .stop = watch.stop});
    std::string report = "{\"search\":" + search_report(found) + ",\"rivals\":";
    report += random > 0 ? rivals_json(subject, texts, options, found.cushion.size(), random, watch) : "null";
    return converted(std::move(found.cushion), report + '}');
  };
  return start_evaluation(info.Env(), {state_}, info[2], std::move(work));
}

napi_value ModelObject::tune_cushion(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  const std::shared_ptr<const Cushion> start = to_handle<CushionObject>(info.Env(), info[1], "cushion").cushion();
  auto work = [shared, start, path = to_text(info[0], "path"), texts = to_text_ids(info[2]),
               options = to_tuning_options(Fields(info[3], "options"))](const EvaluationWatch& watch) -> Convert {
    // Rows of the file's own mapping: nothing is held twice.
    const std::shared_ptr<const ModelWeights> host = load_weights(path, *make_reference_backend());
    const Subject subject = shared.subject();
    WidenedWeights weights(subject.backend, *host);
    CushionTuningResult tuned = lapidary::tune_cushion(
        subject, weights, *start, texts, options,
        {.progress = [&](int64_t step, int64_t steps, double, const HeldOut&) { watch.progress(step, steps); }, .stop = watch.stop});
    std::string report = "{\"tuning\":" + tuning_report(tuned) + '}';
    return converted(std::move(tuned.cushion), std::move(report));
  };
  return start_evaluation(info.Env(), {state_}, info[4], std::move(work));
}

napi_value ModelObject::read_cushion(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  auto work = [shared, path = to_text(info[0], "path")](const EvaluationWatch&) -> Convert {
    return converted(lapidary::read_cushion(path, shared.share.weights->config), "{}");
  };
  return start_evaluation(info.Env(), {state_}, info.Env().Null(), std::move(work));
}

std::vector<Method> CushionObject::methods() {
  return {{"tokens", call_member<CushionObject, &CushionObject::tokens>, true},
          {"window", call_member<CushionObject, &CushionObject::window>, true},
          {"fingerprint", call_member<CushionObject, &CushionObject::fingerprint>, true},
          {"report", call_member<CushionObject, &CushionObject::report>, true},
          {"save", call_member<CushionObject, &CushionObject::save>}};
}

napi_value CushionObject::tokens(const Napi::CallbackInfo& info) { return id_array(info.Env(), cushion_->tokens); }
napi_value CushionObject::window(const Napi::CallbackInfo& info) {
  return text(info.Env(), cushion_->window == CushionWindow::native ? "native" : "pinned");
}
napi_value CushionObject::fingerprint(const Napi::CallbackInfo& info) { return text(info.Env(), cushion_fingerprint(*cushion_)); }
napi_value CushionObject::report(const Napi::CallbackInfo& info) { return text(info.Env(), report_); }

napi_value CushionObject::save(const Napi::CallbackInfo& info) {
  auto work = [cushion = cushion_, path = to_text(info[0], "path")](const EvaluationWatch&) -> Convert {
    expect(cushion->size() > 0, ErrorCode::invalid_argument, "the cushion has no tokens: there is nothing to save");
    write_cushion(path, *cushion);
    return [](Napi::Env env) -> napi_value { return env.Undefined(); };
  };
  return start_evaluation(info.Env(), {}, info.Env().Null(), std::move(work));
}

}  // namespace lapidary::addon
