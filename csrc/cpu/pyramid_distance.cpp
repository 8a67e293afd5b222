#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../dispatch.h"
#include "distance_rows.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it brings

int64_t pixel_grain(const Layout& layout) { return std::max<int64_t>(1, kGrain / layout.channels); }

// student, teacher: L x (B, C_l, H_l, W_l) -> L x (B, 1, H_l, W_l)
std::vector<Tensor> pyramid_distance(std::vector<Tensor> student, std::vector<Tensor> teacher, double eps) {
  check_pyramids(student, teacher);
  std::vector<Tensor> distances;
  for (size_t level = 0; level < student.size(); ++level) {
    const Pair pair = readable_pair(student[level], teacher[level]);
    const Layout& s = pair.s;
    Tensor out = empty_map(pair.student, s.batch, s.height, s.width);
    SF_DISPATCH(pair.student.scalar_type(), T, A, {
      A* d = static_cast<A*>(out.mutable_data_ptr());
      torch::stable::parallel_for(0, s.batch * s.pixels(), pixel_grain(s), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end;) {
          const int64_t b = first / s.pixels(), p = first % s.pixels();
          const int64_t n = std::min(end - first, s.pixels() - p);
          distance_pixels<T, A>(s.channels_last(), pixel<T>(pair.student, s, b, p),
                                pixel<T>(pair.teacher, pair.t, b, p), strides(pair), s.channels, n, A(eps), d + first);
          first += n;
        }
      });
    })
    distances.push_back(out);
  }
  return distances;
}

// grad: L x (B, 1, H_l, W_l) of the maps' dtype -> gradients of the student, L x (B, C_l, H_l, W_l)
std::vector<Tensor> pyramid_distance_backward(std::vector<Tensor> grad, std::vector<Tensor> student,
                                              std::vector<Tensor> teacher, double eps) {
  check_pyramids(student, teacher);
  check_map_gradients(grad, student);
  std::vector<Tensor> gradients;
  for (size_t level = 0; level < student.size(); ++level) {
    const Pair pair = readable_pair(student[level], teacher[level]);
    const Layout& s = pair.s;
    const Tensor g = torch::stable::contiguous(grad[level]);
    Tensor out = empty_like_student(pair);
    Layout o;
    find_layout(out, &o);
    const int64_t out_stride = s.channels_last() ? o.pixel_stride : o.channel_stride;
    SF_DISPATCH(pair.student.scalar_type(), T, A, {
      const A* incoming = static_cast<const A*>(g.const_data_ptr());
      T* result = static_cast<T*>(out.mutable_data_ptr());
      torch::stable::parallel_for(0, s.batch * s.pixels(), pixel_grain(s), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end;) {
          const int64_t b = first / s.pixels(), p = first % s.pixels();
          const int64_t n = std::min(end - first, s.pixels() - p);
          distance_pixels_backward<T, A>(s.channels_last(), incoming + first, pixel<T>(pair.student, s, b, p),
                                         pixel<T>(pair.teacher, pair.t, b, p), strides(pair), out_stride, s.channels, n,
                                         A(eps), result + b * o.batch_stride + p * o.pixel_stride);
          first += n;
        }
      });
    })
    gradients.push_back(out);
  }
  return gradients;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) {
  m.impl("pyramid_distance", TORCH_BOX(&stadfast::cpu::pyramid_distance));
  m.impl("pyramid_distance_backward", TORCH_BOX(&stadfast::cpu::pyramid_distance_backward));
}
