#include "data/decode.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <system_error>
#include <utility>

#ifdef PLACKET_JPEG
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "data/orientation.h"
// Needs size_t and FILE to be declared first.
#include <jerror.h>
#include <jpeglib.h>
#endif

namespace placket {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& cause) {
  throw std::runtime_error(path + ": " + cause);
}

// A call holds it shared, so that a change waits for the calls in progress.
std::shared_mutex fallback_mutex;

// Never destroyed: what it holds may belong to an interpreter that has ended by then.
DecodeFallback& fallback() {
  static auto* held = new DecodeFallback;
  return *held;
}

Image decode_by_fallback(const uint8_t* bytes, size_t size, const std::string& name,
                         Orientation orientation) {
  const std::shared_lock<std::shared_mutex> lock(fallback_mutex);
  const DecodeFallback& decode = fallback();
  if (!decode) {
#ifdef PLACKET_JPEG
    fail(name, "is not a JPEG file, and no decoder for other formats is set");
#else
    fail(name, "this build has no libjpeg-turbo, and no other decoder is set");
#endif
  }
  return decode(bytes, size, name, orientation);
}

#ifdef PLACKET_JPEG

// libjpeg reports errors by a callback that must not return: it jumps back to decode_scanlines or
// read_header, whose frames hold nothing with a destructor.
struct JpegDecoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX] = "";

  JpegDecoder() {
    info.err = jpeg_std_error(&errors);
    info.client_data = this;
    errors.error_exit = [](j_common_ptr any) { stop(any); };
    errors.emit_message = [](j_common_ptr any, int level) {
      if (level < 0 && !is_harmless(any->err->msg_code)) stop(any);
    };
    jpeg_create_decompress(&info);
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&info); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  // After these warnings the pixels are still those of the file; after any other they are made up.
  static bool is_harmless(int code) {
    return code == JWRN_ADOBE_XFORM || code == JWRN_JFIF_MAJOR || code == JWRN_TOO_MUCH_DATA;
  }

  [[noreturn]] static void stop(j_common_ptr any) {
    auto* decoder = static_cast<JpegDecoder*>(any->client_data);
    any->err->format_message(any, decoder->message);
    std::longjmp(decoder->on_error, 1);
  }
};

constexpr int kExifMarker = JPEG_APP0 + 1;

bool read_header(JpegDecoder& decoder, const uint8_t* bytes, size_t size) {
  if (setjmp(decoder.on_error) != 0) return false;
  jpeg_mem_src(&decoder.info, bytes, static_cast<unsigned long>(size));
  jpeg_save_markers(&decoder.info, kExifMarker, 0xffff);
  jpeg_read_header(&decoder.info, TRUE);
  const bool grey = decoder.info.num_components == 1;
  const bool four = decoder.info.num_components == 4;
  decoder.info.out_color_space = grey ? JCS_GRAYSCALE : four ? JCS_CMYK : JCS_RGB;
  return true;
}

// Has the decoder put out the columns [x0, x1) and what its blocks need beside them; returns the
// first. Smooth upsampling at a cut lacks the neighbours beyond it: hence a block on either side.
JDIMENSION cut_columns([[maybe_unused]] jpeg_decompress_struct& info, [[maybe_unused]] int64_t x0,
                       [[maybe_unused]] int64_t x1) {
  JDIMENSION first = 0;
#ifdef LIBJPEG_TURBO_VERSION_NUMBER
  const int64_t block = int64_t(info.max_h_samp_factor) * DCTSIZE;
  first = JDIMENSION(std::max<int64_t>(x0 - block, 0));
  auto count = JDIMENSION(std::min<int64_t>(x1 + block, info.output_width) - first);
  if (count < info.output_width) jpeg_crop_scanline(&info, &first, &count);
#endif
  return first;
}

void skip_rows([[maybe_unused]] jpeg_decompress_struct& info, [[maybe_unused]] int64_t count) {
#ifdef LIBJPEG_TURBO_VERSION_NUMBER
  if (count > 0) jpeg_skip_scanlines(&info, JDIMENSION(count));
#endif
}

// `part` lies inside the image and is not empty. `row` has room for one row of all components; RGB
// rows go straight to `out`.
bool decode_scanlines(JpegDecoder& decoder, const Box& part, uint8_t* row, uint8_t* out) {
  if (setjmp(decoder.on_error) != 0) return false;
  jpeg_start_decompress(&decoder.info);
  const int64_t image_row = int64_t(decoder.info.output_width) * 3;
  const int components = decoder.info.output_components;
  uint8_t* const first = out + int64_t(cut_columns(decoder.info, part[0], part[2])) * 3;
  const int64_t width = decoder.info.output_width;
  skip_rows(decoder.info, part[1]);
  while (decoder.info.output_scanline < decoder.info.output_height) {
    // The last row is read in any case: skipping it would leave the end of the file unread.
    if (decoder.info.output_scanline == part[3]) {
      skip_rows(decoder.info, int64_t(decoder.info.output_height) - part[3] - 1);
    }
    uint8_t* to = first + int64_t(decoder.info.output_scanline) * image_row;
    JSAMPROW target = components == 3 ? to : row;
    jpeg_read_scanlines(&decoder.info, &target, 1);
    if (components == 1) {
      for (int64_t x = 0; x < width; ++x) {
        to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = row[x];
      }
    } else if (components == 4) {
      for (int64_t x = 0; x < width; ++x) {
        // Stored inverted, so row[] is 255 - ink. Pillow rounds the product to 8 bits.
        const int light = row[4 * x + 3];
        for (int c = 0; c < 3; ++c) {
          const int product = (255 - row[4 * x + c]) * light + 128;
          to[3 * x + c] = uint8_t(light - (((product >> 8) + product) >> 8));
        }
      }
    }
  }
  jpeg_finish_decompress(&decoder.info);
  return true;
}

