#include "mirrored_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>

namespace stadfast::linescan {
namespace {

[[noreturn]] void fail(const char* what, int error) { throw std::system_error(error, std::generic_category(), what); }

// What the kernel thinks can be had without swapping; asked for more, it would end some process to find out.
size_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string key; file >> key; file.ignore(std::numeric_limits<std::streamsize>::max(), '\n')) {
    size_t kilobytes;
    if (key == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
  }
  return std::numeric_limits<size_t>::max();
}

}  // namespace

size_t MirroredMemory::page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

MirroredMemory::MirroredMemory(size_t bytes) : bytes_(bytes) {
  if (bytes > available_bytes()) fail("the ring's memory", ENOMEM);
  void* start = mmap(nullptr, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);  // addresses, side by side
  if (start == MAP_FAILED) fail("the ring's addresses", errno);
  data_ = static_cast<uint8_t*>(start);
  const int file = memfd_create("stadfast-ring", MFD_CLOEXEC);
  // Allocated now: a page that cannot be had must fail here, and not in the camera's callback.
  int error = file < 0 ? errno : posix_fallocate(file, 0, off_t(bytes));
  for (int copy = 0; copy < 2 && !error; ++copy)
    if (mmap(data_ + size_t(copy) * bytes, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file,
             0) == MAP_FAILED)
      error = errno;
  if (file >= 0) close(file);  // the mappings keep it
  if (error) {
    munmap(start, 2 * bytes);
    fail("the ring's memory", error);
  }
}

MirroredMemory::~MirroredMemory() { munmap(data_, 2 * bytes_); }

}  // namespace stadfast::linescan
