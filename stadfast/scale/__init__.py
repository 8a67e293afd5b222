"""Archives that are too large for one process: scores as Parquet, in this process or on a Ray cluster (extra ``ray``).

``docs/scale.md`` has the guide, what it costs, and what breaks first.
"""

from .engines import ENGINES, Cluster
from .jobs import Evaluated, Summary, evaluate, score

__all__ = ["ENGINES", "Cluster", "Evaluated", "Summary", "evaluate", "score"]
