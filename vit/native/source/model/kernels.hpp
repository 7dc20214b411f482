// What a model computes beside its dense layers: a table that each device fills.
//
// Shapes: B images, T tokens (class token, registers, N patches), D width, A heads of d = D / A.
// Pointers are memory of the device. A kernel returns when it is submitted (Device::wait).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "model/device.hpp"

namespace vit {

// f8 is E4M3 of the OCP's FP8 formats: four bits of exponent and three of fraction, no infinities.
enum class Type { f32, bf16, u8, f8 };
constexpr float largest_f8 = 448.0f;

inline std::size_t size_of(Type type) { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }

// Memory of a type; of u8, the value is scale * (byte - zero), and no byte is above `top`; of f8,
// it is scale * number.
struct Span {
  void* data;
  Type type = Type::f32;
  float scale = 1.0f;
  int32_t zero = 0;
  int32_t top = 255;
};

struct TrainingKernels;

struct Kernels {
  const char* name;

  // Cut images (B, 3, S, S) into rows of patches (B * N, 3 * P * P), f32 or bf16.
  void (*patches)(Device&, const float* images, Span rows, int64_t batch, int64_t side,
                  int64_t patch);

  // tokens (B, T, D) = start (T, D) of each image, with patches (B, N, D) added to the last N.
  void (*embed)(Device&, const float* patches, const float* start, float* tokens, int64_t batch,
                int64_t num_patches, int64_t num_tokens, int64_t width);

  // out (rows, D) = LayerNorm of x (rows, D), whose rows are `stride` floats apart.
  void (*layer_norm)(Device&, const float* x, int64_t stride, const float* weight,
                     const float* bias, float eps, Span out, int64_t rows, int64_t width);

  // out (B, keep, D) = softmax(q k^T / sqrt(d)) v for the first `keep` queries of each image;
  // qkv (B, T, 3, A, d) is f32 or bf16. Returns the step, as a device may have to set it up.
  Step (*attention)(Device&, Span qkv, Span out, int64_t batch, int64_t tokens, int64_t keep,
                    int64_t heads, int64_t width);

  // out (rows, D) = rows of x, which are `stride` floats apart.
  void (*gather)(Device&, const float* x, int64_t stride, float* out, int64_t rows, int64_t width);

  // out (B, D) = mean over the last T - skip tokens of x (B, T, D).
  void (*mean)(Device&, const float* x, float* out, int64_t batch, int64_t tokens, int64_t skip,
               int64_t width);

  // Those of training.
  const TrainingKernels* training = nullptr;
};

// The step that calls a kernel with these arguments.
template <class... Types>
Step step_of(Device& device, void (*kernel)(Device&, Types...),
             std::common_type_t<Types>... arguments) {
  return [=, &device] { kernel(device, arguments...); };
}

}  // namespace vit
