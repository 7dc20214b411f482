// From the bytes of an image file to its pixels, as `vit/images.py` decodes them.
//
//     JPEG, PNG or binary PPM -> Image (H, W, 3)
//
// EXIF orientation is ignored. Every fault of a file is a std::runtime_error in words; libjpeg
// and libpng are used where the build found them (VIT_JPEG, VIT_PNG).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "file/limits.hpp"

namespace vit {

// An image in memory.
struct Image {
  Image() = default;
  // Black pixels; std::runtime_error for sides below 1, and for more than `max_pixels`.
  Image(std::int64_t image_height, std::int64_t image_width);

  std::uint8_t* row(int y) { return pixels.data() + std::size_t(y) * width * 3; }
  const std::uint8_t* row(int y) const { return pixels.data() + std::size_t(y) * width * 3; }

  int height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // (height, width, 3), RGB
};

// Reads and decodes a file. Truncated and damaged files are errors, as is an unknown format.
Image read_image(const std::string& path);

// The decoders of one format each; the bytes begin with the format's signature.
Image decode_jpeg(std::string_view bytes);
Image decode_png(std::string_view bytes);
Image decode_ppm(std::string_view bytes);

}  // namespace vit
