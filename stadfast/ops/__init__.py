"""The kernels' one face: functional, checked, differentiable where training needs it.

Nobody but this package touches ``torch.ops.stadfast``. Importing compiles nothing; the first call does, once.
"""

from ._library import Backend, backend, cache_folder, plain_pytorch
from ._onednn import onednn_takes
from .blocks import (
    cache_holds,
    convolve_blocks,
    convolve_pool_blocks,
    convolve_stage,
    stream_blocks_,
    stream_pool_blocks_,
    stream_stage_,
)
from .convolution import (
    convolve_,
    convolve_pool,
    convolve_takes,
    has_amx,
    has_bf16,
    is_winograd,
    pack_filters,
    winograd_takes,
)
from .counting import BINS, bin_edges, bin_keys, key_histogram, rank_counts
from .images import normalize_images
from .maps import COMBINATIONS, anomaly_map, pyramid_distance, reads_half, upsample_combine
from .peers import code_distance, ensemble_scores, peer_distance, reduce_heads
from .pooling import max_pool2d
from .regions import label_regions, region_histogram, region_pixels

__all__ = [
    "BINS",
    "COMBINATIONS",
    "Backend",
    "anomaly_map",
    "backend",
    "bin_edges",
    "bin_keys",
    "cache_folder",
    "cache_holds",
    "code_distance",
    "convolve_",
    "convolve_blocks",
    "convolve_pool",
    "convolve_pool_blocks",
    "convolve_stage",
    "convolve_takes",
    "ensemble_scores",
    "has_amx",
    "has_bf16",
    "is_winograd",
    "key_histogram",
    "label_regions",
    "max_pool2d",
    "normalize_images",
    "onednn_takes",
    "pack_filters",
    "peer_distance",
    "plain_pytorch",
    "pyramid_distance",
    "rank_counts",
    "reads_half",
    "reduce_heads",
    "region_histogram",
    "region_pixels",
    "stream_blocks_",
    "stream_pool_blocks_",
    "stream_stage_",
    "upsample_combine",
    "winograd_takes",
]
