// Products by cuBLASLt, whose epilogues add biases, residuals and GELU; by cuBLAS for many at once.
//
// cuBLAS has matrices in columns: a matrix in rows is for it the transposed one, so it computes
// c^T = b^T a^T. https://docs.nvidia.com/cuda/cublas has the tables of what it takes.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/gpu/device_gpu.hpp"
#include "cuda/product.hpp"

namespace vit {
namespace {

constexpr unsigned most_alignment = 256;  // more makes no difference

// A matrix as cuBLAS sees it.
struct View {
  View(const Table& table, std::int64_t rows, std::int64_t columns)
      : data(table.data),
        type(table.type),
        transposed(table.column_stride != 1),
        height(transposed ? rows : columns),
        width(transposed ? columns : rows),
        // the stride of a single column says nothing, but has to be one that could be
        leading(std::max(transposed ? table.column_stride : table.row_stride, height)) {}

  cublasOperation_t operation() const { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

  void* data;
  Number type;
  bool transposed;
  std::int64_t height, width, leading;
};

cudaDataType_t type_of(Number number) {
  switch (number) {
    case Number::bf16:
      return CUDA_R_16BF;
    case Number::s8:
      return CUDA_R_8I;
    case Number::f8:
      return CUDA_R_8F_E4M3;
    case Number::s32:
      return CUDA_R_32I;
    default:
      return CUDA_R_32F;
  }
}

// A single row is what sums up gradients: these are not rounded to TF32's 10 bits.
cublasComputeType_t compute_of(const Device::State& state, const Product& product) {
  if (product.a.type == Number::s8) return CUBLAS_COMPUTE_32I;
  const bool tensor_floats =
      state.precision == Precision::tf32 && product.a.type == Number::f32 && product.rows > 1;
  return tensor_floats ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// The power of two, up to 256, that an address is a multiple of.
unsigned alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<unsigned>(std::min<std::uintptr_t>(address & -address, most_alignment));
}

using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<cublasLtMatrixLayoutDestroy>>;

Layout layout_of(const View& view) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(view.type),
                                   static_cast<std::uint64_t>(view.height),
                                   static_cast<std::uint64_t>(view.width), view.leading),
        "cannot describe a matrix");
  return Layout(layout);
}

// A product as cuBLASLt has it set up.
class LtProduct {
 public:
  LtProduct(Device& device, const Product& product)
      : state_(device.state()),
        a_(product.b, product.depth, product.columns),
        b_(product.a, product.rows, product.depth),
        c_(product.c, product.rows, product.columns),
        base_(product.base ? product.base : product.c.data),
        integers_(product.a.type == Number::s8) {
    factor_ = product.factor;
    share_ = product.base ? 1.0f : 0.0f;
    layouts_[0] = layout_of(a_), layouts_[1] = layout_of(b_), layouts_[2] = layout_of(c_);
    cublasLtMatmulDesc_t description = nullptr;
    check(cublasLtMatmulDescCreate(&description, compute_of(state_, product),
                                   integers_ ? CUDA_R_32I : CUDA_R_32F),
          "cannot describe a product");
    description_.reset(description);
    set(CUBLASLT_MATMUL_DESC_TRANSA, a_.operation());
    set(CUBLASLT_MATMUL_DESC_TRANSB, b_.operation());
    const cublasLtEpilogue_t epilogue =
        product.gelu_tanh ? (product.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
        : product.bias    ? CUBLASLT_EPILOGUE_BIAS
                          : CUBLASLT_EPILOGUE_DEFAULT;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (product.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
  }

  // Chooses how to compute it; false if cuBLASLt does not take it.
  bool choose() {
    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "cannot choose a product");
    const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                          Destroy<cublasLtMatmulPreferenceDestroy>>
        owner(preference);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof value),
            "cannot choose a product");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{workspace_bytes});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(a_.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(b_.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(base_));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(c_.data));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        state_.lt.get(), description_.get(), layouts_[0].get(), layouts_[1].get(),
        layouts_[2].get(), layouts_[2].get(), preference, 1, &found, &count);
    for (const cublasStatus_t each :
         {status, count > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED}) {
      if (each == CUBLAS_STATUS_NOT_SUPPORTED || each == CUBLAS_STATUS_INVALID_VALUE) return false;
      check(each, "cannot choose a product");
    }
    algorithm_ = found.algo;
    return true;
  }

  void run() const {
    const std::int32_t one = 1, zero = 0;
    const void* const alpha = integers_ ? static_cast<const void*>(&one) : &factor_;
    const void* const beta = integers_ ? static_cast<const void*>(&zero) : &share_;
    check(cublasLtMatmul(state_.lt.get(), description_.get(), alpha, a_.data, layouts_[0].get(),
                         b_.data, layouts_[1].get(), beta, base_, layouts_[2].get(), c_.data,
                         layouts_[2].get(), &algorithm_, state_.workspace.get(), workspace_bytes,
                         state_.stream.get()),
          "a product failed");
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    check(cublasLtMatmulDescSetAttribute(description_.get(), name, &value, sizeof value),
          "cannot describe a product");
  }

  Device::State& state_;
  View a_, b_, c_;  // by cuBLAS's names: a is our b
  const void* base_;
  bool integers_;
  float factor_, share_;
  Layout layouts_[3];
  std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<cublasLtMatmulDescDestroy>> description_;
  cublasLtMatmulAlgo_t algorithm_{};
};

