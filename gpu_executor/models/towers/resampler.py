"""A resampler (Qwen-VL: Bai et al., 2023; after Alayrac et al., 2022): learned queries attend to a picture's patches.

L patches, Q queries, D the text model's hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_HEAD_DIM = 128
_EPS = 1e-6


class Resampler(nn.Module):
    """Rows (Q, D) of patches; keys have positions and values none."""

    def __init__(self, num_queries: int, input_size: int, output_size: int, *, query_positions: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_queries, output_size))
        self.query_positions = nn.Parameter(torch.empty(num_queries, output_size)) if query_positions else None
        same = input_size == output_size
        self.kv = nn.Identity() if same else nn.Linear(input_size, output_size, bias=False)
        self.query_norm, self.kv_norm = nn.LayerNorm(output_size, _EPS), nn.LayerNorm(output_size, _EPS)
        self.q, self.k, self.v, self.o = (nn.Linear(output_size, output_size) for _ in range(4))
        self.norm = nn.LayerNorm(output_size, _EPS)
        self.proj = nn.Linear(output_size, output_size, bias=False)

    def forward(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """patches (N, L, input_size), positions (L, D) of each picture's patches -> (N, Q, D)."""
        values = self.kv_norm(self.kv(patches))
        queries = self.query_norm(self.query)
        if self.query_positions is not None:
            queries = queries + self.query_positions
        parts = self.q(queries).expand(len(patches), -1, -1), self.k(values + positions), self.v(values)
        q, k, v = (part.unflatten(-1, (-1, _HEAD_DIM)).transpose(1, 2) for part in parts)  # (N, H, Q or L, K)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(self.norm(self.o(mixed)))


def grid_positions(rows: int, cols: int, size: int, *, device: torch.device) -> torch.Tensor:
    """Sines and cosines (rows * cols, size) float32 of a grid: columns in the first half, rows in the second."""
    rates = 10000.0 ** -(torch.arange(size // 4, dtype=torch.float32, device=device) / (size / 4))
    parts = []
    for count in (cols, rows):
        angles = torch.outer(torch.arange(count, dtype=torch.float32, device=device), rates)
        parts.append(torch.cat((angles.sin(), angles.cos()), 1))  # (count, size / 2)
    of_cols, of_rows = parts[0].expand(rows, -1, -1), parts[1][:, None].expand(-1, cols, -1)
    return torch.cat((of_cols, of_rows), 2).flatten(0, 1)
