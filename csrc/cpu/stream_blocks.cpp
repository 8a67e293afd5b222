// Residual blocks on the next rows of an endless image.
#include <torch/csrc/stable/library.h>

#include "convolve_blocks.h"

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

#endif

// output, input: (1, C, H, W); carried: (N, C, 2, W), the rows above those of every convolution's input, and afterwards
// the last two; all bfloat16, channels of a pixel side by side; filters: (N, ...), of pack_filters, two for each block;
// bias: (N, C), float32
void stream_blocks_(Tensor output, Tensor input, Tensor carried, Tensor filters, Tensor bias, int64_t groups) {
  SF_CHECK(is_features(input) && input.size(0) == 1, "stream_blocks_: expected an input (1, C, H, W), bfloat16");
  Layout in, kept;
  input = interleaved(input, false, &in);
  std::vector<Convolution> chain = prepare_blocks(in, filters, bias, groups);
  chain[0].input = static_cast<const uint16_t*>(input.const_data_ptr());
  SF_CHECK(is_features(carried) && is_interleaved(carried, &kept) && kept.batch == int64_t(chain.size()) &&
               kept.channels == in.channels && kept.height == kKept && kept.width == in.width,
           "stream_blocks_: expected two rows for each convolution carried (N, C, 2, W), bfloat16, channels_last");
  Layout& out = chain.back().out;
  const Layout wanted = out;
  SF_CHECK(is_features(output) && is_interleaved(output, &out) && out.batch == 1 && out.channels == wanted.channels &&
               out.height == wanted.height && out.width == wanted.width,
           "stream_blocks_: expected an output of the input's shape and type, channels_last");
#ifdef SF_TILES
  SF_CHECK(amx_available(), "stream_blocks_: this processor has no tiles (AMX)");
  uint16_t* rows = static_cast<uint16_t*>(output.mutable_data_ptr());
  const Kept memory{kept, static_cast<uint16_t*>(carried.mutable_data_ptr())};
  torch::stable::parallel_for(0, groups, 1, [&](int64_t group, int64_t end) {
    const TileScope scope;
    CopiedRows source{chain[0]};
    Rings<CopiedRows> rings(chain, source, 0);
    for (; group < end; ++group) {
      memory.exchange(rings, chain, group, -kKept, true);
      rings.resume(group);
      for (int64_t row = 0; row < in.height; ++row)
        rings.compute(row, rows + row * out.width * out.pixel_stride + group * chain[0].channels);
      memory.exchange(rings, chain, group, in.height - kKept, false);
    }
  });
#else
  SF_CHECK(false, "stream_blocks_: compiled without tiles (AMX)");
#endif
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("stream_blocks_", TORCH_BOX(&stadfast::cpu::stream_blocks_)); }
