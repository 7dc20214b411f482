// The kernels of training: see training/training_kernels.hpp for what each does.
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "cuda/column_sums.hpp"
#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"

namespace vit {
namespace {

struct AddRows {
  using Team = Warp;
  const float* x;
  float* out;
  std::int64_t stride, width;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t row, unsigned char*) const {
    for (std::int64_t i = team.rank(); i < width; i += team.size()) {
      out[row * stride + i] += x[row * width + i];
    }
  }
};

void add_rows(Device& device, const float* x, float* out, std::int64_t stride, std::int64_t rows,
              std::int64_t width) {
  launch(device, rows, AddRows{x, out, stride, width});
}

struct LayerScale {
  const float *x, *branch, *gamma;
  float* out;
  std::int64_t width;

  VIT_BOTH void operator()(std::int64_t i) const { out[i] = x[i] + gamma[i % width] * branch[i]; }
};

void layer_scale(Device& device, const float* x, const float* branch, const float* gamma,
                 float* out, std::int64_t rows, std::int64_t width) {
  launch_each(device, rows * width, LayerScale{x, branch, gamma, out, width});
}

struct BranchGradient {
  const float *out_gradient, *gamma;
  float* branch_gradient;
  std::int64_t width;

  VIT_BOTH void operator()(std::int64_t i) const {
    branch_gradient[i] = out_gradient[i] * gamma[i % width];
  }
};

struct GammaTerm {
  const float *out_gradient, *branch;
  std::int64_t width;

  VIT_BOTH float operator()(std::int64_t row, std::int64_t column) const {
    return out_gradient[row * width + column] * branch[row * width + column];
  }
};

void layer_scale_gradient(Device& device, const float* out_gradient, const float* branch,
                          const float* gamma, float* branch_gradient, float* gamma_gradient,
                          std::int64_t rows, std::int64_t width) {
  launch_each(device, rows * width, BranchGradient{out_gradient, gamma, branch_gradient, width});
  sum_columns(device, GammaTerm{out_gradient, branch, width}, gamma_gradient, rows, width);
}

struct MeanGradient {
  const float* out_gradient;
  float* x_gradient;
  std::int64_t tokens, skip, width;

  VIT_BOTH void operator()(std::int64_t i) const {
    const std::int64_t column = i % width, token = i / width % tokens, image = i / width / tokens;
    const float gradient = out_gradient[image * width + column];
    x_gradient[i] = token < skip ? 0.0f : gradient / static_cast<float>(tokens - skip);
  }
};

void mean_gradient(Device& device, const float* out_gradient, float* x_gradient, std::int64_t batch,
                   std::int64_t tokens, std::int64_t skip, std::int64_t width) {
  launch_each(device, batch * tokens * width,
              MeanGradient{out_gradient, x_gradient, tokens, skip, width});
}

// A team has an image.
struct CrossEntropy {
  using Team = Block<256>;
  const float *logits, *targets;
  float *losses, *gradient;
  std::int64_t batch, classes;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t image, unsigned char*) const {
    const float *const x = logits + image * classes, *const target = targets + image * classes;
    float* const to = gradient + image * classes;
    float total = 0.0f, most = -FLT_MAX, sum = 0.0f, loss = 0.0f;
    for (std::int64_t i = team.rank(); i < classes; i += team.size()) {
      total += target[i];
      most = fmaxf(most, x[i]);
    }
    total = team.sum(total), most = team.max(most);
    for (std::int64_t i = team.rank(); i < classes; i += team.size()) sum += expf(x[i] - most);
    sum = team.sum(sum);
    const float norm = 1.0f / fmaxf(total, FLT_MIN), log_sum = most + logf(sum);
    const float share = total * norm / sum;
    for (std::int64_t i = team.rank(); i < classes; i += team.size()) {
      const float wanted = target[i] * norm;
      loss -= wanted * (x[i] - log_sum);
      to[i] = (expf(x[i] - most) * share - wanted) / static_cast<float>(batch);
    }
    loss = team.sum(loss);
    if (team.rank() == 0) losses[image] = loss;
  }
};

void cross_entropy(Device& device, const float* logits, const float* targets, float* losses,
                   float* gradient, std::int64_t batch, std::int64_t classes) {
  launch(device, batch, CrossEntropy{logits, targets, losses, gradient, batch, classes});
}

}  // namespace

const TrainingKernels cuda_training_kernels{add_rows,      layer_scale,   layer_scale_gradient,
                                            mean_gradient, cross_entropy, adamw};

}  // namespace vit
