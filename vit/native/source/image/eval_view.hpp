// From the pixels of an image to the model's input, as an evaluation prepares it in Python.
//
//     Image (H, W, 3) -> eval_view (S, S, 3) uint8 -> normalise (3, S, S) float32
#pragma once

#include <cstdint>

#include "file/json.hpp"
#include "image/image_file.hpp"

namespace vit {

// "area" and "linear" are OpenCV's, "bilinear" and "bicubic" Pillow's; see resize.hpp.
enum class Interpolation { area, linear, bilinear, bicubic };

// How an evaluation prepares images: the part of `ImageConfig` in vit/config.py that it needs, with
// the same meanings and defaults.
struct ImageSettings {
  ImageSettings() = default;
  // Takes the keys "images.*" of a config.json; std::runtime_error names a value that it forbids.
  explicit ImageSettings(const json::Value& config);

  bool squash = false;  // eval_resize
  double crop_pct = 0.875;
  Interpolation interpolation = Interpolation::area;
  double mean[3] = {0.5, 0.5, 0.5};
  double deviation[3] = {0.5, 0.5, 0.5};  // std
};

// The centre (size, size, 3) of the resized image; std::runtime_error if the resized image would
// have more than `max_pixels`.
Image eval_view(const Image& image, const ImageSettings& settings, std::int64_t size);

// Pixels of a view -> ((pixel / 255) - mean) / std, (3, S, S): one multiply-add with float32
// factors, as in vit/batch.py.
void normalise(const Image& view, const ImageSettings& settings, float* output);

}  // namespace vit
