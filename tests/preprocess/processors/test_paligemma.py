"""PaliGemma's prompts: pictures first, wherever the text or the ids say they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings
from preprocess.processors.processor import Processor
from preprocess.tokenizer import TextTokenizer
from tests.gpu_executor.models.media_cases.paligemma import PALIGEMMA
from tests.gpu_executor.models.media_checkpoints import prompt_text

IMAGE, BOS = 3, 1
RUN = [IMAGE] * 16


@pytest.fixture
def paligemma(tmp_path: Path) -> tuple[Processor, TextTokenizer]:
    PALIGEMMA.write_files(tmp_path)
    return PALIGEMMA.processor(tmp_path)


def embeddings(*shape: int) -> Embeddings:
    return Embeddings("image", (np.zeros(shape, np.float32),), {})


@pytest.mark.parametrize("text", ["hi", "<image>hi"])
def test_pictures_come_before_the_text(text: str, paligemma: tuple[Processor, TextTokenizer]) -> None:
    processor, tokenizer = paligemma
    prompt = processor.expand_text(prompt_text(text, tokenizer), processor.accept(embeddings(1, 16, 48)))
    assert prompt.token_ids == [*RUN, BOS, *tokenizer.encode("hi\n", add_special_tokens=False)]
    assert prompt.media[0].spans == ((0, 16),)


def test_text_without_pictures_is_text(paligemma: tuple[Processor, TextTokenizer]) -> None:
    processor, tokenizer = paligemma
    assert processor.expand_text(prompt_text("hi", tokenizer), []).token_ids == tokenizer.encode(
        "hi", add_special_tokens=True
    )
    assert processor.expand_ids([BOS, 9], []).token_ids == [BOS, 9]


@pytest.mark.parametrize("token_ids", [[9, 9], [BOS, 9, 9], [IMAGE, BOS, 9, 9], [*RUN, BOS, 9, 9]], ids=str)
def test_ids_get_what_they_lack(token_ids: list[int], paligemma: tuple[Processor, TextTokenizer]) -> None:
    processor, _ = paligemma
    found = processor.expand_ids(token_ids, processor.accept(embeddings(1, 16, 48)))
    assert found.token_ids == [*RUN, BOS, 9, 9]
    assert found.media[0].spans == ((0, 16),)


def test_another_number_of_pictures_is_refused(paligemma: tuple[Processor, TextTokenizer]) -> None:
    processor, tokenizer = paligemma
    items = processor.accept(embeddings(2, 16, 48))
    with pytest.raises(InvalidRequest, match="1 places for image items, and 2 are given"):
        processor.expand_text(prompt_text("<image>hi", tokenizer), items)
    with pytest.raises(InvalidRequest, match="1 places for image items, and 2 are given"):
        processor.expand_ids([IMAGE, 9], items)
    with pytest.raises(InvalidRequest, match="15 rows; the items need 16"):
        processor.accept(embeddings(15, 48))
