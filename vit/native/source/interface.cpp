// The functions of vit.h: exceptions become texts, and one call at a time uses a model.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <list>
#include <mutex>
#include <stdexcept>
#include <string>

#include "forward.hpp"
#include "guarded.hpp"
#include "model.hpp"
#include "options.hpp"
#include "shape.hpp"
#include "tensor_file.hpp"
#include "vit.h"

namespace {

// Sizes of batches that stay set up; a server sees few, and each holds its activations.
constexpr std::size_t max_plans = 4;
// As that of all sizes in shape.cpp, so that no product of them overflows.
constexpr std::int64_t max_batch = 1 << 20;

}  // namespace

struct vit_model {
  explicit vit_model(const std::string& checkpoint, const vit::Options& options)
      : device(options.device, options.threads),
        file(vit::weights_path(checkpoint)),
        shape(vit::shape_of(file, vit::config_path(checkpoint))),
        model(device, file, shape, options.precision) {}

  vit::Forward& plan(std::int64_t batch) {
    const auto found = std::find_if(plans.begin(), plans.end(), [&](const vit::Forward& plan) {
      return plan.batch() == batch;
    });
    if (found != plans.end()) {
      plans.splice(plans.begin(), plans, found);
    } else {
      plans.emplace_front(device, model, batch);
      if (plans.size() > max_plans) plans.pop_back();
    }
    return plans.front();
  }

  std::mutex mutex;
  vit::Device device;
  vit::TensorFile file;
  vit::Shape shape;
  vit::Model model;
  std::list<vit::Forward> plans;  // the last used first
};

namespace {

template <class Function>
int guarded(vit_model* model, Function&& function) noexcept {
  return vit::guarded([&] {
    if (!model) throw std::invalid_argument("the model is a null pointer");
    const std::lock_guard<std::mutex> lock(model->mutex);
    model->device.enter();
    function();
  });
}

void check_batch(const float* images, int64_t batch, const float* logits) {
  if (!images || !logits) throw std::invalid_argument("images or logits is a null pointer");
  if (batch < 1 || batch > max_batch) {
    throw std::invalid_argument("batch is " + std::to_string(batch) + ", not from 1 to " +
                                std::to_string(max_batch));
  }
}

}  // namespace

const char* vit_error(void) { return vit::last_error.c_str(); }

int vit_open(const char* checkpoint, const char* options, vit_model** model) {
  return vit::guarded([&] {
    if (!checkpoint || !model) throw std::invalid_argument("checkpoint or model is a null pointer");
    *model = new vit_model(checkpoint, vit::parse_options(options ? options : ""));
  });
}

void vit_close(vit_model* model) { delete model; }

int vit_describe(vit_model* model, vit_description* description) {
  return guarded(model, [&] {
    *description = {};
    description->image_size = model->shape.image;
    description->outputs = model->shape.outputs;
    for (const auto& [name, entry] : model->file.entries()) {
      description->num_parameters += entry.count();
      ++description->num_tensors;
    }
    std::snprintf(description->device, sizeof description->device, "%s",
                  model->device.name().c_str());
  });
}

int vit_forward(vit_model* model, const float* images, int64_t batch, float* logits) {
  return guarded(model, [&] {
    check_batch(images, batch, logits);
    model->plan(batch).run(images, logits);
  });
}

int vit_observe(vit_model* model, const float* images, int64_t batch, float* logits,
                vit_observer observer, void* context) {
  return guarded(model, [&] {
    check_batch(images, batch, logits);
    if (!observer) throw std::invalid_argument("observer is a null pointer");
    vit::Forward(model->device, model->model, batch,
                 [=](const std::string& layer, const float* values, int64_t rows, int64_t columns) {
                   observer(context, layer.c_str(), values, rows, columns);
                 })
        .run(images, logits);
  });
}
