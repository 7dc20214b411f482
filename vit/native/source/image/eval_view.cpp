#include "image/eval_view.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "image/resize.hpp"

namespace vit {
namespace {

Interpolation interpolation_of(const json::Value& value) {
  const std::string& name = value.as_string();
  if (name == "area") return Interpolation::area;
  if (name == "linear") return Interpolation::linear;
  if (name == "bilinear") return Interpolation::bilinear;
  if (name == "bicubic") return Interpolation::bicubic;
  throw std::runtime_error(value.name() + " is " + name +
                           "; known: area, linear, bilinear, bicubic");
}

bool squashes(const json::Value& value) {
  const std::string& name = value.as_string();
  if (name != "short" && name != "squash") {
    throw std::runtime_error(value.name() + " is " + name + "; known: short, squash");
  }
  return name == "squash";
}

void read_channels(const json::Value& value, double (&channels)[3]) {
  const json::Values& items = value.items();
  if (items.size() != 3) {
    throw std::runtime_error(value.name() + " has " + std::to_string(items.size()) +
                             " values, not one for each of 3 channels");
  }
  std::transform(items.begin(), items.end(), channels,
                 [](const json::Value& item) { return item.as_double(); });
}

// Python's round.
double round_half_even(double number) { return std::nearbyint(number); }

void check_resized(double height, double width) {
  if (height * width > static_cast<double>(max_pixels)) {
    throw std::runtime_error("resized to " + std::to_string(std::llround(width)) + " x " +
                             std::to_string(std::llround(height)) + " pixels, more than " +
                             std::to_string(max_pixels));
  }
}

// The middle `size` pixels of an axis that is resized to `length`.
Section middle(double length, std::int64_t size) {
  const auto whole = static_cast<int>(length);
  return {whole, (whole - static_cast<int>(size)) / 2, static_cast<int>(size)};
}

Image resized(const Image& image, Section down, Section right, Interpolation method) {
  switch (method) {
    case Interpolation::linear:
      return linear_resized(image, down, right);
    case Interpolation::bilinear:
      return pillow_resized(image, down, right, false);
    case Interpolation::bicubic:
      return pillow_resized(image, down, right, true);
    default:
      return area_resized(image, down, right);
  }
}

}  // namespace

ImageSettings::ImageSettings(const json::Value& config) {
  if (const json::Value* value = config.find("images.eval_resize")) squash = squashes(*value);
  if (const json::Value* value = config.find("images.crop_pct")) crop_pct = value->as_double();
  if (const json::Value* value = config.find("images.eval_interpolation")) {
    interpolation = interpolation_of(*value);
  }
  if (const json::Value* value = config.find("images.mean")) read_channels(*value, mean);
  if (const json::Value* value = config.find("images.std")) read_channels(*value, deviation);
  if (!(crop_pct > 0 && crop_pct <= 1)) {
    throw std::runtime_error("images.crop_pct must be above 0 and at most 1");
  }
  if (!(*std::min_element(deviation, deviation + 3) > 0)) {
    throw std::runtime_error("images.std must be above 0");
  }
}

Image eval_view(const Image& image, const ImageSettings& settings, std::int64_t size) {
  if (size < 1 || size > max_pixels / size) {
    throw std::runtime_error("a view of " + std::to_string(size) + " pixels is none");
  }
  const double side = std::floor(static_cast<double>(size) / settings.crop_pct + 1e-6);
  double height = side, width = side;
  if (!settings.squash) {
    const double scale = side / std::min(image.height, image.width);
    height = round_half_even(image.height * scale);
    width = round_half_even(image.width * scale);
  }
  check_resized(height, width);
  return resized(image, middle(height, size), middle(width, size), settings.interpolation);
}

void normalise(const Image& view, const ImageSettings& settings, float* output) {
  for (int channel = 0; channel < 3; ++channel) {
    const auto factor = static_cast<float>(1 / (255 * settings.deviation[channel]));
    const auto shift = static_cast<float>(-settings.mean[channel] / settings.deviation[channel]);
    float values[256];  // of every pixel; in double the product is exact, as in a fused operation
    for (int pixel = 0; pixel < 256; ++pixel) {
      values[pixel] = static_cast<float>(static_cast<double>(factor) * pixel + shift);
    }
    for (std::size_t i = channel; i < view.pixels.size(); i += 3)
      *output++ = values[view.pixels[i]];
  }
}

}  // namespace vit
