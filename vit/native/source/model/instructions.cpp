#include "model/instructions.hpp"

#include <stdexcept>

namespace vit {
namespace {

// Whether the engine is an x86 CPU on which oneDNN uses neither of two sets of instructions.
bool lacks(const dnnl::engine& engine, dnnl::cpu_isa first, dnnl::cpu_isa second) {
#ifdef __x86_64__
  const auto used = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto has = [&](dnnl::cpu_isa set) {
    return (used & static_cast<unsigned>(set)) == static_cast<unsigned>(set);
  };
  return engine.get_kind() == dnnl::engine::kind::cpu && !has(first) && !has(second);
#else
  (void)engine, (void)first, (void)second;
  return false;
#endif
}

}  // namespace

int largest_code(const dnnl::engine& engine) {
  return lacks(engine, dnnl::cpu_isa::avx512_core_vnni, dnnl::cpu_isa::avx2_vnni) ? 127 : 255;
}

void check_bfloat16(const dnnl::engine& engine) {
  if (lacks(engine, dnnl::cpu_isa::avx512_core, dnnl::cpu_isa::avx2_vnni_2)) {
    throw std::runtime_error(
        "this CPU has no AVX-512, which bfloat16 needs; use precision=float32");
  }
}

}  // namespace vit
