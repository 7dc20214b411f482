// The kernels of CPUs: one source, compiled for several sets of instructions.
#pragma once

#include "model/kernels.hpp"
#include "training/training_kernels.hpp"

namespace vit {

namespace baseline {
extern const Kernels kernels;
extern const TrainingKernels training_kernels;
}  // namespace baseline
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
extern const TrainingKernels training_kernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels kernels;
extern const TrainingKernels training_kernels;
}  // namespace avx512
#endif

// The fastest kernels that this CPU can run.
inline const Kernels& best_kernels() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return avx512::kernels;
  if (__builtin_cpu_supports("x86-64-v3")) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace vit
