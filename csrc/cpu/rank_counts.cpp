#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "../rank_table.h"
#include "spans.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kBlock = 1024;              // scores looked at at once
constexpr int64_t kFlush = int64_t(1) << 31;  // scores after which 32-bit counters are emptied

// What vector instructions can tell of a block of scores. `keys` receives those within the edges, most of which
// anomaly maps do not reach: a good pixel's score lies below every region's.
template <class K>
struct Block {
  int64_t below, above, within, invalid;
  K keys[kBlock + 1];
};

#define SF_BODY               \
  template <class T, class A> \
  inline __attribute__((always_inline)) void

SF_BODY sift_body(const T* scores, int64_t n, Key<A> low, Key<A> high, Block<Key<A>>* block) {
  Key<A> keys[kBlock];
  int32_t below = 0, above = 0, invalid = 0;
#pragma omp simd reduction(+ : below, above, invalid)
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = order_key(A(scores[i]));
    below += keys[i] < low;
    above += keys[i] > high;
    invalid += !is_finite_key(keys[i]);
  }
  int64_t within = 0;
  if (below + above < n)
    for (int64_t i = 0; i < n; ++i) {
      block->keys[within] = keys[i];
      within += (keys[i] >= low) & (keys[i] <= high);
    }
  block->below = below, block->above = above, block->within = within, block->invalid = invalid;
}

// target_clones takes no templates: one named clone per type.
#define SF_SIFT(T, A)                                                                              \
  SF_CLONES void sift(const T* scores, int64_t n, Key<A> low, Key<A> high, Block<Key<A>>* block) { \
    sift_body<T, A>(scores, n, low, high, block);                                                  \
  }

SF_SIFT(float, float)
SF_SIFT(double, double)
SF_SIFT(torch::headeronly::Half, float)
SF_SIFT(torch::headeronly::BFloat16, float)

// scores: any number of tensors of any shape; edges: (n,) rising -> (2n + 2,) int64, see rank_table.h
template <class T, class A>
void count(const std::vector<Tensor>& scores, const Tensor& edges, int64_t* counts) {
  const int64_t n = edges.numel(), slots = 2 * n + 2;
  std::vector<Key<A>> keys(n);
  std::transform(static_cast<const A*>(edges.const_data_ptr()), static_cast<const A*>(edges.const_data_ptr()) + n,
                 keys.begin(), [](A edge) { return order_key(edge); });
  for (int64_t i = 1; i < n; ++i) SF_CHECK(keys[i - 1] < keys[i], "edges: expected rising, distinct values");
  RankTable<Key<A>> table{keys.data(), nullptr, n, 0, 0, 0};
  std::vector<int32_t> first;
  if (n > 0) {
    table.low = keys.front(), table.high = keys.back();
    table.shift = cell_shift(table.low, table.high, n);
    first.resize(table.cells() + 1);
    for (Key<A> key : keys) ++first[table.cell(key) + 1];
    for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    table.first = first.data();
  }
  std::mutex merging;
  for_spans<T>(scores, [&](auto&& spans) {
    std::vector<uint32_t> local(slots);
    int64_t held = 0;
    const auto flush = [&] {
      const std::lock_guard<std::mutex> lock(merging);
      for (int64_t i = 0; i < slots; ++i) counts[i] += local[i];
    };
    Block<Key<A>> block;
    spans([&](const T* data, int64_t size) {
      for (int64_t i = 0; i < size; i += kBlock) {
        const int64_t m = std::min(kBlock, size - i);
        sift(data + i, m, table.low, table.high, &block);
        if (block.invalid || n == 0) {
          for (int64_t j = 0; j < m; ++j) ++local[rank_slot(table, order_key(A(data[i + j])))];
        } else {
          local[0] += block.below, local[2 * n] += block.above;
          for (int64_t j = 0; j < block.within; ++j) ++local[inner_rank_slot(table, block.keys[j])];
        }
        if ((held += m) >= kFlush) flush(), std::fill(local.begin(), local.end(), 0), held = 0;
      }
    });
    flush();
  });
}

Tensor rank_counts(std::vector<Tensor> scores, Tensor edges) {
  SF_CHECK(edges.dim() == 1 && edges.numel() < INT32_MAX, "edges: expected one dimension");
  SF_CHECK(!edges.is_cuda(), "edges: expected on the scores' device");
  const Tensor rising = torch::stable::contiguous(edges);
  Tensor counts = torch::stable::new_zeros(edges, {2 * edges.numel() + 2}, ScalarType::Long);
  if (scores.empty()) return counts;
  check_scores(scores);
  SF_DISPATCH(scores[0].scalar_type(), T, A, {
    SF_CHECK(edges.scalar_type() == (sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float),
             "edges: expected float32, or float64 for float64 scores");
    count<T, A>(scores, rising, static_cast<int64_t*>(counts.mutable_data_ptr()));
  })
  return counts;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("rank_counts", TORCH_BOX(&stadfast::cpu::rank_counts)); }
