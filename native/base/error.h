// Errors of the whole library: one exception type with a stable code. Knows nothing above it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lapidary {

// The codes are part of the public API; `code_name` gives the string that JavaScript sees.
enum class ErrorCode {
  invalid_argument,  // the caller's value does not fit
  bad_file,          // bytes on disk are not what they claim to be
  unsupported,       // well-formed, but not something this build can do
  out_of_memory,
  cuda,
  disposed,
  aborted,
  internal,  // a defect of ours
};

std::string_view code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws an Error whose message is the parts streamed one after another:
//   fail(ErrorCode::bad_file, path, ": header says ", n, " bytes, the file has ", size);
template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(code, text.str());
}

// `expect(ok, code, parts...)` fails unless ok. For what callers and files control; our own invariants use assert.
template <typename... Parts>
void expect(bool ok, ErrorCode code, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(code, parts...);
}

}  // namespace lapidary
