// OpenCV's interpolation of float32 pixels, rounded down to 8 bits.
//
// The order and the precision of the operations are OpenCV's, because a sum that is a bit smaller
// than a whole number loses a level when it is rounded down. "area" equals OpenCV's own code
// (modules/imgproc/src/resize.cpp) as long as the compiler fuses no products with sums.
// "linear" follows Intel's IPP, which OpenCV's packages for x86 use.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "image/resize.hpp"

namespace vit {
namespace {

// One term of the weighted sum that makes an output pixel.
struct Tap {
  int place;  // of the input pixel
  float weight;
};
using Taps = std::vector<Tap>;

// Shares of the input pixels that an output pixel covers, for an axis that becomes shorter.
Taps covered(int length, double scale, int out) {
  constexpr double negligible = 1e-3;  // OpenCV drops smaller shares
  const double start = out * scale, end = start + scale;
  const double cell = std::min(scale, length - start);
  const int last = std::min(static_cast<int>(std::floor(end)), length - 1);
  const int first = std::min(static_cast<int>(std::ceil(start)), last);
  Taps taps;
  if (first - start > negligible) {
    taps.push_back({first - 1, static_cast<float>((first - start) / cell)});
  }
  for (int place = first; place < last; ++place) {
    taps.push_back({place, static_cast<float>(1.0 / cell)});
  }
  if (end - last > negligible) {
    const double share = std::min(std::min(end - last, 1.0), cell) / cell;
    taps.push_back({last, static_cast<float>(share)});
  }
  return taps;
}

// The two input pixels of an output pixel of "area", if an axis becomes longer: most output pixels
// are copies of one of them.
Taps nearest(int length, double scale, int out) {
  const int place = std::min(static_cast<int>(std::floor(out * scale)), length - 1);
  const auto rest = static_cast<float>((out + 1) - (place + 1) / scale);
  const float share = rest <= 0 || place == length - 1 ? 0 : rest - std::floor(rest);
  return {{place, 1 - share}, {std::min(place + 1, length - 1), share}};
}

// What makes each output pixel of a section, by one of the functions of this file.
template <class Sources>
std::vector<Sources> each(int length, double scale, Section section,
                          Sources (*of)(int, double, int)) {
  std::vector<Sources> result;
  for (int out = 0; out < section.count; ++out) {
    result.push_back(of(length, scale, section.first + out));
  }
  return result;
}

// Weighted sums, to the right and then down.
Image blended(const Image& image, const std::vector<Taps>& downs, const std::vector<Taps>& rights) {
  Image result(static_cast<std::int64_t>(downs.size()), static_cast<std::int64_t>(rights.size()));
  std::vector<float> sums(rights.size() * 3);
  for (std::size_t y = 0; y < downs.size(); ++y) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (const Tap& down : downs[y]) {
      const std::uint8_t* const row = image.row(down.place);
      float* out = sums.data();
      for (const Taps& taps : rights) {
        float inner[3] = {0, 0, 0};
        for (const Tap& right : taps) {
          const std::uint8_t* pixel = row + std::size_t(right.place) * 3;
          for (float& sum : inner) sum += *pixel++ * right.weight;
        }
        for (float sum : inner) *out++ += down.weight * sum;
      }
    }
    std::transform(sums.begin(), sums.end(), result.row(static_cast<int>(y)),
                   [](float sum) { return static_cast<std::uint8_t>(sum); });
  }
  return result;
}

// Means of whole blocks of `high` x `wide` pixels, whose sums are exact.
Image block_means(const Image& image, Section down, Section right, int high, int wide) {
  const float share = 1.0F / static_cast<float>(high * wide);
  Image result(down.count, right.count);
  for (int y = 0; y < down.count; ++y) {
    std::vector<std::int64_t> sums(std::size_t(right.count) * 3);
    for (int i = 0; i < high; ++i) {
      const std::uint8_t* pixel =
          image.row((down.first + y) * high + i) + std::size_t(right.first) * wide * 3;
      for (std::size_t x = 0; x < sums.size(); x += 3) {
        for (int j = 0; j < wide; ++j) {
          for (int channel = 0; channel < 3; ++channel) sums[x + channel] += *pixel++;
        }
      }
    }
    std::transform(sums.begin(), sums.end(), result.row(y), [share](std::int64_t sum) {
      return static_cast<std::uint8_t>(static_cast<float>(sum) * share);
    });
  }
  return result;
}

// Where an output pixel lies between two input pixels.
struct Between {
  int first, second;
  float share;  // of the second

  // Fused as by IPP: the product is exact, and so one rounding is left.
  float operator()(float a, float b) const {
    return static_cast<float>(a + static_cast<double>(b - a) * share);
  }
};

Between between(int length, double scale, int out) {
  const double centre = (out + 0.5) * scale - 0.5;
  const double below = std::floor(centre);
  const auto clipped = [length](double place) {
    return static_cast<int>(std::clamp(place, 0.0, length - 1.0));
  };
  return {clipped(below), clipped(below + 1), static_cast<float>(centre - below)};
}

double scale_of(int length, Section section) {
  return 1 / (static_cast<double>(section.length) / length);
}

}  // namespace

Image area_resized(const Image& image, Section down, Section right) {
  const double scale_down = scale_of(image.height, down);
  const double scale_right = scale_of(image.width, right);
  const int high = static_cast<int>(std::lrint(scale_down));
  const int wide = static_cast<int>(std::lrint(scale_right));
  if (high >= 1 && wide >= 1 && scale_down == high && scale_right == wide) {
    return block_means(image, down, right, high, wide);
  }
  const auto taps_of = scale_down >= 1 && scale_right >= 1 ? covered : nearest;
  return blended(image, each(image.height, scale_down, down, taps_of),
                 each(image.width, scale_right, right, taps_of));
}

Image linear_resized(const Image& image, Section down, Section right) {
  const auto columns = each(image.width, scale_of(image.width, right), right, between);
  Image result(down.count, right.count);
  int y = 0;
  for (const Between& rows : each(image.height, scale_of(image.height, down), down, between)) {
    const std::uint8_t *const upper = image.row(rows.first), *const lower = image.row(rows.second);
    std::uint8_t* out = result.row(y++);
    for (const Between& blend : columns) {
      const std::size_t a = std::size_t(blend.first) * 3, b = std::size_t(blend.second) * 3;
      for (int channel = 0; channel < 3; ++channel) {
        const float above = blend(upper[a + channel], upper[b + channel]);
        const float below = blend(lower[a + channel], lower[b + channel]);
        *out++ = static_cast<std::uint8_t>(rows(above, below));
      }
    }
  }
  return result;
}

}  // namespace vit
