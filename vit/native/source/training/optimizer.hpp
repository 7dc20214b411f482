// AdamW with moments in float32 or in 8 bits.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/device.hpp"
#include "training/parameters.hpp"
#include "training/training_kernels.hpp"

namespace vit {

// Settings of vit_train_begin; the defaults are those of training with PyTorch in this project.
struct OptimizerSettings {
  bool eight_bits = false;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.1;  // of kernels; a step removes lr times as much

  // "optimizer=adamw8bit,beta1=0.9" -> settings; std::runtime_error names what is wrong.
  static OptimizerSettings parse(const std::string& text);
};

class Optimizer {
 public:
  Optimizer(Device& device, const Parameters& parameters, const OptimizerSettings& settings);

  // Changes all parameters by their gradients.
  void step(double lr);
  // Bytes of all moments, with scales and maps.
  std::int64_t state_bytes() const;
  // The first moment of a parameter, or the second, as float32.
  std::vector<float> moment(const std::string& name, bool second) const;

 private:
  // Memory of one moment: float32, or codes with scales.
  struct Moment {
    Buffer values, scales;
    const float* map = nullptr;  // null for float32
    float* floats() const { return map ? nullptr : values.data<float>(); }
    State8 state() const { return {values.data<std::uint8_t>(), scales.data<float>(), map}; }
  };
  struct Moments {
    Moment first, second;
  };
  Moment zeros(std::int64_t count, const Buffer& map) const;

  Device& device_;
  const Parameters& parameters_;
  OptimizerSettings settings_;
  std::int64_t steps_ = 0;
  Buffer signed_map_, unsigned_map_;
  std::map<std::string, Moments> moments_;
  Update update_;
};

}  // namespace vit
