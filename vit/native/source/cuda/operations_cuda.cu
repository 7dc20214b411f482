// The operations of training: see training/operations.hpp.
#include <cmath>
#include <cstdint>

#include "cuda/column_sums.hpp"
#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"
#include "cuda/product.hpp"
#include "cuda/values.hpp"
#include "training/operations.hpp"

namespace vit {
namespace {

Table table_of(const Matrix& matrix) {
  Table table{matrix.data, Number::f32, matrix.row_stride, matrix.column_stride};
  table.image_stride = matrix.image_stride, table.head_stride = matrix.head_stride;
  return table;
}

Product product_of(const Matrix& a, const Matrix& b, const Matrix& c) {
  Product product{c.rows, c.columns, a.columns, table_of(a), table_of(b), table_of(c)};
  if (c.images > 0) product.images = c.images, product.heads = c.heads;
  return product;
}

// A team has a row.
struct NormBackward {
  using Team = Warp;
  NormMemory at;
  std::int64_t width;
  float eps;

  // With n = (x - mean) * scale and g the gradient by n, that by x is
  // scale * (g - mean(g) - n * mean(g n)).
  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t r, unsigned char*) const {
    const float *const x = at.x + r * width, *const change = at.out_gradient + r * width;
    float* const to = at.x_gradient + r * width;
    const float mean = at.mean[r], scale = 1.0f / sqrtf(at.variance[r] + eps);
    float sum = 0.0f, along = 0.0f;
    for (std::int64_t i = team.rank(); i < width; i += team.size()) {
      const float g = change[i] * at.weight[i];
      sum += g, along += g * (x[i] - mean) * scale;
    }
    sum = team.sum(sum) / static_cast<float>(width);
    along = team.sum(along) / static_cast<float>(width);
    for (std::int64_t i = team.rank(); i < width; i += team.size()) {
      const float normal = (x[i] - mean) * scale;
      to[i] = scale * (change[i] * at.weight[i] - sum - normal * along);
    }
  }
};

struct NormWeightTerm {
  NormMemory at;
  std::int64_t width;
  float eps;

  VIT_BOTH float operator()(std::int64_t row, std::int64_t column) const {
    const float centred = at.x[row * width + column] - at.mean[row];
    return at.out_gradient[row * width + column] * centred / sqrtf(at.variance[row] + eps);
  }
};

struct NormBiasTerm {
  const float* out_gradient;
  std::int64_t width;

  VIT_BOTH float operator()(std::int64_t row, std::int64_t column) const {
    return out_gradient[row * width + column];
  }
};

struct ActivationGradient {
  Activation kind;
  const float* x;
  float* gradient;

  VIT_BOTH void operator()(std::int64_t i) const { gradient[i] *= slope(kind, x[i]); }
};

struct Softmax {
  using Team = Warp;
  float* scores;
  std::int64_t columns;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t r, unsigned char*) const {
    float* const row = scores + r * columns;
    float most = -INFINITY, sum = 0.0f;
    for (std::int64_t i = team.rank(); i < columns; i += team.size()) most = fmaxf(most, row[i]);
    most = team.max(most);
    for (std::int64_t i = team.rank(); i < columns; i += team.size()) {
      row[i] = expf(row[i] - most);
      sum += row[i];
    }
    const float share = 1.0f / team.sum(sum);
    for (std::int64_t i = team.rank(); i < columns; i += team.size()) row[i] *= share;
  }
};

struct SoftmaxGradient {
  using Team = Warp;
  const float* result;
  float* gradient;
  std::int64_t columns;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t r, unsigned char*) const {
    const float* const weights = result + r * columns;
    float *const row = gradient + r * columns, along = 0.0f;
    for (std::int64_t i = team.rank(); i < columns; i += team.size()) along += weights[i] * row[i];
    along = team.sum(along);
    for (std::int64_t i = team.rank(); i < columns; i += team.size()) {
      row[i] = weights[i] * (row[i] - along);
    }
  }
};

}  // namespace

Step product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c, const float* bias,
             const float* base) {
  Product product = product_of(a, b, c);
  product.bias = bias, product.base = base;
  return product_step(device, product);
}

Step scaled_product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c,
                    float factor) {
  Product product = product_of(a, b, c);
  product.factor = factor;
  return product_step(device, product);
}

Pass layer_norm(Device& device, const NormMemory& at, std::int64_t rows, std::int64_t width,
                float eps) {
  return {[=, &device] {
            normalise_rows(device, at.x, width, at.weight, at.bias, eps, Span{at.out}, rows, width,
                           at.mean, at.variance);
          },
          [=, &device] {
            launch(device, rows, NormBackward{at, width, eps});
            sum_columns(device, NormWeightTerm{at, width, eps}, at.weight_gradient, rows, width);
            sum_columns(device, NormBiasTerm{at.out_gradient, width}, at.bias_gradient, rows,
                        width);
          }};
}

Pass activation(Device& device, Activation kind, float* x, float* out, float* gradient,
                std::int64_t rows, std::int64_t columns) {
  const std::int64_t count = rows * columns;
  return {[=, &device] { launch_each(device, count, Activate{kind, x, out}); },
          [=, &device] { launch_each(device, count, ActivationGradient{kind, x, gradient}); }};
}

Pass softmax(Device& device, const Matrix& scores, float* gradient) {
  const std::int64_t rows = scores.images * scores.heads * scores.rows, columns = scores.columns;
  return {[=, &device, data = scores.data] { launch(device, rows, Softmax{data, columns}); },
          [=, &device, data = scores.data] {
            launch(device, rows, SoftmaxGradient{data, gradient, columns});
          }};
}

}  // namespace vit
