"""From a fitted detector to something fast: the exported graph and the scorer that runs it.

Importing costs little more than importing torch, and loads neither methods nor training.
"""

from .archive import read_metadata
from .export import export
from .scorer import Agreement, Scorer, compare, optimise

__all__ = ["Agreement", "Scorer", "compare", "export", "optimise", "read_metadata"]
