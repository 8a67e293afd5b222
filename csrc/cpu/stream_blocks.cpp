// Residual blocks on the next rows of an endless image, also behind a convolution and its pooling or with a stride.
#include <torch/csrc/stable/library.h>

#include "convolve_blocks.h"
#include "convolve_pool.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kKept = 2;  // rows that a window sees above the one that is new

// The blocks and their memory, checked: of every convolution's input two rows were kept, and are to be.
struct Stream {
  std::vector<Convolution> chain;
  Layout kept;  // (N, C, 2, W)
  uint16_t *carried, *output;
};

#ifdef SF_TILES

// The kept rows of a group, which begin with row `first`, into the rings or out of them.
template <class R>
void exchange(const Stream& s, const R& rings, int64_t group, int64_t first, bool load) {
  for (size_t i = 0; i < s.chain.size(); ++i)
    for (int64_t r = 0; r < kKept; ++r) {
      const int64_t channels = s.chain[i].channels, pixel = s.kept.pixel_stride;
      uint16_t* kept = s.carried + i * s.kept.batch_stride + r * s.kept.width * pixel + group * channels;
      uint16_t* row = rings.row_of(i, first + r);
      if (load)
        copy_pixels(s.kept.width, channels, kept, pixel, row, channels);
      else
        copy_pixels(s.kept.width, channels, row, channels, kept, pixel);
    }
}

// One thread's rows of a strided convolution. The new rows of the shortcut beside it, which its block adds later, are
// written to memory with them.
class StridedRows {
 public:
  static constexpr bool kShortcut = true;

  StridedRows(const Convolution& first, const Convolution& beside, const Layout& kept, uint16_t* memory)
      : first_(first), beside_(beside), kept_(kept), memory_(memory), copied_(first), beside_copied_(beside, 1) {}

  void read(int64_t image, int64_t group, int64_t row, uint16_t* output) {
    convolve_group(first_, copied_, image, group, row, output);
    convolve_group(beside_, beside_copied_, image, group, row, at(group, kept_.height - first_.out.height + row));
  }

  const uint16_t* shortcut(int64_t image, int64_t group, int64_t row) const { return at(group, row); }

 private:
  uint16_t* at(int64_t group, int64_t row) const {
    return memory_ + row * kept_.width * kept_.pixel_stride + group * first_.filters;
  }

  const Convolution &first_, &beside_;
  const Layout& kept_;
  uint16_t* memory_;
  Rows copied_, beside_copied_;
};

// A thread takes a group, as what it carries is in one place. Filters that the cache does not hold are read once: all
// rows of a convolution before those of the next.
template <class MakeSource>
void stream(const Stream& s, const MakeSource& make_source) {
  const Layout& out = s.chain.back().out;
  const Convolution& c = s.chain[0];
  const bool many = int64_t(s.chain.size()) * c.filters * c.kernel_rows * c.depth() * kDepth * kBytes > kManyFilters;
  torch::stable::parallel_for(0, c.groups, 1, [&](int64_t group, int64_t end) {
    const TileScope scope;
    auto source = make_source();
    Rings<decltype(source)> rings(s.chain, source, 0, many ? kKept + out.height : kRows);
    for (; group < end; ++group) {
      exchange(s, rings, group, -kKept, true);
      rings.resume(group);
      if (many) rings.compute_ahead(out.height);
      for (int64_t row = 0; row < out.height; ++row)
        rings.compute(row, s.output + row * out.width * out.pixel_stride + group * c.channels);
      exchange(s, rings, group, out.height - kKept, false);
    }
  });
}

#endif

Stream prepare_stream(const Tensor& output, const Layout& in, const Tensor& carried, const Tensor& filters,
                      const Tensor& bias, int64_t groups, bool begun = false) {
  SF_CHECK(in.batch == 1, "expected one image");
  Stream stream{prepare_blocks(in, filters, bias, groups, begun), {}, nullptr, nullptr};
  const Layout& kept = stream.kept;
  SF_CHECK(is_features(carried) && is_interleaved(carried, &stream.kept) &&
               kept.batch == int64_t(stream.chain.size()) && kept.channels == in.channels && kept.height == kKept &&
               kept.width == in.width,
           "expected two rows for each convolution carried (N, C, 2, W), bfloat16, channels_last");
  Layout& out = stream.chain.back().out;
  const Layout wanted = out;
  SF_CHECK(is_features(output) && is_interleaved(output, &out) && out.batch == 1 && out.channels == wanted.channels &&
               out.height == wanted.height && out.width == wanted.width,
           "expected an output of the blocks' shape and type, channels_last");
  stream.carried = static_cast<uint16_t*>(carried.mutable_data_ptr());
  stream.output = static_cast<uint16_t*>(output.mutable_data_ptr());
  return stream;
}

