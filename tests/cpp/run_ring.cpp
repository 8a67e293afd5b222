// The ring between a camera in C, a consumer and a thread that releases, for every policy: built with the sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/linescan/ring.h"
#include "../../csrc/linescan/row_ring.h"

using namespace stadfast::linescan;

extern "C" int64_t deliver(stadfast_ring* ring, int64_t total);

#define EXPECT(condition)                                          \
  do {                                                             \
    if (!(condition)) {                                            \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      std::exit(1);                                                \
    }                                                              \
  } while (0)

constexpr int64_t kLine = 96, kLines = 20000, kCapacity = 64;

void check(const Ring& ring, Segment view) {
  for (int64_t i = 0; i < view.count; ++i) {
    const uint8_t* pixels = ring.pixels(view) + i * ring.stride();
    const Stamp& stamp = ring.stamps(view)[i];
    int64_t line;
    std::memcpy(&line, pixels, sizeof line);
    EXPECT(line == stamp.line && stamp.timestamp == line * 10 && stamp.encoder == line * 3);
    for (int64_t k = sizeof line; k < kLine; ++k) EXPECT(pixels[k] == line % 251);
  }
}

// Holds a few views and gives them back in any order, while the consumer goes on.
class Holder {
 public:
  explicit Holder(Ring& ring) : ring_(ring), thread_([this] { run(); }) {}
  void hold(Segment view) {
    std::lock_guard<std::mutex> lock(mutex_);
    views_.push_back(view);
  }
  void finish() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    thread_.join();
  }

 private:
  void run() {
    std::mt19937 random(3);
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      if (views_.empty() && done_) return;
      if (views_.empty()) {
        lock.unlock();
        std::this_thread::yield();
        continue;
      }
      const size_t i = random() % views_.size();
      const Segment view = views_[i];
      views_.erase(views_.begin() + std::ptrdiff_t(i));
      lock.unlock();
      check(ring_, view);
      ring_.release(view);
    }
  }

  Ring& ring_;
  std::mutex mutex_;
  std::deque<Segment> views_;
  bool done_ = false;
  std::thread thread_;
};

void run(Overrun policy) {
  Ring ring(kLine, kCapacity, policy);
  int64_t stored = 0;
  std::thread camera([&] { stored = deliver(reinterpret_cast<stadfast_ring*>(&ring), kLines); });
  Holder holder(ring);
  std::mt19937 random(2);
  std::vector<int> seen(kLines, 0);
  int64_t last = -1;
  for (;;) {
    Segment view{};
    const auto timeout = Ring::Nanoseconds(random() % 4 ? -1 : 1000);
    const Ring::Taken taken = ring.take(1 + random() % 24, timeout, &view);
    if (taken == Ring::Taken::end) break;
    if (taken != Ring::Taken::lines) {
      EXPECT(taken == Ring::Taken::timeout || taken == Ring::Taken::all_lent);
      std::this_thread::yield();
      continue;
    }
    for (int64_t i = 0; i < view.count; ++i) {
      const int64_t line = ring.stamps(view)[i].line;
      EXPECT(line > last);
      ++seen[size_t(last = line)];
    }
    holder.hold(view);
  }
  camera.join();
  holder.finish();
  int64_t lost = 0;
  for (const Gap& gap : ring.pop_gaps())
    for (int64_t i = 0; i < gap.count; ++i, ++lost) ++seen[size_t(gap.line + i)];
  for (const int count : seen) EXPECT(count == 1);
  const Counts counts = ring.counts();
  EXPECT(counts.pushed == kLines && counts.lost == lost && counts.unread == 0 && counts.lent == 0);
  EXPECT(counts.taken == kLines - lost);
  EXPECT(policy != Overrun::block || lost == 0);
  // Drop oldest gives up new lines only while views hold the whole ring.
  EXPECT(policy == Overrun::drop_oldest ? stored >= kLines - lost : stored == kLines - lost);
  std::printf("policy %d: %lld of %lld lost\n", int(policy), static_cast<long long>(lost),
              static_cast<long long>(kLines));
}

// A view taken of the unread lines in the producer's way lets it pass, though nothing has been released.
void wake_by_taking() {
  constexpr int64_t kPage = 4096;
  Ring ring(kPage, 8, Overrun::block);
  const std::vector<uint8_t> pixels(4 * kPage);
  const auto push = [&](int64_t lines) {
    return ring.push(pixels.data(), lines, kPage, nullptr, nullptr, std::chrono::seconds(20));
  };
  const auto take = [&](int64_t lines) {
    Segment view;
    EXPECT(ring.take(lines, std::chrono::seconds(20), &view) == Ring::Taken::lines);
    return view;
  };
  EXPECT(push(4) == 4);
  const Segment a = take(4);
  EXPECT(push(4) == 4);
  ring.release(take(2));
  EXPECT(push(2) == 2);
  ring.release(a);
  int64_t stored = 0;
  std::thread producer([&] { stored = push(1); });
  while (ring.counts().unread < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until it waits
  const auto start = std::chrono::steady_clock::now();
  EXPECT(take(8).count == 2 && take(8).count == 2);
  producer.join();
  EXPECT(stored == 1 && ring.counts().lost == 0);
  EXPECT(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));  // woken, not timed out
}

int main() {
  wake_by_taking();
  for (const Overrun policy : {Overrun::block, Overrun::drop_oldest, Overrun::drop_newest}) run(policy);
  EXPECT(stadfast_ring_create(0, 4, STADFAST_RING_BLOCK) == nullptr);
  EXPECT(stadfast_ring_create(kLine, 4, 7) == nullptr);
  stadfast_ring* ring = stadfast_ring_create(kLine, 4, STADFAST_RING_DROP_NEWEST);
  const std::vector<uint8_t> pixels(6 * kLine);
  EXPECT(stadfast_ring_push(ring, pixels.data(), 6, 0, nullptr, nullptr, 0) == 4);
  EXPECT(stadfast_ring_push(ring, pixels.data(), 1, kLine - 1, nullptr, nullptr, 0) == STADFAST_RING_BAD_ARGUMENT);
  stadfast_ring_destroy(ring);
}
