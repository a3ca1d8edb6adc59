#include "bindings/text.h"

#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include "data/bpe_tokenizer.h"

namespace py = pybind11;

namespace placket {
namespace {

// The UTF-8 of a string, which lives as long as the string.
std::string_view utf8(const py::handle& text) {
  if (!PyUnicode_Check(text.ptr())) {
    throw py::type_error("BpeTokenizer: text must be a str, got " +
                         py::repr(text).cast<std::string>());
  }
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (bytes == nullptr) throw py::error_already_set();
  return {bytes, size_t(size)};
}

}  // namespace

void bind_text(py::module_& m) {
  py::class_<BpeTokenizer, std::shared_ptr<BpeTokenizer>>(m, "BpeTokenizer")
      .def(py::init([](const py::str& merges) {
             const std::string_view lines = utf8(merges);
             const py::gil_scoped_release no_gil;
             return std::make_shared<BpeTokenizer>(lines);
           }),
           py::arg("merges"))
      .def_property_readonly("size", &BpeTokenizer::size)
      .def_property_readonly("start", &BpeTokenizer::start)
      .def_property_readonly("end", &BpeTokenizer::end)
      .def(
          "encode",
          [](const BpeTokenizer& tokenizer, const py::str& text) {
            const std::string_view bytes = utf8(text);
            const py::gil_scoped_release no_gil;
            return tokenizer.encode(bytes, std::numeric_limits<size_t>::max());
          },
          py::arg("text"))
      .def(
          "encode_rows",
          [](const BpeTokenizer& tokenizer, const py::tuple& texts, int64_t length) {
            std::vector<std::string_view> views;
            views.reserve(texts.size());
            for (const py::handle& text : texts) views.push_back(utf8(text));
            const py::gil_scoped_release no_gil;
            return tokenizer.encode_rows(views, length);
          },
          py::arg("texts"), py::arg("length"))
      .def(
          "decode",
          [](const BpeTokenizer& tokenizer, const std::vector<int64_t>& ids) {
            return py::bytes(tokenizer.decode(ids));
          },
          py::arg("ids"));
}

}  // namespace placket
