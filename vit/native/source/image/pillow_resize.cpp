// Pillow's antialiased interpolation of 8-bit pixels, to the bit.
//
// An output pixel is a weighted mean along one axis and then along the other. Weights are computed
// in double and rounded to 22 fractional bits, and each pass rounds to whole pixel values, so the
// order of the passes matters: it is that of Pillow 13 (src/libImaging/Resample.c).
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "image/resize.hpp"

namespace vit {
namespace {

constexpr int fraction_bits = 32 - 8 - 2;

// The pixels that make one output pixel: weights.size() of them, from `first` on.
struct Taps {
  int first;
  std::vector<std::int32_t> weights;
};

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

// Keys' cubic convolution with a = -0.5.
double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// The taps of each output pixel of a section, for an axis of `length` pixels.
std::vector<Taps> taps_of(int length, Section section, bool is_cubic) {
  const double scale = static_cast<double>(length) / section.length;
  const double widening = std::max(scale, 1.0);
  const double support = (is_cubic ? 2.0 : 1.0) * widening;
  std::vector<Taps> result;
  for (int out = section.first; out < section.first + section.count; ++out) {
    const double centre = (out + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(centre - support + 0.5));
    const int last = std::min(length, static_cast<int>(centre + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int place = first; place < last; ++place) {
      const double x = (place - centre + 0.5) * (1.0 / widening);
      weights.push_back(is_cubic ? cubic(x) : triangle(x));
      sum += weights.back();
    }
    Taps taps{first, {}};
    for (double weight : weights) {
      const double scaled = (sum == 0 ? weight : weight / sum) * (1 << fraction_bits);
      taps.weights.push_back(static_cast<std::int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5)));
    }
    result.push_back(std::move(taps));
  }
  return result;
}

constexpr std::int32_t half = 1 << (fraction_bits - 1);

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

// The pass to the right, of `count` rows from `top` on.
Image blended_right(const Image& image, const std::vector<Taps>& taps, int top, int count) {
  Image result(count, static_cast<std::int64_t>(taps.size()));
  for (int y = 0; y < count; ++y) {
    std::uint8_t* out = result.row(y);
    for (const Taps& tap : taps) {
      std::int32_t sums[3] = {half, half, half};
      const std::uint8_t* pixel = image.row(top + y) + std::size_t(tap.first) * 3;
      for (std::int32_t weight : tap.weights) {
        for (std::int32_t& sum : sums) sum += *pixel++ * weight;
      }
      for (std::int32_t sum : sums) *out++ = rounded(sum);
    }
  }
  return result;
}

// The pass down, of an image whose first row is number `top` of those that the taps count.
Image blended_down(const Image& image, const std::vector<Taps>& taps, int top) {
  Image result(static_cast<std::int64_t>(taps.size()), image.width);
  std::vector<std::int32_t> sums(std::size_t(image.width) * 3);
  for (std::size_t y = 0; y < taps.size(); ++y) {
    std::fill(sums.begin(), sums.end(), half);
    int source = taps[y].first - top;
    for (std::int32_t weight : taps[y].weights) {
      const std::uint8_t* const row = image.row(source++);
      for (std::size_t x = 0; x < sums.size(); ++x) sums[x] += row[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), result.row(static_cast<int>(y)), rounded);
  }
  return result;
}

}  // namespace

Image pillow_resized(const Image& image, Section down, Section right, bool is_cubic) {
  const std::vector<Taps> downs = taps_of(image.height, down, is_cubic);
  const std::vector<Taps> rights = taps_of(image.width, right, is_cubic);
  const std::int64_t lost_down = std::int64_t{image.height} - down.length;
  const std::int64_t lost_right = std::int64_t{image.width} - right.length;
  if (lost_down > 0 && lost_down > 2 * lost_right) {
    return blended_right(blended_down(image, downs, 0), rights, 0, down.count);
  }
  const int top = downs.front().first;  // only the rows that the second pass needs
  const int bottom = downs.back().first + static_cast<int>(downs.back().weights.size());
  return blended_down(blended_right(image, rights, top, bottom - top), downs, top);
}

}  // namespace vit
