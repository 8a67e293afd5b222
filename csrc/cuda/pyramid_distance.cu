#include <torch/csrc/stable/library.h>

#include "../dispatch.h"
#include "distance_kernel.cuh"
#include "launch.cuh"

namespace stadfast::cuda {
namespace {

// Whether images and pixels (channels_last) of T start at multiples of 16 bytes and hold whole vectors.
template <class T>
bool takes_vectors(const void* data, int64_t channels, int64_t batch_stride, int64_t pixel_stride) {
  constexpr int64_t n = kVector<T>;
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && channels % n == 0 && batch_stride % n == 0 &&
         pixel_stride % n == 0;
}

// The smallest power of two of lanes that covers `packs`, at most a warp; as its logarithm.
int lane_shift(int64_t packs) {
  int shift = 0;
  while (shift < 5 && (int64_t(1) << shift) < packs) ++shift;
  return shift;
}

constexpr int64_t kManyChannels = 256;  // planar: from here on fewer pixels and more slices to a block

template <class T, class A>
DistanceLevel<T, A> describe(const Pair& pair, void* map, const Tensor* gradient) {
  const Layout &s = pair.s, &t = pair.t;
  const bool last = s.channels_last();
  DistanceLevel<T, A> level{};
  level.student = static_cast<const T*>(pair.student.const_data_ptr());
  level.teacher = static_cast<const T*>(pair.teacher.const_data_ptr());
  level.map = static_cast<A*>(map);
  level.student_batch = s.batch_stride, level.teacher_batch = t.batch_stride;
  level.student_inner = last ? s.pixel_stride : s.channel_stride;
  level.teacher_inner = last ? t.pixel_stride : t.channel_stride;
  level.pixels = s.pixels();
  level.channels = int32_t(s.channels);
  bool vectors = takes_vectors<T>(level.student, s.channels, s.batch_stride, s.pixel_stride) &&
                 takes_vectors<T>(level.teacher, s.channels, t.batch_stride, t.pixel_stride);
  if (gradient != nullptr) {
    Layout g;
    find_layout(*gradient, &g);
    level.gradient = static_cast<T*>(gradient->mutable_data_ptr());
    level.gradient_batch = g.batch_stride;
    level.gradient_inner = last ? g.pixel_stride : g.channel_stride;
    vectors = vectors && takes_vectors<T>(level.gradient, s.channels, g.batch_stride, g.pixel_stride);
  }
  level.access = !last ? Access::kPlanar : vectors ? Access::kVectors : Access::kScalars;
  level.shift = !last ? (s.channels < kManyChannels ? 5 : 4)
                      : lane_shift(vectors ? s.channels / kVector<T> : s.channels);
  return level;
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
    DistanceLevel<T, A>& level = all.level[l];
    level = describe<T, A>(pairs[l], maps[l], gradients.empty() ? nullptr : &gradients[l]);
    const int64_t tile = level.access == Access::kPlanar ? 1 << level.shift : kThreads >> level.shift;
    all.tiles += divide_up(all.images * level.pixels, tile);
    level.end_tile = all.tiles;
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
