// Threads over all elements of a list of tensors, of any sizes, as if they were one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../check.h"

namespace stadfast::cpu {

// Calls body(spans) once per thread, each with its share: spans(f) calls f(data, size) for contiguous stretches.
template <class T, class Body>
void for_spans(const std::vector<Tensor>& tensors, const Body& body) {
  std::vector<Tensor> dense;
  std::vector<int64_t> start{0};
  for (const Tensor& tensor : tensors) {
    dense.push_back(torch::stable::contiguous(tensor));
    start.push_back(start.back() + tensor.numel());
  }
  constexpr int64_t kGrain = 1 << 16;  // a thread's own counters must pay
  torch::stable::parallel_for(0, start.back(), kGrain, [&](int64_t begin, int64_t end) {
    body([&](const auto& f) {
      size_t i = size_t(std::upper_bound(start.begin(), start.end(), begin) - start.begin()) - 1;
      for (int64_t at = begin; at < end; ++i) {
        const int64_t stop = std::min(end, start[i + 1]);
        if (stop > at) f(static_cast<const T*>(dense[i].const_data_ptr()) + (at - start[i]), stop - at);
        at = std::max(at, stop);
      }
    });
  });
}

}  // namespace stadfast::cpu
