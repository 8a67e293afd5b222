"""Machine code in a .pt2 archive: AOTInductor compiles the exported graph ahead of time."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import torch

from ..errors import StadfastError


def compile_package(program: torch.export.ExportedProgram) -> bytes:
    """The archive that ``torch._inductor.aoti_load_package`` reads; takes a C++ compiler and about a minute.

    Raises:
        StadfastError: it cannot be compiled here.
    """
    with tempfile.TemporaryDirectory() as folder:  # torch insists on the suffix
        file = Path(folder) / "archive.pt2"
        try:
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(file), inductor_configs={"freezing": True}
                )
        except Exception as error:  # the compiler's, the linker's, Inductor's own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise StadfastError(f"aot: AOTInductor cannot compile the graph here: {reason}") from error
        return file.read_bytes()


def add_member(path: Path, name: str, text: str) -> None:
    """Put a text into a package, where torch keeps its extra files."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{name}", text)
