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
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("STADFAST_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"needs real data: {path} does not exist (set STADFAST_SHARED)")
    return path
