#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "check.h"

namespace lapidary::test {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

int add_case(std::string name, std::function<void()> body) {
  cases().push_back({std::move(name), std::move(body)});
  return 0;
}

namespace {
int failures_in_case = 0;
std::vector<std::string>& temporaries() {
  static std::vector<std::string> all;
  return all;
}
}  // namespace

void record_failure(const char* file, int line, const std::string& what) {
  ++failures_in_case;
  std::printf("    %s:%d: %s\n", file, line, what.c_str());
}

int failures() { return failures_in_case; }

std::string golden(const std::string& relative) {
  const char* root = std::getenv("LAPIDARY_GOLDEN");
  return (root ? std::string(root) : std::string(LAPIDARY_SOURCE_DIR "/test/golden")) + "/" + relative;
}

std::string temporary_folder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "lapidary-test-XXXXXX").string();
  if (!mkdtemp(pattern.data())) fail(ErrorCode::internal, "mkdtemp failed for ", pattern);
  temporaries().push_back(pattern);
  return pattern;
}

double relative_error(std::span<const float> got, std::span<const float> want) {
  if (got.size() != want.size()) return INFINITY;
  double d = 0, n = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    d += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
    n += double(want[i]) * want[i];
  }
  return n == 0 ? std::sqrt(d) : std::sqrt(d / n);
}

void expect_close(const char* file, int line, std::span<const float> got, std::span<const float> want, double rtol, double atol) {
  if (got.size() != want.size()) {
    record_failure(file, line, "sizes differ: " + std::to_string(got.size()) + " and " + std::to_string(want.size()));
    return;
  }
  double worst = -1;
  size_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double over = std::abs(double(got[i]) - want[i]) - (atol + rtol * std::abs(double(want[i])));
    if (!(over <= 0) && !(over <= worst)) worst = std::isnan(over) ? INFINITY : over, at = i;
  }
  if (worst > 0) {
    std::ostringstream os;
    os.precision(9);
    os << "element " << at << ": got " << got[at] << ", want " << want[at] << " (rtol " << rtol << ", atol " << atol << ")";
    record_failure(file, line, os.str());
  }
}

}  // namespace lapidary::test

// LAPIDARY_TEST_SHARD=1/3: every third case, from the second. So that processes share a long suite.
struct Shard {
  int index = 0, count = 1;
};
static Shard shard_of_environment() {
  Shard shard;
  const char* text = std::getenv("LAPIDARY_TEST_SHARD");
  if (text &&
      (std::sscanf(text, "%d/%d", &shard.index, &shard.count) != 2 || shard.count < 1 || shard.index < 0 || shard.index >= shard.count)) {
    std::fprintf(stderr, "LAPIDARY_TEST_SHARD is %s, expected INDEX/COUNT\n", text);
    std::exit(2);
  }
  return shard;
}

// Arguments: parts of names that are wanted (none: all), and after a '-' parts of names that are not.
static bool is_wanted(const std::string& name, const std::vector<std::string>& filters) {
  bool any = false, wanted = false;
  for (const std::string& filter : filters) {
    if (filter.starts_with('-') && name.find(filter.substr(1)) != std::string::npos) return false;
    if (filter.starts_with('-')) continue;
    any = true;
    wanted |= name.find(filter) != std::string::npos;
  }
  return wanted || !any;
}

int main(int argc, char** argv) {
  using namespace lapidary::test;
  const std::vector<std::string> filters(argv + 1, argv + argc);
  const Shard shard = shard_of_environment();
  int passed = 0, failed = 0, number = 0;
  for (const Case& c : cases()) {
    if (!is_wanted(c.name, filters) || number++ % shard.count != shard.index) continue;
    failures_in_case = 0;
    const auto start = std::chrono::steady_clock::now();
    try {
      c.body();
    } catch (const LeaveCase&) {
    } catch (const std::exception& e) {
      record_failure("exception", 0, e.what());
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf(seconds < 1 ? "%s %s\n" : "%s %s (%.1f s)\n", failures_in_case ? "FAIL" : "ok  ", c.name.c_str(), seconds);
    std::fflush(stdout);
    (failures_in_case ? failed : passed)++;
  }
  for (const std::string& folder : temporaries()) std::filesystem::remove_all(folder);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}
