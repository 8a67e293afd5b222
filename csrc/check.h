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
    SF_CHECK(s.is_cuda() == t.is_cuda() && s.get_device_index() == t.get_device_index() &&
                 s.get_device_index() == student[0].get_device_index(),
             "level ", l, ": tensors on different devices");
    SF_CHECK(s.size(0) == student[0].size(0), "level ", l, ": batch sizes differ");
    SF_CHECK(s.size(1) > 0 && s.size(2) > 0 && s.size(3) > 0, "level ", l, ": empty map");
    SF_CHECK(s.size(2) < INT32_MAX && s.size(3) < INT32_MAX, "level ", l, ": map too large");
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
    SF_CHECK(map.get_device_index() == maps[0].get_device_index(), "maps[", l, "]: devices differ");
    SF_CHECK(map.size(2) > 0 && map.size(3) > 0, "maps[", l, "]: empty map");
    SF_CHECK(map.size(2) < INT32_MAX && map.size(3) < INT32_MAX, "maps[", l, "]: map too large");
  }
}

inline void check_size(const char* name, const std::vector<int64_t>& size) {
  SF_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] < INT32_MAX && size[1] < INT32_MAX, name,
           ": expected two positive numbers (H, W)");
}

}  // namespace stadfast
