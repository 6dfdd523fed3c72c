#include "harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>

#include "cuda/loader.h"

namespace lapidary::bench {

namespace {

constexpr size_t kPatternElements = (1 << 20) - 3;  // a prime: no stride of a kernel meets the same elements again and again

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string number(double v) {
  char text[40];
  std::snprintf(text, sizeof text, std::isfinite(v) ? "%.9g" : "null", v);
  return text;
}

double percentile(const std::vector<double>& sorted, double part) {
  return sorted[static_cast<size_t>(std::lround(part * static_cast<double>(sorted.size() - 1)))];
}

uint16_t bf16_bits(float v) {
  uint32_t u = 0;
  std::memcpy(&u, &v, 4);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace

float from_bf16(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float v = 0;
  std::memcpy(&v, &u, 4);
  return v;
}

Pattern<int8_t> random_int8(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int> draw(-127, 127);
  Pattern<int8_t> out;
  out.host.resize(kPatternElements);
  for (int8_t& v : out.host) v = static_cast<int8_t>(draw(random));
  return out;
}

Pattern<float> random_f32(uint64_t seed, float low, float high) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> draw(low, high);
  Pattern<float> out;
  out.host.resize(kPatternElements);
  for (float& v : out.host) v = draw(random);
  return out;
}

Pattern<uint16_t> random_bf16(uint64_t seed, float magnitude) {
  const Pattern<float> values = random_f32(seed, -magnitude, magnitude);
  Pattern<uint16_t> out;
  out.host.resize(values.host.size());
  std::transform(values.host.begin(), values.host.end(), out.host.begin(), bf16_bits);
  return out;
}

DeviceMemory::DeviceMemory(const cuda::Api& api, cuda::Stream stream, size_t bytes) : bytes_(bytes) {
  void* p = nullptr;
  Session::require(api.device.allocate(&p, bytes, stream));
  memory_ = std::shared_ptr<void>(p, [&api, stream](void* q) { (void)api.device.release(q, stream); });
}

Session::Session(Options options) : options_(std::move(options)) {
  const cuda::Library& library = cuda::library();
  if (!library.api) throw std::runtime_error(library.reason);
  api_ = library.api;
  std::string reason;
  if (!cuda::find_device(*api_, &facts_, &reason)) throw std::runtime_error(reason);
  require(api_->device.use_device(facts_.ordinal));
  require(api_->device.stream_create(&context_.stream));
  context_.device = &facts_;
  require(api_->device.event_create(&begin_));
  require(api_->device.event_create(&end_));
}

Session::~Session() {
  (void)api_->device.event_destroy(begin_);
  (void)api_->device.event_destroy(end_);
  (void)api_->device.stream_destroy(context_.stream);
}

void Session::require(const cuda::Status& status) {
  if (!status.ok()) throw std::runtime_error(std::string(status.where) + ": " + status.what);
}

DeviceMemory Session::zeros(size_t bytes) const {
  DeviceMemory out = memory(bytes);
  require(api().device.fill(out.get(), 0, bytes, context_.stream));
  return out;
}

DeviceMemory Session::upload_bytes(const void* host, size_t bytes) const {
  DeviceMemory out = memory(bytes);
  require(api().device.copy_to_device(out.get(), host, bytes, context_.stream));
  synchronize();
  return out;
}

void Session::download_bytes(void* host, const void* from, size_t bytes) const {
  require(api().device.copy_to_host(host, from, bytes, context_.stream));
  synchronize();
}

// The first period comes from the host, the rest from what is there already.
DeviceMemory Session::filled_bytes(const void* host, size_t period, size_t element, int64_t count, int64_t from) const {
  const size_t total = static_cast<size_t>(count) * element, whole = period * element;
  DeviceMemory out = memory(total);
  const size_t offset = static_cast<size_t>(from % static_cast<int64_t>(period)) * element;
  const char* source = static_cast<const char*>(host);
  char* to = out.as<char>();
  const auto put = [&](size_t at, const char* p, size_t bytes) {
    require(api().device.copy_to_device(to + at, p, std::min(bytes, total - at), context_.stream));
    return std::min(total, at + bytes);
  };
  size_t done = put(0, source + offset, whole - offset);
  if (done < total) done = put(done, source, offset);
  for (; done < total; done += std::min(done, total - done)) {  // `done` is whole periods: doubling keeps the phase
    require(api().device.copy_on_device(to + done, to, std::min(done, total - done), context_.stream));
  }
  synchronize();
  return out;
}

int Session::rotation(double bytes) const {
  if (tiny()) return 2;
  const double cold = 2.0 * static_cast<double>(facts_.l2_bytes);
  return std::clamp(static_cast<int>(std::ceil(cold / std::max(bytes, 1.0))) + 1, 2, 4096);
}

Timing Session::measure(int rotation, const std::function<cuda::Status(int)>& work) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto timed_ms = [&](const std::function<void()>& body) {
    require(api().device.event_record(begin_, context_.stream));
    body();
    require(api().device.event_record(end_, context_.stream));
    float ms = 0;
    require(api().device.event_elapsed_ms(begin_, end_, &ms));
    return static_cast<double>(ms);
  };
  int next = 0;
  const auto call = [&](int count) {
    for (int i = 0; i < count; ++i, next = (next + 1) % rotation) require(work(next));
  };
  // Warm-up: lazily loaded code, clocks, and how long a call takes.
  call(1);
  synchronize();
  const double first_ms = timed_ms([&] { call(2); }) / 2;
  // A sample of at least 400 us and one turn of the rotation, where time allows: event resolution and what surrounds the graph vanish in
  // it.
  const double share_ms = options_.seconds * 1e3 / 10;
  const int wanted = std::max(static_cast<int>(0.4 / std::max(first_ms, 1e-4)), rotation);
  const int calls = tiny() ? 1 : std::clamp(std::min(wanted, static_cast<int>(share_ms / std::max(first_ms, 1e-4))), 1, 2048);
  Timing timing;
  timing.calls_per_sample = calls;
  cuda::Graph graph = nullptr;
  next = 0;
  require(api().device.graph_begin(context_.stream));
  std::string failed;
  try {
    call(calls);
  } catch (const std::exception& e) {
    failed = e.what();
  }
  const cuda::Status ended = api().device.graph_end(context_.stream, &graph);
  if (!failed.empty()) throw std::runtime_error(failed);
  require(ended);
  const std::shared_ptr<void> owner(graph, [this](void* g) { (void)api().device.graph_destroy(g); });
  const auto sample = [&] { return timed_ms([&] { require(api().device.graph_launch(graph, context_.stream)); }); };
  for (int i = 0; i < (tiny() ? 1 : 3); ++i) sample();
  std::vector<double> us;
  const Clock::time_point start = Clock::now();
  while (us.size() < (tiny() ? 2u : 7u) || (us.size() < 51 && !tiny() && since(start) < options_.seconds))
    us.push_back(sample() * 1e3 / calls);
  std::sort(us.begin(), us.end());
  timing.samples = static_cast<int>(us.size());
  timing.median_us = percentile(us, 0.5);
  timing.low_us = percentile(us, 0.1);
  timing.high_us = percentile(us, 0.9);
  return timing;
}

double Session::roofline_us(const Case& c) const {
  switch (c.bound) {
    case Bound::read:
      return options_.read_gbps > 0 ? c.bytes / options_.read_gbps / 1e3 : 0;
    case Bound::copy:
      return options_.copy_gbps > 0 ? c.bytes / options_.copy_gbps / 1e3 : 0;
    case Bound::int8:
      return options_.int8_tops > 0 ? c.operations / options_.int8_tops / 1e6 : 0;
    case Bound::bf16:
      return options_.bf16_tflops > 0 ? c.operations / options_.bf16_tflops / 1e6 : 0;
    case Bound::none:
      break;
  }
  return 0;
}

void Session::run(const Case& c, int rotation, const std::function<cuda::Status(int)>& work, const std::function<std::string()>& check) {
  last_gbps_ = last_tops_ = 0;
  std::string wrong;
  Timing t;
  try {
    if (const cuda::Status s = work(0); s.kind == cuda::Status::Kind::refused)
      return skip(c.name, s.what);
    else
      require(s);
    synchronize();
    wrong = check();
    if (wrong.empty()) t = measure(rotation, work);
  } catch (const std::exception& e) {
    wrong = e.what();
  }
  std::string json = "{\"family\":" + quoted(family_) + ",\"case\":" + quoted(c.name);
  for (const auto& [name, size] : c.sizes) json += "," + quoted(name) + ":" + std::to_string(size);
  if (!wrong.empty()) {
    ++wrong_;
    std::printf("%-58s WRONG: %s\n", c.name.c_str(), wrong.c_str());
    write_line(json + ",\"ok\":false,\"error\":" + quoted(wrong) + "}");
    return;
  }
  last_gbps_ = c.bytes / t.median_us / 1e3;
  last_tops_ = c.operations / t.median_us / 1e6;
  json += ",\"ok\":true,\"us\":" + number(t.median_us) + ",\"us_p10\":" + number(t.low_us) + ",\"us_p90\":" + number(t.high_us) +
          ",\"samples\":" + std::to_string(t.samples) + ",\"calls_per_sample\":" + std::to_string(t.calls_per_sample) +
          ",\"rotation\":" + std::to_string(rotation);
  char line[200];
  std::snprintf(line, sizeof line, "%-58s %10.2f us (%.2f .. %.2f)", c.name.c_str(), t.median_us, t.low_us, t.high_us);
  std::string shown = line;
  if (c.bytes > 0) {
    json += ",\"bytes\":" + number(c.bytes) + ",\"gbps\":" + number(last_gbps_);
    std::snprintf(line, sizeof line, "  %8.1f GB/s", last_gbps_);
    shown += line;
  }
  if (c.operations > 0) {
    json += ",\"operations\":" + number(c.operations) + ",\"tops\":" + number(last_tops_);
    std::snprintf(line, sizeof line, "  %8.1f Top/s", last_tops_);
    shown += line;
  }
  if (const double floor_us = roofline_us(c); floor_us > 0) {
    json += ",\"roofline_us\":" + number(floor_us) + ",\"share\":" + number(floor_us / t.median_us);
    std::snprintf(line, sizeof line, "  %5.1f%% of roofline", 100 * floor_us / t.median_us);
    shown += line;
  }
  if (!c.note.empty()) json += ",\"note\":" + quoted(c.note);
  std::printf("%s%s%s\n", shown.c_str(), c.note.empty() ? "" : "  ", c.note.c_str());
  std::fflush(stdout);
  write_line(json + "}");
}

void Session::skip(const std::string& name, const std::string& reason) {
  std::printf("%-58s skipped: %s\n", name.c_str(), reason.c_str());
  write_line("{\"family\":" + quoted(family_) + ",\"case\":" + quoted(name) + ",\"skipped\":" + quoted(reason) + "}");
}

void Session::figure(const std::string& name, double value, const std::string& unit) {
  std::printf("%-58s %10.2f %s\n", name.c_str(), value, unit.c_str());
  write_line("{\"figure\":" + quoted(name) + ",\"value\":" + number(value) + ",\"unit\":" + quoted(unit) + "}");
}

void Session::write_line(const std::string& json) const {
  if (options_.json.empty()) return;
  std::FILE* file = std::fopen(options_.json.c_str(), "a");
  if (!file) throw std::runtime_error("cannot write " + options_.json);
  std::fprintf(file, "%s\n", json.c_str());
  std::fclose(file);
}

}  // namespace lapidary::bench
