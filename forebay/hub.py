"""Owns the way from a model's name to a folder: a folder itself, the Hugging Face hub, or ModelScope. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from forebay.errors import CheckpointError, InvalidRequest, NotFound, NotOffered, Unavailable
from forebay.model_config import model_config_path

# What is read beside the weights: configuration, tokenizer, chat template, index of shards.
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
# Weight files, best first: what is downloaded, and what of it is not. The original/ and consolidated files of some
# repositories are the same weights again.
_WEIGHT_FILES = (
    ("*.safetensors", ("consolidated*", "*/consolidated*")),
    ("consolidated*.safetensors", ()),
    ("*.bin", ("training_args.bin", "optimizer.bin", "scheduler.bin")),
)
_NEVER = ("original/*", "onnx/*", "openvino/*", "checkpoint-*/*")
_MODELSCOPE_VARIABLE = "FOREBAY_USE_MODELSCOPE"


def resolve_model(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    weights: bool = True,
    progress: bool = True,
) -> Path:
    """The folder of a model, downloaded if need be; without `weights`, only configuration and tokenizer.

    A name is a folder, or a hub id such as `Qwen/Qwen2-0.5B`. The hub's own variables hold: HF_HOME, HF_TOKEN,
    HF_ENDPOINT, HF_HUB_OFFLINE. With FOREBAY_USE_MODELSCOPE=True ids are ModelScope's. Raises NotFound, Unavailable,
    NotOffered, CheckpointError or InvalidRequest that say what to do.
    """
    try:
        folder = Path(model).expanduser()
        is_folder, is_file = bool(model) and folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError):  # a name too long, or a home that nobody has
        is_folder = is_file = False
    if is_folder:
        return folder
    if is_file:
        raise InvalidRequest(f"{model} is a file; give the folder of the model")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise NotFound(f"there is no folder {model[:200]}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", model) or ".." in model:
        raise NotFound(f"{model[:200]!r} is neither a folder that exists nor a hub id like organisation/name")
    if os.environ.get(_MODELSCOPE_VARIABLE, "").lower() in ("1", "true", "yes"):
        return _from_modelscope(model, revision, download_dir, token, weights)
    return _from_hugging_face(model, revision, download_dir, token, weights, progress)


def _from_hugging_face(
    model: str, revision: str | None, download_dir: str | None, token: str | None, weights: bool, progress: bool
) -> Path:
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def snapshot(allowed: list[str], ignored: list[str], commit: str | None = None) -> Path:
        return Path(
            snapshot_download(
                model, revision=commit or revision, cache_dir=download_dir, token=token, allow_patterns=allowed,
                ignore_patterns=ignored,
            )
        )  # fmt: skip

    where = f"{model} at revision {revision}" if revision else model
    quiet_before = are_progress_bars_disabled()
    if not progress:
        disable_progress_bars()
    try:
        folder = _download(snapshot, weights)
    except errors.GatedRepoError:
        raise NotFound(f"{where} is gated: ask for access on the hub, then set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise NotFound(
            f"{where} is not on the hub, or needs a token (HF_TOKEN): check the name and --revision, or give a folder"
        ) from None
    except errors.HFValidationError:
        raise NotFound(f"{model!r} is neither a folder that exists nor a name that the hub allows") from None
    except errors.LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise Unavailable(
            f"{where} is not wholly in the cache and {reason}: download it first, or give its folder"
        ) from None
    except (errors.HTTPError, OSError) as error:  # httpx's base class, from which the hub's own errors derive
        raise Unavailable(f"downloading {where} failed: {_first_line(error)}") from None
    finally:
        if not progress and not quiet_before:
            enable_progress_bars()
    return _checked(folder, where, weights)


def _from_modelscope(
    model: str, revision: str | None, download_dir: str | None, token: str | None, weights: bool
) -> Path:
    try:
        from modelscope.hub.snapshot_download import snapshot_download
        from requests.exceptions import HTTPError
    except ImportError:
        raise NotOffered(f"{_MODELSCOPE_VARIABLE} is set, which needs: pip install 'forebay[modelscope]'") from None

    def snapshot(allowed: list[str], ignored: list[str], commit: str | None = None) -> Path:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=download_dir, token=token, allow_patterns=allowed,
                ignore_patterns=ignored,
            )
        )  # fmt: skip

    where = f"{model} at revision {revision}" if revision else model
    try:
        folder = _download(snapshot, weights)
    except HTTPError:
        raise NotFound(
            f"{where} is not on ModelScope, or needs a token (MODELSCOPE_API_TOKEN): check the name and --revision"
        ) from None
    except Exception as error:  # modelscope raises errors of its own and of requests, with no common base
        raise Unavailable(f"downloading {where} from ModelScope failed: {_first_line(error)}") from None
    return _checked(folder, where, weights)


class _Snapshot(Protocol):
    """Downloads the files that match `allowed` and not `ignored`, and gives their folder."""

    def __call__(self, allowed: list[str], ignored: list[str], commit: str | None = None) -> Path: ...


def _download(snapshot: _Snapshot, weights: bool) -> Path:
    """The folder with the text files and, of the kinds of weight files, the best that there is."""
    folder = snapshot([*_TEXT_FILES], [*_NEVER])
    commit = folder.name  # so that what follows is of the same revision, even if the branch moves
    for pattern, ignored in _WEIGHT_FILES if weights else ():
        snapshot([*_TEXT_FILES, pattern], [*_NEVER, *ignored], commit)
        if any(folder.glob(pattern)):
            break
    return folder


def _checked(folder: Path, where: str, weights: bool) -> Path:
    """A folder that is a model's; raises CheckpointError."""
    if not model_config_path(folder).is_file():
        raise CheckpointError(f"{where} has no config.json: is it a model?")
    if weights and not any(any(folder.glob(pattern)) for pattern, _ in _WEIGHT_FILES):
        raise CheckpointError(f"{where} has no weights in safetensors or .bin files")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
