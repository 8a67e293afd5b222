#include "ring.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace stadfast::linescan {
namespace {

constexpr int64_t kAlignment = 64;  // of a line: a cache line, and few slots to a multiple of the page
constexpr int64_t kMaxBytes = int64_t(1) << 40;
constexpr std::chrono::milliseconds kPoll(50);  // how often a waiting call looks at its Interrupt

// Monotonic, except under gcc's thread sanitizer, which does not know the call that waits on that clock.
#ifdef __SANITIZE_THREAD__
using Clock = std::chrono::system_clock;
#else
using Clock = std::chrono::steady_clock;
#endif

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t checked_line(int64_t line_bytes, int64_t capacity) {
  if (line_bytes <= 0 || capacity <= 0 || line_bytes > kMaxBytes / 2 || capacity > kMaxBytes / 2 / line_bytes)
    throw std::invalid_argument("line_bytes and capacity: expected positive numbers below 2^39 together");
  return line_bytes;
}

// As many as make whole pages: the logical capacity stays what was asked for.
int64_t slots_for(int64_t capacity, int64_t stride) {
  const int64_t page = int64_t(MirroredMemory::page_bytes());
  return round_up(capacity, page / std::gcd(page, stride));
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

// One deadline for all the waiting of a call.
struct Ring::Wait {
  enum class Result { ready, timeout, interrupted };

  Wait(Nanoseconds timeout, Interrupt interrupt) : forever(timeout.count() < 0), interrupt(interrupt) {
    // A time beyond what the clock counts is for ever, too.
    const auto start = Clock::now();
    if (!forever && timeout > std::chrono::hours(24 * 365 * 100)) forever = true;
    if (!forever) deadline = start + std::chrono::duration_cast<Clock::duration>(timeout);
  }

  template <class Ready>
  Result until(Lock& lock, std::condition_variable& condition, Ready ready) {
    while (!ready()) {
      const auto now = Clock::now();
      if (!forever && now >= deadline) return Result::timeout;
      if (forever && !interrupt) {
        condition.wait(lock);
        continue;
      }
      auto end = now + (interrupt ? Clock::duration(kPoll) : Clock::duration(std::chrono::hours(1)));
      if (!forever) end = std::min(end, deadline);
      condition.wait_until(lock, end);
      if (!interrupt || ready()) continue;
      lock.unlock();
      interrupted = interrupt();
      lock.lock();
      if (interrupted) return Result::interrupted;
    }
    return Result::ready;
  }

  bool forever;
  Interrupt interrupt;
  Clock::time_point deadline{};
  bool interrupted = false;
};

Ring::Ring(int64_t line_bytes, int64_t capacity, Overrun policy)
    : line_bytes_(checked_line(line_bytes, capacity)),
      stride_(round_up(line_bytes, kAlignment)),
      capacity_(capacity),
      slots_(slots_for(capacity, stride_)),
      policy_(policy),
      memory_(size_t(slots_ * stride_)),
      stamps_(size_t(2 * slots_)) {}

// ---- the producer

int64_t Ring::push(const uint8_t* pixels, int64_t lines, int64_t pitch, const int64_t* timestamps,
                   const int64_t* encoder, Nanoseconds timeout, Interrupt interrupt) {
  Wait wait(timeout, interrupt);
  const int64_t now = timestamps ? 0 : now_ns();
  int64_t done = 0;
  Lock lock(mutex_);
  if (closed_) return kClosed;
  if (pushing_) return kBusy;
  pushing_ = true;
  const auto finish = [&] {  // what has not been stored is lost
    pushed_ += lines - done;
    lost_ += lines - done;
    pushing_ = false;
    if (closed_) lines_came_.notify_one();
  };
  const int64_t first_line = pushed_;
  try {
    while (done < lines) {
      const int64_t count = reserve(lines - done, lock, wait);
      if (count == 0) break;
      const int64_t slot = head_;
      reserved_ = count;
      lock.unlock();
      store(slot, count, pixels + done * pitch, pitch);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t k = done + i, line = first_line + k;
        const Stamp stamp{line, timestamps ? timestamps[k] : now, encoder ? encoder[k] : line};
        const int64_t at = (slot + i) % slots_;
        stamps_[size_t(at)] = stamps_[size_t(at + slots_)] = stamp;
      }
      lock.lock();
      reserved_ = 0;
      publish(count);
      done += count;
    }
  } catch (...) {  // no memory for the bookkeeping
    finish();
    throw;
  }
  finish();
  return wait.interrupted ? kInterrupted : done;
}

int64_t Ring::reserve(int64_t lines, Lock& lock, Wait& wait) {
  while (!closed_) {
    if (const int64_t free = room()) return std::min(free, lines);
    ++overruns_;
    lines_came_.notify_one();  // a consumer that waits for more than can come
    if (policy_ == Overrun::drop_oldest && unread_count_ > 0) {
      drop_oldest(lines);
      continue;
    }
    if (policy_ != Overrun::block) return 0;
    producer_waits_ = true;
    const auto result = wait.until(lock, room_came_, [this] { return closed_ || room() > 0; });
    producer_waits_ = false;
    if (result != Wait::Result::ready) return 0;
  }
  return 0;
}

int64_t Ring::room() {
  const int64_t left = capacity_ - unread_count_ - lent_count_;
  // What lies ahead of head_ is of the last lap, oldest first.
  const auto distance = [this](const Segment& s) { return ((s.begin - head_) % slots_ + slots_) % slots_; };
  for (bool moved = true; left > 0 && moved;) {
    int64_t free = slots_;
    for (const Segment& s : unread_) free = std::min(free, distance(s));
    moved = false;
    for (const Segment& s : lent_) {
      const int64_t ahead = distance(s);
      if (ahead == 0) {
        head_ += s.count;
        moved = true;
        break;
      }
      free = std::min(free, ahead);
    }
    if (!moved) return std::min(left, free);
  }
  return 0;
}

void Ring::drop_oldest(int64_t lines) {
  lines = std::min(lines, unread_count_);
  unread_count_ -= lines;
  lost_ += lines;
  while (lines > 0) {
    Segment& front = unread_.front();
    const int64_t count = std::min(lines, front.count);
    front.begin += count;
    front.count -= count;
    lines -= count;
    if (front.count == 0) unread_.pop_front();
  }
}

void Ring::store(int64_t slot, int64_t lines, const uint8_t* pixels, int64_t pitch) {
  uint8_t* to = memory_.data() + slot % slots_ * stride_;
  if (pitch == stride_ && line_bytes_ == stride_) {
    std::memcpy(to, pixels, size_t(lines * stride_));
    return;
  }
  for (int64_t i = 0; i < lines; ++i) std::memcpy(to + i * stride_, pixels + i * pitch, size_t(line_bytes_));
}

void Ring::publish(int64_t lines) {
  if (!unread_.empty() && unread_.back().begin + unread_.back().count == head_)
    unread_.back().count += lines;
  else
    unread_.push_back({head_, lines});
  head_ += lines;
  unread_count_ += lines;
  pushed_ += lines;
  if (wanted_ > 0 &&
      (unread_.front().count >= wanted_ || unread_.size() > 1 || full() || overruns_ != overruns_before_))
    lines_came_.notify_one();
}

void Ring::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  lines_came_.notify_all();
  room_came_.notify_all();
}

