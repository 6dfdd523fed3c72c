// NativeModel's evaluations: texts in, figures out.
#include "addon/evaluation_job.h"
#include "addon/model_object.h"
#include "compress/activations.h"

namespace lapidary::addon {

namespace {

std::vector<TextIds> to_texts_of_ids(Napi::Value value, const std::string& name) {
  const Napi::Array list = to_array(value, name);
  std::vector<TextIds> texts;
  for (uint32_t i = 0; i < list.Length(); ++i) texts.push_back(to_int32s(list.Get(i), name + "[" + std::to_string(i) + "]"));
  return texts;
}

// firstTokens null: where every subject's texts begin with BOS.
WindowOptions to_window_options(const Fields& fields, std::initializer_list<const SharedSubject*> subjects) {
  WindowOptions options;
  options.window = fields.integer("window", 1, kMaxSafeInteger);
  options.stride = fields.integer("stride", 0, kMaxSafeInteger);
  options.first_tokens = true;
  for (const SharedSubject* subject : subjects) options.first_tokens = options.first_tokens && !subject->subject().opening().empty();
  if (!fields.get("firstTokens").IsNull()) options.first_tokens = fields.boolean("firstTokens");
  return options;
}

template <typename T, typename Make>
napi_value by_position(const ByPosition<T>& figures, const Make& make) {
  Napi::Object out = make(figures.all);
  out.Set("within", make(figures.within));
  out.Set("beyond", make(figures.beyond));
  return out;
}

Napi::Object site_object(Napi::Env env, int64_t layer, Site site, const SiteStatistics& s) {
  Napi::Array spikes = Napi::Array::New(env, s.spikes.size());
  for (size_t i = 0; i < s.spikes.size(); ++i) {
    const Spike& spike = s.spikes[i];
    Napi::Object item = Napi::Object::New(env);
    item.Set("text", static_cast<double>(spike.text));
    item.Set("position", static_cast<double>(spike.position));
    item.Set("id", spike.id);
    item.Set("channel", static_cast<double>(spike.channel));
    item.Set("value", spike.value);
    spikes.Set(static_cast<uint32_t>(i), item);
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("layer", static_cast<double>(layer));
  out.Set("site", site_name(site));
  out.Set("max", s.absmax);
  out.Set("meanTokenMax", s.mean_row_max());
  out.Set("medianTokenMax", s.row_maxima.quantile(0.5));
  out.Set("p90", s.values.quantile(0.9));
  out.Set("median", s.values.quantile(0.5));
  out.Set("maxOverMedian", s.value_ratio());
  out.Set("tokenRatio", s.token_ratio());
  out.Set("notFinite", static_cast<double>(s.not_finite));
  out.Set("spikes", spikes);
  return out;
}

}  // namespace

napi_value ModelObject::text_likelihood(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  const Fields fields(info[1], "options");
  return start_evaluation(info.Env(), {state_}, info[2],
                          [shared, texts = to_texts_of_ids(info[0], "texts"),
                           options = to_window_options(fields, {&shared})](const EvaluationWatch& watch) -> Convert {
                            const ByPosition<Likelihood> figures = lapidary::text_likelihood(shared.subject(), texts, options, watch);
                            return [figures](Napi::Env env) {
                              return by_position(figures, [&](const Likelihood& l) {
                                Napi::Object out = Napi::Object::New(env);
                                out.Set("tokens", static_cast<double>(l.tokens));
                                out.Set("nats", l.nats);
                                return out;
                              });
                            };
                          });
}

napi_value ModelObject::divergence(const Napi::CallbackInfo& info) {
  const ModelObject& other = to_handle<ModelObject>(info.Env(), info[0], "reference");
  const SharedSubject candidate = share_subject(*state_), reference = share_subject(*other.state_);
  const Fields fields(info[2], "options");
  return start_evaluation(info.Env(), {state_, other.state_}, info[3],
                          [candidate, reference, texts = to_texts_of_ids(info[1], "texts"),
                           options = to_window_options(fields, {&candidate, &reference})](const EvaluationWatch& watch) -> Convert {
                            const ByPosition<Divergence> figures =
                                lapidary::divergence(reference.subject(), candidate.subject(), texts, options, watch);
                            return [figures](Napi::Env env) {
                              return by_position(figures, [&](const Divergence& d) {
                                Napi::Object out = Napi::Object::New(env);
                                out.Set("tokens", static_cast<double>(d.tokens));
                                out.Set("meanKl", d.mean_kl);
                                out.Set("p99Kl", d.p99_kl);
                                out.Set("maxKl", d.max_kl);
                                out.Set("agreement", d.agreement);
                                out.Set("referenceNats", d.reference_nats);
                                out.Set("nats", d.candidate_nats);
                                return out;
                              });
                            };
                          });
}

napi_value ModelObject::choice_likelihoods(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  std::vector<Question> questions;
  const Napi::Array list = to_array(info[0], "questions");
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const std::string name = "questions[" + std::to_string(i) + "]";
    const Fields fields(list.Get(i), name);
    questions.push_back(
        {to_int32s(fields.get("prompt"), fields.name("prompt")), to_texts_of_ids(fields.get("choices"), fields.name("choices"))});
  }
  return start_evaluation(info.Env(), {state_}, info[1],
                          [shared, questions = std::move(questions)](const EvaluationWatch& watch) -> Convert {
                            return [sums = lapidary::choice_likelihoods(shared.subject(), questions, watch)](Napi::Env env) -> napi_value {
                              Napi::Array out = Napi::Array::New(env, sums.size());
                              for (size_t i = 0; i < sums.size(); ++i) {
                                Napi::Array row = Napi::Array::New(env, sums[i].size());
                                for (size_t j = 0; j < sums[i].size(); ++j) row.Set(static_cast<uint32_t>(j), sums[i][j]);
                                out.Set(static_cast<uint32_t>(i), row);
                              }
                              return out;
                            };
                          });
}

napi_value ModelObject::activations(const Napi::CallbackInfo& info) {
  const SharedSubject shared = share_subject(*state_);
  return start_evaluation(info.Env(), {state_}, info[2],
                          [shared, texts = to_texts_of_ids(info[0], "texts"),
                           window = to_integer(info[1], "window", 1, kMaxSafeInteger)](const EvaluationWatch& watch) -> Convert {
                            auto found = std::make_shared<const Activations>(collect_activations(shared.subject(), texts, window, watch));
                            return [found](Napi::Env env) -> napi_value {
                              Napi::Array sites = Napi::Array::New(env, found->sites.size());
                              for (size_t i = 0; i < found->sites.size(); ++i) {
                                const auto layer = static_cast<int64_t>(i) / kNumSites;
                                const auto site = static_cast<Site>(i % kNumSites);
                                sites.Set(static_cast<uint32_t>(i), site_object(env, layer, site, found->sites[i]));
                              }
                              Napi::Object out = Napi::Object::New(env);
                              out.Set("tokens", static_cast<double>(found->rows));
                              out.Set("sites", sites);
                              return out;
                            };
                          });
}

}  // namespace lapidary::addon
