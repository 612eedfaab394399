"""Rows of sampling: filters, log-probabilities and penalties over a vocabulary of 128k."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_rows import Place, Row
from kernels.sampling import SampleBatch, SampleRow, penalize_rows, sample_tokens, token_logprobs

VOCABULARY = 128256
NUM_ROWS = (1, 8, 128)


def _logits(place: Place, num_rows: int) -> torch.Tensor:
    return place.normal(place.scaled(num_rows), place.scaled(VOCABULARY)).float() * 3


def sampled(place: Place) -> Iterator[Row]:
    for name, top_k, top_p in (("no filter", 0, 1.0), ("top-k 50", 50, 1.0), ("top-p 0.9", 0, 0.9), ("both", 50, 0.9)):
        for num_rows in NUM_ROWS:
            logits = _logits(place, num_rows)
            logits[:, 11] += 60  # the noise cannot choose another: what is compared is not luck
            rows = [SampleRow(0.7, top_k, top_p, 0.0, 1, 0, i) for i in range(len(logits))]
            batch = SampleBatch.of(rows, place.device)

            def sorting(logits=logits, top_k=top_k, top_p=top_p):
                values, ids = (logits / 0.7).sort(descending=True)
                values = values[:, : top_k or None]
                if top_p < 1:
                    probs = values.softmax(1)
                    values = values.masked_fill(probs.cumsum(1) - probs >= top_p, -torch.inf)
                noise = -(-torch.rand_like(values).clamp(1e-7, 1 - 1e-7).log()).log()
                return ids.gather(1, (values + noise).argmax(1, keepdim=True)).float()

            yield Row(
                f"sample, {name} B={num_rows}",
                lambda logits=logits, batch=batch: sample_tokens(logits, batch)[:, None].float(),
                logits.numel() * 4,
                rivals={"sort": sorting},
            )


def logprobs(place: Place) -> Iterator[Row]:
    for num_rows in NUM_ROWS:
        logits = _logits(place, num_rows)
        token_ids = torch.zeros(len(logits), dtype=torch.int64, device=place.device)
        yield Row(
            f"20 likeliest tokens B={num_rows}",
            lambda logits=logits, token_ids=token_ids: token_logprobs(logits, token_ids, 20)[3],
            logits.numel() * 4,
            rivals={"log_softmax and topk": lambda logits=logits: logits.log_softmax(1).topk(20).values},
        )


def penalties(place: Place) -> Iterator[Row]:
    for num_rows in NUM_ROWS:
        logits = _logits(place, num_rows)
        size = logits.shape[1]
        # Nothing was seen: each call finds the logits that the one before it found.
        seen = torch.zeros(len(logits), (size + 31) // 32, dtype=torch.int32, device=place.device)
        counts = torch.zeros(len(logits), size, dtype=torch.int32, device=place.device)
        slots = torch.arange(len(logits), dtype=torch.int32, device=place.device)
        ones = torch.ones(len(logits), device=place.device)

        def ours(logits=logits, slots=slots, seen=seen, counts=counts, ones=ones):
            penalize_rows(logits, slots, seen, counts, ones, ones, 2 * ones)
            return logits

        def torch_ops(logits=logits, slots=slots, counts=counts, ones=ones):
            count = counts[slots]
            repeated = torch.where(logits > 0, logits / 2, logits * 2)
            return torch.where(count > 0, repeated - ones[:, None] - count, logits)

        yield Row(
            f"penalties B={num_rows}",
            ours,
            logits.numel() * 12 + seen.numel() * 4,
            compiled={"torch.compile": torch_ops},
        )


ROWS = (sampled, logprobs, penalties)
