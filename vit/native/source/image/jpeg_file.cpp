// JPEG, through libjpeg-turbo.
#include <cstdio>  // jpeglib.h needs it
#include <stdexcept>
#include <string>

#include "image/image_file.hpp"

#ifdef VIT_JPEG

#include <jerror.h>
#include <jpeglib.h>

#include <csetjmp>

namespace vit {
namespace {

// Errors and warnings of libjpeg, which knows no exceptions: they jump back to `guarded`.
struct Faults {
  jpeg_error_mgr manager;  // the first member, so that its address is that of the whole
  std::jmp_buf place;
  char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void jump(j_common_ptr info) {
  auto* const faults = reinterpret_cast<Faults*>(info->err);
  faults->manager.format_message(info, faults->text);
  std::longjmp(faults->place, 1);
}

// A warning means damaged pixels, except for bytes between markers, which some of ImageNet's
// files have; other messages are traces.
void judge(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code != JWRN_EXTRANEOUS_DATA) jump(info);
}

// One file, opened for decoding.
class JpegFile {
 public:
  explicit JpegFile(std::string_view bytes) : JpegFile() {
    guarded([this, bytes] {
      jpeg_create_decompress(&info_);
      jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
      jpeg_read_header(&info_, TRUE);
    });
  }
  ~JpegFile() { jpeg_destroy_decompress(&info_); }
  JpegFile(const JpegFile&) = delete;
  JpegFile& operator=(const JpegFile&) = delete;

  std::int64_t height() const { return info_.image_height; }
  std::int64_t width() const { return info_.image_width; }
  bool has_black() const {
    return info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
  }

  // Decodes to rows of `stride` bytes: RGB, or CMYK of a file that has black.
  void decode(std::uint8_t* rows, std::size_t stride) {
    guarded([this, rows, stride] {
      info_.out_color_space = has_black() ? JCS_CMYK : JCS_RGB;
      jpeg_start_decompress(&info_);
      while (info_.output_scanline < info_.output_height) {
        JSAMPROW row = rows + info_.output_scanline * stride;
        jpeg_read_scanlines(&info_, &row, 1);
      }
      jpeg_finish_decompress(&info_);
    });
  }

 private:
  // Complete, so that the destructor runs when the public constructor throws.
  JpegFile() {
    info_.err = jpeg_std_error(&faults_.manager);
    faults_.manager.error_exit = jump;
    faults_.manager.emit_message = judge;
  }

  // Runs calls of libjpeg. A jump passes no object with a destructor: `step` may have none.
  template <class Step>
  void guarded(Step step) {
    if (setjmp(faults_.place)) {
      throw std::runtime_error(std::string("broken JPEG: ") + faults_.text);
    }
    step();
  }

  jpeg_decompress_struct info_{};
  Faults faults_{};
};

// RGB of a pixel in Adobe's inverted CMYK, with the rounding of Pillow's conversion.
void to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb) {
  const int white = cmyk[3];
  for (int channel = 0; channel < 3; ++channel) {
    const int product = (255 - cmyk[channel]) * white + 128;
    rgb[channel] = static_cast<std::uint8_t>(white - ((product + (product >> 8)) >> 8));
  }
}

}  // namespace

Image decode_jpeg(std::string_view bytes) {
  JpegFile file(bytes);
  Image image(file.height(), file.width());
  if (!file.has_black()) {
    file.decode(image.pixels.data(), std::size_t(image.width) * 3);
    return image;
  }
  std::vector<std::uint8_t> inks(std::size_t(image.height) * image.width * 4);
  file.decode(inks.data(), std::size_t(image.width) * 4);
  for (std::size_t pixel = 0; pixel < inks.size() / 4; ++pixel) {
    to_rgb(&inks[pixel * 4], &image.pixels[pixel * 3]);
  }
  return image;
}

}  // namespace vit

#else

vit::Image vit::decode_jpeg(std::string_view) {
  throw std::runtime_error(
      "a JPEG, and this program was built without libjpeg: install "
      "libjpeg62-turbo-dev (Debian) and build again");
}

#endif
