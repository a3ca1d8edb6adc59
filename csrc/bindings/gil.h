#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <utility>

namespace placket {

// Deletes without the GIL: for objects whose threads may need it to end.
struct WithoutGil {
  template <class T>
  void operator()(T* object) const {
    const pybind11::gil_scoped_release no_gil;
    delete object;
  }
};

// Python's signal handlers, among them Ctrl-C's, run here; outside the main thread it does nothing.
inline void check_signals() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// A Python object that C++ holds and whose last copy may die in a thread without the GIL.
inline std::shared_ptr<pybind11::object> hold(pybind11::object object) {
  return {new pybind11::object(std::move(object)), [](pybind11::object* held) {
            const pybind11::gil_scoped_acquire gil;
            delete held;
          }};
}

}  // namespace placket
