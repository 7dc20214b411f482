#include <omp.h>

#include <algorithm>
#include <utility>

#include "mojo/product.hpp"
#include "training/operations.hpp"

namespace vit {
namespace {

// One product, or one for each image and head, whose matrices are packed at each run.
struct Task {
  Matrix a, b, c;
  const float *bias, *base;
  float factor;

  bool batched() const { return c.images > 0; }
  bool packs_a() const { return a.column_stride != 1; }
  // panels are read where they are if that is a single row's share of the work
  bool packs_b() const {
    return a.rows > 1 || b.column_stride != 1 || b.columns % vit_mojo_panel() != 0;
  }
  std::int64_t tiles() const { return pieces(a.rows, vit_mojo_tile_rows()); }
  std::int64_t a_size() const { return packs_a() ? tiles() * vit_mojo_tile_rows() * a.columns : 0; }
  std::int64_t b_size() const {
    return packs_b() ? panels(b.columns) * vit_mojo_panel() * b.rows : 0;
  }

  void pack_tile(std::int64_t number, const float* from, float* memory) const {
    vit_mojo_pack_tile(from, a.column_stride, a.rows, a.columns, number, memory);
  }
  void pack_panel(std::int64_t number, const float* from, float* memory) const {
    vit_mojo_pack_panel(from, b.row_stride, b.column_stride, b.rows, b.columns, number,
                        memory + a_size());
  }
  // The product of matrices that start here, packed in `memory`.
  Product product(const float* a_data, const float* b_data, float* c_data, float* memory) const {
    const std::int64_t panel = vit_mojo_panel();
    Product result{};
    result.a = packs_a() ? memory : a_data;
    result.a_stride = a.row_stride, result.a_tiled = packs_a();
    result.b = packs_b() ? memory + a_size() : b_data;
    result.b_stride = packs_b() ? panel : b.row_stride;
    result.b_apart = packs_b() ? panel * b.rows : panel;
    result.depth = a.columns;
    result.target = {Span{c_data}, c.row_stride, c.columns, bias, base, c.columns, factor, 0};
    return result;
  }
};

float* part(const Matrix& matrix, std::int64_t number) {
  const std::int64_t image = number / matrix.heads, head = number % matrix.heads;
  return matrix.data + image * matrix.image_stride + head * matrix.head_stride;
}

void run_single(const Task& task, float* memory, int threads) {
  if (task.packs_a()) {
    parallel(task.tiles(), 1, [&](std::int64_t number, std::int64_t) {
      task.pack_tile(number, task.a.data, memory);
    });
  }
  if (task.packs_b()) {
    parallel(panels(task.b.columns), 1, [&](std::int64_t number, std::int64_t) {
      task.pack_panel(number, task.b.data, memory);
    });
  }
  const Product product = task.product(task.a.data, task.b.data, task.c.data, memory);
  const std::int64_t rows = task_rows(task.c.rows, task.c.columns, threads);
  parallel_tasks(task.c.rows, task.c.columns, rows,
                 [&](std::int64_t first, std::int64_t some, std::int64_t panel) {
                   vit_mojo_product(&product, first, some, panel);
                 });
}

void run_batched(const Task& task, float* memory, std::int64_t size) {
  parallel(task.c.images * task.c.heads, 1, [&](std::int64_t number, std::int64_t) {
    float* const own = memory + omp_get_thread_num() * size;
    const float *a = part(task.a, number), *b = part(task.b, number);
    if (task.packs_a()) {
      for (std::int64_t i = 0; i < task.tiles(); ++i) task.pack_tile(i, a, own);
    }
    const Product product = task.product(a, b, part(task.c, number), own);
    for (std::int64_t panel = 0; panel < panels(task.b.columns); ++panel) {
      if (task.packs_b()) task.pack_panel(panel, b, own);
      for (std::int64_t first = 0; first < task.c.rows; first += vit_mojo_task_rows()) {
        const std::int64_t rows = std::min(vit_mojo_task_rows(), task.c.rows - first);
        vit_mojo_product(&product, first, rows, panel);
      }
    }
  });
}

Step product_of(Device& device, const Task& task) {
  Device::State& state = device.state();
  const std::int64_t size = pieces(task.a_size() + task.b_size(), 16) * 16;
  state.reserve(device, task.batched() ? state.threads * size : size);
  return [=, &state] {
    float* const memory = state.memory.data<float>();
    if (task.batched()) {
      run_batched(task, memory, size);
    } else {
      run_single(task, memory, state.threads);
    }
  };
}

}  // namespace

Step product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c, const float* bias,
             const float* base) {
  return product_of(device, {a, b, c, bias, base, 1.0f});
}

Step scaled_product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c,
                    float factor) {
  return product_of(device, {a, b, c, nullptr, nullptr, factor});
}

Pass layer_norm(Device&, const NormMemory& at, std::int64_t rows, std::int64_t width, float eps) {
  return {[=] {
            const Span out{at.out};
            parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
              vit_mojo_layer_norm(at.x, width, at.weight, at.bias, eps, &out, width, at.mean,
                                  at.variance, first, last);
            });
          },
          [=] {
            parallel_columns(width, [&](std::int64_t first, std::int64_t last) {
              vit_mojo_layer_norm_parameters_gradient(at.x, at.mean, at.variance, eps,
                                                      at.out_gradient, at.weight_gradient,
                                                      at.bias_gradient, rows, width, first, last);
            });
            parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
              vit_mojo_layer_norm_gradient(at.x, at.mean, at.variance, at.weight, eps,
                                           at.out_gradient, at.x_gradient, width, first, last);
            });
          }};
}

Pass activation(Device&, Activation kind, float* x, float* out, float* gradient, std::int64_t rows,
                std::int64_t columns) {
  const auto number = static_cast<std::int64_t>(kind);
  const std::int64_t values = rows * columns;
  return {[=] {
            parallel_rows(values, 1, [&](std::int64_t first, std::int64_t last) {
              vit_mojo_activate(number, x, out, first, last);
            });
          },
          [=] {
            parallel_rows(values, 1, [&](std::int64_t first, std::int64_t last) {
              vit_mojo_activate_gradient(number, x, out, gradient, first, last);
            });
          }};
}

// The scores of all images and heads lie one behind the other, as do the gradients.
Pass softmax(Device&, const Matrix& scores, float* gradient) {
  const std::int64_t rows = scores.images * scores.heads * scores.rows, columns = scores.columns;
  float* const data = scores.data;
  return {[=] {
            parallel_rows(rows, columns, [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t r = first; r < last; ++r) {
                vit_mojo_softmax(data + r * columns, columns);
              }
            });
          },
          [=] {
            parallel_rows(rows, columns, [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t r = first; r < last; ++r) {
                vit_mojo_softmax_gradient(data + r * columns, gradient + r * columns, columns);
              }
            });
          }};
}

}  // namespace vit
