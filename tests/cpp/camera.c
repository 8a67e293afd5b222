/* A camera's callback in C: row_ring.h needs no C++. Lines carry their number in their first eight bytes. */
#include <string.h>

#include "../../csrc/linescan/row_ring.h"

enum { LINE = 96, PITCH = 100, MOST = 20 };

/* Push lines [0, total) in parts of changing size; how many were stored, or -1 if the ring said something wrong. */
int64_t deliver(stadfast_ring* ring, int64_t total) {
  uint8_t pixels[MOST * PITCH];
  int64_t timestamps[MOST], encoder[MOST], first = 0, stored = 0;
  uint32_t random = 1;
  if (stadfast_ring_line_bytes(ring) != LINE) return -1;
  while (first < total) {
    int64_t i, count, done;
    random = random * 1664525u + 1013904223u;
    count = 1 + (random >> 16) % MOST;
    if (count > total - first) count = total - first;
    for (i = 0; i < count; ++i) {
      const int64_t line = first + i;
      memset(pixels + i * PITCH, (int)(line % 251), PITCH);
      memcpy(pixels + i * PITCH, &line, sizeof line);
      timestamps[i] = line * 10;
      encoder[i] = line * 3;
    }
    done = stadfast_ring_push(ring, pixels, count, PITCH, timestamps, encoder, -1);
    if (done < 0 || done > count) return -1;
    stored += done;
    first += count;
  }
  stadfast_ring_close(ring);
  if (stadfast_ring_push(ring, pixels, 1, 0, 0, 0, 0) != STADFAST_RING_CLOSED) return -1;
  return stored;
}
