// Argument checks. stadfast.ops explains mistakes in words before a call; these keep memory safe for everyone
// else (TorchScript archives, C++ programs).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#define SF_CHECK(condition, ...) STD_TORCH_CHECK(condition, "stadfast: ", __VA_ARGS__)

namespace stadfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// Channels, rows and columns are counted in 32 bits, with room for a step beyond; their products in 64.
constexpr int64_t kMaxExtent = int64_t(1) << 30;

inline bool within(int64_t least, int64_t value) { return value >= least && value < kMaxExtent; }

// Two equally long lists of equally shaped (B, C_l, H_l, W_l) floating-point tensors on one device.
inline void check_pyramids(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher) {
  SF_CHECK(!student.empty() && student.size() == teacher.size(), "expected as many student as teacher levels, got ",
           student.size(), " and ", teacher.size());
  for (size_t l = 0; l < student.size(); ++l) {
    const Tensor &s = student[l], &t = teacher[l];
    SF_CHECK(s.dim() == 4, "student[", l, "]: expected 4 dimensions (B, C, H, W), got ", s.dim());
    SF_CHECK(same_shape(s, t), "level ", l, ": student and teacher differ in shape");
    SF_CHECK(s.scalar_type() == t.scalar_type() && s.scalar_type() == student[0].scalar_type(), "level ", l,
             ": student and teacher differ in dtype");
    SF_CHECK(same_device(s, student[0]) && same_device(t, student[0]), "level ", l, ": tensors on different devices");
    SF_CHECK(s.size(0) == student[0].size(0), "level ", l, ": batch sizes differ");
    SF_CHECK(s.size(1) > 0 && s.size(2) > 0 && s.size(3) > 0, "level ", l, ": empty map");
    SF_CHECK(s.size(1) < kMaxExtent && s.size(2) < kMaxExtent && s.size(3) < kMaxExtent, "level ", l, ": too large");
  }
}

// Gradients of the (B, 1, H_l, W_l) maps of a pyramid: float32, and float64 for float64 features.
inline void check_map_gradients(const std::vector<Tensor>& grad, const std::vector<Tensor>& features) {
  SF_CHECK(grad.size() == features.size(), "grad: expected one per level (", features.size(), "), got ", grad.size());
  for (size_t l = 0; l < grad.size(); ++l) {
    const Tensor &g = grad[l], &f = features[l];
    SF_CHECK(g.scalar_type() == (f.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float) &&
                 g.numel() == f.size(0) * f.size(2) * f.size(3) && same_device(g, f),
             "grad[", l, "]: expected a map of level ", l);
  }
}

// A list of (B, 1, H_l, W_l) maps of one dtype (float32 or float64) on one device.
inline void check_maps(const std::vector<Tensor>& maps) {
  SF_CHECK(!maps.empty(), "expected at least one map");
  for (size_t l = 0; l < maps.size(); ++l) {
    const Tensor& map = maps[l];
    SF_CHECK(map.dim() == 4 && map.size(1) == 1, "maps[", l, "]: expected (B, 1, H, W)");
    SF_CHECK(map.scalar_type() == maps[0].scalar_type(), "maps[", l, "]: dtypes differ");
    SF_CHECK(map.size(0) == maps[0].size(0), "maps[", l, "]: batch sizes differ");
    SF_CHECK(same_device(map, maps[0]), "maps[", l, "]: devices differ");
    SF_CHECK(map.size(2) > 0 && map.size(3) > 0, "maps[", l, "]: empty map");
    SF_CHECK(map.size(2) < kMaxExtent && map.size(3) < kMaxExtent, "maps[", l, "]: too large");
  }
}

inline void check_size(const char* name, const std::vector<int64_t>& size) {
  SF_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] < kMaxExtent && size[1] < kMaxExtent, name,
           ": expected two positive numbers (H, W)");
}

}  // namespace stadfast
