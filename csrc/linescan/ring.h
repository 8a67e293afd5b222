// The acquisition ring: one thread pushes lines, another takes views of them without copying.
//
// Lines lie in slots of mirrored memory, so that neighbours in time are neighbours in memory, also around the end.
// A line is free, unread, or lent (in a view); `capacity` bounds unread and lent together. Views may be released in
// any order and held for long: the producer passes over slots that are lent, and a view never spans such a seam.
// One mutex guards the bookkeeping; pixels are copied outside it, into slots that nobody else knows yet.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "mirrored_memory.h"

namespace stadfast::linescan {

enum class Overrun { block, drop_oldest, drop_newest };

// What is known of a line beside its pixels. `line` counts every line pushed, the lost ones too.
struct Stamp {
  int64_t line, timestamp, encoder;
};

// Slots [begin, begin + count), counted on and on: slot i lies at i modulo the number of slots.
struct Segment {
  int64_t begin, count;
};

// Lines [line, line + count) never reached the consumer.
struct Gap {
  int64_t line, count;
};

struct Counts {
  int64_t pushed, taken, lost, unread, lent;  // pushed = taken + lost + unread; lent: of those taken, still in views
};

// Polled while a call waits; true gives the call up. (Python's signals.)
using Interrupt = bool (*)();

class Ring {
 public:
  enum class Taken { lines, timeout, end, interrupted, all_lent, busy };
  static constexpr int64_t kClosed = -1, kBusy = -3, kInterrupted = -4;
  using Nanoseconds = std::chrono::nanoseconds;

  // Throws std::invalid_argument, std::system_error (no memory).
  Ring(int64_t line_bytes, int64_t capacity, Overrun policy);

  // See row_ring.h. pitch >= line_bytes. Returns the number of lines stored, kClosed,
  // kInterrupted, or kBusy: another thread is pushing.
  int64_t push(const uint8_t* pixels, int64_t lines, int64_t pitch, const int64_t* timestamps, const int64_t* encoder,
               Nanoseconds timeout, Interrupt interrupt = nullptr);
  void close();

  // Lend the oldest unread lines: `lines` of them, or fewer at the end of the stream, before a seam, or if no more
  // can come because the ring is full. `timeout` < 0 waits as long as it takes.
  Taken take(int64_t lines, Nanoseconds timeout, Segment* view, Interrupt interrupt = nullptr);
  void release(Segment view);  // by any thread

  // The gaps found up to the last line taken (after the end: all) since the last call; the newest kMaxGaps of them.
  static constexpr size_t kMaxGaps = 65536;
  std::vector<Gap> pop_gaps();

  Counts counts() const;
  bool closed() const;

  uint8_t* pixels(Segment view) const { return memory_.data() + view.begin % slots_ * stride_; }
  const Stamp* stamps(Segment view) const { return stamps_.data() + view.begin % slots_; }
  int64_t line_bytes() const { return line_bytes_; }
  int64_t stride() const { return stride_; }  // bytes from one line to the next: line_bytes, rounded up to 64

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Wait;

  int64_t room();  // slots that can be written side by side at head_, which may move on
  int64_t reserve(int64_t lines, Lock& lock, Wait& wait);  // > 0 slots at head_, or 0: the rest is lost
  bool full() const { return unread_count_ + lent_count_ == capacity_; }
  void drop_oldest(int64_t lines);
  void store(int64_t slot, int64_t lines, const uint8_t* pixels, int64_t pitch);
  void publish(int64_t lines);
  void note_gaps(Segment view);
  void note_gap(int64_t line, int64_t count);

  const int64_t line_bytes_, stride_, capacity_, slots_;
  const Overrun policy_;
  MirroredMemory memory_;
  std::vector<Stamp> stamps_;  // 2 * slots_: each written twice, for the same reason

  mutable std::mutex mutex_;
  std::condition_variable lines_came_, room_came_;
  std::deque<Segment> unread_;  // in the order of the lines
  std::vector<Segment> lent_;
  int64_t head_ = 0;                            // the next slot to write
  int64_t unread_count_ = 0, lent_count_ = 0;   // sums over the segments
  int64_t reserved_ = 0;                        // slots being written
  int64_t pushed_ = 0, taken_ = 0, lost_ = 0;   // lines
  int64_t expected_ = 0;                        // the line after the last one taken
  int64_t wanted_ = 0;                          // the lines that the consumer waits for
  int64_t overruns_ = 0, overruns_before_ = 0;  // times that the producer found no room; that, when a take began
  bool pushing_ = false, taking_ = false, producer_waits_ = false, closed_ = false;
  std::deque<Gap> gaps_;
};

}  // namespace stadfast::linescan
