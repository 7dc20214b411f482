// The operations of training, with their gradients; each kind of device implements them.
#pragma once

#include <cstdint>
#include <utility>

#include "model/device.hpp"
#include "model/linear.hpp"

namespace vit {

// A matrix of float32 in memory of the device, or one for each image and head.
struct Matrix {
  Matrix(float* data_, std::int64_t rows_, std::int64_t columns_)
      : data(data_), rows(rows_), columns(columns_), row_stride(columns_) {}

  Matrix transposed() const {
    Matrix other = *this;
    std::swap(other.rows, other.columns);
    std::swap(other.row_stride, other.column_stride);
    return other;
  }

  float* data;
  std::int64_t rows, columns;
  std::int64_t row_stride, column_stride = 1;  // in floats, as all strides
  std::int64_t images = 0, heads = 0;          // 0 for a single matrix
  std::int64_t image_stride = 0, head_stride = 0;
};

// An operation and its gradient, each set up already.
struct Pass {
  Step forward, backward;
};

// c = a b, with bias (columns of c) and `base` (the shape of c, without strides) added if they are
// not null.
Step product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c,
             const float* bias = nullptr, const float* base = nullptr);
// c = factor * a b.
Step scaled_product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c,
                    float factor);

// Memory of a LayerNorm: its input and output (rows, D), mean and variance of each row, and its
// parameters (D). A gradient has the shape of its value; that by x is written.
struct NormMemory {
  float *x, *out, *mean, *variance, *weight, *bias;
  float *x_gradient, *out_gradient, *weight_gradient, *bias_gradient;
};
Pass layer_norm(Device& device, const NormMemory& memory, std::int64_t rows, std::int64_t width,
                float eps);

// out = activation(x), elementwise; the gradient by out becomes that by x.
Pass activation(Device& device, Activation kind, float* x, float* out, float* gradient,
                std::int64_t rows, std::int64_t columns);

// The softmax of each row, in place; the gradient by the result becomes that by what was there.
Pass softmax(Device& device, const Matrix& scores, float* gradient);

}  // namespace vit
