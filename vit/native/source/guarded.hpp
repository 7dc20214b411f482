// The border of the C interface: no exception crosses it, each leaves its words behind.
#pragma once

#include <exception>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <string>

namespace vit {

// The words of this thread's last error.
inline thread_local std::string last_error;

// Runs the function; returns 0, or 1 after an exception.
template <class Function>
int guarded(Function&& function) noexcept {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    last_error = "not enough memory; use smaller batches or images";
  } catch (const std::length_error&) {
    last_error = "not enough memory; use smaller batches or images";
  } catch (const dnnl::error& error) {
    last_error = std::string("oneDNN: ") + error.what();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an unknown error";
  }
  return 1;
}

}  // namespace vit