// output, input: (1, C, H, W); carried: (N, C, 2, W), the rows above those of every convolution's input, and afterwards
// the last two; all bfloat16, channels of a pixel side by side; filters: (N, ...), of pack_filters, two for each block;
// bias: (N, C), float32
void stream_blocks_(Tensor output, Tensor input, Tensor carried, Tensor filters, Tensor bias, int64_t groups) {
  SF_CHECK(is_features(input), "stream_blocks_: expected an input (1, C, H, W), bfloat16");
  Layout in;
  input = interleaved(input, &in);
  Stream s = prepare_stream(output, in, carried, filters, bias, groups);
  s.chain[0].input = static_cast<const uint16_t*>(input.const_data_ptr());
  SF_IF_BF16("stream_blocks_", { stream(s, [&] { return CopiedRows{s.chain[0]}; }); });
}

// input .. pooling: as of convolve_pool; the rest: as of stream_blocks_
void stream_pool_blocks_(Tensor output, Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel,
                         int64_t stride, std::vector<int64_t> padding, std::vector<int64_t> pooling, Tensor carried,
                         Tensor block_filters, Tensor block_bias, int64_t groups) {
  const Stem stem = prepare_stem(input, filters, bias, kernel, stride, padding, pooling);
  const Stream s = prepare_stream(output, stem.pooled(), carried, block_filters, block_bias, groups);
  SF_IF_BF16("stream_pool_blocks_", { stream(s, [&] { return PooledRows(stem, groups); }); });
}

// output, carried .. groups: as of stream_blocks_, with one of block_filters less; input: (1, I, (H - 1) * stride + 3,
// W), the rows under the first convolution's windows; shortcut: (1, C, >= H, W), of which the first H rows are added
// and the last H overwritten; shortcut_input: (1, I, (H - 1) * stride + 1, W), the rows under their windows of one
// pixel
void stream_stage_(Tensor output, Tensor input, Tensor filters, Tensor bias, Tensor shortcut, Tensor shortcut_input,
                   Tensor shortcut_filters, Tensor shortcut_bias, int64_t stride, Tensor carried, Tensor block_filters,
                   Tensor block_bias, int64_t groups) {
  const Convolution first = prepare_rows(input, filters, bias, 3, stride, 0, groups, true);
  Convolution beside = prepare_rows(shortcut_input, shortcut_filters, shortcut_bias, 1, stride, 0, groups, false);
  SF_CHECK(beside.out.batch == 1 && beside.filters == first.filters && beside.out.height == first.out.height &&
               beside.out.width == first.out.width,
           "stream_stage_: expected a shortcut of as many channels, rows and columns");
  Stream s = prepare_stream(output, first.out, carried, block_filters, block_bias, groups, true);
  Layout& kept = s.chain[0].added;
  SF_CHECK(is_features(shortcut) && is_interleaved(shortcut, &kept) && kept.batch == 1 &&
               kept.channels == beside.out.channels && kept.height >= beside.out.height &&
               kept.width == beside.out.width,
           "stream_stage_: expected memory for the shortcut (1, C, >= H, W), bfloat16, channels_last");
  beside.out.pixel_stride = kept.pixel_stride;
  SF_IF_BF16("stream_stage_", {
    uint16_t* memory = static_cast<uint16_t*>(shortcut.mutable_data_ptr());
    stream(s, [&] { return StridedRows(first, beside, kept, memory); });
  });
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) {
  m.impl("stream_blocks_", TORCH_BOX(&stadfast::cpu::stream_blocks_));
  m.impl("stream_pool_blocks_", TORCH_BOX(&stadfast::cpu::stream_pool_blocks_));
  m.impl("stream_stage_", TORCH_BOX(&stadfast::cpu::stream_stage_));
}
