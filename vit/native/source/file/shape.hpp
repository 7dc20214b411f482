// What a model is: the sizes that its tensors show, and the facts that they do not.
#pragma once

#include <cstdint>
#include <string>

#include "file/tensor_file.hpp"

namespace vit {

struct Shape {
  std::int64_t image = 0, patch = 0, width = 0, depth = 0, hidden = 0, heads = 0;
  std::int64_t outputs = 0;    // classes; or the width, without a head
  std::int64_t registers = 0;  // learned tokens that no head reads
  std::int64_t positions = 0;  // rows of pos_embed
  bool class_token = false;    // else the mean over the patches
  bool qkv_bias = false, layer_scale = false, fc_norm = false, pre_logits = false, head = false;
  bool tanh_gelu = false;
  bool fixed_positions = false;       // not to be trained
  double dropout = 0, drop_path = 0;  // rates of training, without effect on a forward pass
  float norm_eps = 1e-6f;

  std::int64_t grid() const { return image / patch; }
  std::int64_t patches() const { return grid() * grid(); }
  std::int64_t prefix() const { return class_token + registers; }
  std::int64_t tokens() const { return patches() + prefix(); }
  std::int64_t patch_values() const { return 3 * patch * patch; }
};

// The shape of the model in a file. Facts that tensors do not show (heads, epsilon of the norms,
// kind of GELU) come from the file's metadata, else from config.json in the same folder, else they
// are those of the published models: 64 channels a head but for a few, 1e-6, GELU by erf.
//
// std::runtime_error for weights that are no ViT's, or of a kind that this code does not compute.
Shape shape_of(const TensorFile& file, const std::string& config_path);

}  // namespace vit
