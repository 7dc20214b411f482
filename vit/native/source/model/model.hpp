// The model of a checkpoint on a device: its shape and its layers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "file/shape.hpp"
#include "file/weights.hpp"
#include "model/device.hpp"
#include "model/linear.hpp"
#include "model/precision.hpp"

namespace vit {

struct Norm {
  Buffer weight, bias;
};

struct Block {
  Norm norm1, norm2;
  std::unique_ptr<Linear> qkv, proj, fc1, fc2;
};

// Weights for inference: LayerScale is part of the layer before it.
struct Model {
  Model(Device& device, Weights& weights, const Shape& shape, Precision precision);

  Shape shape;
  Precision precision;
  std::unique_ptr<Linear> patch_embed, pre_logits, head;
  Buffer start;  // (T, D): class token, registers and positions; the patches are added
  std::vector<Block> blocks;
  Norm norm;
};

}  // namespace vit
