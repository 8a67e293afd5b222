// Where a score stands among sorted distinct edges, shared by CPU and CUDA. Slot 2j lies below edge j (and above edge
// j - 1), slot 2j + 1 on edge j, slot 2n above all n edges; slot 2n + 1 counts NaN and the infinities.
//
// A binary search over all edges would miss the cache at every step. The keys' range is cut into equal cells instead,
// about two per edge, and each cell knows its first edge: most searches end after one comparison.
#pragma once

#include "order_key.h"

namespace stadfast {

template <class K>
struct RankTable {
  const K* edges;        // n keys, rising
  const int32_t* first;  // per cell, and one past the last: the number of edges in earlier cells
  int64_t n;
  K low, high;    // of the edges
  int32_t shift;  // keys of one cell agree in (key - low) >> shift

  SF_HOST_DEVICE int64_t cell(K key) const { return int64_t((key - low) >> shift); }
  SF_HOST_DEVICE int64_t cells() const { return cell(high) + 1; }
};

template <class K>
SF_HOST_DEVICE int64_t lower_bound(const K* edges, int64_t begin, int64_t end, K key) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (edges[middle] < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Of a key from low to high. One branch, rarely taken: how many edges of its cell lie below it no processor can
// predict.
template <class K>
SF_HOST_DEVICE int64_t inner_rank_slot(const RankTable<K>& table, K key) {
  const int64_t cell = table.cell(key);
  int64_t rank = table.first[cell];  // stays below n, since key <= high
  rank += table.edges[rank] < key ? 1 : 0;
  rank += table.edges[rank] < key ? 1 : 0;
  if (table.edges[rank] < key) rank = lower_bound<K>(table.edges, rank + 1, table.first[cell + 1], key);
  return 2 * rank + (table.edges[rank] == key ? 1 : 0);
}

template <class K>
SF_HOST_DEVICE int64_t rank_slot(const RankTable<K>& table, K key) {
  if (!is_finite_key(key)) return 2 * table.n + 1;
  if (table.n == 0 || key < table.low) return 0;
  return key > table.high ? 2 * table.n : inner_rank_slot(table, key);
}

// The shift that gives about two cells per edge.
template <class K>
SF_HOST_DEVICE int32_t cell_shift(K low, K high, int64_t n) {
  int32_t shift = 0;
  while (uint64_t((high - low) >> shift) >= uint64_t(2 * n + 64)) ++shift;
  return shift;
}

}  // namespace stadfast
