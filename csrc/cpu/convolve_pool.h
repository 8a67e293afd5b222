// A convolution's result, pooled row by row: only the rows under a pooling window are there.
#pragma once

#include <vector>

#include "convolve.h"
#include "pooling.h"

namespace stadfast::cpu {

// A convolution with a rectifier, and the max pooling behind it.
struct Stem {
  Convolution c;
  Pooling down, along;
  Layout pooled() const { return {c.out.batch, c.out.channels, down.outputs(), along.outputs(), 0, 1, 0}; }
};

// pooling: size, stride, padding of rows, of columns; the rest as of prepare
inline Stem prepare_stem(Tensor& input, const Tensor& filters, const Tensor& bias, const std::vector<int64_t>& kernel,
                         int64_t stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& pooling) {
  Convolution c = prepare(input, filters, bias, kernel, stride, padding, 1, true);
  c.row_by_row = true;
  SF_CHECK(pooling.size() == 4 && pooling[0] < kMaxWindows,
           "expected a pooling window's size below 32, a stride, and two paddings");
  const Stem stem{
      c, {pooling[0], pooling[1], pooling[2], c.out.height}, {pooling[0], pooling[1], pooling[3], c.out.width}};
  SF_CHECK(stem.down.fits() && stem.along.fits(),
           "expected a pooling window that fits, a stride, and paddings of at most half the window");
  return stem;
}

#ifdef SF_TILES

// Rectified values as integers of the same order: without the sign, which only zeros and NaNs have.
SF_TILED inline __m512i ordered(const uint16_t* values) {
  return _mm512_and_si512(_mm512_loadu_si512(values), _mm512_set1_epi16(0x7fff));
}

// One thread's rows, of as many filters at a time as there are in each of `groups`.
class PooledRows {
 public:
  static constexpr bool kShortcut = false;

  PooledRows(const Stem& stem, int64_t groups)
      : stem_(stem), c_(stem.c), copied_(stem.c), rows_(stem.down.size), channels_(stem.c.filters / groups) {
    c_.out.pixel_stride = channels_;
    static thread_local std::vector<uint16_t> memory;  // the rows under a window, and the highest of their columns
    const size_t wanted = size_t((stem.down.size + 1) * c_.out.width * channels_);
    if (memory.size() < wanted) memory.resize(wanted);
    memory_ = memory.data();
  }

  // A row of the result, its pixels side by side.
  void read(int64_t image, int64_t group, int64_t row, uint16_t* output) {
    const int64_t first = stem_.down.begin(row), last = stem_.down.end(row), filter = group * channels_;
    if (image != image_ || group != group_) image_ = image, group_ = group, next_ = first;
    for (int64_t r = first; r < last; ++r) {
      uint16_t* slot = memory_ + r % stem_.down.size * c_.out.width * channels_;
      rows_[r - first] = slot;
      if (r >= next_) convolve_row(c_, {r, filter, filter + channels_, copied_.read(image, 0, r), nullptr, slot});
    }
    next_ = last;
    pool(last - first, output);
  }

 private:
  SF_TILED void pool(int64_t count, uint16_t* output) const {
    const int64_t length = c_.out.width * channels_;
    uint16_t* highest = memory_ + stem_.down.size * length;
    for (int64_t i = 0; i < length; i += kDepth) {
      __m512i value = ordered(rows_[0] + i);
      for (int64_t row = 1; row < count; ++row) value = _mm512_max_epi16(value, ordered(rows_[row] + i));
      _mm512_storeu_si512(highest + i, value);
    }
    const Pooling& along = stem_.along;
    for (int64_t x = 0; x < along.outputs(); ++x)
      for (int64_t f = 0; f < channels_; f += kDepth) {
        const uint16_t* column = highest + along.begin(x) * channels_ + f;
        __m512i value = _mm512_loadu_si512(column);
        for (int64_t n = along.end(x) - along.begin(x); n > 1; --n)
          value = _mm512_max_epi16(value, _mm512_loadu_si512(column += channels_));
        _mm512_storeu_si512(output, value);
        output += kDepth;
      }
  }

  const Stem& stem_;
  Convolution c_;
  Rows copied_;
  std::vector<const uint16_t*> rows_;
  int64_t channels_, image_ = -1, group_ = -1, next_ = 0;
  uint16_t* memory_;
};

#endif

}  // namespace stadfast::cpu
