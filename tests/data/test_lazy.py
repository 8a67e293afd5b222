from __future__ import annotations

import subprocess
import sys

import pytest

import stadfast.data


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = (
        "import sys, stadfast.data; "
        "print([m for m in sys.modules if m.startswith(('PIL', 'torchvision', 'numpy', 'stadfast.data.'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_name_is_there() -> None:
    assert dir(stadfast.data) == sorted(stadfast.data.__all__)
    for name in stadfast.data.__all__:
        assert getattr(stadfast.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stadfast.data.nothing  # type: ignore[attr-defined]
