// The tracker against a flood fill on the whole strip, with random thresholds and pushes: built with the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <tuple>
#include <vector>

#include "../../csrc/linescan/tracker.h"

using namespace stadfast::linescan;

using Box = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // area, top, bottom, left, right

struct Strip {
  int64_t rows, width;
  std::vector<float> scores;

  // The pixels that reach (y, x) by steps of at most `reach` over pixels in `open`, which they leave.
  std::vector<std::pair<int64_t, int64_t>> fill(int64_t y, int64_t x, int64_t reach, std::vector<char>& open) const {
    std::vector<std::pair<int64_t, int64_t>> found{{y, x}};
    open[size_t(y * width + x)] = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const auto [cy, cx] = found[i];
      for (int64_t v = std::max<int64_t>(cy - reach, 0); v <= std::min(cy + reach, rows - 1); ++v)
        for (int64_t u = std::max<int64_t>(cx - reach, 0); u <= std::min(cx + reach, width - 1); ++u)
          if (open[size_t(v * width + u)]) {
            open[size_t(v * width + u)] = 0;
            found.emplace_back(v, u);
          }
    }
    return found;
  }

  std::vector<Box> events(const TrackerOptions& o) const {
    std::vector<char> open(scores.size()), kept(scores.size(), 0);
    for (size_t i = 0; i < scores.size(); ++i) open[i] = scores[i] > o.low;
    for (int64_t i = 0; i < rows * width; ++i) {
      if (!open[size_t(i)]) continue;
      const auto pixels = fill(i / width, i % width, 1, open);
      float peak = o.low;
      for (const auto& [y, x] : pixels) peak = std::max(peak, scores[size_t(y * width + x)]);
      if (peak > o.high && int64_t(pixels.size()) >= o.min_area)
        for (const auto& [y, x] : pixels) kept[size_t(y * width + x)] = 1;
    }
    std::vector<Box> boxes;
    for (int64_t i = 0; i < rows * width; ++i) {
      if (!kept[size_t(i)]) continue;
      const auto pixels = fill(i / width, i % width, std::max<int64_t>(o.merge_distance, 1), kept);
      Box box{int64_t(pixels.size()), rows, -1, width, -1};
      auto& [area, top, bottom, left, right] = box;
      for (const auto& [y, x] : pixels)
        top = std::min(top, y), bottom = std::max(bottom, y), left = std::min(left, x), right = std::max(right, x);
      boxes.push_back(box);
    }
    std::sort(boxes.begin(), boxes.end());
    return boxes;
  }
};

int main() {
  std::mt19937 random(1);
  int64_t total = 0;
  for (int turn = 0; turn < 300; ++turn) {
    Strip strip{1 + int64_t(random() % 60), 1 + int64_t(random() % 150), {}};
    const uint32_t share = random() % 100;
    for (int64_t i = 0; i < strip.rows * strip.width; ++i)
      strip.scores.push_back(random() % 100 < share ? float(random() % 1000) / 1000 : 0.0f);
    const TrackerOptions options{strip.width,
                                 0.2f,
                                 0.2f + float(random() % 8) / 10,
                                 1 + int64_t(random() % 4),
                                 int64_t(random() % 5),
                                 turn % 2 ? 1000 : 1 + int64_t(random() % 20)};
    Tracker tracker(options);
    std::vector<Event> events;
    for (int64_t row = 0; row < strip.rows;) {
      const int64_t count = std::min<int64_t>(1 + random() % 9, strip.rows - row);
      const std::vector<float> exact(strip.scores.begin() + row * strip.width,  // so that a step beyond is seen
                                     strip.scores.begin() + (row + count) * strip.width);
      if (first_not_finite(exact.data(), count * strip.width) != -1) return 1;
      tracker.push(exact.data(), count, &events);
      if (tracker.first_open_row() > tracker.rows()) return 1;
      row += count;
    }
    tracker.finish(&events);
    if (options.max_length < 1000) continue;  // waits are cut short: memory is all that is checked
    std::vector<Box> boxes;
    for (const Event& e : events)
      boxes.emplace_back(e.measure.area, e.measure.top, e.measure.bottom, e.measure.left, e.measure.right);
    std::sort(boxes.begin(), boxes.end());
    if (boxes != strip.events(options)) {
      std::fprintf(stderr, "turn %d: %zu events, expected %zu\n", turn, boxes.size(), strip.events(options).size());
      return 1;
    }
    total += int64_t(boxes.size());
  }
  const float bad[] = {0.0f, 1.0f, NAN};
  if (first_not_finite(bad, 3) != 2) return 1;
  std::printf("%lld events\n", static_cast<long long>(total));
}
