"""Slopes of linear biases equal those of transformers, for any number of heads."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from gpu_executor.models.alibi import make_alibi


@pytest.mark.parametrize("num_heads", [1, 2, 3, 12, 16, 31, 32, 40, 112])
def test_slopes_equal_those_of_transformers(num_heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]  # of the second position
    torch.testing.assert_close(torch.tensor(make_alibi(num_heads).slopes), theirs)


def test_the_largest_bias_may_differ() -> None:
    theirs = (
        build_mpt_alibi_tensor(12, 2, alibi_bias_max=4)[:, 0, 1]
        - build_mpt_alibi_tensor(12, 2, alibi_bias_max=4)[:, 0, 0]
    )
    torch.testing.assert_close(torch.tensor(make_alibi(12, 4.0).slopes), theirs)
