// Loading for tests of training: a golden checkpoint as plain host weights, on a backend of choice.
#pragma once

#include "cpu/backend.h"
#include "model/golden_checks.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace lapidary::test {

inline std::shared_ptr<const ModelWeights> host_weights(const std::string& name) {
  // The backend is not needed afterwards: the reference keeps weights as plain host memory.
  return load_weights(golden(name), *make_reference_backend());
}

inline std::unique_ptr<Backend> training_backend(const std::string& name) {
  return name == "reference" ? make_reference_backend() : make_cpu_backend(name == "cpu" ? 0 : std::stoi(name));
}

inline std::vector<float> values_on(Backend& backend, const Tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.elements()));
  backend.download(values.data(), t);
  return values;
}

// All tensors of a set, one after another.
inline std::vector<float> all_values(Backend& backend, const ParameterSet& set) {
  std::vector<float> all;
  for (const ParameterSet::Entry& entry : set.entries()) {
    const std::vector<float> values = values_on(backend, entry.tensor);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

}  // namespace lapidary::test
