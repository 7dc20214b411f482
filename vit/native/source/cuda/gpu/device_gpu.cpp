#include "cuda/gpu/device_gpu.hpp"

#include <charconv>
#include <new>
#include <stdexcept>
#include <utility>

#include "cuda/kernels_cuda.hpp"
#include "model/precision.hpp"

namespace vit {
namespace {

// The number of the GPU that the option "device" chooses; std::runtime_error if it is not there.
int chosen(const std::string& choice) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    throw std::runtime_error(std::string("no NVIDIA GPU: ") +
                             (error == cudaSuccess ? "there is none" : cudaGetErrorString(error)) +
                             "; install its driver, or use the back end cpu");
  }
  if (choice.empty() || choice == "cuda") return 0;
  int index = -1;
  if (choice.rfind("cuda:", 0) == 0) {
    const char *const first = choice.data() + 5, *const last = choice.data() + choice.size();
    const auto [end, failure] = std::from_chars(first, last, index);
    if (failure != std::errc() || end != last) index = -1;
  }
  if (index < 0 || index >= count) {
    throw std::runtime_error("device is " + choice +
                             ", but this back end has cuda:0 to cuda:" + std::to_string(count - 1));
  }
  return index;
}

// What was recorded of a stream, to be submitted as one.
using Recording = std::unique_ptr<CUgraphExec_st, Destroy<cudaGraphExecDestroy>>;

// Null if it cannot be recorded: a step that fails in this fails again, by itself, when it is run.
Recording recorded(cudaStream_t stream, const std::vector<Step>& steps) {
  // other threads may go on with other models meanwhile
  bool well = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
  cudaGraph_t graph = nullptr;
  if (well) {
    try {
      for (const Step& step : steps) step();
    } catch (...) {
      well = false;
    }
    well &= cudaStreamEndCapture(stream, &graph) == cudaSuccess;  // also after an error
  }
  const std::unique_ptr<CUgraph_st, Destroy<cudaGraphDestroy>> owner(graph);
  cudaGraphExec_t ready = nullptr;
  if (well) well = cudaGraphInstantiate(&ready, graph, 0) == cudaSuccess;
  if (!well) cudaGetLastError();  // so that the next call does not report it
  return Recording(ready);
}

}  // namespace

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw std::bad_alloc();
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string("cuBLAS: ") + what + ": " + cublasGetStatusString(status));
  }
}

Device::State::State(const Options& options)
    : index(chosen(options.device)), precision(options.precision) {
  check(cudaSetDevice(index));
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  if (major < 8) {
    throw std::runtime_error("cuda:" + std::to_string(index) + " has compute capability " +
                             std::to_string(major) + ".x; 8.0 (Ampere) or newer is needed");
  }
  cudaStream_t new_stream = nullptr;
  check(cudaStreamCreateWithFlags(&new_stream, cudaStreamNonBlocking));
  stream.reset(new_stream);
  void* memory = nullptr;
  check(cudaMalloc(&memory, workspace_bytes));
  workspace.reset(memory);
  cublasLtHandle_t new_lt = nullptr;
  check(cublasLtCreate(&new_lt), "cannot start");
  lt.reset(new_lt);
  cublasHandle_t new_blas = nullptr;
  check(cublasCreate(&new_blas), "cannot start");
  blas.reset(new_blas);
  check(cublasSetStream(new_blas, new_stream), "cannot use the stream");
  check(cublasSetWorkspace(new_blas, memory, workspace_bytes), "cannot use memory");
}

Device::Device(const Options& options) : state_(new State(options)), kernels_(&cuda_kernels) {}

Device::~Device() {
  cudaSetDevice(state_->index);  // what its members were made on
}

std::string Device::name() const {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, state_->index));
  return properties.name;
}

std::unique_lock<std::mutex> Device::enter() {
  std::unique_lock<std::mutex> call(state_->mutex);
  check(cudaSetDevice(state_->index));
  return call;
}

void Device::wait() { check(cudaStreamSynchronize(state_->stream.get())); }

void* Device::allocate(std::size_t bytes) {
  void* pointer = nullptr;
  check(cudaMalloc(&pointer, bytes));
  return pointer;
}

// Memory may be released outside of calls, where another device is the current one of the thread.
void Device::release(void* pointer) noexcept {
  cudaSetDevice(state_->index);
  cudaFree(pointer);
}

void Device::upload(void* device, const void* host, std::size_t bytes) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, state_->stream.get()));
  wait();
}

void Device::download(void* host, const void* device, std::size_t bytes) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, state_->stream.get()));
  wait();
}

void Device::clear(void* device, std::size_t bytes) {
  check(cudaMemsetAsync(device, 0, bytes, state_->stream.get()));
}

cudaStream_t stream_of(Device& device) { return device.state().stream.get(); }

bool has_tensor_floats(Device& device) { return device.state().precision == Precision::tf32; }

Scratch& scratch_of(Device& device) { return device.state().scratch; }

// Recorded at the second run: at the first, libraries and kernels are loaded, which cannot be, and
// a size of batch that is used once is not worth it. What cannot be recorded is run each time.
Step Device::sequence(std::vector<Step> steps) {
  return [steps = std::move(steps), recording = std::make_shared<Recording>(), ran = false,
          tried = false, stream = state_->stream.get()]() mutable {
    if (ran && !tried) {
      tried = true;
      *recording = recorded(stream, steps);
    }
    if (*recording) return check(cudaGraphLaunch(recording->get(), stream));
    for (const Step& step : steps) step();
    ran = true;
  };
}

int largest_code(Device&) { return 255; }

void check_precision(Device& device, Precision precision) {
  if (precision != Precision::float8) return;
  const int index = device.state().index;
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  if (major > 8 || (major == 8 && minor >= 9)) return;
  throw std::runtime_error("cuda:" + std::to_string(index) + " has compute capability " +
                           std::to_string(major) + "." + std::to_string(minor) +
                           ", but float8 needs 8.9 (Ada) or newer; use precision=int8");
}

}  // namespace vit
