"""Owns the state-space mixer: project, convolve, scan with steps that depend on the input, project back."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.norm import NormLayer
from gpu_executor.mixers.state import FixedSlots, SlotState
from gpu_executor.models.spec import Mamba
from kernels.causal_conv import causal_conv
from kernels.selective_scan import selective_scan


class MambaMixer:
    """A selective state space. In shapes here C is the inner size, N the states of a channel, W the convolution's taps."""

    def __init__(
        self,
        spec: Mamba,
        *,
        in_proj: Linear,
        conv_weight: torch.Tensor,
        conv_bias: torch.Tensor | None,
        x_proj: Linear,
        dt_proj: Linear,
        dt_bias: torch.Tensor,
        a: torch.Tensor,
        d: torch.Tensor,
        out_proj: Linear,
        dt_norm: NormLayer | None = None,
        b_norm: NormLayer | None = None,
        c_norm: NormLayer | None = None,
    ) -> None:
        """in_proj (2C, D), conv_weight (C, W), conv_bias (C), x_proj (rank + 2N, C), dt_proj (C, rank), out_proj (D, C);
        dt_bias (C), a (C, N) and d (C) float32."""
        self.in_proj, self.x_proj, self.dt_proj, self.out_proj = in_proj, x_proj, dt_proj, out_proj
        self.layout = FixedSlots(spec.inner_size, spec.state_size, spec.conv_size)
        self._conv_weight, self._conv_bias = conv_weight, conv_bias
        self._dt_bias, self._a, self._d = dt_bias, a, d
        self._dt_norm, self._b_norm, self._c_norm = dt_norm, b_norm, c_norm
        self._parts = (spec.dt_rank, spec.state_size, spec.state_size)

    def __call__(self, x: torch.Tensor, batch: Batch, state: SlotState) -> torch.Tensor:
        """x (T, D) -> (T, D); moves the states of the batch's sequences on."""
        ragged = (batch.query_start, batch.seq_lens, batch.state_slots)
        x, z = self.in_proj(x).chunk(2, 1)  # (T, C) each
        x = causal_conv(x, self._conv_weight, self._conv_bias, state.window, *ragged)
        dt, b, c = self.x_proj(x).split(self._parts, 1)  # (T, rank), (T, N), (T, N)
        if self._dt_norm is not None:
            dt, b, c = self._dt_norm(dt), self._b_norm(b), self._c_norm(c)
        dt = self.dt_proj(dt)  # (T, C); its bias is added in float32
        y = selective_scan(x, dt, self._a, b, c, self._d, z, self._dt_bias, state.scan, *ragged)
        return self.out_proj(y)
