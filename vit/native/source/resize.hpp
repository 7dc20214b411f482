// Interpolation of images as the libraries do it from which models' preprocessing comes.
#pragma once

#include <string>

#include "image_file.hpp"

namespace vit {

enum class Interpolation {
  area,      // OpenCV's INTER_AREA on float32, rounded down, as TensorFlow's
  linear,    // OpenCV's INTER_LINEAR on float32, rounded down: no antialiasing
  bilinear,  // Pillow's, which antialiases and rounds to the nearest
  bicubic,   // the same
};

// A part of an axis that has been resized: `count` of its `length` pixels, from `first` on.
struct Span {
  int length, first, count;
};

// Resizes an image to `down.length` x `right.length` pixels and returns the part of the spans,
// which is all that is computed.
Image resized(const Image& image, Span down, Span right, Interpolation method);

// The methods of each library; `resized` chooses.
Image opencv_resized(const Image& image, Span down, Span right, bool is_area);
Image pillow_resized(const Image& image, Span down, Span right, bool is_cubic);

}  // namespace vit
