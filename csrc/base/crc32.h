#pragma once

#include <cstddef>
#include <cstdint>

namespace placket {

// The CRC-32 of zlib, gzip and PNG, by carry-less multiplication where the processor has it.
uint32_t crc32(const void* data, size_t length);

}  // namespace placket