// The addresses of the matrices of all images and heads, on the device.
Buffer addresses(Device& device, const Table& table, const Product& product) {
  std::vector<char*> pointers;
  for (std::int64_t image = 0; image < product.images; ++image) {
    for (std::int64_t head = 0; head < product.heads; ++head) {
      pointers.push_back(static_cast<char*>(table.data) +
                         (image * table.image_stride + head * table.head_stride) *
                             bytes_of(table.type));
    }
  }
  return uploaded(device, pointers);
}

// Whether each matrix of a table of float32 begins at a multiple of 16 bytes.
bool each_aligned(const Table& table) {
  constexpr std::int64_t floats = 16 / sizeof(float);
  return alignment_of(table.data) >= 16 && table.image_stride % floats == 0 &&
         table.head_stride % floats == 0;
}

// Many products of float32, without bias, base or GELU. Of TF32, cublasGemmBatchedEx takes only
// matrices that are aligned.
Step batched(Device& device, const Product& product) {
  const View a(product.b, product.depth, product.columns),
      b(product.a, product.rows, product.depth);
  const View c(product.c, product.rows, product.columns);
  const auto pointers = std::make_shared<const std::vector<Buffer>>([&] {
    std::vector<Buffer> buffers;
    for (const Table* table : {&product.b, &product.a, &product.c}) {
      buffers.push_back(addresses(device, *table, product));
    }
    return buffers;
  }());
  const bool aligned =
      each_aligned(product.a) && each_aligned(product.b) && each_aligned(product.c);
  const cublasComputeType_t compute =
      aligned ? compute_of(device.state(), product) : CUBLAS_COMPUTE_32F;
  return [=, &state = device.state()] {
    const float zero = 0.0f;
    check(cublasGemmBatchedEx(
              state.blas.get(), a.operation(), b.operation(), static_cast<int>(product.columns),
              static_cast<int>(product.rows), static_cast<int>(product.depth), &product.factor,
              (*pointers)[0].data<const void*>(), CUDA_R_32F, static_cast<int>(a.leading),
              (*pointers)[1].data<const void*>(), CUDA_R_32F, static_cast<int>(b.leading), &zero,
              (*pointers)[2].data<void*>(), CUDA_R_32F, static_cast<int>(c.leading),
              static_cast<int>(product.count()), compute, CUBLAS_GEMM_DEFAULT),
          "products failed");
  };
}

}  // namespace

std::optional<Step> library_product(Device& device, const Product& product) {
  if (product.count() > 1) {
    const bool simple = !product.bias && !product.base && !product.gelu_tanh;
    if (!simple || product.a.type != Number::f32) return std::nullopt;
    return batched(device, product);
  }
  const auto set_up = std::make_shared<LtProduct>(device, product);
  if (!set_up->choose()) return std::nullopt;
  return [set_up] { set_up->run(); };
}

}  // namespace vit
