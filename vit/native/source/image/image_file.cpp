#include "image/image_file.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace vit {
namespace {

bool begins(std::string_view bytes, std::string_view with) {
  return bytes.substr(0, with.size()) == with;
}

std::string read_bytes(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw std::runtime_error("there is no such file, or it is no regular file");
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (error || !file) throw std::runtime_error(std::string("no access: ") + std::strerror(errno));
  std::string bytes(size, '\0');
  if (!file.read(bytes.data(), static_cast<std::streamsize>(size))) {
    throw std::runtime_error("the file cannot be read to its end");
  }
  return bytes;
}

bool is_space(char byte) { return std::string_view(" \t\r\n\v\f").find(byte) < 6; }

// Reads the next number of a PPM header; comments run from # to the end of a line.
int header_number(std::string_view bytes, std::size_t& place) {
  while (place < bytes.size()) {
    if (bytes[place] == '#') {
      place = std::min(bytes.find('\n', place), bytes.size());
    } else if (is_space(bytes[place])) {
      ++place;
    } else {
      break;
    }
  }
  int number = 0;
  const char* const first = bytes.data() + place;
  const auto [end, error] = std::from_chars(first, bytes.data() + bytes.size(), number);
  if (error != std::errc() || number < 0) throw std::runtime_error("broken PPM: a broken header");
  place += static_cast<std::size_t>(end - first);
  return number;
}

}  // namespace

Image::Image(std::int64_t image_height, std::int64_t image_width) {
  const std::string sides = std::to_string(image_width) + " x " + std::to_string(image_height);
  if (image_height < 1 || image_width < 1) {
    throw std::runtime_error("an image of " + sides + " pixels is empty");
  }
  if (image_height > max_pixels / image_width) {
    throw std::runtime_error(sides + " pixels are more than " + std::to_string(max_pixels));
  }
  height = static_cast<int>(image_height), width = static_cast<int>(image_width);
  pixels.resize(std::size_t(height) * width * 3);
}

Image read_image(const std::string& path) {
  const std::string bytes = read_bytes(path);
  if (begins(bytes, "\xFF\xD8\xFF")) return decode_jpeg(bytes);
  if (begins(bytes, "\x89PNG\r\n\x1A\n")) return decode_png(bytes);
  if (begins(bytes, "P6")) return decode_ppm(bytes);
  throw std::runtime_error("no readable image in " + std::to_string(bytes.size()) +
                           " bytes: neither JPEG, PNG nor binary PPM; convert it to one of these");
}

Image decode_ppm(std::string_view bytes) {
  std::size_t place = 2;
  const int width = header_number(bytes, place);
  const int height = header_number(bytes, place);
  const int most = header_number(bytes, place);
  if (most != 255) {
    throw std::runtime_error("a PPM with values up to " + std::to_string(most) + ", not 255");
  }
  if (place == bytes.size() || !is_space(bytes[place])) {
    throw std::runtime_error("broken PPM: no white space after the header");
  }
  Image image(height, width);
  const std::string_view pixels = bytes.substr(place + 1);
  if (pixels.size() < image.pixels.size()) {
    throw std::runtime_error("broken PPM: " + std::to_string(pixels.size()) + " of " +
                             std::to_string(image.pixels.size()) + " bytes of pixels");
  }
  std::memcpy(image.pixels.data(), pixels.data(), image.pixels.size());
  return image;
}

}  // namespace vit
