// Filling arrays of ids slice by slice.
#include "addon/id_lists.h"

#include <algorithm>
#include <optional>

#include "addon/handles.h"
#include "addon/promise_worker.h"

namespace lapidary::addon {

namespace {

// Ids and lists of one turn: about half a millisecond.
constexpr size_t kSlice = 8192;

// Lives through all turns; each is one piece of Work.
struct Filling {
  Filling(napi_env env, std::function<IdLists()> make, bool single)
      : environment(Environment::of(env).shared_from_this()), deferred(env), make(std::move(make)), single(single) {}

  const std::shared_ptr<Environment> environment;
  Deferred deferred;
  std::function<IdLists()> make;
  const bool single;  // the one list is the result
  std::exception_ptr error;
  IdLists lists;
  size_t list = 0, at = 0;  // the next id
  Napi::ObjectReference outer, inner;
};

// One turn's worth; true when all is done.
bool fill(Napi::Env env, Filling& f) {
  if (f.outer.IsEmpty()) f.outer = Napi::Persistent(Napi::Array::New(env, f.lists.size()).As<Napi::Object>());
  for (size_t left = kSlice; left > 0 && f.list < f.lists.size(); --left) {
    const Napi::HandleScope scope(env);
    std::vector<int32_t>& ids = f.lists[f.list];
    if (f.inner.IsEmpty()) f.inner = Napi::Persistent(Napi::Array::New(env, ids.size()).As<Napi::Object>());
    const Napi::Object array = f.inner.Value();
    const size_t end = std::min(ids.size(), f.at + left);
    for (left -= end - f.at; f.at < end; ++f.at) {
      const Napi::HandleScope inner_scope(env);
      check_napi(env, napi_set_element(env, array, static_cast<uint32_t>(f.at), Napi::Number::New(env, ids[f.at])));
    }
    if (f.at < ids.size()) return false;
    f.outer.Value().Set(static_cast<uint32_t>(f.list), array);
    f.inner.Reset();
    std::vector<int32_t>().swap(ids);
    ++f.list;
    f.at = 0;
    if (left == 0) break;
  }
  return f.list == f.lists.size();
}

class FillWork final : public Work {
 public:
  explicit FillWork(std::unique_ptr<Filling> filling) : filling_(std::move(filling)) {}

  void execute() noexcept override {
    if (!filling_->make) return;
    try {
      filling_->lists = filling_->make();
    } catch (...) {
      filling_->error = std::current_exception();
    }
    filling_->make = nullptr;
  }

  void complete(napi_env env) noexcept override {
    Filling& f = *filling_;
    if (f.environment->ending()) {
      f.outer.SuppressDestruct(), f.inner.SuppressDestruct();
      return;
    }
    try {
      if (f.error) std::rethrow_exception(f.error);
      if (fill(env, f)) {
        const Napi::Object outer = f.outer.Value();
        f.deferred.resolve(env, f.single ? outer.Get(0u) : Napi::Value(outer));
      } else {
        Work::queue(env, "lapidary ids", std::make_unique<FillWork>(std::move(filling_)));
      }
    } catch (...) {
      f.deferred.reject(env, std::current_exception());
    }
  }

 private:
  std::unique_ptr<Filling> filling_;
};

napi_value start(napi_env env, const char* name, std::function<IdLists()> make, bool single) {
  auto filling = std::make_unique<Filling>(env, std::move(make), single);
  const napi_value promise = filling->deferred.promise();
  Work::queue(env, name, std::make_unique<FillWork>(std::move(filling)));
  return promise;
}

}  // namespace

napi_value promise_id_lists(napi_env env, const char* name, std::function<IdLists()> make) {
  return start(env, name, std::move(make), false);
}

napi_value promise_id_list(napi_env env, const char* name, std::function<std::vector<int32_t>()> make) {
  auto as_lists = [make = std::move(make)] {
    IdLists lists;
    lists.push_back(make());
    return lists;
  };
  return start(env, name, std::move(as_lists), true);
}

}  // namespace lapidary::addon
