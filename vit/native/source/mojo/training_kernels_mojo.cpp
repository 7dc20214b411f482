#include <memory>
#include <utility>
#include <vector>

#include "mojo/device_mojo.hpp"
#include "mojo/functions.hpp"

namespace vit {
namespace {

void add_rows(Device&, const float* x, float* out, std::int64_t stride, std::int64_t rows,
              std::int64_t width) {
  parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_add_rows(x, out, stride, width, first, last);
  });
}

void layer_scale(Device&, const float* x, const float* branch, const float* gamma, float* out,
                 std::int64_t rows, std::int64_t width) {
  parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_layer_scale(x, branch, gamma, out, width, first, last);
  });
}

void layer_scale_gradient(Device&, const float* out_gradient, const float* branch,
                          const float* gamma, float* branch_gradient, float* gamma_gradient,
                          std::int64_t rows, std::int64_t width) {
  parallel_columns(width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_layer_scale_gradient(out_gradient, branch, gamma, branch_gradient, gamma_gradient,
                                  rows, width, first, last);
  });
}

void mean_gradient(Device&, const float* out_gradient, float* x_gradient, std::int64_t batch,
                   std::int64_t tokens, std::int64_t skip, std::int64_t width) {
  parallel(batch, 1, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_mean_gradient(out_gradient, x_gradient, tokens, skip, width, first, last);
  });
}

void cross_entropy(Device&, const float* logits, const float* targets, float* losses,
                   float* gradient, std::int64_t batch, std::int64_t classes) {
  parallel(batch, 1, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_cross_entropy(logits, targets, losses, gradient, batch, classes, first, last);
  });
}

// Values of a tensor that one thread changes.
struct Piece {
  const AdamWTensor* tensor;
  std::int64_t first, last;
};

void change(const Piece& piece, const AdamWFactors& factors) {
  const AdamWTensor& each = *piece.tensor;
  const AdamWFactors own = each.decays ? factors : without_decay(factors);
  if (each.first) {
    vit_mojo_adamw(&own, each.gradient, each.weights, each.first, each.second, piece.first,
                   piece.last);
  } else {
    vit_mojo_adamw8bit(&own, each.gradient, each.weights, &each.first8, &each.second8,
                       piece.first / state_block, piece.last / state_block);
  }
}

Update adamw(Device&, std::vector<AdamWTensor> tensors) {
  constexpr std::int64_t values = 32 * state_block;
  const auto kept = std::make_shared<const std::vector<AdamWTensor>>(std::move(tensors));
  std::vector<Piece> pieces;
  for (const AdamWTensor& tensor : *kept) {
    for (std::int64_t first = 0; first < tensor.count; first += values) {
      pieces.push_back({&tensor, first, std::min(first + values, tensor.count)});
    }
  }
  return [kept, pieces = std::move(pieces)](const AdamWFactors& factors) {
    parallel(static_cast<std::int64_t>(pieces.size()), 1,
             [&](std::int64_t number, std::int64_t) { change(pieces[number], factors); });
  };
}

}  // namespace

const TrainingKernels mojo_training_kernels{add_rows,      layer_scale,   layer_scale_gradient,
                                            mean_gradient, cross_entropy, adamw};

}  // namespace vit
