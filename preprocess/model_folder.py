"""Owns what a CPU tier opens of a model: its folder, the preprocessor, and what other tiers must have too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.fingerprint import PROCESSOR_VERSION, model_digest, tokenizer_digest
from forebay.hub import resolve_model
from forebay.model_config import apply_overrides
from preprocess.json_files import read_model_config
from preprocess.media.settings import MediaSettings
from preprocess.preprocessor import Preprocessor


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model, without its weights."""

    folder: Path
    config: dict[str, Any]  # its config.json, with what the operator changes
    preprocessor: Preprocessor
    fingerprint: wire.Fingerprint

    @classmethod
    def open(
        cls,
        model: str,
        *,
        revision: str | None,
        download_dir: str | None,
        tokenizer: str | None,
        trust_remote_code: bool,
        media: MediaSettings,
        hf_overrides: Mapping[str, Any] | None = None,
    ) -> ModelFolder:
        """A folder, or what a hub has under a name; raises ForebayError."""
        folder = resolve_model(model, revision=revision, download_dir=download_dir, weights=False)
        tokenizer_folder = None
        if tokenizer:
            tokenizer_folder = resolve_model(tokenizer, revision=revision, download_dir=download_dir, weights=False)
        preprocessor = Preprocessor.load(
            folder,
            tokenizer_folder=tokenizer_folder,
            trust_remote_code=trust_remote_code,
            media=media,
            download_dir=download_dir,
            hf_overrides=hf_overrides,
        )
        config = read_model_config(folder)
        if not config:
            raise CheckpointError(f"{folder} has no config.json: is it a model folder?")
        fingerprint = wire.Fingerprint(
            model_digest=model_digest(config),  # of the files alone, as executors give it
            # A tokenizer from elsewhere is a choice of the operator: executors, which never see it, hold the model's own.
            tokenizer_digest="" if tokenizer_folder else tokenizer_digest(folder),
            processor_version=PROCESSOR_VERSION,
        )
        return cls(folder, apply_overrides(config, hf_overrides or {}), preprocessor, fingerprint)
