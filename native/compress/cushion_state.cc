#include "compress/cushion_state.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include "base/error.h"
#include "formats/json.h"
#include "formats/mapped_file.h"

namespace lapidary {

namespace {

constexpr const char* kFormat = "lapidary cushion search 1";

double number_of(const JsonValue& value) {
  return value.is(JsonValue::Type::null) ? std::numeric_limits<double>::infinity() : value.number();
}

const JsonValue& member(const JsonValue& object, const char* key, const std::string& path) {
  const JsonValue* found = object.find(key);
  expect(found != nullptr, ErrorCode::bad_file, path, ": `", key, "` is missing");
  return *found;
}

// `key` may be null: infinity.
double number_at(const JsonValue& object, const char* key) {
  const JsonValue* found = object.find(key);
  return found ? found->number() : std::numeric_limits<double>::infinity();
}

std::vector<int32_t> ids_of(const JsonValue& list) {
  std::vector<int32_t> ids;
  for (const JsonValue& id : list.array()) ids.push_back(static_cast<int32_t>(id.integer()));
  return ids;
}

}  // namespace

std::string json_number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", x);
  return text;
}

std::string steps_json(const std::vector<CushionSearchStep>& steps) {
  std::string text = "[";
  for (const CushionSearchStep& step : steps) {
    if (text.size() > 1) text += ',';
    text += "{\"accepted\":" + std::string(step.accepted ? "true" : "false") + ",\"tried\":" + std::to_string(step.tried) +
            ",\"before\":" + json_number(step.before) + ",\"after\":" + json_number(step.after) +
            ",\"heldOutBefore\":" + json_number(step.held_out_before) + ",\"heldOutAfter\":" + json_number(step.held_out_after) +
            ",\"best\":[";
    for (const CushionCandidate& candidate : step.best) {
      if (text.back() != '[') text += ',';
      text += "{\"token\":" + std::to_string(candidate.token) + ",\"error\":" + json_number(candidate.error) + '}';
    }
    text += "]}";
  }
  return text + ']';
}

void write_state(const std::string& path, const CushionSearchState& state) {
  const std::string text = "{\"format\":" + json_quote(kFormat) + ",\"identity\":" + json_quote(state.identity) +
                           ",\"finished\":" + (state.finished ? "true" : "false") + ",\"tokens\":" + json_list(state.tokens) +
                           ",\"steps\":" + steps_json(state.steps) + ",\"stage\":" + std::to_string(state.stage) +
                           ",\"survivors\":" + json_list(state.survivors) + ",\"scores\":" + json_list(state.scores) + "}\n";
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

CushionSearchState read_state(const std::string& path) {
  const JsonValue root = JsonValue::parse(read_text_file(path), path);
  expect(member(root, "format", path).string() == kFormat, ErrorCode::bad_file, path, ": is not the state of a cushion search");
  CushionSearchState state;
  state.identity = member(root, "identity", path).string();
  state.finished = member(root, "finished", path).boolean();
  state.tokens = ids_of(member(root, "tokens", path));
  for (const JsonValue& value : member(root, "steps", path).array()) {
    CushionSearchStep& step = state.steps.emplace_back();
    step.accepted = member(value, "accepted", path).boolean();
    step.tried = member(value, "tried", path).integer();
    step.before = number_at(value, "before");
    step.after = number_at(value, "after");
    step.held_out_before = number_at(value, "heldOutBefore");
    step.held_out_after = number_at(value, "heldOutAfter");
    for (const JsonValue& candidate : member(value, "best", path).array())
      step.best.push_back({static_cast<int32_t>(member(candidate, "token", path).integer()), number_at(candidate, "error")});
  }
  state.stage = member(root, "stage", path).integer();
  state.survivors = ids_of(member(root, "survivors", path));
  for (const JsonValue& score : member(root, "scores", path).array()) state.scores.push_back(number_of(score));
  expect(state.stage >= 0 && state.scores.size() <= state.survivors.size(), ErrorCode::bad_file, path, ": more scores than candidates");
  return state;
}

}  // namespace lapidary
