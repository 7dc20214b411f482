// Interpolation of images as the libraries do it from which models' preprocessing comes.
#pragma once

#include "image/image_file.hpp"

namespace vit {

// A part of an axis that has been resized: `count` of its `length` pixels, from `first` on.
struct Section {
  int length, first, count;
};

// Each of these resizes an image to `down.length` x `right.length` pixels and returns the part of
// the sections, which is all that is computed.

// Pillow's antialiased bilinear or bicubic interpolation, rounded to the nearest.
Image pillow_resized(const Image& image, Section down, Section right, bool is_cubic);

// OpenCV's INTER_AREA on float32, rounded down; an axis that becomes longer is not smoothed.
Image area_resized(const Image& image, Section down, Section right);

// OpenCV's INTER_LINEAR on float32, rounded down: no antialiasing.
Image linear_resized(const Image& image, Section down, Section right);

}  // namespace vit
