// Residual blocks row by row: the features between their convolutions never leave the cache.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "convolve.h"

namespace stadfast::cpu {

// The convolutions of all blocks, on features of the shape of `in`, into an output of its own memory. `begun`: of the
// first block only the second convolution is among them.
inline std::vector<Convolution> prepare_blocks(const Layout& in, const Tensor& filters, const Tensor& bias,
                                               int64_t groups, bool begun = false) {
  SF_CHECK(filters.dim() == 2 && bias.dim() == 2 && filters.size(0) == bias.size(0) && bias.size(0) > 0 &&
               bias.size(0) % 2 == begun,
           "expected filters (N, ...) and a bias (N, C), two of both for each block");
  SF_CHECK(filters.is_contiguous(), "expected filters as pack_filters gives them");
  SF_CHECK(bias.is_contiguous(), "expected a float32 bias for every output channel");
  const auto first = [](Tensor all) { return torch::stable::narrow(all, 0, 0, 1); };
  Convolution c = prepare(in, first(filters), first(bias), {3, 3}, 1, {1, 1}, groups, true);
  SF_CHECK(c.filters == c.channels, "expected as many channels out of each of a block's convolutions as into it");
  c.row_by_row = true;
  c.out.pixel_stride = c.added.pixel_stride = c.channels;
  std::vector<Convolution> chain;
  for (int64_t i = 0; i < bias.size(0); ++i, c.weights += filters.size(1), c.bias += bias.size(1)) chain.push_back(c);
  Layout& out = chain.back().out;
  out.pixel_stride = out.channels, out.batch_stride = out.pixels() * out.channels;
  return chain;
}

// A convolution into rows of their own, pixels side by side; `above`: rows of zeros on both sides.
inline Convolution prepare_rows(Tensor& input, const Tensor& filters, const Tensor& bias, int64_t side, int64_t stride,
                                int64_t above, int64_t groups, bool rectify) {
  Convolution c = prepare(input, filters, bias, {side, side}, stride, {above, side / 2}, groups, rectify);
  c.row_by_row = true, c.out.pixel_stride = c.filters;
  return c;
}

inline Tensor empty_features(const Tensor& like, const Layout& shape) {
  return torch::stable::empty({shape.batch, shape.channels, shape.height, shape.width}, ScalarType::BFloat16,
                              std::nullopt, like.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

#ifdef SF_TILES

constexpr int64_t kRows = 3;  // of a window

// What one thread knows of the features before every convolution: the last rows of a group of an image, padded, in a
// ring. A row is computed when the next convolution needs it, and it needs one more than the row that it computes: the
// ring before holds that row itself, the residual of a block, until then. `ahead`: how many rows behind its own number
// a convolution's window ends: 1, or 0 where rows are numbered by when they are known. `rows`: of a ring. `Source`:
// read(image, group, row, output) gives the rows of the features before all of them; where these are the middle of a
// block, shortcut(image, group, row) those of its residual.
template <class Source>
class Rings {
 public:
  Rings(const std::vector<Convolution>& chain, Source& source, int64_t ahead = 1, int64_t rows = kRows)
      : chain_(chain), source_(source), ahead_(ahead), rows_(rows), next_(chain.size()) {
    const int64_t channels = chain[0].channels, used = (chain[0].in.width + 1) * channels;
    length_ = (chain[0].tiles_of_row() * kTile + kRows - 1) * channels;
    static thread_local std::vector<uint16_t> memory;
    const size_t wanted = chain.size() * rows * length_ + kDepth;
    if (memory.size() < wanted) memory.resize(wanted);
    first_ = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    for (size_t i = 0; i < chain.size() * rows; ++i) {  // what surrounds a row stays zero
      std::memset(first_ + i * length_, 0, channels * kBytes);
      std::memset(first_ + i * length_ + used, 0, (length_ - used) * kBytes);
    }
  }

  // Another group or image, or other rows of them.
  void start(int64_t image, int64_t group, int64_t row) {
    image_ = image, group_ = group;
    for (size_t i = chain_.size(); i > 0; --i) next_[i - 1] = row = std::max<int64_t>(row - 1, -1);
  }

  // The next rows of the same group, whose last two before row 0 were kept.
  void resume(int64_t group) {
    group_ = group;
    std::fill(next_.begin(), next_.end(), 0);
  }

  // Row r >= -2 of what convolution i reads, its pixels side by side.
  uint16_t* row_of(size_t i, int64_t row) const { return slot(i, row) + chain_[i].channels; }

  // All rows before `end` of what the convolutions read, one convolution after the other.
  void compute_ahead(int64_t end) {
    for (size_t i = 0; i < chain_.size(); ++i) fill(i, end);
  }

  // A row of the blocks' result.
  void compute(int64_t row, uint16_t* output) { convolve(chain_.size() - 1, row, output); }

 private:
  uint16_t* slot(size_t i, int64_t row) const { return first_ + (rows_ * i + (row + rows_) % rows_) * length_; }

  // All rows before `end` of what convolution i reads.
  void fill(size_t i, int64_t end) {
    const Convolution& c = chain_[i];
    for (int64_t& row = next_[i]; row < end; ++row) {
      uint16_t* to = row_of(i, row);
      if (row < 0 || row >= c.in.height)
        std::memset(to, 0, c.in.width * c.channels * kBytes);
      else if (i > 0)
        convolve(i - 1, row, to);
      else
        source_.read(image_, group_, row, to);
    }
  }

  void convolve(size_t i, int64_t row, uint16_t* output) {
    const Convolution& c = chain_[i];
    const int64_t last = row + ahead_;
    fill(i, last + 1);
    const uint16_t* windows[kRows] = {slot(i, last - 2), slot(i, last - 1), slot(i, last)};
    const uint16_t* residual = nullptr;
    if ((chain_.size() - i) % 2 == 1) residual = i > 0 ? row_of(i - 1, last + ahead_ - 2) : shortcut(row);
    convolve_row(c, {row, group_ * c.filters, (group_ + 1) * c.filters, windows, residual, output});
  }

  const uint16_t* shortcut(int64_t row) {
    if constexpr (Source::kShortcut) return source_.shortcut(image_, group_, row);
    return nullptr;
  }

  const std::vector<Convolution>& chain_;
  Source& source_;
  const int64_t ahead_, rows_;
  std::vector<int64_t> next_;  // rows before it have been computed
  int64_t image_ = 0, group_ = 0, length_;
  uint16_t* first_;
};

// `count` pixels of so many channels, a multiple of 32.
SF_TILED inline void copy_pixels(int64_t count, int64_t channels, const uint16_t* from, int64_t from_stride,
                                 uint16_t* to, int64_t to_stride) {
  for (int64_t x = 0; x < count; ++x, from += from_stride, to += to_stride)
    for (int64_t i = 0; i < channels; i += kDepth) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
}

// The rows of features in memory, as a source.
struct CopiedRows {
  static constexpr bool kShortcut = false;
  const Convolution& c;

  void read(int64_t image, int64_t group, int64_t row, uint16_t* output) const {
    copy_pixels(c.in.width, c.channels, c.input_row(image, row, group), c.in.pixel_stride, output, c.channels);
  }
};

// Threads take rows of a group of an image. Where two meet in an image, both compute the features that both need: one
// row more on either side with every convolution before the last. So none takes few rows. `make_source()`: a thread's.
template <class MakeSource>
void run_blocks(const std::vector<Convolution>& chain, const MakeSource& make_source, uint16_t* output) {
  const Convolution& c = chain.back();
  const int64_t height = c.out.height, convolutions = chain.size();
  const double work = double(convolutions) * double(c.filters * c.kernel_rows * c.depth() * kDepth * c.out.width);
  const int64_t grain = std::max(2 * convolutions, int64_t(kGrain / work));
  torch::stable::parallel_for(0, c.out.batch * c.groups * height, grain, [&](int64_t i, int64_t end) {
    const TileScope scope;
    auto source = make_source();
    Rings<decltype(source)> rings(chain, source);
    for (bool first = true; i < end; ++i, first = false) {
      const int64_t row = i % height, image = i / height / c.groups, group = i / height % c.groups;
      if (first || row == 0) rings.start(image, group, row);
      rings.compute(row,
                    output + image * c.out.batch_stride + row * c.out.width * c.out.pixel_stride + group * c.filters);
    }
  });
}

#endif

}  // namespace stadfast::cpu
