// What a device can compute of the precisions of device.hpp.
#pragma once

#include "model/device.hpp"
#include "model/kernels.hpp"

namespace vit {

// Type of the inputs of the layers within blocks.
inline Type type_of(Precision precision) {
  return precision == Precision::bfloat16 ? Type::bf16
         : precision == Precision::int8   ? Type::u8
         : precision == Precision::float8 ? Type::f8
                                          : Type::f32;
}

// Whether a file needs to be quantised for it.
inline bool needs_codes(Precision precision) {
  return precision == Precision::int8 || precision == Precision::float8;
}

// std::runtime_error if the device cannot compute in this precision.
void check_precision(Device& device, Precision precision);

// Largest code of an activation in int8: 255, or 127 where products of larger codes are not exact.
int largest_code(Device& device);

}  // namespace vit
