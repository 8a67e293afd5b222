#include <torch/csrc/stable/library.h>

#include "../dispatch.h"
#include "distance_levels.cuh"
#include "launch.cuh"

namespace stadfast::cuda {
namespace {

View view(const void* data, const Layout& layout, bool channels_last) {
  return {data, layout.batch_stride, channels_last ? layout.pixel_stride : layout.channel_stride};
}

// gradients: none for the distance; else the student's, and `maps` are the gradients that arrive.
template <class T, class A>
void launch(const std::vector<Pair>& pairs, const std::vector<void*>& maps, const std::vector<Tensor>& gradients,
            double eps) {
  static_assert(sizeof(DistanceLevels<T, A>) <= kMaxParameterBytes);
  DistanceLevels<T, A> all{};
  all.images = pairs[0].s.batch;
  all.eps = A(eps);
  for (size_t l = 0; l < pairs.size(); ++l) {
    const Pair& pair = pairs[l];
    const bool last = pair.s.channels_last();
    View gradient{};
    if (!gradients.empty()) {
      Layout layout;
      find_layout(gradients[l], &layout);
      gradient = view(gradients[l].mutable_data_ptr(), layout, last);
    }
    add_level(&all, int(l), last, pair.s.channels, pair.s.pixels(), view(pair.student.const_data_ptr(), pair.s, last),
              view(pair.teacher.const_data_ptr(), pair.t, last), gradient, maps[l]);
  }
  if (all.tiles == 0) return;
  const cudaStream_t stream = current_stream(pairs[0].student);
  if (gradients.empty())
    distance_kernel<T, A, false><<<grid_size(all.tiles), kThreads, 0, stream>>>(all);
  else
    distance_kernel<T, A, true><<<grid_size(all.tiles), kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// student, teacher: L x (B, C_l, H_l, W_l) -> L x (B, 1, H_l, W_l)
std::vector<Tensor> pyramid_distance(std::vector<Tensor> student, std::vector<Tensor> teacher, double eps) {
  check_pyramids(student, teacher);
  const DeviceGuard guard(student[0].get_device_index());
  const std::vector<Pair> pairs = readable_pairs(student, teacher);
  std::vector<Tensor> distances;
  std::vector<void*> maps;
  for (const Pair& pair : pairs) {
    distances.push_back(empty_map(pair.student, pair.s.batch, pair.s.height, pair.s.width));
    maps.push_back(distances.back().mutable_data_ptr());
  }
  launch_distance(pairs, maps, eps);
  return distances;
}

// grad: L x (B, 1, H_l, W_l) of the maps' dtype -> gradients of the student, L x (B, C_l, H_l, W_l)
std::vector<Tensor> pyramid_distance_backward(std::vector<Tensor> grad, std::vector<Tensor> student,
                                              std::vector<Tensor> teacher, double eps) {
  check_pyramids(student, teacher);
  check_map_gradients(grad, student);
  const DeviceGuard guard(student[0].get_device_index());
  const std::vector<Pair> pairs = readable_pairs(student, teacher);
  std::vector<Tensor> arriving, gradients;  // `arriving` keeps the copies alive until the launch
  std::vector<void*> maps;
  for (size_t l = 0; l < pairs.size(); ++l) {
    arriving.push_back(torch::stable::contiguous(grad[l]));
    maps.push_back(const_cast<void*>(arriving[l].const_data_ptr()));
    gradients.push_back(empty_like_student(pairs[l]));
  }
  SF_DISPATCH(student[0].scalar_type(), T, A, { launch<T, A>(pairs, maps, gradients, eps); })
  return gradients;
}

}  // namespace

void launch_distance(const std::vector<Pair>& pairs, const std::vector<void*>& maps, double eps) {
  SF_DISPATCH(pairs[0].student.scalar_type(), T, A, { launch<T, A>(pairs, maps, {}, eps); })
}

}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) {
  m.impl("pyramid_distance", TORCH_BOX(&stadfast::cuda::pyramid_distance));
  m.impl("pyramid_distance_backward", TORCH_BOX(&stadfast::cuda::pyramid_distance_backward));
}
