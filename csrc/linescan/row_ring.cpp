#include "row_ring.h"

#include "ring.h"

using stadfast::linescan::Overrun;
using stadfast::linescan::Ring;

namespace {

Ring* cast(stadfast_ring* ring) { return reinterpret_cast<Ring*>(ring); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

stadfast_ring* stadfast_ring_create(int64_t line_bytes, int64_t capacity, int policy) {
  if (policy < STADFAST_RING_BLOCK || policy > STADFAST_RING_DROP_NEWEST) return nullptr;
  try {
    return reinterpret_cast<stadfast_ring*>(new Ring(line_bytes, capacity, Overrun(policy)));
  } catch (...) {  // nothing may leave C
    return nullptr;
  }
}

void stadfast_ring_destroy(stadfast_ring* ring) { delete cast(ring); }

int64_t stadfast_ring_push(stadfast_ring* ring, const void* pixels, int64_t lines, int64_t pitch,
                           const int64_t* timestamps, const int64_t* encoder, int64_t timeout_ns) {
  if (!ring || lines < 0 || (lines > 0 && !pixels)) return STADFAST_RING_BAD_ARGUMENT;
  if (pitch == 0) pitch = cast(ring)->line_bytes();
  if (pitch < cast(ring)->line_bytes()) return STADFAST_RING_BAD_ARGUMENT;
  try {
    return cast(ring)->push(static_cast<const uint8_t*>(pixels), lines, pitch, timestamps, encoder,
                            std::chrono::nanoseconds(timeout_ns));
  } catch (...) {
    return STADFAST_RING_NO_MEMORY;
  }
}

void stadfast_ring_close(stadfast_ring* ring) {
  if (ring) cast(ring)->close();
}

int64_t stadfast_ring_line_bytes(const stadfast_ring* ring) {
  return ring ? reinterpret_cast<const Ring*>(ring)->line_bytes() : 0;
}

}  // extern "C"
#pragma GCC visibility pop
