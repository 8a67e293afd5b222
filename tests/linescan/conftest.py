"""Fixtures for the line-scan tests."""

from __future__ import annotations

import pytest
from pages import serving


@pytest.fixture
def page():
    with serving() as page:
        yield page
