#include "tracker.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace stadfast::linescan {
namespace {

std::pair<int64_t, int64_t> first_pixel(const Measure& m) { return {m.top, m.first_column}; }

}  // namespace

void Measure::add(const Measure& other) {
  std::tie(top, first_column) = std::min(first_pixel(*this), first_pixel(other));
  bottom = std::max(bottom, other.bottom);
  left = std::min(left, other.left);
  right = std::max(right, other.right);
  area += other.area;
  sum += other.sum;
  if (std::tie(peak, other.peak_row, other.peak_column) < std::tie(other.peak, peak_row, peak_column)) {
    peak = other.peak;
    peak_row = other.peak_row;
    peak_column = other.peak_column;
  }
}

Tracker::Tracker(const TrackerOptions& options) : options_(options) {
  window_.resize(size_t(std::max<int64_t>(options.merge_distance, 1)));
}

void Tracker::push(const float* scores, int64_t rows, std::vector<Event>* events) {
  for (int64_t i = 0; i < rows; ++i) {
    add_row(scores + i * options_.width);
    settle_edges();
    report(false, events);
    if (components_.size() + groups_.size() > limit_) recycle();
    ++row_;
  }
}

void Tracker::finish(std::vector<Event>* events) {
  settle_edges();  // no row follows: what does not count yet never will
  report(true, events);
  components_.clear(), groups_.clear(), edges_.clear(), open_.clear();
  for (auto& row : window_) row.clear();
}

void Tracker::add_row(const float* scores) {
  borders_.clear();
  find_runs(scores, options_.width, options_.low, &borders_);
  runs_.clear();
  const std::vector<Run>& above = window_.front();
  size_t j = 0;
  for (size_t i = 0; i < borders_.size(); i += 2) {
    Run run{borders_[i], borders_[i + 1], -1};
    while (j < above.size() && above[j].end < run.begin) ++j;
    for (size_t k = j; k < above.size() && above[k].begin <= run.end; ++k)  // <=: corners touch
      run.component = run.component < 0 ? component_of(above[k].component) : unite(run.component, above[k].component);
    const Measure measure = measure_run(scores, run);
    if (run.component < 0) {
      run.component = int32_t(components_.size());
      components_.push_back({run.component, -1, row_, measure});
    } else {
      components_[run.component].bottom = row_;
      measure_of(run.component).add(measure);
    }
    check_counts(run.component);
    if (options_.merge_distance > 1) find_neighbours(run);
    runs_.push_back(run);
  }
  std::rotate(window_.begin(), window_.end() - 1, window_.end());
  window_.front().swap(runs_);  // the oldest row's memory serves again
}

Measure Tracker::measure_run(const float* scores, const Run& run) const {
  double sum = 0;
  int64_t peak = run.begin;
  for (int64_t x = run.begin; x < run.end; ++x) {
    sum += scores[x];
    if (scores[x] > scores[peak]) peak = x;
  }
  return {row_, run.begin, row_, run.begin, run.end - 1, run.end - run.begin, sum, scores[peak], row_, peak};
}

// ---- components: a root's measure is its own until the component counts, then its group's

int32_t Tracker::component_of(int32_t i) {
  while (components_[i].parent != i) i = components_[i].parent = components_[components_[i].parent].parent;
  return i;
}

Measure& Tracker::measure_of(int32_t component) {
  const int32_t group = components_[component].group;
  return group < 0 ? components_[component].measure : groups_[group_root(group)].measure;
}

int32_t Tracker::unite(int32_t a, int32_t b) {
  a = component_of(a), b = component_of(b);
  if (a == b) return a;
  if (b < a) std::swap(a, b);
  Component &kept = components_[a], &other = components_[b];
  other.parent = a;
  kept.bottom = std::max(kept.bottom, other.bottom);
  if (kept.group >= 0 && other.group >= 0) {
    unite_groups(kept.group, other.group);
  } else if (other.group >= 0) {
    kept.group = other.group;
    measure_of(a).add(kept.measure);
  } else {
    measure_of(a).add(other.measure);
  }
  return a;
}

void Tracker::check_counts(int32_t component) {
  Component& c = components_[component];
  if (c.group >= 0 || !(c.measure.peak > options_.high) || c.measure.area < options_.min_area) return;
  c.group = int32_t(groups_.size());
  open_.push_back(c.group);
  groups_.push_back({c.group, -1, -1, -1, c.measure, {}});
}

// ---- events: groups of components that count

int32_t Tracker::group_root(int32_t i) {
  while (groups_[i].parent != i) i = groups_[i].parent = groups_[groups_[i].parent].parent;
  return i;
}

void Tracker::unite_groups(int32_t a, int32_t b) {
  a = group_root(a), b = group_root(b);
  if (a == b) return;
  if (b < a) std::swap(a, b);
  Group &kept = groups_[a], &other = groups_[b];
  other.parent = a;
  kept.measure.add(other.measure);
  kept.absorbed.insert(kept.absorbed.end(), other.absorbed.begin(), other.absorbed.end());
  if (other.id < 0) return;
  if (kept.id >= 0) {
    kept.absorbed.push_back(std::max(kept.id, other.id));
    kept.id = std::min(kept.id, other.id);
    kept.reported = std::max(kept.reported, other.reported);
  } else {
    kept.id = other.id;
    kept.reported = other.reported;
  }
}

