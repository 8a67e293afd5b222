// Winograd's convolution for the processor at hand.
#include "winograd.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <vector>

#include "winograd_bf16.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kTilesAtOnce = 36;     // their transforms stay in the L2 cache
constexpr int64_t kManyBytes = 1 << 20;  // of weights, that fill half of it: threads share filters out, not tiles

template <class T, class Block>
void run(const Winograd<T>& c, const Block& convolve) {
  const int64_t tiles = c.out.batch * c.tiles(), threads = torch::stable::get_num_threads();
  if (tiles == 0) return;  // an empty batch
  const int64_t filters = c.filters / c.groups, panels = filters / kPanel;
  const bool apart = int64_t(sizeof(T)) * kPlaces * c.channels * filters > kManyBytes;
  const int64_t part = (panels + (apart ? threads : 1) - 1) / (apart ? threads : 1) * kPanel;  // of a group's filters
  const int64_t group_parts = (filters + part - 1) / part, parts = c.groups * group_parts;
  // Blocks of equal size, and as many as threads.
  const int64_t wanted = std::max((tiles + kTilesAtOnce - 1) / kTilesAtOnce, (threads + parts - 1) / parts);
  const int64_t share = (tiles + wanted - 1) / wanted;
  const int64_t count = (share + kTogether - 1) / kTogether * kTogether, blocks = (tiles + count - 1) / count;
  torch::stable::parallel_for(0, parts * blocks, 1, [&](int64_t i, int64_t end) {
    static thread_local std::vector<T> values;
    static thread_local std::vector<float> products;
    const size_t value_count = c.channels + kPlaces * count * c.channels, product_count = kPlaces * count * part;
    if (values.size() < value_count) values.resize(value_count);
    if (products.size() < product_count) products.resize(product_count);
    std::memset(values.data(), 0, c.channels * sizeof(T));
    for (; i < end; ++i) {
      const int64_t first_tile = i % blocks * count, group = i / blocks / group_parts;
      const int64_t first = i / blocks % group_parts * part, last = std::min(first + part, filters);
      convolve(c, {first_tile, std::min(count, tiles - first_tile), group * filters + first, group * filters + last,
                   values.data(), values.data() + c.channels, products.data()});
    }
  });
}

bool is_features(const Tensor& x, ScalarType type) { return x.dim() == 4 && x.scalar_type() == type; }

// The arguments of winograd_, checked.
template <class T>
Winograd<T> prepare(Tensor& output, Tensor& input, const Tensor& filters, const Tensor& bias,
                    std::optional<Tensor>& residual, const std::vector<int64_t>& padding, int64_t groups,
                    bool rectify) {
  Winograd<T> c{};
  c.rectify = rectify;
  const ScalarType type = filters.scalar_type();
  SF_CHECK(is_features(input, type), "winograd_: expected an input (B, C, H, W), of the filters' type");
  SF_CHECK(padding.size() == 2 && within(0, padding[0]) && within(0, padding[1]) && within(1, groups),
           "winograd_: expected two paddings, and groups");
  input = interleaved(input, &c.in);
  c.groups = groups, c.channels = c.in.channels / groups, c.filters = bias.numel();
  c.rows_above = padding[0], c.columns_left = padding[1];
  SF_CHECK(c.filters > 0 && c.filters % (groups * kPanel) == 0 && c.channels > 0 && c.channels % kPanel == 0 &&
               c.in.channels == c.channels * groups,
           "winograd_: expected multiples of 16 channels and filters in each group");
  SF_CHECK(bias.scalar_type() == ScalarType::Float && bias.is_contiguous(),
           "winograd_: expected a float32 bias for every output channel");
  SF_CHECK(filters.is_contiguous() && filters.numel() == kPlaces * c.channels * c.filters,
           "winograd_: expected filters as pack_filters gives them");
  const int64_t height = c.in.height + 2 * padding[0] - 2, width = c.in.width + 2 * padding[1] - 2;
  SF_CHECK(height > 0 && width > 0 && c.in.height < kMaxExtent && c.in.width < kMaxExtent,
           "winograd_: the window is larger than the padded input, or something is too large");
  SF_CHECK(is_features(output, type) && find_layout(output, &c.out) && c.out.channel_stride == 1,
           "winograd_: expected an output (B, C, H, W), of the filters' type, channels_last");
  SF_CHECK(c.out.batch == c.in.batch && c.out.channels == c.filters && c.out.height == height && c.out.width == width,
           "winograd_: the output's size does not follow from the input's");
  SF_CHECK(!residual || (is_features(*residual, type) && same_shape(*residual, output)),
           "winograd_: expected a residual of the output's shape and type");
  if (residual) residual = interleaved(*residual, &c.added);
  c.residual = residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr;
  c.input = static_cast<const T*>(input.const_data_ptr());
  c.weights = static_cast<const T*>(filters.const_data_ptr());
  c.bias = static_cast<const float*>(bias.const_data_ptr());
  c.output = static_cast<T*>(output.mutable_data_ptr());
  return c;
}

// output, residual: (B, O, H', W'); input: (B, I, H, W); all float32 or all bfloat16, channels of a pixel side by side;
// filters: of pack_filters; bias: O, float32; padding: rows, columns, on both sides; groups: of channels
void winograd_(Tensor output, Tensor input, Tensor filters, Tensor bias, std::optional<Tensor> residual,
               std::vector<int64_t> padding, int64_t groups, bool rectify) {
  if (filters.scalar_type() == ScalarType::Float) {
    static const auto convolve = fastest_block();
    run(prepare<float>(output, input, filters, bias, residual, padding, groups, rectify), convolve);
    return;
  }
  SF_CHECK(filters.scalar_type() == ScalarType::BFloat16, "winograd_: expected filters of float32 or bfloat16");
  const auto c = prepare<uint16_t>(output, input, filters, bias, residual, padding, groups, rectify);
#ifdef SF_TILES
  SF_CHECK(bf16_available(), "winograd_: this processor does not multiply bfloat16 (AVX512-BF16)");
  run(c, narrow_block);
#else
  SF_CHECK(false, "winograd_: compiled without bfloat16 products (AVX512-BF16)");
#endif
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("winograd_", TORCH_BOX(&stadfast::cpu::winograd_)); }
