"""What oneDNN, as this torch carries it, computes on this processor."""

from __future__ import annotations

import functools

import torch


@functools.cache  # asked at every layer of every push of rows
def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolutions take ``dtype`` on this CPU: half types need AVX-512 or AVX-NE-CONVERT.

    torch's own convolutions take every type everywhere; those laid out ahead raise where this is False.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32
