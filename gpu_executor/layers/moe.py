"""Owns the mixture-of-experts layer: router, routed experts, and the MLP that every token passes where there is one."""

from __future__ import annotations

import torch

from gpu_executor.layers.linear import Linear
from gpu_executor.layers.mlp import GatedMlp, PlainMlp
from gpu_executor.models.spec import Moe
from kernels.batch_invariance import elementwise
from kernels.moe_experts import moe_experts
from kernels.moe_routing import route


class MoeMlp:
    """experts(x) + shared(x), the latter times sigmoid(shared_gate(x)) where there is such a gate."""

    def __init__(
        self,
        spec: Moe,
        *,
        router: torch.Tensor,
        score_bias: torch.Tensor | None,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        shared: GatedMlp | PlainMlp | None,
        shared_gate: Linear | None,
    ) -> None:
        """router (E, D), score_bias (E), gate_up (E, 2F, D), down (E, D, F), shared_gate (1, D)."""
        self.gate_up, self.down, self.shared = gate_up, down, shared
        # Routing is done in float32: near ties must not flip with the number format of the activations.
        self._router = Linear(router.float())
        self._act, self._top_k, self._shared_gate = spec.act, spec.top_k, shared_gate
        self._options = {
            "score": spec.score, "renormalize": spec.renormalize, "scale": spec.scale, "num_groups": spec.num_groups,
            "topk_groups": spec.topk_groups, "group_score": spec.group_score, "jitter": spec.jitter,
            "score_bias": None if score_bias is None else score_bias.float(),
        }  # fmt: skip

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D)."""
        y = self.experts(x)
        if self.shared is None:
            return y
        shared = self.shared(x)
        if self._shared_gate is not None:
            shared *= elementwise(torch.sigmoid, self._shared_gate(x))
        return y.add_(shared)

    def experts(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D): the routed experts alone."""
        weights, ids = route(self._router(x.float()), self._top_k, **self._options)
        return moe_experts(x, self.gate_up, self.down, self._act, weights, ids)
