/* A Vision Transformer without PyTorch: the interface of every back end.
 *
 * Each back end (CPU, SYCL, CUDA, Mojo) is a shared library with these functions. A function that
 * can fail returns 0, or 1 and leaves the reason to vit_error(); none aborts or throws. A model may
 * be used from several threads; its calls run one after the other, and vit_close is the last of
 * them. In the thread that calls, a back end of CPUs sets the number of OpenMP threads, and that of
 * CUDA the current GPU.
 */
#ifndef VIT_H
#define VIT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VIT_API __attribute__((visibility("default")))

typedef struct vit_model vit_model;

typedef struct {
  int64_t image_size; /* side of an image in pixels */
  int64_t outputs;    /* classes; or the width, of a model without a head */
  int64_t num_parameters;
  int64_t num_tensors;
  char device[64]; /* what computes, such as "avx512" or the name of a GPU */
} vit_description;

/* Reason of this thread's last error, in words; "" before the first. */
VIT_API const char* vit_error(void);

/* Open a checkpoint: a folder with model.safetensors and config.json, or a safetensors file.
 * After an error *model is NULL.
 *
 * options: settings as "name=value", separated by commas; NULL or "" takes the defaults.
 *   precision   float32 (default), bfloat16, or int8, which needs a file that was quantised; and of
 *               the CUDA back end tf32: float32 whose products are those of TF32, and float8 (E4M3)
 *               of the file for int8, on GPUs of compute capability 8.9 or newer
 *   threads     threads of a back end of CPUs; 0, the default, takes one for each core. SYCL
 *               devices, its CPU too, take all their cores, whatever is given
 *   device      of the SYCL back end: cpu, gpu, or by default a GPU if there is one; of the CUDA
 *               back end: cuda, the default, which is the first GPU, or cuda:1 and so on
 */
VIT_API int vit_open(const char* checkpoint, const char* options, vit_model** model);

/* Free a model; NULL is allowed. */
VIT_API void vit_close(vit_model* model);

VIT_API int vit_describe(vit_model* model, vit_description* description);

/* Logits of normalised images: (batch, 3, image_size, image_size) -> (batch, outputs). */
VIT_API int vit_forward(vit_model* model, const float* images, int64_t batch, float* logits);

/* Takes what a layer is given: values (rows, columns), which are there during the call only. */
typedef void (*vit_observer)(void* context, const char* layer, const float* values, int64_t rows,
                             int64_t columns);

/* As vit_forward, and calls `observer` with the inputs of each dense layer of the blocks, which has
 * the name that it has in files: blocks.0.attn.qkv. The model must be open as float32, and the
 * observer must not use it. */
VIT_API int vit_observe(vit_model* model, const float* images, int64_t batch, float* logits,
                        vit_observer observer, void* context);

/* An image in memory. */
typedef struct vit_image vit_image;

/* Read a JPEG, PNG or binary PPM file; EXIF orientation is ignored, as in training. */
VIT_API int vit_read_image(const char* path, vit_image** image);

/* Free an image; NULL is allowed. */
VIT_API void vit_free_image(vit_image* image);

/* Pixels (height, width, 3), RGB; they live as long as the image. */
VIT_API const uint8_t* vit_image_pixels(const vit_image* image, int64_t* height, int64_t* width);

/* The input of a model for an image, prepared as in an evaluation: (3, size, size), normalised.
 *
 * config: text of a checkpoint's config.json, whose "images.*" say how; NULL takes the defaults.
 */
VIT_API int vit_eval_view(const vit_image* image, const char* config, int64_t size, float* view);

/* Training, of a model that was opened with precision float32, or tf32.
 *
 * The loss is the mean over the batch of the softmax cross-entropy with targets (batch, outputs),
 * whose rows are scaled to sum 1. There is neither dropout nor stochastic depth. vit_forward
 * computes with the weights as they were trained last.
 */

/* Begin; options: as in vit_open.
 *   optimizer      adamw (default), or adamw8bit, whose moments take a byte per value
 *   beta1, beta2   0.9 and 0.999
 *   eps            1e-8
 *   weight_decay   0.1; a step removes lr times as much, from kernels only
 */
VIT_API int vit_train_begin(vit_model* model, const char* options);

/* One step: loss, gradients and update. A loss that is not finite is an error, and changes nothing.
 */
VIT_API int vit_train_step(vit_model* model, const float* images, const float* targets,
                           int64_t batch, double lr, double* loss);

/* Loss and gradients, without the update. */
VIT_API int vit_gradients(vit_model* model, const float* images, const float* targets,
                          int64_t batch, double* loss);

/* Copy the `count` values of a parameter (what: weight), of its gradient in the last step
 * (gradient), or of the optimizer's moments (moment1, moment2). */
VIT_API int vit_read(vit_model* model, const char* what, const char* name, float* values,
                     int64_t count);

/* Bytes of the optimizer's moments, with all that they need. */
VIT_API int vit_state_bytes(vit_model* model, int64_t* bytes);

/* Write the weights as a safetensors file in float32, under the names and with the metadata of the
 * file that was opened. It appears whole, in place of one that is there. */
VIT_API int vit_save(vit_model* model, const char* path);

#ifdef __cplusplus
}
#endif
#endif
