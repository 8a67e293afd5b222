"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def exact_convolutions() -> None:
    """On a GPU, too, fp32 means fp32."""
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights, which the project does not ship."""
    given = os.environ.get("STADFAST_SHARED")
    if not given:
        pytest.skip("needs real images and weights: set STADFAST_SHARED to their folder")
    path = Path(given)
    assert path.is_dir(), f"STADFAST_SHARED: {path} is no folder"
    return path
