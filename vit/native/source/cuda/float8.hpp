// Numbers of 8 bits: E4M3 (arXiv 2209.05433), by arithmetic that is the same on a GPU and on a CPU.
// GPUs before compute capability 8.9, for which kernels are compiled too, have no instruction for
// it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/team.hpp"
#include "model/kernels.hpp"

namespace vit {

// The bits: a sign, four of an exponent whose bias is 7, three of the fraction.
struct Float8 {
  std::uint8_t bits;
};

constexpr std::uint8_t nan_float8 = 0x7F;  // its sign does not matter

// The nearest, ties to even; what is beyond the largest becomes the largest.
VIT_BOTH Float8 to_float8(float value) {
  if (std::isnan(value)) return {nan_float8};
  const float size = fminf(fabsf(value), largest_f8);
  // below 2^-6 the numbers are 2^-9 apart, as are floats from 2^14 on, where the sum is rounded
  const bool small = size < 0x1p-6f;
  const float shifted = small ? size + 0x1p14f : size;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  constexpr std::uint32_t bias = 127 - 7, dropped = 23 - 3;
  const std::uint32_t code =
      small
          ? bits & 0xFU
          : ((bits + (1U << (dropped - 1)) - 1 + (bits >> dropped & 1U)) >> dropped) - (bias << 3);
  return {static_cast<std::uint8_t>(code | (std::signbit(value) ? 0x80U : 0U))};
}

VIT_BOTH float to_float(Float8 value) {
  const int exponent = value.bits >> 3 & 0xF, fraction = value.bits & 7;
  if ((value.bits & nan_float8) == nan_float8) return NAN;
  // 8 is the bit that numbers from 2^-6 on have beside the fraction
  const float size = exponent ? ldexpf(static_cast<float>(8 + fraction), exponent - 10)
                              : ldexpf(static_cast<float>(fraction), -9);
  return value.bits & 0x80 ? -size : size;
}

}  // namespace vit