void Tracker::find_neighbours(const Run& run) {
  const int64_t begin = run.begin - options_.merge_distance, end = run.end + options_.merge_distance;
  for (const auto& row : window_) {
    auto near = std::partition_point(row.begin(), row.end(), [begin](const Run& r) { return r.end <= begin; });
    for (; near != row.end() && near->begin < end; ++near) note_neighbours(near->component, run.component);
  }
  for (auto left = runs_.rbegin(); left != runs_.rend() && left->end > begin; ++left)
    note_neighbours(left->component, run.component);
}

void Tracker::note_neighbours(int32_t a, int32_t b) {
  a = component_of(a), b = component_of(b);
  if (a == b) return;
  const Component &x = components_[a], &y = components_[b];
  if (x.group >= 0 && y.group >= 0)
    unite_groups(x.group, y.group);
  else if ((x.group >= 0 || x.bottom >= row_ - 1) && (y.group >= 0 || y.bottom >= row_ - 1))  // may come to count
    edges_.push_back({std::min(a, b), std::max(a, b), row_});
}

void Tracker::settle_edges() {
  size_t kept = 0;
  for (const Edge& edge : edges_) {
    const int32_t a = component_of(edge.a), b = component_of(edge.b);
    const Component &x = components_[a], &y = components_[b];
    if (a == b) continue;
    if (x.group >= 0 && y.group >= 0) {
      unite_groups(x.group, y.group);
      continue;
    }
    const bool never = (x.group < 0 && x.bottom < row_) || (y.group < 0 && y.bottom < row_);
    if (never || edge.row + options_.max_length < row_) continue;
    edges_[kept++] = {std::min(a, b), std::max(a, b), edge.row};
  }
  edges_.resize(kept);
  std::sort(edges_.begin(), edges_.end(),
            [](const Edge& e, const Edge& f) { return std::tie(e.a, e.b, f.row) < std::tie(f.a, f.b, e.row); });
  const auto same = [](const Edge& e, const Edge& f) { return e.a == f.a && e.b == f.b; };
  edges_.erase(std::unique(edges_.begin(), edges_.end(), same), edges_.end());
  for (const Edge& edge : edges_)
    for (const int32_t i : {edge.a, edge.b})
      if (components_[i].group >= 0) groups_[group_root(components_[i].group)].held = row_;
}

void Tracker::report(bool finished, std::vector<Event>* events) {
  struct Due {
    int32_t group;
    bool growing;
  };
  std::vector<Due> due;
  size_t kept = 0;
  for (const int32_t i : open_) {
    const Group& group = groups_[i];
    if (group.parent != i) continue;
    const bool closed = finished || (group.measure.bottom + int64_t(window_.size()) <= row_ && group.held < row_);
    const int64_t before = group.id < 0 ? group.measure.top - 1 : group.reported;
    if (closed || group.measure.bottom - before > options_.max_length) due.push_back({i, !closed});
    if (!closed) open_[kept++] = i;
  }
  open_.resize(kept);
  std::sort(due.begin(), due.end(), [this](const Due& a, const Due& b) {
    return first_pixel(groups_[a.group].measure) < first_pixel(groups_[b.group].measure);
  });
  for (const Due& d : due) {
    Group& group = groups_[d.group];
    if (group.id < 0) group.id = next_id_++;
    group.reported = group.measure.bottom;
    events->push_back({group.id, d.growing, group.measure, std::move(group.absorbed)});
    group.absorbed.clear();
  }
}

// ---- memory

void Tracker::recycle() {
  std::vector<Group> groups;
  for (int32_t& i : open_) {
    const auto place = int32_t(groups.size());
    groups.push_back(std::move(groups_[i]));
    groups.back().parent = place;
    groups_[i].id = place;  // from here on: where it went
    i = place;
  }
  std::vector<Component> components;
  std::vector<int32_t> places(components_.size(), -1);
  const auto move = [&](int32_t& i) {
    i = component_of(i);
    if (places[i] < 0) {
      places[i] = int32_t(components.size());
      components.push_back(components_[i]);
      components.back().parent = places[i];
      if (components_[i].group >= 0) components.back().group = int32_t(groups_[group_root(components_[i].group)].id);
    }
    i = places[i];
  };
  for (auto& row : window_)
    for (Run& run : row) move(run.component);
  for (Edge& edge : edges_) move(edge.a), move(edge.b);
  components_.swap(components);
  groups_.swap(groups);
  limit_ = std::max<size_t>(1024, 2 * (components_.size() + groups_.size()));
}

int64_t Tracker::first_open_row() const {
  int64_t first = row_;
  for (const int32_t i : open_) first = std::min(first, groups_[i].measure.top);
  for (const Run& run : window_.front()) {
    int32_t i = run.component;
    while (components_[i].parent != i) i = components_[i].parent;
    if (components_[i].group < 0) first = std::min(first, components_[i].measure.top);
  }
  return first;
}

size_t Tracker::bytes() const {
  size_t bytes = sizeof *this + runs_.capacity() * sizeof(Run) + borders_.capacity() * sizeof(int64_t) +
                 components_.capacity() * sizeof(Component) + groups_.capacity() * sizeof(Group) +
                 open_.capacity() * sizeof(int32_t) + edges_.capacity() * sizeof(Edge);
  for (const auto& row : window_) bytes += sizeof row + row.capacity() * sizeof(Run);
  for (const Group& group : groups_) bytes += group.absorbed.capacity() * sizeof(int64_t);
  return bytes;
}

}  // namespace stadfast::linescan
