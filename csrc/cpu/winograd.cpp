// Winograd's convolution for the processor at hand.
#include "winograd.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <vector>

namespace stadfast::cpu {
namespace {

constexpr int64_t kTilesAtOnce = 48;       // their transforms stay in the second cache
constexpr int64_t kManyWeights = 1 << 18;  // that fill half of it: threads share filters out, not tiles

void run(const Winograd& c) {
  static const auto convolve = fastest_block();
  const int64_t tiles = c.out.batch * c.tiles(), threads = torch::stable::get_num_threads();
  const int64_t filters = c.filters / c.groups, panels = filters / kPanel;
  const bool apart = kPlaces * c.channels * filters > kManyWeights;
  const int64_t part = (panels + (apart ? threads : 1) - 1) / (apart ? threads : 1) * kPanel;  // of a group's filters
  const int64_t group_parts = (filters + part - 1) / part, parts = c.groups * group_parts;
  // Blocks of equal size, and as many as threads.
  const int64_t wanted = std::max((tiles + kTilesAtOnce - 1) / kTilesAtOnce, (threads + parts - 1) / parts);
  const int64_t share = (tiles + wanted - 1) / wanted;
  const int64_t count = (share + kTogether - 1) / kTogether * kTogether, blocks = (tiles + count - 1) / count;
  torch::stable::parallel_for(0, parts * blocks, 1, [&](int64_t i, int64_t end) {
    static thread_local std::vector<float> memory;
    const size_t needed = c.channels + kPlaces * count * (c.channels + part);
    if (memory.size() < needed) memory.resize(needed);
    std::memset(memory.data(), 0, c.channels * sizeof(float));
    float* values = memory.data() + c.channels;
    for (; i < end; ++i) {
      const int64_t first_tile = i % blocks * count, group = i / blocks / group_parts;
      const int64_t first = i / blocks % group_parts * part, last = std::min(first + part, filters);
      convolve(c, {first_tile, std::min(count, tiles - first_tile), group * filters + first, group * filters + last,
                   memory.data(), values, values + kPlaces * count * c.channels});
    }
  });
}

bool is_features(const Tensor& x) { return x.dim() == 4 && x.scalar_type() == ScalarType::Float; }

// output, residual: (B, O, H', W'); input: (B, I, H, W); all float32, channels of a pixel side by side; filters: of
// pack_filters; bias: O; padding: rows, columns, on both sides; groups: of channels
void winograd_(Tensor output, Tensor input, Tensor filters, Tensor bias, std::optional<Tensor> residual,
               std::vector<int64_t> padding, int64_t groups, bool rectify) {
  Winograd c{};
  SF_CHECK(is_features(input), "winograd_: expected an input (B, C, H, W), float32");
  SF_CHECK(
      padding.size() == 2 && padding[0] >= 0 && padding[0] < kMaxExtent && padding[1] >= 0 && padding[1] < kMaxExtent,
      "winograd_: expected two paddings");
  SF_CHECK(groups >= 1, "winograd_: expected at least one group");
  input = interleaved(input, &c.in);
  c.groups = groups, c.channels = c.in.channels / groups, c.filters = bias.numel();
  c.rows_above = padding[0], c.columns_left = padding[1];
  SF_CHECK(c.filters > 0 && c.filters % (groups * kPanel) == 0 && c.channels > 0 && c.channels % kPanel == 0 &&
               c.in.channels == c.channels * groups,
           "winograd_: expected multiples of 16 channels and filters in each group");
  SF_CHECK(bias.scalar_type() == ScalarType::Float && bias.is_contiguous(),
           "winograd_: expected a float32 bias for every output channel");
  SF_CHECK(filters.scalar_type() == ScalarType::Float && filters.is_contiguous() &&
               filters.numel() == kPlaces * c.channels * c.filters,
           "winograd_: expected filters as pack_filters gives them");
  const int64_t height = c.in.height + 2 * padding[0] - 2, width = c.in.width + 2 * padding[1] - 2;
  SF_CHECK(height > 0 && width > 0 && c.in.height < kMaxExtent && c.in.width < kMaxExtent,
           "winograd_: the window is larger than the padded input, or something is too large");
  SF_CHECK(is_features(output) && find_layout(output, &c.out) && c.out.channel_stride == 1,
           "winograd_: expected an output (B, C, H, W), float32, channels_last");
  SF_CHECK(c.out.batch == c.in.batch && c.out.channels == c.filters && c.out.height == height && c.out.width == width,
           "winograd_: the output's size does not follow from the input's");
  SF_CHECK(!residual || (is_features(*residual) && same_shape(*residual, output)),
           "winograd_: expected a residual of the output's shape and type");
  if (residual) residual = interleaved(*residual, &c.added);
  c.residual = residual ? static_cast<const float*>(residual->const_data_ptr()) : nullptr;
  c.input = static_cast<const float*>(input.const_data_ptr());
  c.weights = static_cast<const float*>(filters.const_data_ptr());
  c.bias = static_cast<const float*>(bias.const_data_ptr());
  c.output = static_cast<float*>(output.mutable_data_ptr());
  c.rectify = rectify;
  run(c);
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("winograd_", TORCH_BOX(&stadfast::cpu::winograd_)); }
