#include "bindings/images.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

#include "base/interrupt.h"
#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "data/decode.h"
#include "data/image_list.h"
#include "data/mask.h"
#include "data/picture.h"
#include "data/resident.h"
#include "data/store.h"
#include "data/text_column.h"

namespace py = pybind11;

namespace placket {
namespace {

// File names may hold bytes that are no UTF-8; Python writes such a byte as a lone surrogate.
constexpr const char* kErrors = "surrogateescape";

std::string encode(const py::handle& text) {
  const auto bytes =
      py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(text.ptr(), "utf-8", kErrors));
  if (!bytes) throw py::error_already_set();
  return bytes.cast<std::string>();
}

py::str decode_text(std::string_view text) {
  auto decoded = py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), py::ssize_t(text.size()), kErrors));
  if (!decoded) throw py::error_already_set();
  return decoded;
}

// Messages name files, whose names may hold such bytes; pybind11 takes messages for UTF-8.
void translate_error(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const std::runtime_error& error) {
    if (typeid(error) != typeid(std::runtime_error)) throw;
    PyErr_SetObject(PyExc_RuntimeError, decode_text(error.what()).ptr());
  }
}

std::shared_ptr<TextColumn> make_text_column(const py::iterable& texts) {
  auto column = std::make_shared<TextColumn>();
  for (const py::handle& text : texts) column->append(encode(text));
  column->shrink_to_fit();
  return column;
}

std::shared_ptr<ImageList> make_image_list(std::shared_ptr<TextColumn> filenames,
                                           const std::optional<Array<int64_t>>& boxes,
                                           const py::str& root, std::shared_ptr<Store> store,
                                           std::vector<int64_t> records,
                                           std::shared_ptr<ResidentPixels> resident,
                                           std::shared_ptr<MaskColumn> masks) {
  auto list = std::make_shared<ImageList>();
  list->root = encode(root);
  list->filenames = std::move(filenames);
  list->store = std::move(store);
  list->records = std::move(records);
  list->resident = std::move(resident);
  list->masks = std::move(masks);
  if (boxes.has_value()) {
    TORCH_CHECK_VALUE(
        boxes->ndim() == 2 && boxes->shape(1) == 4 && boxes->shape(0) == py::ssize_t(list->size()),
        "ImageList: boxes must have shape [", list->size(), ", 4], got ",
        boxes->ndim() == 2
            ? std::to_string(boxes->shape(0)) + " x " + std::to_string(boxes->shape(1))
            : std::to_string(boxes->ndim()) + " dimensions");
    for (py::ssize_t i = 0; i < boxes->shape(0); ++i) {
      list->boxes.push_back({boxes->at(i, 0), boxes->at(i, 1), boxes->at(i, 2), boxes->at(i, 3)});
    }
  }
  check_images("ImageList", *list);
  return list;
}

int64_t checked(const char* user, int64_t i, int64_t size) {
  TORCH_CHECK_INDEX(i >= 0 && i < size, user, ": number must be in [0, ", size, "), got ", i);
  return i;
}

py::array_t<uint8_t> decode_image(const ImageList& images, int64_t image, bool upright) {
  checked("ImageList", image, images.size());
  const auto loaded = [&] {
    const py::gil_scoped_release no_gil;
    return images.load(image, upright ? Orientation::kApply : Orientation::kIgnore);
  }();
  return pixels_of(loaded.view);
}

// `decode(bytes, upright)` returns [height, width, 3] uint8 and raises OSError with the cause.
void set_fallback(const py::object& decode) {
  DecodeFallback fallback;
  if (!decode.is_none()) {
    fallback = [held = hold(decode)](const uint8_t* bytes, size_t size, const std::string& name,
                                     Orientation orientation) {
      const py::gil_scoped_acquire gil;
      try {
        const bool upright = orientation == Orientation::kApply;
        const auto file = py::bytes(reinterpret_cast<const char*>(bytes), size);
        return image_of(py::cast<Array<uint8_t>>((*held)(file, upright)));
      } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;  // KeyboardInterrupt keeps its type
        throw std::runtime_error(name + ": " + py::str(error.value()).cast<std::string>());
      }
    };
  }
  const py::gil_scoped_release no_gil;
  set_decode_fallback(std::move(fallback));
}

py::array_t<uint8_t> decode_path(const py::str& path, bool upright,
                                 const std::optional<Box>& part) {
  const std::string encoded = encode(path);
  Image image;
  {
    const py::gil_scoped_release no_gil;
    const auto check = [&](int64_t height, int64_t width) {
      const auto [x0, y0, x1, y1] = *part;
      TORCH_CHECK_VALUE(0 <= x0 && x0 < x1 && x1 <= width && 0 <= y0 && y0 < y1 && y1 <= height,
                        "decode_file: part must lie in the image of ", width, " x ", height,
                        " pixels, got [", x0, ", ", y0, ", ", x1, ", ", y1, "]");
      return *part;
    };
    image = decode_file(encoded, upright ? Orientation::kApply : Orientation::kIgnore,
                        part.has_value() ? PartOf(check) : PartOf());
    if (part.has_value()) {
      image = cut_picture(image,
                          {.x0 = (*part)[0], .y0 = (*part)[1], .x1 = (*part)[2], .y1 = (*part)[3]});
    }
  }
  return pixels_of(image);
}