// Of the first EXIF block; after read_header.
int orientation_of(const JpegDecoder& decoder) {
  for (jpeg_saved_marker_ptr marker = decoder.info.marker_list; marker != nullptr;
       marker = marker->next) {
    const bool exif = marker->marker == kExifMarker && marker->data_length >= 6 &&
                      std::memcmp(marker->data, "Exif\0\0", 6) == 0;
    if (exif) return exif_orientation(marker->data, marker->data_length);
  }
  return 1;
}

// Where `box` is empty, one pixel.
Box inside(const Box& box, int64_t height, int64_t width) {
  const int64_t x0 = std::clamp<int64_t>(box[0], 0, width - 1);
  const int64_t y0 = std::clamp<int64_t>(box[1], 0, height - 1);
  return {x0, y0, std::clamp(box[2], x0 + 1, width), std::clamp(box[3], y0 + 1, height)};
}

Image decode_jpeg(const uint8_t* bytes, size_t size, const std::string& name,
                  Orientation orientation, const PartOf& part_of) {
  JpegDecoder decoder;
  const auto damaged = [&] { fail(name, std::string("damaged JPEG: ") + decoder.message); };
  if (!read_header(decoder, bytes, size)) damaged();
  // Markers do not outlive decoding.
  const int turned = orientation == Orientation::kApply ? orientation_of(decoder) : 1;
  Image image;
  image.height = decoder.info.image_height;
  image.width = decoder.info.image_width;
  const int components = decoder.info.num_components;
  if (components == 2) fail(name, "JPEG must have 1, 3 or 4 components, got 2");
  if (image.height * image.width > kMaxPixels) {
    fail(name, "image must have at most " + std::to_string(kMaxPixels) + " pixels, got " +
                   std::to_string(image.width) + " x " + std::to_string(image.height));
  }
  Box part{0, 0, image.width, image.height};
  if (part_of) {
    const Box read =
        turned < 5 ? part_of(image.height, image.width) : part_of(image.width, image.height);
    // Of a file in several scans some may be missing; libjpeg then smooths over blocks further off
    // than cut_columns keeps.
    const bool several_scans = jpeg_has_multiple_scans(&decoder.info) != 0;
    if (turned == 1 && !several_scans) part = inside(read, image.height, image.width);
  }
  image.pixels.resize(size_t(image.height * image.width * 3));
  Bytes row(components == 3 ? 0 : size_t(image.width * components));
  if (!decode_scanlines(decoder, part, row.data(), image.pixels.data())) damaged();
  return upright(std::move(image), turned);
}

#endif

}  // namespace

Bytes read_file(const std::string& path) {
  const auto fail_by_system = [&] { fail(path, std::generic_category().message(errno)); };
  struct File {
    int descriptor;
    ~File() { ::close(descriptor); }
  };
  int descriptor;
  do {
    // O_NONBLOCK: a pipe would wait for a writer.
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) fail_by_system();
  const File file{descriptor};
  struct stat status;
  if (::fstat(file.descriptor, &status) != 0) fail_by_system();
  if (!S_ISREG(status.st_mode)) fail(path, "is not a file");
  Bytes bytes(size_t(status.st_size));
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t count = ::read(file.descriptor, bytes.data() + filled, bytes.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_by_system();
    if (count == 0) break;
    filled += size_t(count);
  }
  bytes.resize(filled);
  if (bytes.empty()) fail(path, "file is empty");
  return bytes;
}

Image decode_bytes(const uint8_t* bytes, size_t size, const std::string& name,
                   Orientation orientation, const PartOf& part) {
#ifdef PLACKET_JPEG
  if (size >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) {
    return decode_jpeg(bytes, size, name, orientation, part);
  }
#endif
  Image image = decode_by_fallback(bytes, size, name, orientation);
  if (part) part(image.height, image.width);
  return image;
}

Image decode_file(const std::string& path, Orientation orientation, const PartOf& part) {
  const Bytes bytes = read_file(path);
  return decode_bytes(bytes.data(), bytes.size(), path, orientation, part);
}

void set_decode_fallback(DecodeFallback decode) {
  const std::lock_guard<std::shared_mutex> lock(fallback_mutex);
  fallback().swap(decode);
}

}  // namespace placket
