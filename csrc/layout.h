// Where a pixel's channel vector lies in memory. Both layouts that networks produce are read in place:
//   planar        (B, C, H, W): pixels of one channel are neighbours;
//   channels_last (B, H, W, C): channels of one pixel are neighbours.
// Strided batches and channel slices of them are fine too; anything else is copied to planar first.
#pragma once

#include <optional>

#include "check.h"

namespace stadfast {

struct Layout {
  int64_t batch, channels, height, width;
  int64_t batch_stride, channel_stride, pixel_stride;
  int64_t pixels() const { return height * width; }
  bool channels_last() const { return channel_stride == 1 && pixel_stride != 1; }
};

inline bool find_layout(const Tensor& t, Layout* out) {
  const int64_t h = t.size(2), w = t.size(3);
  const int64_t pixel = w > 1 ? t.stride(3) : (h > 1 ? t.stride(2) : 1);
  const bool rows_follow = h == 1 || w == 1 || t.stride(2) == w * t.stride(3);
  const int64_t channel = t.size(1) > 1 ? t.stride(1) : 1;
  *out = {t.size(0), t.size(1), h, w, t.stride(0), channel, pixel};
  return rows_follow && (pixel == 1 || channel == 1);
}

// The tensor itself, or a planar copy where its strides are neither of the two layouts.
inline Tensor readable(const Tensor& t, Layout* layout) {
  if (find_layout(t, layout)) return t;
  Tensor copy = torch::stable::contiguous(t);
  find_layout(copy, layout);
  return copy;
}

inline bool is_interleaved(const Tensor& t, Layout* layout) {
  return find_layout(t, layout) && layout->channel_stride == 1;
}

// The tensor itself, or a channels_last copy where the channels of a pixel are no neighbours; `dense`: or where other
// channels lie between the pixels.
inline Tensor interleaved(const Tensor& t, Layout* layout, bool dense = false) {
  if (is_interleaved(t, layout) && (!dense || layout->pixel_stride == layout->channels)) return t;
  Tensor copy = torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
  find_layout(copy, layout);
  return copy;
}

// Student and teacher in one and the same layout: the student's.
struct Pair {
  Tensor student, teacher;
  Layout s, t;
};

inline Pair readable_pair(const Tensor& student, const Tensor& teacher) {
  using torch::headeronly::MemoryFormat;
  Pair pair{student, teacher, {}, {}};
  pair.student = readable(student, &pair.s);
  pair.teacher = readable(teacher, &pair.t);
  if (pair.s.channels_last() != pair.t.channels_last()) {
    pair.teacher = torch::stable::contiguous(
        teacher, pair.s.channels_last() ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    find_layout(pair.teacher, &pair.t);
  }
  return pair;
}

// A tensor shaped as the pair's student and laid out as it was read.
inline Tensor empty_like_student(const Pair& pair) {
  using torch::headeronly::MemoryFormat;
  const Tensor& student = pair.student;
  return torch::stable::empty(student.sizes(), student.scalar_type(), std::nullopt, student.device(), std::nullopt,
                              pair.s.channels_last() ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Maps are float32, and float64 for float64 features (gradcheck): a product of three maps underflows in half.
inline ScalarType map_dtype(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_map(const Tensor& like, int64_t batch, int64_t height, int64_t width) {
  return torch::stable::new_empty(like, {batch, 1, height, width}, map_dtype(like));
}

}  // namespace stadfast
