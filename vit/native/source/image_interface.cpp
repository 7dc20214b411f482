// The functions of vit.h that prepare images.
#include <stdexcept>

#include "file/json.hpp"
#include "guarded.hpp"
#include "image/eval_view.hpp"
#include "image/image_file.hpp"
#include "vit.h"

struct vit_image {
  vit::Image image;
};

int vit_read_image(const char* path, vit_image** image) {
  return vit::guarded([&] {
    if (!path || !image) throw std::invalid_argument("path or image is a null pointer");
    *image = new vit_image{vit::read_image(path)};
  });
}

void vit_free_image(vit_image* image) { delete image; }

const uint8_t* vit_image_pixels(const vit_image* image, int64_t* height, int64_t* width) {
  *height = image->image.height, *width = image->image.width;
  return image->image.pixels.data();
}

int vit_eval_view(const vit_image* image, const char* config, int64_t size, float* view) {
  return vit::guarded([&] {
    if (!image || !view) throw std::invalid_argument("image or view is a null pointer");
    const vit::ImageSettings settings =
        config ? vit::ImageSettings(json::parse(config)) : vit::ImageSettings();
    vit::normalise(vit::eval_view(image->image, settings, size), settings, view);
  });
}
