// OpenCV's interpolation of float32 pixels, rounded down to 8 bits.
//
//     weights along each axis -> weighted sums to the right, then down -> the integer below
//
// The order of the float32 operations is OpenCV's (modules/imgproc/src/resize.cpp), because a sum
// that is a bit smaller than a whole number loses a whole level in the last step.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "resize.hpp"

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

// The two neighbours of an output pixel. An axis to the right stops at the last pixel; down, both
// of its taps are the last row.
Taps neighbours(int length, double scale, int out, bool is_area, bool is_right) {
  int place;
  float share;  // of the second neighbour
  if (is_area) {
    place = static_cast<int>(std::floor(out * scale));
    share = static_cast<float>((out + 1) - (place + 1) / scale);
    share = share <= 0 ? 0 : share - std::floor(share);
  } else {
    const auto centre = static_cast<float>((out + 0.5) * scale - 0.5);
    place = static_cast<int>(std::floor(centre));
    share = centre - static_cast<float>(place);
  }
  if (is_right && place < 0) place = 0, share = 0;
  if (is_right && place >= length - 1) place = length - 1, share = 0;
  const auto clipped = [length](int each) { return std::clamp(each, 0, length - 1); };
  return {{clipped(place), 1 - share}, {clipped(place + 1), share}};
}

float sum_of(const std::uint8_t* row, const Taps& taps, int channel) {
  float sum = 0;
  for (const Tap& tap : taps) sum += row[std::size_t(tap.place) * 3 + channel] * tap.weight;
  return sum;
}

// Means of whole blocks of `high` x `wide` pixels, whose sums are exact.
Image block_means(const Image& image, Span down, Span right, int high, int wide) {
  const float share = 1.0F / static_cast<float>(high * wide);
  Image result(down.count, right.count);
  for (int y = 0; y < down.count; ++y) {
    std::vector<std::int64_t> sums(std::size_t(right.count) * 3);
    for (int i = 0; i < high; ++i) {
      const std::uint8_t* pixel = image.row((down.first + y) * high + i) + right.first * wide * 3;
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

}  // namespace

Image opencv_resized(const Image& image, Span down, Span right, bool is_area) {
  const double scale_down = 1 / (static_cast<double>(down.length) / image.height);
  const double scale_right = 1 / (static_cast<double>(right.length) / image.width);
  const int high = static_cast<int>(std::lrint(scale_down));
  const int wide = static_cast<int>(std::lrint(scale_right));
  const bool are_blocks = high >= 1 && wide >= 1 && scale_down == high && scale_right == wide;
  if (are_blocks && (is_area || (high == 2 && wide == 2))) {
    return block_means(image, down, right, high, wide);
  }
  const bool covers = is_area && scale_down >= 1 && scale_right >= 1;
  const auto taps_of = [=](int length, double scale, int out, bool is_right) {
    return covers ? covered(length, scale, out)
                  : neighbours(length, scale, out, is_area, is_right);
  };
  std::vector<Taps> rights;
  for (int x = 0; x < right.count; ++x) {
    rights.push_back(taps_of(image.width, scale_right, right.first + x, true));
  }
  Image result(down.count, right.count);
  std::vector<float> sums(std::size_t(right.count) * 3);
  for (int y = 0; y < down.count; ++y) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (const Tap& tap : taps_of(image.height, scale_down, down.first + y, false)) {
      const std::uint8_t* const row = image.row(tap.place);
      for (std::size_t x = 0; x < sums.size(); ++x) {
        sums[x] += tap.weight * sum_of(row, rights[x / 3], static_cast<int>(x % 3));
      }
    }
    std::transform(sums.begin(), sums.end(), result.row(y),
                   [](float sum) { return static_cast<std::uint8_t>(sum); });
  }
  return result;
}

}  // namespace vit
