// Queueing work on Node's thread pool, and settling promises.
#include "addon/promise_worker.h"

namespace lapidary::addon {

void Work::queue(napi_env env, const char* name, std::unique_ptr<Work> work) {
  napi_value name_value = nullptr;
  const auto run = [](napi_env, void* data) { static_cast<Work*>(data)->execute(); };
  const auto finish = [](napi_env env, napi_status, void* data) {
    const std::unique_ptr<Work> work(static_cast<Work*>(data));
    napi_delete_async_work(env, work->work_);
    work->complete(env);
  };
  napi_handle_scope scope = nullptr;
  const bool scoped = napi_open_handle_scope(env, &scope) == napi_ok;
  const bool queued = scoped && napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &name_value) == napi_ok &&
                      napi_create_async_work(env, nullptr, name_value, run, finish, work.get(), &work->work_) == napi_ok &&
                      napi_queue_async_work(env, work->work_) == napi_ok;
  if (scoped) napi_close_handle_scope(env, scope);
  if (queued) {
    static_cast<void>(work.release());  // finish() owns it
    return;
  }
  if (work->work_) napi_delete_async_work(env, work->work_);
  work->execute();
  work->complete(env);
}

Deferred::Deferred(napi_env env) {
  const napi_status status = napi_create_promise(env, &deferred_, &promise_);
  expect(status == napi_ok, ErrorCode::internal, "napi_create_promise failed with Node-API status ", static_cast<int>(status));
}

void Deferred::resolve(napi_env env, napi_value value) noexcept {
  if (const napi_deferred deferred = std::exchange(deferred_, nullptr)) napi_resolve_deferred(env, deferred, value);
}

void Deferred::reject(napi_env env, std::exception_ptr error) noexcept {
  if (const napi_deferred deferred = std::exchange(deferred_, nullptr)) napi_reject_deferred(env, deferred, error_value(env, error));
}

}  // namespace lapidary::addon
