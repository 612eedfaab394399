"""Owns the head that gives a few numbers per hidden state: classes, scores, rewards."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Classifier, Pooling
from gpu_executor.models.weights import Weights
from kernels.batch_invariance import elementwise

SCORE = rename(r"score\.(weight|bias)", r"score.\1")  # of decoders that classify


class ClassifierHead:
    """score(act(dense(x))), or score(x) where there is no dense."""

    def __init__(self, spec: Classifier, weights: Weights) -> None:
        self._dense, self._score = weights.linear("dense"), weights.linear("score")
        self._act = {"tanh": torch.tanh, "relu": torch.relu}[spec.act]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, D) -> (N, num_classes) float32, before any activation."""
        if self._dense is not None:
            hidden = elementwise(self._act, self._dense(hidden))
        return self._score(hidden).float()


def read_num_classes(config: ConfigReader) -> int:
    """How many classes a config names: id2label, else num_labels, else two."""
    labels = config.section("id2label").data
    return len(labels) or config.integer("num_labels", default=2)


def with_classifier(
    resolved: Resolved,
    classifier: Classifier,
    *rules: Rule,
    extras: tuple[str, ...] = (),
    pooling: Pooling | None = None,
) -> Resolved:
    """A family's model with a classifier beside or instead of its head; `rules` say where its tensors come from."""
    spec = dataclasses.replace(resolved.spec, classifier=classifier, pooling=pooling or resolved.spec.pooling)
    return Resolved(spec, (*rules, *resolved.rules), resolved.extras + extras)


def with_score(resolved: Resolved, config: ConfigReader) -> Resolved:
    """A decoder that classifies sequences: `score` on the last token's hidden state."""
    return with_classifier(resolved, Classifier(read_num_classes(config)), SCORE)
