#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "../order_key.h"
#include "bin_keys.h"
#include "spans.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kBlock = 1024;              // keys computed at once
constexpr int64_t kFlush = int64_t(1) << 31;  // scores after which 32-bit counters are emptied
constexpr int64_t kLanes = 4;                 // neighbours are often equal: the next need not wait for this one

// A thread's counters: kLanes of each bin side by side. Only the pages that are counted in are ever touched.
class Histogram {
 public:
  Histogram() : lanes_(static_cast<uint32_t*>(std::calloc(kLanes * kBins, sizeof(uint32_t)))) {
    SF_CHECK(lanes_, "out of memory");
  }

  void add(const uint16_t* keys, int64_t n) {
    uint32_t* lanes = lanes_.get();
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) ++lanes[kLanes * keys[i + lane] + lane];
    for (; i < n; ++i) ++lanes[kLanes * keys[i]];
    widen_range(keys, n, &low_, &high_);
  }

  // Adds everything to the result, and starts anew.
  void collect(int64_t* counts) {
    for (int64_t bin = low_; bin <= high_; ++bin)
      for (int64_t i = kLanes * bin; i < kLanes * (bin + 1); ++i) {
        counts[bin] += lanes_[i];
        lanes_[i] = 0;
      }
    low_ = kBins - 1, high_ = 0;
  }

 private:
  struct Free {
    void operator()(uint32_t* p) const { std::free(p); }
  };

  std::unique_ptr<uint32_t[], Free> lanes_;
  uint16_t low_ = kBins - 1, high_ = 0;  // of the keys seen
};

template <class T>
void count(const std::vector<Tensor>& scores, int64_t* counts) {
  std::mutex merging;
  for_spans<T>(scores, [&](auto&& spans) {
    Histogram histogram;
    int64_t held = 0;
    const auto flush = [&] {
      const std::lock_guard<std::mutex> lock(merging);
      histogram.collect(counts);
      held = 0;
    };
    uint16_t keys[kBlock];
    spans([&](const T* data, int64_t size) {
      for (int64_t i = 0; i < size; i += kBlock) {
        const int64_t m = std::min(kBlock, size - i);
        bin_keys(data + i, m, keys);
        histogram.add(keys, m);
        if ((held += m) >= kFlush) flush();
      }
    });
    flush();
  });
}

// scores: any number of tensors of any shape, float32, float16 or bfloat16 -> (65536,) int64
Tensor key_histogram(std::vector<Tensor> scores) {
  SF_CHECK(!scores.empty(), "scores: expected at least one tensor");
  check_scores(scores);
  Tensor counts = torch::stable::new_zeros(scores[0], {kBins}, ScalarType::Long);
  SF_DISPATCH_KEYS(scores[0].scalar_type(), T, { count<T>(scores, static_cast<int64_t*>(counts.mutable_data_ptr())); })
  return counts;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("key_histogram", TORCH_BOX(&stadfast::cpu::key_histogram)); }
