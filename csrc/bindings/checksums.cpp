#include "bindings/checksums.h"

#include <c10/util/Exception.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <memory>

#include "base/crc32.h"
#include "base/parallel.h"

namespace py = pybind11;

namespace placket {
namespace {

py::array_t<uint32_t> checksums(const py::buffer& buffer, int64_t block_bytes) {
  TORCH_CHECK_VALUE(block_bytes > 0, "checksums: block_bytes must be positive, got ", block_bytes);
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, void (*)(Py_buffer*)> held(&view, PyBuffer_Release);
  const auto* bytes = static_cast<const uint8_t*>(view.buf);
  const int64_t length = view.len;
  py::array_t<uint32_t> result(py::ssize_t((length + block_bytes - 1) / block_bytes));
  uint32_t* sums = result.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    constexpr int64_t kThreadBytes = 1 << 18;
    parallel_for(0, result.size(), kThreadBytes / block_bytes, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i * block_bytes;
        sums[i] = crc32(bytes + begin, size_t(std::min(block_bytes, length - begin)));
      }
    });
  }
  return result;
}

}  // namespace

void bind_checksums(py::module_& m) {
  m.def("checksums", &checksums, py::arg("buffer"), py::arg("block_bytes"),
        "Return zlib's CRC-32 of each block of a contiguous buffer, the last one shorter, uint32.");
}

}  // namespace placket
