// Memory that lies twice in a row in the address space, so that a ring's wrap-around is no seam.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stadfast::linescan {

class MirroredMemory {
 public:
  // bytes: a multiple of page_bytes(). Byte i and byte i + bytes are the same. Throws std::system_error.
  explicit MirroredMemory(size_t bytes);
  ~MirroredMemory();
  MirroredMemory(const MirroredMemory&) = delete;
  MirroredMemory& operator=(const MirroredMemory&) = delete;

  uint8_t* data() const { return data_; }
  static size_t page_bytes();

 private:
  size_t bytes_;
  uint8_t* data_;
};

}  // namespace stadfast::linescan
