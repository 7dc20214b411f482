// Values in memory, of the types of a model, and the functions of a value that several kernels use.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/float8.hpp"
#include "cuda/team.hpp"
#include "file/number.hpp"
#include "model/kernels.hpp"
#include "model/linear.hpp"

namespace vit {

// The bits of a bfloat16.
struct Bfloat16 {
  std::uint16_t bits;
};

// A float that is rounded to TF32 where products need it.
struct TensorFloat {
  float value;
};

// A float that is the sum of two TF32 where products need it: within 2^-22 of itself.
struct SplitFloat {
  float value;
};

VIT_BOTH float to_float(float value) { return value; }
#ifndef VIT_GPU
inline float float_of(std::uint16_t bits) { return from_bfloat16(bits); }
inline std::uint16_t bfloat16_of(float value) { return to_bfloat16(value); }
inline float tensor_float_of(float value) { return to_tensor_float(value); }
inline float quick_exp(float x) { return expf(x); }
#endif

VIT_BOTH float to_float(Bfloat16 value) { return float_of(value.bits); }
// To the nearest, ties to even.
VIT_BOTH Bfloat16 rounded(float value) { return {bfloat16_of(value)}; }

VIT_BOTH float to_float(TensorFloat value) { return value.value; }
VIT_BOTH float to_float(SplitFloat value) { return value.value; }

// The two TF32 of a float.
struct Halves {
  VIT_BOTH explicit Halves(float value)
      : upper(tensor_float_of(value)), lower(tensor_float_of(value - upper)) {}

  float upper, lower;
};

VIT_BOTH void assign(float& to, float value) { to = value; }
VIT_BOTH void assign(Bfloat16& to, float value) { to = rounded(value); }
VIT_BOTH void assign(TensorFloat& to, float value) { to.value = tensor_float_of(value); }
VIT_BOTH void assign(SplitFloat& to, float value) { to.value = value; }

// Values that are read or written at once; their first is at a multiple of their bytes.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

template <int count, class T>
VIT_BOTH Pack<T, count> load(const T* from) {
  return *reinterpret_cast<const Pack<T, count>*>(from);
}

// Where a kernel puts values: a Span, whose bytes are stored as code - 128, as the tensor cores
// multiply signed bytes only.
struct Target {
  explicit Target(const Span& span)
      : data(span.data),
        type(span.type),
        factor(1.0f / span.scale),
        zero(static_cast<float>(span.zero)),
        top(static_cast<float>(span.top)) {}

  void* data;
  Type type;
  float factor, zero, top;
};

constexpr int byte_shift = 128;

template <int count>
VIT_BOTH void store(const Target& to, std::int64_t at, const float (&values)[count]) {
  if (to.type == Type::f32) {
    Pack<float, count> pack;
    for (int i = 0; i < count; ++i) pack.values[i] = values[i];
    *reinterpret_cast<Pack<float, count>*>(static_cast<float*>(to.data) + at) = pack;
  } else if (to.type == Type::bf16) {
    Pack<Bfloat16, count> pack;
    for (int i = 0; i < count; ++i) pack.values[i] = rounded(values[i]);
    *reinterpret_cast<Pack<Bfloat16, count>*>(static_cast<Bfloat16*>(to.data) + at) = pack;
  } else if (to.type == Type::f8) {
    Pack<Float8, count> pack;
    for (int i = 0; i < count; ++i) pack.values[i] = to_float8(values[i] * to.factor);
    *reinterpret_cast<Pack<Float8, count>*>(static_cast<Float8*>(to.data) + at) = pack;
  } else {
    Pack<std::int8_t, count> pack;
    for (int i = 0; i < count; ++i) {
      const float code = rintf(values[i] * to.factor) + to.zero;
      pack.values[i] =
          static_cast<std::int8_t>(static_cast<int>(fminf(fmaxf(code, 0.0f), to.top)) - byte_shift);
    }
    *reinterpret_cast<Pack<std::int8_t, count>*>(static_cast<std::int8_t*>(to.data) + at) = pack;
  }
}

VIT_BOTH float normal_share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

// The tanh of GELU's approximation: sqrt(2 / pi) (x + 0.044715 x^3).
VIT_BOTH float gelu_angle(float x) { return 0.79788456f * x * (1.0f + 0.044715f * x * x); }

VIT_BOTH float activated(Activation kind, float x) {
  switch (kind) {
    case Activation::gelu:
      return x * normal_share(x);
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(gelu_angle(x)));
    case Activation::tanh:
      return tanhf(x);
    default:
      return x;
  }
}

// The kernel of it for each value; `out` may be x.
struct Activate {
  Activation kind;
  const float* x;
  float* out;

  VIT_BOTH void operator()(std::int64_t i) const { out[i] = activated(kind, x[i]); }
};

// The derivative of `activated` at x.
VIT_BOTH float slope(Activation kind, float x) {
  if (kind == Activation::gelu) {
    return normal_share(x) + x * 0.39894228f * expf(-0.5f * x * x);
  }
  if (kind == Activation::gelu_tanh) {
    const float t = tanhf(gelu_angle(x));
    return 0.5f * (1.0f + t) +
           0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
  }
  const float t = tanhf(x);
  return kind == Activation::tanh ? 1.0f - t * t : 1.0f;
}

}  // namespace vit
