// Defects of an endless map as they close: 8-connected components over a threshold, found row by row.
//
// A component of pixels above `low` counts once its peak is above `high` and it has `min_area` pixels. Counting
// components with pixels within `merge_distance` rows and columns of each other are one event. Two union-finds over
// runs hold what the last rows still reach: components (one label per run of pixels), and the events of those that
// count. Everything happens in rows, so that no result depends on how rows come together in pushes; labels that no
// run refers to any more are reused, so that memory does not grow with the strip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stadfast::linescan {

struct TrackerOptions {
  int64_t width;
  float low, high;
  int64_t min_area;        // pixels
  int64_t merge_distance;  // pixels; 0 and 1 join nothing that does not touch
  int64_t max_length;      // rows until an event is reported while it grows, and that a decision is waited for
};

// What is summed up over pixels.
struct Measure {
  int64_t top, first_column;  // the first pixel in raster order
  int64_t bottom;             // last row
  int64_t left, right;        // first and last column
  int64_t area;
  double sum;  // of the scores
  float peak;
  int64_t peak_row, peak_column;  // the first in raster order, if several share it

  void add(const Measure& other);
};

struct Event {
  int64_t id;
  bool growing;
  Measure measure;
  std::vector<int64_t> absorbed;  // growing events that this one turned out to be part of, since its last report
};

class Tracker {
 public:
  explicit Tracker(const TrackerOptions& options);

  // scores: (rows, width), finite. Appends the events that close or outgrow max_length, row by row.
  void push(const float* scores, int64_t rows, std::vector<Event>* events);
  void finish(std::vector<Event>* events);

  int64_t rows() const { return row_; }
  int64_t first_open_row() const;  // of what may still become or join an event; rows() if there is nothing
  size_t bytes() const;            // of everything that is kept

 private:
  struct Run {
    int64_t begin, end;  // columns [begin, end)
    int32_t component;
  };
  struct Component {
    int32_t parent;
    int32_t group;   // -1 until it counts; then the group holds the measure
    int64_t bottom;  // the last row with a pixel
    Measure measure;
  };
  // The counting components of one event.
  struct Group {
    int32_t parent;
    int64_t held;      // the last row in which an undecided neighbour kept it open
    int64_t id;        // -1 until it is reported
    int64_t reported;  // the last row of the last report
    Measure measure;
    std::vector<int64_t> absorbed;
  };
  // Components within merge_distance of each other, at least one of which does not count yet.
  struct Edge {
    int32_t a, b;
    int64_t row;  // the last one in which they were near
  };

  void add_row(const float* scores);
  Measure measure_run(const float* scores, const Run& run) const;
  int32_t component_of(int32_t i);
  Measure& measure_of(int32_t component);
  int32_t unite(int32_t a, int32_t b);
  void check_counts(int32_t component);
  int32_t group_root(int32_t i);
  void unite_groups(int32_t a, int32_t b);
  void find_neighbours(const Run& run);
  void note_neighbours(int32_t a, int32_t b);
  void settle_edges();
  void report(bool finished, std::vector<Event>* events);
  void recycle();

  TrackerOptions options_;
  int64_t row_ = 0;                       // rows so far, and the number of the one being added
  std::vector<std::vector<Run>> window_;  // the last rows, the newest in front; at least one, merge_distance in all
  std::vector<int64_t> borders_;          // of the runs of the row being added
  std::vector<Run> runs_;
  std::vector<Component> components_;
  std::vector<Group> groups_;
  std::vector<int32_t> open_;  // roots of the groups that are not closed
  std::vector<Edge> edges_;
  int64_t next_id_ = 0;
  size_t limit_ = 1024;  // labels in use, beyond which those that are free are taken out
};

// The runs of scores above `low` in a row, appended as (begin, end) pairs.
void find_runs(const float* scores, int64_t width, float low, std::vector<int64_t>* borders);

// Index of the first score that is not finite; -1 if there is none.
int64_t first_not_finite(const float* scores, int64_t count);

}  // namespace stadfast::linescan