py::array_t<uint8_t> decode_mask_path(const py::str& path, bool upright) {
  const std::string encoded = encode(path);
  const MaskPicture picture = [&] {
    const py::gil_scoped_release no_gil;
    return decode_mask(encoded, upright ? Orientation::kApply : Orientation::kIgnore);
  }();
  return py::array_t<uint8_t>({picture.height, picture.width}, picture.pixels.data());
}

py::bytes read_path(const py::str& path) {
  const std::string encoded = encode(path);
  Bytes bytes;
  {
    const py::gil_scoped_release no_gil;
    bytes = read_file(encoded);
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Rows of sizes as [n, 4] int64.
template <class Records>
py::array_t<int64_t> sizes_of(const Records& records) {
  py::array_t<int64_t> sizes({py::ssize_t(records.size()), py::ssize_t(4)});
  int64_t* out = sizes.mutable_data();
  for (int64_t i = 0; i < records.size(); ++i) {
    const StoreRecord& record = records.record(i);
    for (const uint32_t side :
         {record.height, record.width, record.source_height, record.source_width}) {
      *out++ = side;
    }
  }
  return sizes;
}

std::unique_ptr<StoreWriter> make_store_writer(const py::str& path, StoreKind kind,
                                               const py::bytes& fingerprint) {
  const auto bytes = fingerprint.cast<std::string>();
  StoreWriter::Fingerprint print;
  TORCH_CHECK_VALUE(bytes.size() == print.size(), "StoreWriter: fingerprint must have ",
                    print.size(), " bytes, got ", bytes.size());
  std::copy(bytes.begin(), bytes.end(), print.begin());
  const std::string encoded = encode(path);
  const py::gil_scoped_release no_gil;  // a partial file is read once
  return std::make_unique<StoreWriter>(encoded, kind, print);
}

void append_file(StoreWriter& writer, const py::bytes& file) {
  const auto bytes = std::string_view(file);
  const py::gil_scoped_release no_gil;
  writer.append(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

void append_pixels(StoreWriter& writer, const Array<uint8_t>& pixels,
                   std::pair<uint32_t, uint32_t> source_size) {
  TORCH_CHECK_VALUE(pixels.ndim() == 3 && pixels.shape(2) == 3 && pixels.size() > 0,
                    "StoreWriter: pixels must have shape [height, width, 3], got ", pixels.ndim(),
                    " dimensions and ", pixels.size(), " elements");
  StoreRecord about;
  about.height = uint32_t(pixels.shape(0));
  about.width = uint32_t(pixels.shape(1));
  about.source_height = source_size.first;
  about.source_width = source_size.second;
  const uint8_t* bytes = pixels.data();
  const auto length = size_t(pixels.size());
  const py::gil_scoped_release no_gil;
  writer.append(bytes, length, about);
}

// The picture of a file with its short side at most `size`, and its height and width before.
std::pair<py::array_t<uint8_t>, std::pair<int64_t, int64_t>> shrink_path(const py::str& path,
                                                                         int64_t size,
                                                                         bool upright) {
  const std::string encoded = encode(path);
  Image image, small;
  {
    const py::gil_scoped_release no_gil;
    image = decode_file(encoded, upright ? Orientation::kApply : Orientation::kIgnore);
    small = shrink(image, size);
  }
  return {pixels_of(small), {image.height, image.width}};
}

}  // namespace

void bind_images(py::module_& m) {
  using py::arg;

  py::register_local_exception_translator(&translate_error);

  py::class_<TextColumn, std::shared_ptr<TextColumn>>(
      m, "TextColumn", "Many short strings in one block; placket.data.Texts is made of it.")
      .def(py::init(&make_text_column), arg("texts"))
      .def_static(
          "of",
          [](const Array<uint8_t>& bytes, const Array<uint32_t>& ends) {
            const auto* text = reinterpret_cast<const char*>(bytes.data());
            return TextColumn({text, text + bytes.size()}, to_vector(ends));
          },
          arg("bytes"), arg("ends"))
      .def_property_readonly("bytes",
                             [](const TextColumn& column) {
                               const std::vector<char>& bytes = column.bytes();
                               return py::array_t<uint8_t>(
                                   py::ssize_t(bytes.size()),
                                   reinterpret_cast<const uint8_t*>(bytes.data()));
                             })
      .def_property_readonly("ends",
                             [](const TextColumn& column) { return to_array(column.ends()); })
      .def("__len__", &TextColumn::size)
      .def(
          "append", [](TextColumn& column, const py::str& text) { column.append(encode(text)); },
          arg("text"))
      .def(
          "__getitem__",
          [](const TextColumn& column, int64_t i) {
            return decode_text(column[checked("TextColumn", i, column.size())]);
          },
          arg("i"));

  py::enum_<StoreKind>(m, "StoreKind")
      .value("FILES", StoreKind::kFiles)
      .value("UPRIGHT_PIXELS", StoreKind::kUprightPixels)
      .value("STORED_PIXELS", StoreKind::kStoredPixels);

  py::class_<Store, std::shared_ptr<Store>>(
      m, "Store", "A data set in one file, mapped for reading; csrc/data/store.h has the format.")
      .def(py::init([](const py::str& path) {
             const std::string encoded = encode(path);
             const py::gil_scoped_release no_gil;
             return std::make_shared<Store>(encoded);
           }),
           arg("path"))
      .def("__len__", &Store::size)
      .def_property_readonly("kind", &Store::kind)
      .def_property_readonly("metadata", [](const Store& s) { return py::bytes(s.metadata()); })
      .def_property_readonly("sizes", &sizes_of<Store>,
                             "[n, 4] int64: height, width, and both before pixels were made "
                             "smaller; zeros for files.")
      .def(
          "is_intact",
          [](const Store& store, int64_t i) {
            checked("Store", i, store.size());
            const py::gil_scoped_release no_gil;
            return store.is_intact(i);
          },
          arg("i"), "Whether a record's bytes are those that were packed.");

  py::class_<ResidentPixels, std::shared_ptr<ResidentPixels>>(
      m, "ResidentPixels", "The pixels of a whole store in a device's memory.")
      .def(py::init([](std::shared_ptr<Store> store, at::Device device) {
             const py::gil_scoped_release no_gil;
             const InterruptionScope interruption(&check_signals);
             return std::make_shared<ResidentPixels>(make_resident(std::move(store), device));
           }),
           arg("store"), arg("device"))
      .def_readonly("pixels", &ResidentPixels::pixels,
                    "[bytes] uint8, the records' [height, width, 3] one after another.");

  py::class_<StoreWriter>(
      m, "StoreWriter",
      "Writes <path>.partial, which finish() renames; goes on where one of the same kind and "
      "fingerprint is there, its records counted by len().")
      .def(py::init(&make_store_writer), arg("path"), arg("kind"), arg("fingerprint"))
      .def("__len__", &StoreWriter::size)
      .def_property_readonly("sizes", &sizes_of<StoreWriter>)
      .def("append_file", &append_file, arg("file"))
      .def("append_pixels", &append_pixels, arg("pixels"), arg("source_size"))
      .def(
          "finish",
          [](StoreWriter& writer, const py::bytes& metadata) {
            const auto bytes = std::string_view(metadata);
            const py::gil_scoped_release no_gil;
            writer.finish(bytes);
          },
          arg("metadata"));

  py::class_<MaskColumn, std::shared_ptr<MaskColumn>>(
      m, "MaskColumn",
      "Which pixels of its image each row shows: those of a grey PNG of 8 bits that hold the row's "
      "number, as their value, or with `bits` as that bit.")
      .def(py::init(
               [](std::shared_ptr<TextColumn> filenames, const Array<uint8_t>& numbers, bool bits) {
                 auto masks = std::make_shared<MaskColumn>(
                     MaskColumn{std::move(filenames), to_vector(numbers), bits});
                 check_masks("MaskColumn", *masks);
                 return masks;
               }),
           arg("filenames"), arg("numbers"), arg("bits") = false)
      .def("__len__", &MaskColumn::size);

  py::class_<ImageList, std::shared_ptr<ImageList>>(
      m, "ImageList",
      "Images for the loader: file names below a folder, or records of a store, whose pixels may "
      "be "
      "resident on a device; boxes [n, 4].")
      .def(py::init(&make_image_list), arg("filenames"), arg("boxes") = py::none(), py::kw_only(),
           arg("root"), arg("store") = py::none(), arg("records") = std::vector<int64_t>(),
           arg("resident") = py::none(), arg("masks") = py::none())
      .def("__len__", &ImageList::size)
      .def(
          "path",
          [](const ImageList& images, int64_t image) {
            return decode_text(images.path(checked("ImageList", image, images.size())));
          },
          arg("image"))
      .def("decode", &decode_image, arg("image"), arg("upright") = true,
           "Return the pixels of an image, [height, width, 3] uint8.");

  m.def("decode_file", &decode_path, arg("path"), arg("upright") = true, arg("part") = py::none());
  m.def("decode_mask", &decode_mask_path, arg("path"), arg("upright") = true,
        "Return the numbers of a grey PNG of 8 bits, [height, width] uint8.");
  m.def("read_file", &read_path, arg("path"));
  m.def("shrink_file", &shrink_path, arg("path"), arg("size"), arg("upright") = true,
        "Decode a file and bring its short side to at most `size`; return [height, width, 3] uint8 "
        "and the height and width before.");
  m.def("set_decode_fallback", &set_fallback, arg("decode").none(true));
  m.attr("MAX_PIXELS") = kMaxPixels;
}

}  // namespace placket
