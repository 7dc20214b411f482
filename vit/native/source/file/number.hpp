// Numbers of 16 bits, as the bits that files and oneDNN have them in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vit {

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(std::uint16_t bits) { return from_bits(std::uint32_t{bits} << 16U); }

// Rounds to the nearest, ties to even. NaN is not expected.
inline std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = to_bits(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}

// The nearest in TF32, whose fraction has 10 bits; ties go away from 0.
inline float to_tensor_float(float value) {
  return from_bits((to_bits(value) + 0x1000U) & ~0x1FFFU);
}

inline float from_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

}  // namespace vit
