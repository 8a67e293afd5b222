// Residual blocks on the next rows of an endless image, also behind a convolution and its pooling.
#include <torch/csrc/stable/library.h>

#include "convolve_blocks.h"
#include "convolve_pool.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kKept = 2;  // rows that a window sees above the one that is new

#ifdef SF_TILES

// The rows of every convolution's input that were, or are to be, kept: (N, C, 2, W).
struct Kept {
  const Layout& layout;
  uint16_t* memory;

  template <class R>
  void exchange(const R& rings, const std::vector<Convolution>& chain, int64_t group, int64_t first, bool load) const {
    for (size_t i = 0; i < chain.size(); ++i)
      for (int64_t r = 0; r < kKept; ++r) {
        const int64_t channels = chain[i].channels;
        uint16_t* kept = memory + i * layout.batch_stride + r * layout.width * layout.pixel_stride + group * channels;
        uint16_t* row = rings.row_of(i, first + r);
        for (int64_t x = 0; x < layout.width; ++x, kept += layout.pixel_stride, row += channels)
          std::memcpy(load ? row : kept, load ? kept : row, channels * kBytes);
      }
  }
};

// A thread takes a group, as what it carries is in one place.
template <class MakeSource>
void stream(const std::vector<Convolution>& chain, const MakeSource& make_source, const Kept& kept, uint16_t* output) {
  const Layout& out = chain.back().out;
  torch::stable::parallel_for(0, chain[0].groups, 1, [&](int64_t group, int64_t end) {
    const TileScope scope;
    auto source = make_source();
    Rings<decltype(source)> rings(chain, source, 0);
    for (; group < end; ++group) {
      kept.exchange(rings, chain, group, -kKept, true);
      rings.resume(group);
      for (int64_t row = 0; row < out.height; ++row)
        rings.compute(row, output + row * out.width * out.pixel_stride + group * chain[0].channels);
      kept.exchange(rings, chain, group, out.height - kKept, false);
    }
  });
}

#endif

// The blocks' memory, checked.
struct Stream {
  Layout kept;
  std::vector<Convolution> chain;
};

Stream prepare_stream(const Tensor& output, const Layout& in, const Tensor& carried, const Tensor& filters,
                      const Tensor& bias, int64_t groups) {
  SF_CHECK(in.batch == 1, "expected one image");
  Stream stream{{}, prepare_blocks(in, filters, bias, groups)};
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
  return stream;
}

// output, input: (1, C, H, W); carried: (N, C, 2, W), the rows above those of every convolution's input, and afterwards
// the last two; all bfloat16, channels of a pixel side by side; filters: (N, ...), of pack_filters, two for each block;
// bias: (N, C), float32
void stream_blocks_(Tensor output, Tensor input, Tensor carried, Tensor filters, Tensor bias, int64_t groups) {
  SF_CHECK(is_features(input), "stream_blocks_: expected an input (1, C, H, W), bfloat16");
  Layout in;
  input = interleaved(input, false, &in);
  Stream s = prepare_stream(output, in, carried, filters, bias, groups);
  s.chain[0].input = static_cast<const uint16_t*>(input.const_data_ptr());
#ifdef SF_TILES
  SF_CHECK(amx_available(), "stream_blocks_: this processor has no tiles (AMX)");
  stream(
      s.chain, [&] { return CopiedRows{s.chain[0]}; }, Kept{s.kept, static_cast<uint16_t*>(carried.mutable_data_ptr())},
      static_cast<uint16_t*>(output.mutable_data_ptr()));
#else
  SF_CHECK(false, "stream_blocks_: compiled without tiles (AMX)");
#endif
}

// input .. pooling: as of convolve_pool; the rest: as of stream_blocks_
void stream_pool_blocks_(Tensor output, Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel,
                         int64_t stride, std::vector<int64_t> padding, std::vector<int64_t> pooling, Tensor carried,
                         Tensor block_filters, Tensor block_bias, int64_t groups) {
  const Stem stem = prepare_stem(input, filters, bias, kernel, stride, padding, pooling);
  const Stream s = prepare_stream(output, stem.pooled(), carried, block_filters, block_bias, groups);
#ifdef SF_TILES
  SF_CHECK(amx_available(), "stream_pool_blocks_: this processor has no tiles (AMX)");
  stream(
      s.chain, [&] { return PooledRows(stem, groups); },
      Kept{s.kept, static_cast<uint16_t*>(carried.mutable_data_ptr())},
      static_cast<uint16_t*>(output.mutable_data_ptr()));
#else
  SF_CHECK(false, "stream_pool_blocks_: compiled without tiles (AMX)");
#endif
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) {
  m.impl("stream_blocks_", TORCH_BOX(&stadfast::cpu::stream_blocks_));
  m.impl("stream_pool_blocks_", TORCH_BOX(&stadfast::cpu::stream_pool_blocks_));
}
