// What oneDNN's products can take on the device of an engine.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>

namespace vit {

// Largest code of an activation: 255, or 127 on x86 CPUs without VNNI. There oneDNN adds pairs of
// products of 8 bits in 16 bits, which saturate silently at the products of larger codes.
int largest_code(const dnnl::engine& engine);

// std::runtime_error on x86 CPUs for which oneDNN has no products of bfloat16.
void check_bfloat16(const dnnl::engine& engine);

}  // namespace vit
