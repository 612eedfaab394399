"""Owns the way from a model's name to a folder: a folder itself, the Hugging Face hub, or ModelScope. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forebay.errors import CheckpointError, InvalidRequest, NotFound, NotOffered, Unavailable

_CONFIG_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
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

    A name is a folder, or a hub id such as `Qwen/Qwen2-0.5B`. The hub's own variables hold: HF_HOME, HF_TOKEN, HF_ENDPOINT,
    HF_HUB_OFFLINE. With FOREBAY_USE_MODELSCOPE=True ids are ModelScope's. Raises NotFound, Unavailable or InvalidRequest
    that say what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InvalidRequest(f"{model} is a file; give the folder of the model")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", model) or ".." in model:
        raise NotFound(f"{model!r} is neither a folder that exists nor a hub id like organisation/name")
    if os.environ.get(_MODELSCOPE_VARIABLE, "").lower() in ("1", "true", "yes"):
        return _from_modelscope(model, revision, download_dir, weights)
    return _from_hugging_face(model, revision, download_dir, token, weights, progress)


def _from_hugging_face(
    model: str, revision: str | None, download_dir: str | None, token: str | None, weights: bool, progress: bool
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if progress else disable_progress_bars)()
    options = {"revision": revision, "cache_dir": download_dir, "token": token}
    where = f"{model} at revision {revision}" if revision else model
    try:
        folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=_CONFIG_FILES, **options))
        if weights:
            names = huggingface_hub.list_repo_files(model, revision=revision, token=token) if _is_online() else []
            pattern = "*.safetensors" if _has_safetensors(names, folder) else "*.bin"
            folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=[*_CONFIG_FILES, pattern], **options))
    except errors.GatedRepoError:
        raise NotFound(f"{where} is gated: ask for access on the hub, then set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise NotFound(
            f"{where} is not on the hub, or needs a token (HF_TOKEN): check the name and --revision"
        ) from None
    except errors.LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set" if not _is_online() else "the hub cannot be reached"
        raise Unavailable(f"{where} is not in the cache and {reason}: download it first, or give its folder") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise Unavailable(f"downloading {where} failed: {str(error).splitlines()[0][:200]}") from None
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where} has no config.json: is it a model?")
    return folder


def _has_safetensors(names: list[str], folder: Path) -> bool:
    return any(name.endswith(".safetensors") for name in names) or any(folder.glob("*.safetensors*"))


def _is_online() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


def _from_modelscope(model: str, revision: str | None, download_dir: str | None, weights: bool) -> Path:
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError:
        raise NotOffered(f"{_MODELSCOPE_VARIABLE} is set, which needs: pip install 'forebay[modelscope]'") from None
    patterns = [*_CONFIG_FILES, *(["*.safetensors", "*.bin"] if weights else [])]
    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=download_dir, allow_file_pattern=patterns))
    except Exception as error:  # modelscope raises bare exceptions of many kinds
        raise NotFound(f"{model} cannot be had from ModelScope: {str(error).splitlines()[0][:200]}") from None
