// Every operator's schema. Meaning, shapes and defaults: the docstrings in stadfast/ops.
// No default values here: torch 2.11 to 2.13 cannot register autograd over Tensor[] with trailing defaults.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(stadfast, m) {
  m.def("pyramid_distance(Tensor[] student, Tensor[] teacher, float eps) -> Tensor[]");
  m.def("pyramid_distance_backward(Tensor[] grad, Tensor[] student, Tensor[] teacher, float eps) -> Tensor[]");
  m.def(
      "anomaly_map(Tensor[] student, Tensor[] teacher, int[] groups, float[] weights, int[] grid, int[] size, "
      "str combine, float eps) -> Tensor");
  m.def(
      "upsample_combine(Tensor[] maps, int[] groups, float[] weights, int[] grid, int[] size, str combine) -> "
      "Tensor");
  m.def("peer_distance(Tensor[] descriptors, int[] pairs, int[] groups, bool squared) -> Tensor");
  m.def("peer_distance_backward(Tensor factors, Tensor[] descriptors, int[] pairs, int[] wanted) -> Tensor[]");
  m.def("max_pool2d(Tensor input, Tensor? above, int kernel, int stride, int[] padding) -> Tensor");
  m.def(
      "convolve_(Tensor(a!) output, Tensor input, Tensor filters, Tensor bias, Tensor? residual, int[] kernel, "
      "int stride, int[] padding, int groups, bool rectify) -> ()");
  m.def(
      "convolve_pool(Tensor input, Tensor filters, Tensor bias, int[] kernel, int stride, int[] padding, "
      "int[] pooling) -> Tensor");
  m.def("convolve_blocks(Tensor input, Tensor filters, Tensor bias, int groups) -> Tensor");
  m.def(
      "convolve_pool_blocks(Tensor input, Tensor filters, Tensor bias, int[] kernel, int stride, int[] padding, "
      "int[] pooling, Tensor block_filters, Tensor block_bias, int groups) -> Tensor");
  m.def(
      "convolve_stage(Tensor input, Tensor filters, Tensor bias, Tensor shortcut_filters, Tensor shortcut_bias, "
      "Tensor block_filters, Tensor block_bias, int stride, int groups) -> Tensor");
  m.def(
      "stream_blocks_(Tensor(a!) output, Tensor input, Tensor(b!) carried, Tensor filters, Tensor bias, int groups) "
      "-> ()");
  m.def(
      "stream_pool_blocks_(Tensor(a!) output, Tensor input, Tensor filters, Tensor bias, int[] kernel, int stride, "
      "int[] padding, int[] pooling, Tensor(b!) carried, Tensor block_filters, Tensor block_bias, int groups) -> ()");
  m.def(
      "stream_stage_(Tensor(a!) output, Tensor input, Tensor filters, Tensor bias, Tensor(b!) shortcut, "
      "Tensor shortcut_input, Tensor shortcut_filters, Tensor shortcut_bias, int stride, Tensor(c!) carried, "
      "Tensor block_filters, Tensor block_bias, int groups) -> ()");
  m.def(
      "winograd_(Tensor(a!) output, Tensor input, Tensor filters, Tensor bias, Tensor? residual, int[] padding, "
      "int groups, bool rectify) -> ()");
  m.def("has_bf16() -> bool");
  m.def("has_amx() -> bool");
  m.def("normalize_images(Tensor images, float[] mean, float[] std, bool bfloat16) -> Tensor");
  m.def("label_regions(Tensor masks) -> (Tensor, Tensor)");
  m.def("region_pixels(Tensor[] maps, Tensor[] masks) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("region_histogram(Tensor[] maps, Tensor[] masks) -> (Tensor, Tensor, Tensor)");
  m.def("rank_counts(Tensor[] scores, Tensor edges) -> Tensor");
  m.def("key_histogram(Tensor[] scores) -> Tensor");
}
