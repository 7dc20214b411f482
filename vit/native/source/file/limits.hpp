// Upper bounds of what files and callers may ask for.
#pragma once

#include <cstdint>

namespace vit {

// Of every size of a model and of a batch, so that no product of them overflows.
constexpr std::int64_t max_side = 1 << 20;

// Pixels of an image: Pillow's limit against decompression bombs.
constexpr std::int64_t max_pixels = 178'956'970;

}  // namespace vit
