#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "rank_groups.h"
#include "spans.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kBlock = 1024;              // scores looked at at once
constexpr int64_t kFlush = int64_t(1) << 31;  // scores after which 32-bit counters are emptied

// What vector instructions can tell of a block of scores. `keys` receives those within the edges, most of which
// anomaly maps do not reach: a good pixel's score lies below every region's.
template <class K>
struct Block {
  int64_t below, above, within;  // finite ones
  K keys[kBlock + 1];
};

#define SF_BODY               \
  template <class T, class A> \
  SF_INLINE void

SF_BODY sift_body(const T* scores, int64_t n, Key<A> low, Key<A> high, Block<Key<A>>* block) {
  Key<A> keys[kBlock];
  int32_t below = 0, above = 0, outside = 0;
#pragma omp simd reduction(+ : below, above, outside)
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = order_key(A(scores[i]));
    below += (keys[i] < low) & is_finite_key(keys[i]);
    above += (keys[i] > high) & is_finite_key(keys[i]);
    outside += (keys[i] < low) | (keys[i] > high);
  }
  int64_t within = 0;
  if (outside == 0) {
    std::copy_n(keys, n, block->keys);
    within = n;
  } else if (outside < n) {
    for (int64_t i = 0; i < n; ++i) {
      block->keys[within] = keys[i];
      within += (keys[i] >= low) & (keys[i] <= high);
    }
  }
  block->below = below, block->above = above, block->within = within;
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

// A thread's counters, and the keys that wait until their group has enough of them to be worth fetching its table.
template <class K>
class Counter {
 public:
  Counter(const RankGroups<K>& groups, int64_t slots) : groups_(groups), counts_(slots), held_(groups.tables().size()) {
    if (held_.size() > 1) waiting_.reset(new K[held_.size() * kStride]);  // a single group never waits
  }

  // keys: n <= kBlock, within the edges.
  void add(const K* keys, int64_t n) {
    if (!waiting_) return count(groups_.tables()[0], keys, n);
    for (int64_t i = 0; i < n; ++i) {
      const size_t group = groups_.group_of(keys[i]);
      waiting_[group * kStride + held_[group]++] = keys[i];
    }
    for (size_t g = 0; g < held_.size(); ++g)
      if (held_[g] >= kWaiting) settle(g);
  }

  // Adds everything to the result, and starts anew.
  void collect(int64_t* result) {
    for (size_t g = 0; g < held_.size(); ++g) settle(g);
    for (size_t slot = 0; slot < counts_.size(); ++slot) result[slot] += counts_[slot];
    std::fill(counts_.begin(), counts_.end(), 0);
  }

 private:
  static constexpr uint32_t kWaiting = 1 << 16, kStride = kWaiting + kBlock;

  void settle(size_t group) {
    count(groups_.tables()[group], waiting_.get() + group * kStride, held_[group]);
    held_[group] = 0;
  }

  void count(const RankTable<K>& table, const K* keys, int64_t n) {
    for (int64_t i = 0; i < n; ++i) ++counts_[inner_rank_slot(table, keys[i])];
  }

  const RankGroups<K>& groups_;
  std::vector<uint32_t> counts_;
  std::vector<uint32_t> held_;  // keys that wait, by group
  std::unique_ptr<K[]> waiting_;
};

// scores: any number of tensors of any shape; edges: (n,) rising -> (2n + 2,) int64, see rank_table.h
template <class T, class A>
void count(const std::vector<Tensor>& scores, const Tensor& edges, int64_t* counts) {
  using K = Key<A>;
  const int64_t n = edges.numel();
  std::vector<K> keys(std::max<int64_t>(n, 1), ~K(0));  // without edges, one that no score reaches
  std::transform(static_cast<const A*>(edges.const_data_ptr()), static_cast<const A*>(edges.const_data_ptr()) + n,
                 keys.begin(), [](A edge) { return order_key(edge); });
  for (int64_t i = 0; i < n; ++i)
    SF_CHECK(is_finite_key(keys[i]) && (i == 0 || keys[i - 1] < keys[i]),
             "edges: expected finite, rising, distinct values");
  const RankGroups<K> groups(keys);
  std::mutex merging;
  for_spans<T>(scores, [&](auto&& spans) {
    Counter<K> counter(groups, 2 * n);
    int64_t seen = 0, below = 0, above = 0, within = 0;
    const auto flush = [&] {
      const std::lock_guard<std::mutex> lock(merging);
      counter.collect(counts);
      counts[0] += below, counts[2 * n] += above, counts[2 * n + 1] += seen - below - above - within;
      seen = below = above = within = 0;
    };
    Block<K> block;
    spans([&](const T* data, int64_t size) {
      for (int64_t i = 0; i < size; i += kBlock) {
        const int64_t m = std::min(kBlock, size - i);
        sift(data + i, m, keys.front(), keys.back(), &block);
        if (n > 0) counter.add(block.keys, block.within), within += block.within;
        below += block.below, above += block.above;
        if ((seen += m) >= kFlush) flush();
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
