// Convolutions of bfloat16 features, and whether the processor multiplies them.
#include "convolve.h"

#include <torch/csrc/stable/library.h>

#include <optional>

namespace stadfast::cpu {
namespace {

#ifdef SF_TILES

// A thread computes its own rows, since two that write every other group of a pixel take the lines from each other. But
// filters that fill a core's cache are shared out, and so they are where rows are fewer than threads.
void run(const Convolution& c, uint16_t* output) {
  const int64_t rows = (c.out.height + c.rows_at_once() - 1) / c.rows_at_once(), all_rows = c.out.batch * rows;
  const int64_t blocks = c.filters / kChannels, threads = torch::stable::get_num_threads();
  const int64_t filters = c.groups * c.filters * c.kernel_rows * c.depth() * kDepth;
  const int64_t parts = std::clamp<int64_t>(2 * threads / std::max<int64_t>(1, c.groups * all_rows), 1, blocks);
  const bool apart = parts > 1 || filters * kBytes > kManyFilters;
  const int64_t shares = c.groups * parts;
  const double work = double(filters / c.groups) * double(c.out.width * c.rows_at_once()) / parts;
  const int64_t grain = std::max<int64_t>(1, int64_t(kGrain / work));
  torch::stable::parallel_for(0, shares * all_rows, grain, [&](int64_t i, int64_t end) {
    const TileScope scope;
    Rows copied(c);
    for (; i < end; ++i) {
      const int64_t share = apart ? i / all_rows : i % shares, row = apart ? i % all_rows : i / shares;
      const int64_t group = share / parts, part = share % parts;
      const auto filter = [&](int64_t p) { return group * c.filters + blocks * p / parts * kChannels; };
      const int64_t image = row / rows, first = row % rows * c.rows_at_once();
      const uint16_t* residual = c.residual_row(image, first);
      convolve_row(c, {first, filter(part), filter(part + 1), copied.read(image, group, first),
                       residual ? residual + filter(part) : nullptr,
                       output + image * c.out.batch_stride + first * c.out.width * c.out.pixel_stride + filter(part)});
    }
  });
}

#endif

// output, residual: (B, O, H', W'); input: (B, I, H, W); all bfloat16, channels of a pixel side by side;
// filters: of pack_filters; bias: O, float32; padding: rows, columns, on both sides
void convolve_(Tensor output, Tensor input, Tensor filters, Tensor bias, std::optional<Tensor> residual,
               std::vector<int64_t> kernel, int64_t stride, std::vector<int64_t> padding, int64_t groups,
               bool rectify) {
  Convolution c = prepare(input, filters, bias, kernel, stride, padding, groups, rectify);
  const Layout wanted = c.out;
  SF_CHECK(is_features(output) && is_interleaved(output, &c.out),
           "convolve_: expected an output (B, C, H, W), bfloat16, channels_last");
  SF_CHECK(c.out.batch == wanted.batch && c.out.channels == wanted.channels && c.out.height == wanted.height &&
               c.out.width == wanted.width,
           "convolve_: the output's size does not follow from the input's");
  SF_CHECK(!residual || (is_features(*residual) && same_shape(*residual, output)),
           "convolve_: expected a residual of the output's shape and type");
  if (residual) residual = interleaved(*residual, &c.added);
  c.residual = residual ? static_cast<const uint16_t*>(residual->const_data_ptr()) : nullptr;
  SF_IF_BF16("convolve_", { run(c, static_cast<uint16_t*>(output.mutable_data_ptr())); });
}

bool has_bf16() { return bf16_available(); }
bool has_amx() { return amx_available(); }

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_", TORCH_BOX(&stadfast::cpu::convolve_)); }
STABLE_TORCH_LIBRARY_IMPL(stadfast, CompositeExplicitAutograd, m) {
  m.impl("has_bf16", TORCH_BOX(&stadfast::cpu::has_bf16));
  m.impl("has_amx", TORCH_BOX(&stadfast::cpu::has_amx));
}
