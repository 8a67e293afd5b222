#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "../order_key.h"
#include "spans.h"

namespace stadfast::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 1024;              // keys computed at once, by vector instructions
constexpr int64_t kFlush = int64_t(1) << 31;  // scores after which 32-bit counters are emptied
constexpr int64_t kTables = 2;                // neighbours are often equal: the second need not wait for the first

#define SF_KEYS(T)                                                                              \
  SF_CLONES void bin_keys(const T* scores, int64_t n, uint16_t* keys) {                         \
    _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) keys[i] = uint16_t(bin_key(scores[i])); \
  }

SF_KEYS(float)
SF_KEYS(Half)
SF_KEYS(BFloat16)

template <class T>
void count(const std::vector<Tensor>& scores, int64_t* counts) {
  std::mutex merging;
  for_spans<T>(scores, [&](auto&& spans) {
    std::unique_ptr<uint32_t[]> local(new uint32_t[kTables * kBins]());
    int64_t held = 0;
    const auto flush = [&] {
      const std::lock_guard<std::mutex> lock(merging);
      for (int64_t i = 0; i < kTables * kBins; ++i) counts[i % kBins] += local[i];
    };
    uint16_t keys[kBlock];
    spans([&](const T* data, int64_t size) {
      for (int64_t i = 0; i < size; i += kBlock) {
        const int64_t m = std::min(kBlock, size - i);
        bin_keys(data + i, m, keys);
        int64_t j = 0;
        for (; j + 1 < m; j += 2) ++local[keys[j]], ++local[kBins + keys[j + 1]];
        if (j < m) ++local[keys[j]];
        if ((held += m) >= kFlush) flush(), std::fill_n(local.get(), kTables * kBins, 0), held = 0;
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
  int64_t* bins = static_cast<int64_t*>(counts.mutable_data_ptr());
  switch (scores[0].scalar_type()) {
    case ScalarType::Float:
      count<float>(scores, bins);
      break;
    case ScalarType::Half:
      count<Half>(scores, bins);
      break;
    case ScalarType::BFloat16:
      count<BFloat16>(scores, bins);
      break;
    default:
      SF_CHECK(false, "scores: expected float32, float16 or bfloat16");
  }
  return counts;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("key_histogram", TORCH_BOX(&stadfast::cpu::key_histogram)); }
