#include "model/precision.hpp"

#include <stdexcept>

#include "onednn/engine.hpp"

namespace vit {
namespace {

// Whether the device is an x86 CPU on which oneDNN uses neither of two sets of instructions.
bool lacks(Device& device, dnnl::cpu_isa first, dnnl::cpu_isa second) {
#ifdef __x86_64__
  const auto used = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto has = [&](dnnl::cpu_isa set) {
    return (used & static_cast<unsigned>(set)) == static_cast<unsigned>(set);
  };
  const bool is_cpu = engine_of(device).engine.get_kind() == dnnl::engine::kind::cpu;
  return is_cpu && !has(first) && !has(second);
#else
  (void)device, (void)first, (void)second;
  return false;
#endif
}

}  // namespace

// Without VNNI oneDNN adds pairs of products of 8 bits in 16 bits, which saturate silently at the
// products of larger codes.
int largest_code(Device& device) {
  return lacks(device, dnnl::cpu_isa::avx512_core_vnni, dnnl::cpu_isa::avx2_vnni) ? 127 : 255;
}

void check_precision(Device& device, Precision precision) {
  if (precision == Precision::tf32) {
    throw std::runtime_error("precision tf32 needs the back end cuda; use precision=float32");
  }
  if (precision == Precision::float8) {
    throw std::runtime_error("precision float8 needs the back end cuda; use precision=int8");
  }
  if (precision != Precision::bfloat16) return;
  if (lacks(device, dnnl::cpu_isa::avx512_core, dnnl::cpu_isa::avx2_vnni_2)) {
    throw std::runtime_error(
        "this CPU has neither AVX-512 nor AVX2-VNNI-2, one of which bfloat16 needs; use"
        " precision=float32");
  }
}

}  // namespace vit
