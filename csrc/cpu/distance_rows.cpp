#include "distance_rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

namespace stadfast::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 256;  // planar: pixels whose sums are kept in L1 while the channels pass by

#define SF_BODY template <class T, class A> inline __attribute__((always_inline)) void

SF_BODY forward_channels_last(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t pixels,
                              A eps, A* d) {
  for (int64_t p = 0; p < pixels; ++p) {
    const T* s = student + p * strides.student;
    const T* t = teacher + p * strides.teacher;
    A ss = 0, tt = 0;
#pragma omp simd reduction(+ : ss, tt)
    for (int64_t c = 0; c < channels; ++c) {
      const A a = A(s[c]), b = A(t[c]);
      ss += a * a;
      tt += b * b;
    }
    const A is = inverse_norm(ss, eps), it = inverse_norm(tt, eps);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; ++c) {
      const A e = normalised_difference(A(s[c]), is, A(t[c]), it);
      sum += e * e;
    }
    d[p] = sum;
  }
}

SF_BODY inverse_norms_planar(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t n, A eps,
                             A* is, A* it) {
  std::fill(is, is + n, A(0));
  std::fill(it, it + n, A(0));
  for (int64_t c = 0; c < channels; ++c) {
    const T* s = student + c * strides.student;
    const T* t = teacher + c * strides.teacher;
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      const A a = A(s[p]), b = A(t[p]);
      is[p] += a * a;
      it[p] += b * b;
    }
  }
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    is[p] = inverse_norm(is[p], eps);
    it[p] = inverse_norm(it[p], eps);
  }
}

SF_BODY forward_planar(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t pixels, A eps,
                       A* d) {
  A is[kBlock], it[kBlock];
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t n = std::min(kBlock, pixels - first);
    inverse_norms_planar(student + first, teacher + first, strides, channels, n, eps, is, it);
    A* sum = d + first;
    std::fill(sum, sum + n, A(0));
    for (int64_t c = 0; c < channels; ++c) {
      const T* s = student + first + c * strides.student;
      const T* t = teacher + first + c * strides.teacher;
#pragma omp simd
      for (int64_t p = 0; p < n; ++p) {
        const A e = normalised_difference(A(s[p]), is[p], A(t[p]), it[p]);
        sum[p] += e * e;
      }
    }
  }
}

SF_BODY backward_channels_last(const A* grad, const T* student, const T* teacher, Strides strides,
                               int64_t grad_stride, int64_t channels, int64_t pixels, A eps, T* grad_student) {
  for (int64_t p = 0; p < pixels; ++p) {
    const T* s = student + p * strides.student;
    const T* t = teacher + p * strides.teacher;
    T* g = grad_student + p * grad_stride;
    A ss = 0, tt = 0;
#pragma omp simd reduction(+ : ss, tt)
    for (int64_t c = 0; c < channels; ++c) {
      const A a = A(s[c]), b = A(t[c]);
      ss += a * a;
      tt += b * b;
    }
    const A is = inverse_norm(ss, eps), it = inverse_norm(tt, eps);
    A along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t c = 0; c < channels; ++c)
      along += along_term(A(s[c]), is, A(t[c]), it);
    along *= projection_gain(is, eps);
    const A factor = A(2) * is * grad[p];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) g[c] = T(gradient_term(A(s[c]), is, A(t[c]), it, along, factor));
  }
}

SF_BODY backward_planar(const A* grad, const T* student, const T* teacher, Strides strides, int64_t grad_stride,
                        int64_t channels, int64_t pixels, A eps, T* grad_student) {
  A is[kBlock], it[kBlock], along[kBlock];
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t n = std::min(kBlock, pixels - first);
    inverse_norms_planar(student + first, teacher + first, strides, channels, n, eps, is, it);
    std::fill(along, along + n, A(0));
    for (int64_t c = 0; c < channels; ++c) {
      const T* s = student + first + c * strides.student;
      const T* t = teacher + first + c * strides.teacher;
#pragma omp simd
      for (int64_t p = 0; p < n; ++p)
        along[p] += along_term(A(s[p]), is[p], A(t[p]), it[p]);
    }
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) along[p] *= projection_gain(is[p], eps);
    for (int64_t c = 0; c < channels; ++c) {
      const T* s = student + first + c * strides.student;
      const T* t = teacher + first + c * strides.teacher;
      T* g = grad_student + first + c * grad_stride;
#pragma omp simd
      for (int64_t p = 0; p < n; ++p)
        g[p] = T(gradient_term(A(s[p]), is[p], A(t[p]), it[p], along[p], A(2) * is[p] * grad[first + p]));
    }
  }
}

// target_clones takes no templates: one named clone per element type.
#define SF_LEAVES(T, A)                                                                                             \
  SF_CLONES void forward(bool channels_last, const T* student, const T* teacher, Strides strides, int64_t channels, \
                         int64_t pixels, A eps, A* d) {                                                             \
    if (channels_last)                                                                                              \
      forward_channels_last(student, teacher, strides, channels, pixels, eps, d);                                   \
    else                                                                                                            \
      forward_planar(student, teacher, strides, channels, pixels, eps, d);                                          \
  }                                                                                                                 \
  SF_CLONES void backward(bool channels_last, const A* grad, const T* student, const T* teacher, Strides strides,   \
                          int64_t grad_stride, int64_t channels, int64_t pixels, A eps, T* grad_student) {          \
    if (channels_last)                                                                                              \
      backward_channels_last(grad, student, teacher, strides, grad_stride, channels, pixels, eps, grad_student);    \
    else                                                                                                            \
      backward_planar(grad, student, teacher, strides, grad_stride, channels, pixels, eps, grad_student);           \
  }

SF_LEAVES(float, float)
SF_LEAVES(double, double)
SF_LEAVES(Half, float)
SF_LEAVES(BFloat16, float)

}  // namespace

template <class T, class A>
void distance_pixels(bool channels_last, const T* student, const T* teacher, Strides strides, int64_t channels,
                     int64_t pixels, A eps, A* d) {
  forward(channels_last, student, teacher, strides, channels, pixels, eps, d);
}

template <class T, class A>
void distance_pixels_backward(bool channels_last, const A* grad, const T* student, const T* teacher,
                              Strides strides, int64_t grad_stride, int64_t channels, int64_t pixels, A eps,
                              T* grad_student) {
  backward(channels_last, grad, student, teacher, strides, grad_stride, channels, pixels, eps, grad_student);
}

#define SF_INSTANTIATE(T, A)                                                                                     \
  template void distance_pixels<T, A>(bool, const T*, const T*, Strides, int64_t, int64_t, A, A*);               \
  template void distance_pixels_backward<T, A>(bool, const A*, const T*, const T*, Strides, int64_t, int64_t,    \
                                               int64_t, A, T*);

SF_INSTANTIATE(float, float)
SF_INSTANTIATE(double, double)
SF_INSTANTIATE(Half, float)
SF_INSTANTIATE(BFloat16, float)

}  // namespace stadfast::cpu
