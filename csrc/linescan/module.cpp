// The Python module stadfast._linescan. stadfast/linescan/ring.py and tracker.py check arguments in words and hold
// what users see; here are the arrays, the GIL and the lifetimes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "ring.h"
#include "row_ring.h"
#include "tracker.h"

namespace py = pybind11;

namespace stadfast::linescan {
namespace {

// (n,) int64, or None
const int64_t* numbers(const py::object& array) {
  return array.is_none() ? nullptr : static_cast<const int64_t*>(py::cast<py::array>(array).data());
}

// A signal's handler raised: the call gives up, and the exception goes on from there.
bool interrupted() {
  py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// What a view's arrays keep alive; their lines are free again when the last of them is gone.
class Lease {
 public:
  Lease(std::shared_ptr<Ring> ring, Segment view) : ring_(std::move(ring)), view_(view) {}
  ~Lease() { ring_->release(view_); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  std::shared_ptr<Ring> ring_;
  Segment view_;
};

// pixels: (n, ...) with dense lines, any step between them
int64_t push(Ring& ring, const py::array& pixels, const py::object& timestamps, const py::object& encoder,
             int64_t timeout_ns) {
  const int64_t lines = pixels.shape(0);
  const int64_t *times = numbers(timestamps), *counts = numbers(encoder);
  const auto* data = static_cast<const uint8_t*>(pixels.data());
  const int64_t pitch = lines > 1 ? pixels.strides(0) : ring.line_bytes();
  if (pitch < ring.line_bytes()) throw std::invalid_argument("lines: overlapping or reversed");
  int64_t stored;
  {
    py::gil_scoped_release nogil;
    stored = ring.push(data, lines, pitch, times, counts, Ring::Nanoseconds(timeout_ns), interrupted);
  }
  if (stored == Ring::kInterrupted) throw py::error_already_set();
  return stored;
}

// -> a word, or (pixels (n, width, channels), lines (n,), timestamps (n,), encoder (n,))
py::object take(const std::shared_ptr<Ring>& ring, int64_t lines, int64_t timeout_ns, int64_t width, int64_t channels,
                const py::dtype& dtype) {
  Segment view{};
  Ring::Taken taken;
  {
    py::gil_scoped_release nogil;
    taken = ring->take(lines, Ring::Nanoseconds(timeout_ns), &view, interrupted);
  }
  switch (taken) {
    case Ring::Taken::interrupted:
      throw py::error_already_set();
    case Ring::Taken::timeout:
      return py::str("timeout");
    case Ring::Taken::end:
      return py::str("end");
    case Ring::Taken::all_lent:
      return py::str("all_lent");
    case Ring::Taken::busy:
      return py::str("busy");
    case Ring::Taken::lines:
      break;
  }
  auto lease = std::make_unique<Lease>(ring, view);
  const py::object owner = py::cast(std::move(lease));
  const int64_t item = dtype.itemsize();
  const py::array pixels(dtype, {view.count, width, channels}, {ring->stride(), channels * item, item},
                         ring->pixels(view), owner);
  const Stamp* stamps = ring->stamps(view);
  const auto column = [&](const int64_t* first) {
    return py::array(py::dtype::of<int64_t>(), {view.count}, {int64_t(sizeof(Stamp))}, first, owner);
  };
  return py::make_tuple(pixels, column(&stamps->line), column(&stamps->timestamp), column(&stamps->encoder));
}

py::dict counts(const Ring& ring) {
  const Counts c = ring.counts();
  py::dict d;
  d["pushed"] = c.pushed, d["taken"] = c.taken, d["lost"] = c.lost, d["unread"] = c.unread, d["lent"] = c.lent;
  return d;
}

py::list gaps(Ring& ring) {
  py::list list;
  for (const Gap& gap : ring.pop_gaps()) list.append(py::make_tuple(gap.line, gap.count));
  return list;
}

py::list as_tuples(const std::vector<Event>& events) {
  py::list list;
  for (const Event& e : events) {
    const Measure& m = e.measure;
    py::tuple absorbed(e.absorbed.size());
    for (size_t i = 0; i < e.absorbed.size(); ++i) absorbed[i] = e.absorbed[i];
    list.append(py::make_tuple(e.id, e.growing, py::make_tuple(m.top, m.bottom + 1),
                               py::make_tuple(m.left, m.right + 1), m.area, m.sum, m.peak,
                               py::make_tuple(m.peak_row, m.peak_column), absorbed));
  }
  return list;
}

// A tracker that says so when a second thread comes while the first one pushes, without the GIL.
struct SharedTracker {
  explicit SharedTracker(const TrackerOptions& options) : tracker(options) {}

  Tracker& mine() {
    if (pushing) throw std::runtime_error("another thread is pushing");
    return tracker;
  }

  Tracker tracker;
  bool pushing = false;  // guarded by the GIL
};

// scores: (m, width) float32, dense. Raises ValueError((row, column)) at a score that is not finite, nothing changed.
py::list track(SharedTracker& shared, const py::array_t<float, py::array::c_style>& scores) {
  const int64_t rows = scores.shape(0), width = scores.shape(1);
  const float* data = scores.data();
  Tracker& tracker = shared.mine();
  std::vector<Event> events;
  int64_t bad;
  {
    struct Claim {
      explicit Claim(bool& flag) : flag(flag) { flag = true; }
      ~Claim() { flag = false; }
      bool& flag;
    } claim(shared.pushing);
    py::gil_scoped_release nogil;
    bad = first_not_finite(data, rows * width);
    if (bad < 0) tracker.push(data, rows, &events);
  }
  if (bad >= 0) {
    PyErr_SetObject(PyExc_ValueError, py::make_tuple(bad / width, bad % width).ptr());
    throw py::error_already_set();
  }
  return as_tuples(events);
}

}  // namespace
}  // namespace stadfast::linescan

PYBIND11_MODULE(_linescan, m) {
  using namespace stadfast::linescan;
  py::class_<Lease>(m, "Lease");
  py::class_<Ring, std::shared_ptr<Ring>>(m, "Ring")
      .def(py::init([](int64_t line_bytes, int64_t capacity, int policy) {
        return std::make_shared<Ring>(line_bytes, capacity, Overrun(policy));
      }))
      .def("push", &push)
      .def("take", &take)
      .def("close", &Ring::close, py::call_guard<py::gil_scoped_release>())
      .def("pop_gaps", &gaps)
      .def("counts", &counts)
      .def_property_readonly("closed", &Ring::closed)
      .def_property_readonly("handle", [](Ring& ring) { return reinterpret_cast<uintptr_t>(&ring); });
  py::class_<SharedTracker>(m, "Tracker")
      .def(py::init([](int64_t width, float low, float high, int64_t min_area, int64_t merge_distance,
                       int64_t max_length) {
        return std::make_unique<SharedTracker>(TrackerOptions{width, low, high, min_area, merge_distance, max_length});
      }))
      .def("push", &track)
      .def("finish",
           [](SharedTracker& shared) {
             std::vector<Event> events;
             shared.mine().finish(&events);
             return as_tuples(events);
           })
      .def_property_readonly("rows", [](SharedTracker& shared) { return shared.mine().rows(); })
      .def_property_readonly("first_open_row", [](SharedTracker& shared) { return shared.mine().first_open_row(); })
      .def_property_readonly("bytes", [](SharedTracker& shared) { return shared.mine().bytes(); });
}
