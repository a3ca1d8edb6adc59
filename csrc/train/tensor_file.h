#pragma once

#include <map>
#include <string>

#include "train/named_tensors.h"

namespace placket {

// A file in the safetensors format (github.com/huggingface/safetensors): eight bytes with the
// header's length, a JSON header with dtype, shape and place of every tensor, the tensors' bytes.
struct TensorFile {
  NamedTensors tensors;  // on the CPU when read
  std::map<std::string, std::string> metadata;
};

// Writes beside the path, flushes to the disk and renames, so that the path holds the old file or
// the whole new one whatever happens; a full disk throws and leaves the old file. Tensors of any
// device and layout; saved row-major.
void write_tensor_file(const std::string& path, const TensorFile& file);

// Reads strictly: a file that is cut off, whose header does not parse, or whose tensors do not fill
// it exactly throws std::runtime_error "<path>: <cause>".
TensorFile read_tensor_file(const std::string& path);

// The same care for a text.
void write_text_file(const std::string& path, const std::string& text);

}  // namespace placket
