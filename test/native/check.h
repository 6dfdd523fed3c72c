// The C++ tests' whole harness: TEST registers a case, CHECK records a failure and goes on, REQUIRE leaves the case.
// Comparisons fail on NaN. main.cc runs the cases (a name filter as argument) and exits non-zero on any failure.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace lapidary::test {

struct Case {
  std::string name;
  std::function<void()> body;
};
std::vector<Case>& cases();
int add_case(std::string name, std::function<void()> body);
void record_failure(const char* file, int line, const std::string& what);
int failures();  // of the running case so far
struct LeaveCase {};

// Golden data: the folder test/golden of the checkout (or the environment's LAPIDARY_GOLDEN).
std::string golden(const std::string& relative);
// A fresh empty folder, removed at exit.
std::string temporary_folder();

// Worst |got - want| <= atol + rtol * |want|; the message carries index and both values. NaN and different lengths fail.
void expect_close(const char* file, int line, std::span<const float> got, std::span<const float> want, double rtol, double atol);
// Norm of the difference over norm of want.
double relative_error(std::span<const float> got, std::span<const float> want);

}  // namespace lapidary::test

#define LAPIDARY_CONCAT2(a, b) a##b
#define LAPIDARY_CONCAT(a, b) LAPIDARY_CONCAT2(a, b)
#define TEST(name)                                                                                                                  \
  static void LAPIDARY_CONCAT(test_body_, __LINE__)();                                                                              \
  static const int LAPIDARY_CONCAT(test_case_, __LINE__) = ::lapidary::test::add_case(name, LAPIDARY_CONCAT(test_body_, __LINE__)); \
  static void LAPIDARY_CONCAT(test_body_, __LINE__)()

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) ::lapidary::test::record_failure(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_MSG(condition, message)                                  \
  do {                                                                 \
    if (!(condition)) {                                                \
      std::ostringstream os_;                                          \
      os_ << #condition << ": " << message;                            \
      ::lapidary::test::record_failure(__FILE__, __LINE__, os_.str()); \
    }                                                                  \
  } while (0)
#define REQUIRE(condition)                                              \
  do {                                                                  \
    if (!(condition)) {                                                 \
      ::lapidary::test::record_failure(__FILE__, __LINE__, #condition); \
      throw ::lapidary::test::LeaveCase{};                              \
    }                                                                   \
  } while (0)
#define CHECK_CLOSE(got, want, rtol, atol) ::lapidary::test::expect_close(__FILE__, __LINE__, got, want, rtol, atol)
// The expression throws Error with that code, and the message contains `part`.
#define CHECK_THROWS(expression, error_code, part)                                                                    \
  do {                                                                                                                \
    bool threw_ = false;                                                                                              \
    try {                                                                                                             \
      (void)(expression);                                                                                             \
    } catch (const ::lapidary::Error& e_) {                                                                           \
      threw_ = true;                                                                                                  \
      CHECK_MSG(e_.code() == (error_code), "code " << ::lapidary::code_name(e_.code()) << ", message " << e_.what()); \
      CHECK_MSG(std::string(e_.what()).find(part) != std::string::npos, "message was: " << e_.what());                \
    }                                                                                                                 \
    CHECK_MSG(threw_, "nothing thrown by " #expression);                                                              \
  } while (0)
