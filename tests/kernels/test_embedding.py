"""Embedding picks rows, and refuses ids outside the table."""

from __future__ import annotations

import pytest
import torch

from kernels.embedding import embedding, reference


def test_embedding_equals_reference(dtype: torch.dtype) -> None:
    weight = torch.randn(32003, 63).to(dtype)
    for num_tokens in (0, 1, 63):
        ids = torch.randint(0, 32003, (num_tokens,))
        assert torch.equal(embedding(ids, weight), reference.embedding(ids, weight))


def test_id_outside_the_table_is_refused() -> None:
    with pytest.raises(IndexError):
        embedding(torch.tensor([5]), torch.zeros(5, 2))
