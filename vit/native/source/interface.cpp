// The functions of vit.h: exceptions become texts, and one call at a time uses a model.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

#include "file/limits.hpp"
#include "file/shape.hpp"
#include "file/tensor_file.hpp"
#include "guarded.hpp"
#include "model/forward.hpp"
#include "model/model.hpp"
#include "model/plans.hpp"
#include "options.hpp"
#include "training/trainer.hpp"
#include "vit.h"

namespace {

// Sizes of batches that stay set up; a server sees few, and each holds its activations.
constexpr std::size_t max_plans = 4;

}  // namespace

struct vit_model {
  explicit vit_model(const std::string& checkpoint, const vit::Options& options)
      : device(options),
        file(vit::weights_path(checkpoint)),
        shape(vit::shape_of(file, vit::config_path(checkpoint))),
        model(loaded(options.precision)) {
    file.check_used();
  }

  vit::Model loaded(vit::Precision precision) {
    const auto call = device.enter();
    return vit::Model(device, file, shape, precision);
  }

  // The model with the weights of now: trained ones are packed when they are first used.
  vit::Model& current() {
    if (stale) {
      plans.clear();
      model = vit::Model(device, trainer->parameters(), shape, model.precision);
      stale = false;
    }
    return model;
  }

  vit::Trainer& training() {
    if (!trainer) throw std::runtime_error("the model is not in training; call vit_train_begin");
    return *trainer;
  }

  vit::Device device;
  vit::TensorFile file;
  vit::Shape shape;
  vit::Model model;
  vit::Plans<vit::Forward> plans{max_plans};
  std::unique_ptr<vit::Trainer> trainer;
  bool stale = false;  // the model has other weights than the training
};

namespace {

template <class Function>
int guarded(vit_model* model, Function&& function) noexcept {
  return vit::guarded([&] {
    if (!model) throw std::invalid_argument("the model is a null pointer");
    const auto call = model->device.enter();
    function();
  });
}

void check_batch(bool pointers, int64_t batch) {
  if (!pointers) throw std::invalid_argument("an argument is a null pointer");
  if (batch < 1 || batch > vit::max_side) {
    throw std::invalid_argument("batch is " + std::to_string(batch) + ", not from 1 to " +
                                std::to_string(vit::max_side));
  }
}

}  // namespace

const char* vit_error(void) { return vit::last_error; }

int vit_open(const char* checkpoint, const char* options, vit_model** model) {
  return vit::guarded([&] {
    if (!checkpoint || !model) throw std::invalid_argument("checkpoint or model is a null pointer");
    *model = nullptr;
    *model = new vit_model(checkpoint, vit::parse_options(options ? options : ""));
  });
}

void vit_close(vit_model* model) { delete model; }

int vit_describe(vit_model* model, vit_description* description) {
  return guarded(model, [&] {
    if (!description) throw std::invalid_argument("description is a null pointer");
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

int vit_train_begin(vit_model* model, const char* options) {
  return guarded(model, [&] {
    if (model->trainer) {
      throw std::runtime_error("the model is in training already; open it again to begin anew");
    }
    if (model->model.precision != vit::Precision::float32) {
      throw std::runtime_error("training needs precision float32; open the model with it");
    }
    const auto settings = vit::OptimizerSettings::parse(options ? options : "");
    model->trainer =
        std::make_unique<vit::Trainer>(model->device, model->file, model->shape, settings);
  });
}

int vit_train_step(vit_model* model, const float* images, const float* targets, int64_t batch,
                   double lr, double* loss) {
  return guarded(model, [&] {
    check_batch(images && targets && loss, batch);
    vit::Trainer& trainer = model->training();
    model->stale = true;  // also after an error, which may come in the middle of the update
    *loss = trainer.step(images, targets, batch, lr);
  });
}

int vit_gradients(vit_model* model, const float* images, const float* targets, int64_t batch,
                  double* loss) {
  return guarded(model, [&] {
    check_batch(images && targets && loss, batch);
    *loss = model->training().gradients(images, targets, batch);
  });
}

int vit_read(vit_model* model, const char* what, const char* name, float* values, int64_t count) {
  return guarded(model, [&] {
    if (!what || !name || !values) throw std::invalid_argument("an argument is a null pointer");
    const std::vector<float> found = model->training().read(what, name);
    if (count != static_cast<int64_t>(found.size())) {
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(found.size()) +
                                  " values, not " + std::to_string(count));
    }
    std::copy(found.begin(), found.end(), values);
  });
}

int vit_state_bytes(vit_model* model, int64_t* bytes) {
  return guarded(model, [&] {
    if (!bytes) throw std::invalid_argument("bytes is a null pointer");
    *bytes = model->training().state_bytes();
  });
}

int vit_save(vit_model* model, const char* path) {
  return guarded(model, [&] {
    if (!path) throw std::invalid_argument("path is a null pointer");
    model->training().save(path);
  });
}

int vit_forward(vit_model* model, const float* images, int64_t batch, float* logits) {
  return guarded(model, [&] {
    check_batch(images && logits, batch);
    model->plans.of(batch, model->device, model->current()).run(images, logits);
  });
}

int vit_observe(vit_model* model, const float* images, int64_t batch, float* logits,
                vit_observer observer, void* context) {
  return guarded(model, [&] {
    check_batch(images && logits, batch);
    if (!observer) throw std::invalid_argument("observer is a null pointer");
    vit::Forward(model->device, model->current(), batch,
                 [=](const std::string& layer, const float* values, int64_t rows, int64_t columns) {
                   observer(context, layer.c_str(), values, rows, columns);
                 })
        .run(images, logits);
  });
}
