// PNG, through libpng.
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "image/image_file.hpp"

#ifdef VIT_PNG

#include <png.h>

#include <csetjmp>

namespace vit {
namespace {

// What libpng's functions get of us: the bytes that are left, and a place for an error.
struct Source {
  const char* bytes;
  std::size_t left;
  char fault[128];
};

[[noreturn]] void jump(png_structp png, png_const_charp text) {
  auto* const source = static_cast<Source*>(png_get_error_ptr(png));
  std::strncpy(source->fault, text, sizeof source->fault - 1);
  png_longjmp(png, 1);
}

void pass_over(png_structp, png_const_charp) {}  // warnings are about chunks that we do not use

void give(png_structp png, png_bytep to, std::size_t count) {
  auto* const source = static_cast<Source*>(png_get_io_ptr(png));
  if (count > source->left) png_error(png, "the file ends too early");
  std::memcpy(to, source->bytes, count);
  source->bytes += count, source->left -= count;
}

// One file, opened for decoding.
class PngFile {
 public:
  explicit PngFile(std::string_view bytes) : PngFile() {
    if (!info_) throw std::bad_alloc();
    source_.bytes = bytes.data(), source_.left = bytes.size();
    guarded([this] {
      png_set_read_fn(png_, &source_, give);
      png_read_info(png_, info_);
    });
  }
  ~PngFile() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngFile(const PngFile&) = delete;
  PngFile& operator=(const PngFile&) = delete;

  std::int64_t height() const { return png_get_image_height(png_, info_); }
  std::int64_t width() const { return png_get_image_width(png_, info_); }

  // Decodes to RGB as Pillow does: alpha is dropped, and transparent colours stay what they are.
  //
  // Of 16 bits the upper 8 are kept, but Pillow clips grey values of 16 bits without alpha to 255.
  void decode(std::uint8_t* rows, png_bytepp pointers) {
    const int colours = png_get_color_type(png_, info_), bits = png_get_bit_depth(png_, info_);
    const bool clips = colours == PNG_COLOR_TYPE_GRAY && bits == 16;
    guarded([this, rows, pointers, colours, clips] {
      if (colours == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png_);
      if (colours == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
      if (!clips) png_set_strip_16(png_);
      png_set_strip_alpha(png_);
      if (!clips && !(colours & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png_);
      png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
      const std::size_t stride = std::size_t(png_get_image_width(png_, info_)) * 3;
      if (png_get_rowbytes(png_, info_) > stride) png_error(png_, "no row of RGB");
      for (png_uint_32 y = 0; y < png_get_image_height(png_, info_); ++y) {
        pointers[y] = rows + y * stride;
      }
      png_read_image(png_, pointers);
    });
    if (clips) spread_clipped(pointers);
  }

 private:
  // Complete, so that the destructor runs when the public constructor throws.
  PngFile()
      : png_(png_create_read_struct(PNG_LIBPNG_VER_STRING, &source_, jump, pass_over)),
        info_(png_ ? png_create_info_struct(png_) : nullptr) {}

  // Runs calls of libpng. A jump passes no object with a destructor: `step` may have none.
  template <class Step>
  void guarded(Step step) {
    if (setjmp(png_jmpbuf(png_))) {
      throw std::runtime_error(std::string("broken PNG: ") + source_.fault);
    }
    step();
  }

  // Grey values of 16 bits -> RGB in the same rows, from the last pixel on.
  void spread_clipped(png_bytepp rows) const {
    for (std::int64_t y = 0; y < height(); ++y) {
      for (std::int64_t x = width() - 1; x >= 0; --x) {
        const std::uint8_t* const value = rows[y] + 2 * x;
        std::memset(rows[y] + 3 * x, value[0] ? 255 : value[1], 3);
      }
    }
  }

  Source source_{};
  png_structp png_;
  png_infop info_;
};

}  // namespace

Image decode_png(std::string_view bytes) {
  PngFile file(bytes);
  Image image(file.height(), file.width());
  std::vector<png_bytep> pointers(image.height);
  file.decode(image.pixels.data(), pointers.data());
  return image;
}

}  // namespace vit

#else

vit::Image vit::decode_png(std::string_view) {
  throw std::runtime_error(
      "a PNG, and this program was built without libpng: install "
      "libpng-dev (Debian) and build again");
}

#endif
