"""Owns what an executor pools: the architecture's own way, what the checkpoint's files say, and what the operator overrides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.sentence_files import SentenceFiles, read_json
from gpu_executor.models.spec import ModelSpec, Pooling, PoolingKind
from gpu_executor.pooler_override import PoolerOverride

Activation = Literal["softmax", "sigmoid", "identity"]
_TORCH_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
    "torch.nn.modules.linear.Identity": "identity",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Pooler:
    """What becomes of a prompt's hidden states. Requests of `tasks` are served, and may ask for another normalize."""

    tasks: tuple[str, ...]
    kind: PoolingKind
    normalize: bool
    activation: Activation
    activates: bool  # unless a request says otherwise
    num_columns: int
    num_segments: int = 0
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] = ()
    # Sequences that end an instruction; a mean leaves out what stands up to there. None: there are no instructions.
    instruction_ends: tuple[tuple[int, ...], ...] | None = None
    bidirectional: bool = False

    @property
    def needs_every_token(self) -> bool:
        """Whether hidden states of all tokens are wanted, so that none may come from the prefix cache."""
        return self.bidirectional or self.kind != "last"


def resolve_pooler(
    folder: Path,
    config: ConfigReader,
    spec: ModelSpec,
    task: str,
    override: PoolerOverride,
    files: SentenceFiles | None,
) -> Pooler:
    """The pooler of a model that serves `task`; `files` are those of its folder, for embeddings."""
    own = spec.pooling or Pooling("all" if task == "reward" else "last")
    kind = override.pooling_type or (files.kind if files is not None else own.kind)
    step_tag_id = override.step_tag_id if override.step_tag_id is not None else own.step_tag_id
    if kind == "step" and step_tag_id is None:
        raise ValueError("pooling_type STEP needs a step_tag_id in override_pooler_config")
    for token_id in (*override.returned_token_ids, *(() if kind != "step" else (step_tag_id,))):
        if token_id >= spec.vocab_size:
            raise ValueError(
                f"token id {token_id} of the pooler is not below the vocabulary's {spec.vocab_size:,} entries; "
                "choose another with override_pooler_config"
            )
    normalize = files.normalize if files is not None else task == "embed"
    num_columns = spec.decoder.embed_size or spec.decoder.hidden_size
    if spec.classifier is not None and task != "embed":
        num_columns = spec.classifier.num_classes
    num_columns = len(override.returned_token_ids) or num_columns
    tasks = (task,)
    if task in ("classify", "score") and spec.classifier is not None:  # two names for one head
        tasks = ("classify", "score") if num_columns == 1 else ("classify",)
    ends = None
    if own.instruction_ends and kind == "mean":
        ends = _token_ids(folder, own.instruction_ends)
    return Pooler(
        tasks=tasks,
        kind=kind,
        normalize=normalize if override.normalize is None else override.normalize,
        activation=_read_activation(config, num_columns),
        activates=task != "reward" if override.softmax is None else override.softmax,
        num_columns=num_columns,
        num_segments=spec.decoder.num_segments,
        step_tag_id=step_tag_id,
        returned_token_ids=override.returned_token_ids,
        instruction_ends=ends,
        bidirectional=spec.bidirectional,
    )


def _read_activation(config: ConfigReader, num_columns: int) -> Activation:
    """What the checkpoint names, else the sigmoid for one number, and the softmax for several."""
    named = config.section("sentence_transformers")("activation_fn", "activation_function", default=None)
    named = named or config("sbert_ce_default_activation_function", default=None)
    if named is not None:
        if named not in _TORCH_ACTIVATIONS:
            raise config.wrong(
                ("sbert_ce_default_activation_function",), named, f"one of {', '.join(_TORCH_ACTIVATIONS)}"
            )
        return _TORCH_ACTIVATIONS[named]
    independent = config("problem_type", default=None) == "multi_label_classification"
    return "sigmoid" if num_columns == 1 or independent else "softmax"


def _token_ids(folder: Path, sequences: tuple[tuple[str, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Sequences of tokens as ids: those that the vocabulary of tokenizer.json can write."""
    tokenizer = read_json(folder / "tokenizer.json")
    if not isinstance(tokenizer, dict):
        raise CheckpointError(
            "this model embeds what follows its instruction, and tokenizer.json is not there to tell its end"
        )
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    found = [tuple(vocabulary.get(token) for token in sequence) for sequence in sequences]
    return tuple(ids for ids in found if None not in ids)
