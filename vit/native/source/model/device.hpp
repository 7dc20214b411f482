// What computes, and memory that it can read and write.
//
// Each kind of device implements the class; a library is linked with one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace vit {

struct Kernels;

enum class Precision { float32, tf32, bfloat16, int8, float8 };

// Options of vit_open.
struct Options {
  Precision precision = Precision::float32;
  std::string device;  // "" takes the device that there is
  int threads = 0;     // 0 takes one for each core
};

// One piece of a computation that is set up already.
using Step = std::function<void()>;

// The step that runs others one after the other.
inline Step in_order(std::vector<Step> steps) {
  return [steps = std::move(steps)] {
    for (const Step& step : steps) step();
  };
}

class Device {
 public:
  explicit Device(const Options& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // The kernels of the table, in the best version for this device.
  const Kernels& kernels() const { return *kernels_; }
  // Such as "avx512", or the name of a GPU.
  std::string name() const;

  // Begins a call; others wait until the lock is given back. In the thread that calls, the number
  // of threads of a CPU becomes that of this device.
  [[nodiscard]] std::unique_lock<std::mutex> enter();
  // Wait until all that was submitted is done; throws what went wrong on the way.
  void wait();

  // Uninitialised memory, aligned to 64 bytes; throws std::bad_alloc.
  void* allocate(std::size_t bytes);
  void release(void* pointer) noexcept;
  // Copy between the host and the device; both return when the copy is done.
  void upload(void* device, const void* host, std::size_t bytes);
  void download(void* host, const void* device, std::size_t bytes);
  void clear(void* device, std::size_t bytes);

  // The step that runs these in order; a device may record what they submit, and repeat it.
  Step sequence(std::vector<Step> steps);

  // What only the files of one kind of device know.
  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
  const Kernels* kernels_;
};

// Memory of a device that is released with its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, std::size_t bytes)
      : device_(&device), bytes_(bytes), pointer_(device.allocate(bytes ? bytes : 1)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (pointer_) device_->release(pointer_);
  }

  template <class T = void>
  T* data() const {
    return static_cast<T*>(pointer_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(pointer_, other.pointer_);
  }
  Device* device_ = nullptr;
  std::size_t bytes_ = 0;
  void* pointer_ = nullptr;
};

// Memory of the device with these values.
template <class T = float>
Buffer uploaded(Device& device, const std::vector<T>& values) {
  Buffer buffer(device, values.size() * sizeof(T));
  device.upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

// Memory for what is needed within a step only; steps, which run one by one, share it.
class Scratch {
 public:
  std::shared_ptr<Buffer> of(Device& device, std::size_t bytes) {
    std::shared_ptr<Buffer> buffer = last_.lock();
    if (!buffer || buffer->bytes() < bytes) {
      buffer = std::make_shared<Buffer>(device, bytes);
      last_ = buffer;  // steps that have the smaller one keep it
    }
    return buffer;
  }

 private:
  std::weak_ptr<Buffer> last_;
};

}  // namespace vit
