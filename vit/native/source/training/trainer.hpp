// The training of an open model: parameters, optimizer, and steps for each size of batch.
#pragma once

#include <cstdint>
#include <string>

#include "model/device.hpp"
#include "model/plans.hpp"
#include "training/optimizer.hpp"
#include "training/parameters.hpp"
#include "training/training.hpp"

namespace vit {

class Trainer {
 public:
  // std::runtime_error for a model that this training does not compute.
  Trainer(Device& device, TensorFile& file, const Shape& shape, const OptimizerSettings& settings);

  // The loss of a batch (see Training::loss), whose gradients the parameters then have.
  // std::runtime_error if it is not finite; the gradients are then none.
  double gradients(const float* images, const float* targets, std::int64_t batch);
  // The same, and one step of the optimizer; if the loss is not finite, nothing changes.
  double step(const float* images, const float* targets, std::int64_t batch, double lr);

  // What is "weight", "gradient", "moment1" or "moment2", of a parameter; std::runtime_error if
  // there is no such thing.
  std::vector<float> read(const std::string& what, const std::string& name) const;
  std::int64_t state_bytes() const { return optimizer_.state_bytes(); }
  // Writes a safetensors file with the metadata of the file that the weights came from.
  void save(const std::string& path) const;
  Parameters& parameters() { return parameters_; }

 private:
  Device& device_;
  TensorFile& file_;
  const Shape& shape_;
  Parameters parameters_;
  Optimizer optimizer_;
  Plans<Training> plans_;
  bool has_gradients_ = false;
};

}  // namespace vit
