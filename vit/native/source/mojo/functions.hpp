// The functions of the *.mojo files, which say what each computes; each does so for the numbers
// from `first` to `last`, or for one number, so that threads can share them.
#pragma once

#include <cstdint>

#include "model/kernels.hpp"
#include "training/training_kernels.hpp"

namespace vit {

// Where the results of a product go, and what is done to the sums before.
struct Target {
  Span out;
  std::int64_t stride;
  std::int64_t columns;
  const float* bias;  // null without one, as base
  const float* base;
  std::int64_t base_stride;
  float factor;
  std::int32_t activation;
};

// A product in float32. The right matrix is in panels of columns (vit_mojo_panel).
struct Product {
  const float* a;
  std::int64_t a_stride;  // between rows
  std::int64_t a_tiled;   // 1 if a is packed in tiles of rows instead
  const float* b;
  std::int64_t b_stride, b_apart;  // between the rows of a panel, and between panels
  std::int64_t depth;
  Target target;
};

// A product of bytes with signed codes, whose panels hold groups of four rows.
struct ByteProduct {
  const std::uint8_t* a;
  std::int64_t a_stride;
  const std::int8_t* b;
  std::int64_t groups;
  const std::int32_t* offsets;  // of each column: to be taken off the sums
  const float* scales;          // of each column
  Target target;
};

extern "C" {
// product.mojo
std::int64_t vit_mojo_panel();
std::int64_t vit_mojo_tile_rows();
std::int64_t vit_mojo_task_rows();
void vit_mojo_product(const Product* product, std::int64_t first, std::int64_t rows,
                      std::int64_t panel);

// pack.mojo
void vit_mojo_pack_panel(const float* b, std::int64_t row_stride, std::int64_t column_stride,
                         std::int64_t depth, std::int64_t columns, std::int64_t number,
                         float* packed);
void vit_mojo_pack_tile(const float* a, std::int64_t stride, std::int64_t rows, std::int64_t depth,
                        std::int64_t number, float* packed);

// integers.mojo
std::int64_t vit_mojo_largest_code();
void vit_mojo_pack_codes(const std::int8_t* codes, std::int64_t depth, std::int64_t columns,
                         std::int64_t number, std::int8_t* packed, std::int32_t* offsets,
                         std::int64_t zero);
void vit_mojo_byte_product(const ByteProduct* product, std::int64_t first, std::int64_t rows,
                           std::int64_t panel);

// kernels.mojo and attention.mojo
void vit_mojo_patches(const float* images, const Span* rows, std::int64_t side, std::int64_t patch,
                      std::int64_t first, std::int64_t last);
void vit_mojo_embed(const float* patches, const float* start, float* tokens,
                    std::int64_t num_patches, std::int64_t num_tokens, std::int64_t width,
                    std::int64_t first, std::int64_t last);
void vit_mojo_layer_norm(const float* x, std::int64_t stride, const float* weight,
                         const float* bias, float eps, const Span* out, std::int64_t width,
                         float* mean, float* variance, std::int64_t first, std::int64_t last);
std::int64_t vit_mojo_attention_memory(std::int64_t tokens, std::int64_t depth);
void vit_mojo_attention(const float* qkv, const Span* out, std::int64_t tokens, std::int64_t keep,
                        std::int64_t heads, std::int64_t width, std::int64_t number, float* memory);
void vit_mojo_gather(const float* x, std::int64_t stride, float* out, std::int64_t width,
                     std::int64_t first, std::int64_t last);
void vit_mojo_mean(const float* x, float* out, std::int64_t tokens, std::int64_t skip,
                   std::int64_t width, std::int64_t first, std::int64_t last);

// gradients.mojo
void vit_mojo_layer_norm_gradient(const float* x, const float* mean, const float* variance,
                                  const float* weight, float eps, const float* out_gradient,
                                  float* x_gradient, std::int64_t width, std::int64_t first,
                                  std::int64_t last);
void vit_mojo_layer_norm_parameters_gradient(const float* x, const float* mean,
                                             const float* variance, float eps,
                                             const float* out_gradient, float* weight_gradient,
                                             float* bias_gradient, std::int64_t rows,
                                             std::int64_t width, std::int64_t first,
                                             std::int64_t last);
void vit_mojo_activate(std::int64_t kind, const float* x, float* out, std::int64_t first,
                       std::int64_t last);
void vit_mojo_activate_gradient(std::int64_t kind, const float* x, const float* out,
                                float* gradient, std::int64_t first, std::int64_t last);
void vit_mojo_softmax(float* row, std::int64_t count);
void vit_mojo_softmax_gradient(const float* row, float* gradient, std::int64_t count);

// training_kernels.mojo
void vit_mojo_add_rows(const float* x, float* out, std::int64_t stride, std::int64_t width,
                       std::int64_t first, std::int64_t last);
void vit_mojo_layer_scale(const float* x, const float* branch, const float* gamma, float* out,
                          std::int64_t width, std::int64_t first, std::int64_t last);
void vit_mojo_layer_scale_gradient(const float* out_gradient, const float* branch,
                                   const float* gamma, float* branch_gradient,
                                   float* gamma_gradient, std::int64_t rows, std::int64_t width,
                                   std::int64_t first, std::int64_t last);
void vit_mojo_mean_gradient(const float* out_gradient, float* x_gradient, std::int64_t tokens,
                            std::int64_t skip, std::int64_t width, std::int64_t first,
                            std::int64_t last);
void vit_mojo_cross_entropy(const float* logits, const float* targets, float* losses,
                            float* gradient, std::int64_t batch, std::int64_t classes,
                            std::int64_t first, std::int64_t last);

// adamw.mojo
void vit_mojo_adamw(const AdamWFactors* factors, const float* gradient, float* weights,
                    float* first_moment, float* second_moment, std::int64_t first,
                    std::int64_t last);
void vit_mojo_adamw8bit(const AdamWFactors* factors, const float* gradient, float* weights,
                        const State8* first_moment, const State8* second_moment, std::int64_t first,
                        std::int64_t last);
}

}  // namespace vit
