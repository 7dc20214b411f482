// What the files for GPUs know of a device: its stream, and the libraries that multiply.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstddef>
#include <memory>
#include <mutex>

#include "cuda/gpu/stream.hpp"

namespace vit {

// Bytes that a product may use beside its matrices: what NVIDIA advises for its largest GPUs.
constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

// Ends what a library of CUDA made.
template <auto function>
struct Destroy {
  template <class T>
  void operator()(T* thing) const {
    function(thing);
  }
};

struct Device::State {
  explicit State(const Options& options);

  std::mutex mutex;
  int index;
  Precision precision;
  std::unique_ptr<CUstream_st, Destroy<cudaStreamDestroy>> stream;
  std::unique_ptr<void, Destroy<cudaFree>> workspace;
  std::unique_ptr<cublasLtContext, Destroy<cublasLtDestroy>> lt;
  std::unique_ptr<cublasContext, Destroy<cublasDestroy>> blas;
  Scratch scratch;
};

// As for errors of CUDA; `what` was tried.
void check(cublasStatus_t status, const char* what);

}  // namespace vit
