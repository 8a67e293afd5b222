from xml.etree import ElementTree

import numpy as np
import pytest

from stadfast.report import figures


def parse(svg):
    return ElementTree.fromstring(svg.encode())


def test_figures_are_svg_without_pyplot():
    import subprocess
    import sys

    code = (
        "import sys; from stadfast.report import figures; figures.roc_svg(([0, 1], [0, 1]), None);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_figure_is_well_formed():
    x = np.linspace(0, 1, 50)
    for svg in (
        figures.roc_svg((x, np.sqrt(x)), (x, x**0.2)),
        figures.roc_svg(None, (x, x)),
        figures.pro_svg((x, x**0.1)),
        figures.histogram_svg([1e-6, 3e-4, 0.1], [0, 0, 1], 1e-3),
        figures.histogram_svg([-1.0, 0.0, 3.0], [0, 0, 1], 1.0),
        figures.histogram_svg([0.5, 0.5], [0, 0], 0.5),
    ):
        assert parse(svg).tag.endswith("svg")
        assert "http://" not in svg.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
            "http://creativecommons.org/", ""
        )


def test_thinned_curves_keep_their_ends_and_shape():
    rate = np.linspace(0, 1, 200_000)
    curve = 1 - (1 - rate) ** 200  # rises within the first percent
    x, y = figures.thin(rate, curve, 300)
    assert len(x) <= 300
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.interp(rate, x, y) == pytest.approx(curve, abs=0.02)


def test_a_short_curve_stays_as_it_is():
    x, y = figures.thin([0, 0, 1], [0, 1, 1])
    assert x.tolist() == [0, 0, 1]
    assert y.tolist() == [0, 1, 1]
