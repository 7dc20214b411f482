// Products of matrices: by cuBLAS where it takes them, else by a kernel of our own.
#pragma once

#include <cstdint>
#include <optional>

#include "model/device.hpp"

namespace vit {

enum class Number { f32, bf16, s8, s32, f8 };

inline std::int64_t bytes_of(Number number) {
  return number == Number::s8 || number == Number::f8 ? 1 : number == Number::bf16 ? 2 : 4;
}

// Where the elements of a matrix are, or of one for each image and head; strides are in elements.
struct Table {
  void* data;
  Number type;
  std::int64_t row_stride, column_stride = 1;
  std::int64_t image_stride = 0, head_stride = 0;
};

// c (rows, columns) = factor * a (rows, depth) b (depth, columns) + bias + base, then GELU's tanh
// form if it is wanted. One stride of a and of b is 1, and the column stride of c.
struct Product {
  std::int64_t rows, columns, depth;
  Table a, b, c;
  std::int64_t images = 1, heads = 1;
  float factor = 1.0f;         // 1 for integers
  const void* bias = nullptr;  // (columns), of c's type; null for none
  const void* base = nullptr;  // as c, or c itself; null for none
  bool gelu_tanh = false;

  std::int64_t count() const { return images * heads; }
};

// The step that computes it. Types of a and b -> c: f32 -> f32; bf16 -> bf16 or f32; s8 -> s32
// and f8 -> f32, which have no bias, base or GELU.
Step product_step(Device& device, const Product& product);

// The step by a library; none if it does not take such a product.
std::optional<Step> library_product(Device& device, const Product& product);

// The step by our own kernel, which takes all.
Step plain_product(Device& device, const Product& product);

}  // namespace vit
