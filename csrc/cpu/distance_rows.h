// Leaf loops of the channel-normalised distance on the CPU: `pixels` consecutive pixels of one level.
#pragma once

#include <cstdint>

#include "../distance.h"
#include "../layout.h"

namespace stadfast::cpu {

// Strides in elements: from one pixel to the next (channels_last) or from one channel to the next (planar);
// the other stride is 1.
struct Strides {
  int64_t student, teacher;
};

// d[p] = squared distance of the normalised channel vectors, for T in float, double, Half, BFloat16 (dispatch.h).
template <class T, class A>
void distance_pixels(bool channels_last, const T* student, const T* teacher, Strides strides, int64_t channels,
                     int64_t pixels, A eps, A* d);

// grad_student[c, p] = grad[p] * d(d[p]) / d(student[c, p]), written with the student's strides.
template <class T, class A>
void distance_pixels_backward(bool channels_last, const A* grad, const T* student, const T* teacher, Strides strides,
                              int64_t grad_stride, int64_t channels, int64_t pixels, A eps, T* grad_student);

// The first element of image b from pixel p on.
template <class T>
const T* pixel(const Tensor& t, const Layout& layout, int64_t b, int64_t p) {
  return static_cast<const T*>(t.const_data_ptr()) + b * layout.batch_stride + p * layout.pixel_stride;
}

inline Strides strides(const Pair& pair) {
  return pair.s.channels_last() ? Strides{pair.s.pixel_stride, pair.t.pixel_stride}
                                : Strides{pair.s.channel_stride, pair.t.channel_stride};
}

}  // namespace stadfast::cpu
