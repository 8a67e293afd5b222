/* The camera's side of stadfast's acquisition ring, for C and C++: what a camera SDK's callback calls, on its own
 * thread, without Python.
 *
 * The ring is made in Python (stadfast.linescan.RowRing); its `handle` is the address taken here, valid as long as the
 * Python object. The functions are found by name in the library that RowRing.library() names (dlopen, ctypes); a
 * program without Python compiles ring.cpp, row_ring.cpp and mirrored_memory.cpp into itself. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct stadfast_ring stadfast_ring;

enum {
  STADFAST_RING_CLOSED = -1,
  STADFAST_RING_BAD_ARGUMENT = -2,
  STADFAST_RING_BUSY = -3,
  STADFAST_RING_NO_MEMORY = -5
};
enum { STADFAST_RING_BLOCK = 0, STADFAST_RING_DROP_OLDEST = 1, STADFAST_RING_DROP_NEWEST = 2 }; /* overrun policies */

/* A ring of `capacity` lines of `line_bytes` each, for programs without Python; NULL where memory is short or an
 * argument impossible. */
stadfast_ring* stadfast_ring_create(int64_t line_bytes, int64_t capacity, int policy);

/* Only for rings of stadfast_ring_create, and only when nobody uses them any more. */
void stadfast_ring_destroy(stadfast_ring* ring);

/* Copy `lines` lines into the ring. One thread pushes.
 *   pixels      the first line
 *   pitch       bytes from one line to the next, at least the line's; 0: they lie side by side
 *   timestamps  one for each line (nanoseconds, of any clock); NULL: the monotonic clock, now, for all
 *   encoder     one count for each line; NULL: the line's number
 *   timeout_ns  how long the policy `block` waits for room, in all; negative: as long as it takes
 * Returns the number of lines stored: fewer than `lines` where the policy dropped the rest (drop newest), the time
 * was up or the ring was closed meanwhile (block). Lines that are not stored are counted as lost, with their numbers.
 * STADFAST_RING_CLOSED: it was closed before; STADFAST_RING_BAD_ARGUMENT: no ring, no pixels, a count below 0, or a
 * pitch shorter than a line; STADFAST_RING_BUSY: another thread is pushing; STADFAST_RING_NO_MEMORY: for the ring's
 * bookkeeping (lines that are not stored are lost then, too). */
int64_t stadfast_ring_push(stadfast_ring* ring, const void* pixels, int64_t lines, int64_t pitch,
                           const int64_t* timestamps, const int64_t* encoder, int64_t timeout_ns);

/* The end of the stream, from any thread: what is in the ring can still be taken; nothing more can be pushed. */
void stadfast_ring_close(stadfast_ring* ring);

int64_t stadfast_ring_line_bytes(const stadfast_ring* ring);

#ifdef __cplusplus
}
#endif
