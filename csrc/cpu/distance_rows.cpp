#include "distance_rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "narrow.h"

namespace stadfast::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Pixels are taken in blocks whose sums stay in L1; planar channels in bunches,
// so that the sums are not loaded and stored for every channel.
constexpr int64_t kBlock = 256;
constexpr int kBunch = 4;

#define SF_BODY               \
  template <class T, class A> \
  SF_INLINE void
#define SF_BUNCH                     \
  template <int N, class T, class A> \
  SF_INLINE void

SF_BODY invert(A eps, int64_t n, A* is, A* it) {
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    is[p] = inverse_norm(is[p], eps);
    it[p] = inverse_norm(it[p], eps);
  }
}

// ----------------------------------------------------------------------------------------------
// channels_last

SF_BODY norms_channels_last(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t n, A eps,
                            A* is, A* it) {
  for (int64_t p = 0; p < n; ++p) {
    const T* s = student + p * strides.student;
    const T* t = teacher + p * strides.teacher;
    A ss = 0, tt = 0;
#pragma omp simd reduction(+ : ss, tt)
    for (int64_t c = 0; c < channels; ++c) {
      const A a = A(s[c]), b = A(t[c]);
      ss += a * a;
      tt += b * b;
    }
    is[p] = ss;
    it[p] = tt;
  }
  invert<T>(eps, n, is, it);
}

// 16 pixels of 1024 channels are read a second time from L1 or L2.
constexpr int64_t kPixels = 16;

SF_BODY forward_channels_last(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t pixels,
                              A eps, A* d) {
  A is[kPixels], it[kPixels];
  for (int64_t first = 0; first < pixels; first += kPixels) {
    const int64_t n = std::min(kPixels, pixels - first);
    const T* s = student + first * strides.student;
    const T* t = teacher + first * strides.teacher;
    norms_channels_last(s, t, strides, channels, n, eps, is, it);
    for (int64_t p = 0; p < n; ++p, s += strides.student, t += strides.teacher) {
      const A i = is[p], j = it[p];
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < channels; ++c) {
        const A e = normalised_difference(A(s[c]), i, A(t[c]), j);
        sum += e * e;
      }
      d[first + p] = sum;
    }
  }
}

SF_BODY backward_channels_last(const A* grad, const T* student, const T* teacher, Strides strides, int64_t grad_stride,
                               int64_t channels, int64_t pixels, A eps, T* grad_student) {
  A is[kPixels], it[kPixels];
  for (int64_t first = 0; first < pixels; first += kPixels) {
    const int64_t n = std::min(kPixels, pixels - first);
    const T* s = student + first * strides.student;
    const T* t = teacher + first * strides.teacher;
    norms_channels_last(s, t, strides, channels, n, eps, is, it);
    for (int64_t p = 0; p < n; ++p, s += strides.student, t += strides.teacher) {
      const A i = is[p], j = it[p];
      A along = 0;
#pragma omp simd reduction(+ : along)
      for (int64_t c = 0; c < channels; ++c) along += along_term(A(s[c]), i, A(t[c]), j);
      along *= projection_gain(i, eps);
      const A factor = A(2) * i * grad[first + p];
      T* g = grad_student + (first + p) * grad_stride;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) g[c] = narrow<T>(gradient_term(A(s[c]), i, A(t[c]), j, along, factor));
    }
  }
}

// -----------------------------------------------------------------------------------------------------
// planar

SF_BUNCH add_squares(const T* s, const T* t, Strides strides, int64_t n, A* is, A* it) {
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    A ss = 0, tt = 0;
    for (int c = 0; c < N; ++c) {
      const A a = A(s[p + c * strides.student]), b = A(t[p + c * strides.teacher]);
      ss += a * a;
      tt += b * b;
    }
    is[p] += ss;
    it[p] += tt;
  }
}

SF_BUNCH add_distance(const T* s, const T* t, Strides strides, int64_t n, const A* is, const A* it, A* d) {
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    A sum = 0;
    for (int c = 0; c < N; ++c) {
      const A e = normalised_difference(A(s[p + c * strides.student]), is[p], A(t[p + c * strides.teacher]), it[p]);
      sum += e * e;
    }
    d[p] += sum;
  }
}

