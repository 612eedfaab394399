"""Qwen2-Audio (Chu et al., 2024): clips of up to 30 s, 25 tokens for each second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.media.decoded import Audio, DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.mel import read_mel
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import audio_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import media_token_id, text_hidden_size


class Qwen2AudioProcessor:
    """Each <|AUDIO|> becomes as many as its clip has tokens."""

    modalities = ("audio",)

    def __init__(self, files: ProcessorFiles) -> None:
        config = model_settings(files)
        self._hidden_size = text_hidden_size(config)
        self._mel = read_mel(audio_settings(files), num_mels=128)
        self._runs = TokenRuns(files.tokenizer, {"audio": media_token_id(config, "audio", 151646)})

    @property
    def sample_rate(self) -> int:
        return self._mel.sample_rate

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """What is beyond the encoder's 30 s is not heard, as in transformers.

        transformers pads every clip to 30 s and hides the padding. Two frames of it are all that reach what is not hidden.
        """
        if not isinstance(media, Audio):
            raise unusable(f"this model takes no {media.modality} items")
        mel = self._mel
        samples = media.samples[: mel.max_samples]
        num_frames = -(-len(samples) // mel.hop_length)
        num_features = ((num_frames - 1) // 2 + 1) // 2  # a convolution of stride 2, then the mean of every two
        if not num_features:
            raise unusable(f"a clip of {len(samples):,} samples is too short: it needs {2 * mel.hop_length + 1:,}")
        silence = min(2 * mel.hop_length + mel.n_fft, mel.max_samples - len(samples))
        frames = mel.log_mel(np.pad(samples, (0, silence)))[:, : num_frames + 2]
        tensors = {"input_features": np.ascontiguousarray(frames), "num_frames": np.array([num_frames])}
        return MediaItem("audio", tensors, num_features)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if embeddings.modality != "audio":
            raise unusable(f"this model takes no {embeddings.modality} items")
        return [embedded_item("audio", rows) for rows in rows_per_item(embeddings, self._hidden_size)]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"Audio {index + 1}: <|audio_bos|>{self._runs.markers['audio']}<|audio_eos|>\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)


@processor("Qwen2AudioForConditionalGeneration")
def qwen2_audio(files: ProcessorFiles) -> Qwen2AudioProcessor:
    return Qwen2AudioProcessor(files)
