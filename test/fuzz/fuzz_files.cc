// Opens thousands of spoilt model files through every reader of the library. Only lapidary::Error may come out, and what is
// accepted must be readable to its last byte. Run it under the sanitizers:
//   lapidary_fuzz [count=2000] [seed=1] [first=0]
// The same three numbers give the same files; `first` skips to the one that a failure names.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "formats/tokenizer_file.h"
#include "model/weights.h"
#include "mutate.h"
#include "runtime/tokenizer.h"
#include "samples.h"
#include "tensor/blocks.h"

namespace lapidary::fuzz {
namespace {

// One in so many samples stays as it was made: it must load, or the fuzzer would be knocking at a closed door.
constexpr uint64_t kUnspoilt = 32;

struct Counts {
  uint64_t files = 0, loaded = 0, refused = 0;
};

volatile unsigned sink = 0;

void touch(const Tensor& t) {
  unsigned sum = 0;
  for (int64_t i = 0; i < t.bytes(); ++i) sum += static_cast<unsigned>(t.data[i]);
  sink = sink + sum;
  if (t.dtype == DType::i8 || t.dtype == DType::i32 || t.dtype == DType::u8) return;
  const int64_t row = t.shape[t.rank - 1];
  if (t.elements() == 0) return;
  std::vector<float> values(static_cast<size_t>(row));
  dequantize_row(t.dtype, t.data + t.bytes() - dtype_bytes(t.dtype, row), row, values.data());
}

void touch(const std::map<std::string, StoredTensor>& tensors) {
  for (const auto& [name, stored] : tensors) touch(stored.view);
}

void touch(const ModelWeights& weights) {
  touch(weights.embedding.weight), touch(weights.head.weight), touch(weights.final_norm.weight);
  for (const LayerWeights& l : weights.layers) {
    for (const Linear* linear : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) touch(linear->weight);
    for (const Norm* norm : {&l.input_norm, &l.post_attention_norm, &l.pre_ffn_norm, &l.post_ffn_norm}) touch(norm->weight);
  }
}

void use(const TokenizerData& data) {
  const Tokenizer tokenizer(data);
  const std::vector<int32_t> ids = tokenizer.encode(" abte\xc3\xa9\xff <end_of_turn>\n", true);
  sink = sink + static_cast<unsigned>(tokenizer.decode(ids, true).size());
}

// Runs one reader. True when it accepted the file.
bool accepts(const std::function<void()>& reader) {
  try {
    reader();
    return true;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::internal) throw;
    return false;
  }
}

// True when every reader accepted.
bool open_all(const std::string& folder, bool is_gguf, Backend& backend) {
  const std::string path = is_gguf ? folder + "/model.gguf" : folder;
  bool all = true;
  const auto run = [&](const std::function<void()>& reader) { all &= accepts(reader); };
  if (is_gguf) {
    run([&] { touch(GgufFile::open(path)->tensors()); });
    run([&] { use(read_tokenizer_gguf(*GgufFile::open(path))); });
  } else {
    run([&] { touch(open_safetensors(path).tensors); });
    run([&] { use(read_tokenizer_json(path)); });
  }
  run([&] { sink = sink + static_cast<unsigned>(load_config(path).num_layers); });
  run([&] { sink = sink + static_cast<unsigned>(list_tensors(path).size()); });
  run([&] { touch(*load_weights(path, backend)); });
  return all;
}

void write_sample(const Sample& sample, const std::string& folder, bool spoil, Random& random) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) std::filesystem::remove_all(entry.path());
  std::map<std::string, std::string> files = sample.texts;
  for (const auto& [name, parts] : sample.safetensors) files[name] = parts.bytes();
  if (sample.has_gguf) files["model.gguf"] = sample.gguf.bytes();
  if (spoil) {
    const auto chosen = std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size())));
    for (uint64_t n = 1 + random.below(3); n > 0; --n) spoil_bytes(chosen->second, random);
  }
  for (const auto& [name, bytes] : files) test::write_bytes(folder + "/" + name, bytes);
}

void try_one(uint64_t seed, uint64_t number, const std::string& folder, Backend& backend, Counts& counts) {
  Random random(seed * 0x9e3779b97f4a7c15u + number);
  Sample sample = make_sample(random);
  const bool spoilt = number % kUnspoilt != 0, in_bytes = random.one_in(3);
  if (spoilt && !in_bytes)
    for (uint64_t n = 1 + random.below(3); n > 0; --n) spoil_parts(sample, random);
  write_sample(sample, folder, spoilt && in_bytes, random);
  const bool loaded = open_all(folder, sample.has_gguf, backend);
  if (!spoilt && !loaded) {
    open_all(folder, sample.has_gguf, backend);
    fail(ErrorCode::internal, "an unspoilt sample was refused");
  }
  ++counts.files;
  ++(loaded ? counts.loaded : counts.refused);
}

std::string make_folder() {
  std::string pattern =
      (std::filesystem::is_directory("/dev/shm") ? std::string("/dev/shm") : std::filesystem::temp_directory_path().string()) +
      "/lapidary-fuzz-XXXXXX";
  expect(mkdtemp(pattern.data()) != nullptr, ErrorCode::internal, "cannot make a folder at ", pattern);
  return pattern;
}

int run(uint64_t count, uint64_t seed, uint64_t first) {
  const std::string folder = make_folder();
  const auto backend = make_reference_backend();
  Counts counts;
  for (uint64_t number = first; number < first + count; ++number) {
    try {
      try_one(seed, number, folder, *backend, counts);
    } catch (const std::exception& e) {
      std::printf("file %llu of seed %llu: %s\nrepeat with: lapidary_fuzz 1 %llu %llu (files left in %s)\n",
                  static_cast<unsigned long long>(number), static_cast<unsigned long long>(seed), e.what(),
                  static_cast<unsigned long long>(seed), static_cast<unsigned long long>(number), folder.c_str());
      return 1;
    }
  }
  std::filesystem::remove_all(folder);
  std::printf("%llu files, no crash\n%llu loaded whole, %llu refused somewhere\n", static_cast<unsigned long long>(counts.files),
              static_cast<unsigned long long>(counts.loaded), static_cast<unsigned long long>(counts.refused));
  return 0;
}

}  // namespace
}  // namespace lapidary::fuzz

int main(int argc, char** argv) {
  const auto number = [&](int i, uint64_t fallback) { return argc > i ? std::strtoull(argv[i], nullptr, 10) : fallback; };
  return lapidary::fuzz::run(number(1, 2000), number(2, 1), number(3, 0));
}