SF_BUNCH add_along(const T* s, const T* t, Strides strides, int64_t n, const A* is, const A* it, A* along) {
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    A sum = 0;
    for (int c = 0; c < N; ++c)
      sum += along_term(A(s[p + c * strides.student]), is[p], A(t[p + c * strides.teacher]), it[p]);
    along[p] += sum;
  }
}

// Calls ADD<N>(s, t, ...) for all channels, kBunch at a time.
#define SF_ALL_CHANNELS(ADD, ...)                                                                                \
  do {                                                                                                           \
    int64_t c = 0;                                                                                               \
    const T *s = student, *t = teacher;                                                                          \
    for (; c + kBunch <= channels; c += kBunch) {                                                                \
      ADD<kBunch>(s, t, strides, n, __VA_ARGS__);                                                                \
      s += kBunch * strides.student, t += kBunch * strides.teacher;                                              \
    }                                                                                                            \
    for (; c < channels; ++c, s += strides.student, t += strides.teacher) ADD<1>(s, t, strides, n, __VA_ARGS__); \
  } while (false)

SF_BODY norms_planar(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t n, A eps, A* is,
                     A* it) {
  std::fill(is, is + n, A(0));
  std::fill(it, it + n, A(0));
  SF_ALL_CHANNELS(add_squares, is, it);
  invert<T>(eps, n, is, it);
}

SF_BODY forward_planar(const T* student, const T* teacher, Strides strides, int64_t channels, int64_t pixels, A eps,
                       A* d) {
  A is[kBlock], it[kBlock];
  for (; pixels > 0; pixels -= kBlock, student += kBlock, teacher += kBlock, d += kBlock) {
    const int64_t n = std::min(kBlock, pixels);
    norms_planar(student, teacher, strides, channels, n, eps, is, it);
    std::fill(d, d + n, A(0));
    SF_ALL_CHANNELS(add_distance, is, it, d);
  }
}

SF_BODY backward_planar(const A* grad, const T* student, const T* teacher, Strides strides, int64_t grad_stride,
                        int64_t channels, int64_t pixels, A eps, T* grad_student) {
  A is[kBlock], it[kBlock], along[kBlock];
  for (; pixels > 0; pixels -= kBlock, student += kBlock, teacher += kBlock, grad += kBlock, grad_student += kBlock) {
    const int64_t n = std::min(kBlock, pixels);
    norms_planar(student, teacher, strides, channels, n, eps, is, it);
    std::fill(along, along + n, A(0));
    SF_ALL_CHANNELS(add_along, is, it, along);
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) along[p] *= projection_gain(is[p], eps);
    for (int64_t c = 0; c < channels; ++c) {
      const T* s = student + c * strides.student;
      const T* t = teacher + c * strides.teacher;
      T* g = grad_student + c * grad_stride;
#pragma omp simd
      for (int64_t p = 0; p < n; ++p)
        g[p] = narrow<T>(gradient_term(A(s[p]), is[p], A(t[p]), it[p], along[p], A(2) * is[p] * grad[p]));
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
void distance_pixels_backward(bool channels_last, const A* grad, const T* student, const T* teacher, Strides strides,
                              int64_t grad_stride, int64_t channels, int64_t pixels, A eps, T* grad_student) {
  backward(channels_last, grad, student, teacher, strides, grad_stride, channels, pixels, eps, grad_student);
}

#define SF_INSTANTIATE(T, A)                                                                                           \
  template void distance_pixels<T, A>(bool, const T*, const T*, Strides, int64_t, int64_t, A, A*);                     \
  template void distance_pixels_backward<T, A>(bool, const A*, const T*, const T*, Strides, int64_t, int64_t, int64_t, \
                                               A, T*);

SF_INSTANTIATE(float, float)
SF_INSTANTIATE(double, double)
SF_INSTANTIATE(Half, float)
SF_INSTANTIATE(BFloat16, float)

}  // namespace stadfast::cpu
