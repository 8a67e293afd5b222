"""The kernels' one face: functional, checked, differentiable where training needs it.

Nobody but this package touches ``torch.ops.stadfast``. Importing compiles nothing; the first call does, once.
"""

from ._library import Backend, backend, cache_folder
from .maps import COMBINATIONS, anomaly_map, pyramid_distance, upsample_combine

__all__ = ["COMBINATIONS", "Backend", "anomaly_map", "backend", "cache_folder", "pyramid_distance", "upsample_combine"]