// ---- the consumer

Ring::Taken Ring::take(int64_t lines, Nanoseconds timeout, Segment* view, Interrupt interrupt) {
  Wait wait(timeout, interrupt);
  Lock lock(mutex_);
  if (taking_) return Taken::busy;
  taking_ = true;
  overruns_before_ = overruns_;
  wanted_ = lines;
  const auto result = wait.until(lock, lines_came_, [&] {
    if (closed_) return !pushing_;  // what is being pushed still comes
    if (lent_count_ == capacity_) return true;
    if (unread_.empty() || reserved_ > 0) return !unread_.empty() && unread_.front().count >= lines;
    return unread_.front().count >= lines || unread_.size() > 1 || full() || producer_waits_ ||
           overruns_ != overruns_before_;
  });
  wanted_ = 0;
  taking_ = false;
  if (result == Wait::Result::timeout) return Taken::timeout;
  if (result == Wait::Result::interrupted) return Taken::interrupted;
  if (unread_.empty()) {
    if (!closed_) return Taken::all_lent;
    note_gap(expected_, pushed_ - expected_);
    expected_ = pushed_;
    return Taken::end;
  }
  Segment& front = unread_.front();
  *view = {front.begin, std::min(lines, front.count)};
  lent_.push_back(*view);  // first, as it may find no memory
  front.begin += view->count;
  front.count -= view->count;
  if (front.count == 0) unread_.pop_front();
  unread_count_ -= view->count;
  lent_count_ += view->count;
  taken_ += view->count;
  note_gaps(*view);
  if (producer_waits_) room_came_.notify_one();  // lent slots can be passed over, unread ones cannot
  return Taken::lines;
}

void Ring::release(Segment view) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(lent_.begin(), lent_.end(), [&](const Segment& s) { return s.begin == view.begin; });
  if (found == lent_.end()) return;
  lent_count_ -= found->count;
  lent_.erase(found);
  room_came_.notify_one();
}

void Ring::note_gaps(Segment view) {
  const Stamp* stamp = stamps(view);
  const Stamp& last = stamp[view.count - 1];
  if (last.line - expected_ != view.count - 1)
    for (int64_t i = 0; i < view.count; ++i) {
      note_gap(expected_, stamp[i].line - expected_);
      expected_ = stamp[i].line + 1;
    }
  expected_ = last.line + 1;
}

void Ring::note_gap(int64_t line, int64_t count) {
  if (count <= 0) return;
  if (gaps_.size() == kMaxGaps) gaps_.pop_front();
  gaps_.push_back({line, count});
}

std::vector<Gap> Ring::pop_gaps() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Gap> gaps(gaps_.begin(), gaps_.end());
  gaps_.clear();
  return gaps;
}

Counts Ring::counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return {pushed_, taken_, lost_, unread_count_, lent_count_};
}

bool Ring::closed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

}  // namespace stadfast::linescan
