// Checkpoints for other programs to read: the golden models quantised by our rule, with the logits that this library computes of them.
// LAPIDARY_INTEROP names a folder to leave them in (npm run test:interop); without it they are written and read back here alone.
#include <cstdlib>
#include <filesystem>

#include "compress/save_checkpoint.h"
#include "model/golden_checks.h"
#include "model/writer_rule.h"

namespace lapidary::test {
namespace {

constexpr size_t kTokens = 64;

// Input scales of a calibrated checkpoint of the same model.
float calibrated(const std::string& family, const std::string& module) {
  static std::map<std::string, TensorFile> files;
  if (!files.contains(family)) files[family] = open_safetensors(golden("compressed-tensors/" + family + "-static"));
  return *files[family].tensors.at(module + ".input_scale").view.as<float>();
}

void write_one(const std::string& family, ActScheme scheme, const std::string& folder) {
  const std::string source = golden(family);
  const TensorFile file = open_safetensors(source);
  const CheckpointPlan plan = plan_all_layers(load_config(source), scheme);
  {
    CheckpointWriter writer(source, folder, plan);
    for (const auto& [slot, activations] : plan.linears) {
      const std::string name = slot_name(NameStyle::safetensors, slot);
      const StoredTensor& stored = file.tensors.at(name);
      Linear linear = convert_linear({stored.view, stored.file}, WeightsKind::int8, 1);
      linear.activations = activations;
      if (activations == ActScheme::fixed) linear.input_scale = calibrated(family, name.substr(0, name.rfind('.')));
      writer.linear(slot, linear);
    }
    writer.commit();
  }
  std::vector<int32_t> ids = {2};
  for (uint64_t state = 7; ids.size() < kTokens;)
    ids.push_back(static_cast<int32_t>((state = state * 6364136223846793005u + 1442695040888963407u) >> 55));
  const Loaded plain = load(source, "reference"), ours = load(folder, "cpu");
  const Loaded writers = {std::make_unique<WriterRuleBackend>(), load(folder, "reference").weights};
  const std::vector<float> truth = logits_of(plain, Precision::f32, ids), own = logits_of(ours, Precision::f32, ids),
                           theirs = logits_of(writers, Precision::f32, ids);
  const auto vocab = static_cast<int64_t>(plain.weights->config.vocab);
  const double kl = mean_kl(truth, own, static_cast<size_t>(vocab));
  CHECK_MSG(kl > 0 && kl < 0.01, family << ": KL " << kl);
  const auto view = [&](const std::vector<float>& v) { return Tensor(v.data(), DType::f32, {static_cast<int64_t>(kTokens), vocab}); };
  write_safetensors(folder + "/logits.safetensors",
                    {{"ids", Tensor(ids.data(), DType::i32, {static_cast<int64_t>(kTokens)})},
                     {"unquantised", view(truth)},
                     {"ours", view(own)},
                     {"writer_rule", view(theirs)}},
                    {{"source", source}});
}

TEST("interop: checkpoints for other programs") {
  const char* asked = std::getenv("LAPIDARY_INTEROP");
  const std::string folder = asked ? asked : temporary_folder();
  for (const std::string family : {"gemma2-tiny", "gemma3-tiny"}) {
    write_one(family, ActScheme::token, folder + "/" + family + "-dynamic");
    write_one(family, ActScheme::sequence, folder + "/" + family + "-tensor-dynamic");
    write_one(family, ActScheme::fixed, folder + "/" + family + "-static");
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 6);
}

}  // namespace
}  // namespace lapidary::test
