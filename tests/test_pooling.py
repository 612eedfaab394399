"""Models that embed and score give what transformers gives, from text, through both tiers as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import grpc  # noqa: E402
from tokenizers import Tokenizer, processors  # noqa: E402

from forebay.v1 import pooling_pb2 as api  # noqa: E402
from forebay.v1.pooling_pb2_grpc import PoolingServiceStub  # noqa: E402
from forebay.v1.prompt_pb2 import Prompt, TokenIds  # noqa: E402
from tests.gpu_executor.models.checkpoints import Case, hub_tensors, tiny_model, write  # noqa: E402
from tests.gpu_executor.models.pooling_cases import ENCODER  # noqa: E402
from tests.processes import MODEL, serve  # noqa: E402

# One set of servers for all of these, where tests are spread over processes.
pytestmark = pytest.mark.xdist_group("end_to_end")

TEXTS = ("A generator is", "The with statement is used to", "A list", "The assert statement")
TIMEOUT_S = 240.0


class Encoder:
    """A folder with a tiny random BERT and a tokenizer that writes [CLS] and [SEP], and transformers' model and tokenizer."""

    def __init__(self, folder: Path, architecture: str, **config: Any) -> None:
        self.folder = folder
        backend = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        backend.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
        ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        size = {
            "model_type": "bert",
            "vocab_size": backend.get_vocab_size(),
            "pad_token_id": backend.token_to_id("[PAD]"),
        }
        case = Case("bert", architecture, ENCODER | size | config)
        self.model = tiny_model(case)
        write(folder, case, hub_tensors(self.model, case))
        backend.save(str(folder / "tokenizer.json"))
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def inputs(self, *texts: str) -> dict[str, Any]:
        return dict(self.tokenizer(*texts, return_tensors="pt", return_token_type_ids=True))

    @torch.no_grad()
    def embedding(self, text: str) -> np.ndarray:
        vector = self.model(**self.inputs(text)).last_hidden_state[0].mean(0)
        return (vector / vector.norm()).numpy()

    @torch.no_grad()
    def score(self, query: str, document: str) -> float:
        return self.model(**self.inputs(query, document)).logits.sigmoid().item()


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A sentence-transformer: the mean of all tokens, normalized, of at most 32 tokens."""
    folder = tmp_path_factory.mktemp("embedder")
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{step}"} for path, step in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return Encoder(folder, "BertModel")


def _stub(address: str) -> PoolingServiceStub:
    return PoolingServiceStub(grpc.insecure_channel(address))


@pytest.fixture(scope="module")
def embeddings(embedder: Encoder) -> Iterator[PoolingServiceStub]:
    with serve(model=embedder.folder) as (_, address, _executor):
        yield _stub(address)


def test_texts_become_the_vectors_of_their_sentence_transformer(
    embedder: Encoder, embeddings: PoolingServiceStub
) -> None:
    response = embeddings.Embed(api.EmbedRequest(inputs=[Prompt(text=text) for text in TEXTS]), timeout=TIMEOUT_S)
    found = np.frombuffer(response.embeddings, "<f4").reshape(len(TEXTS), response.dimensions)
    np.testing.assert_allclose(found, [embedder.embedding(text) for text in TEXTS], atol=1e-4)
    assert response.usage.prompt_tokens == sum(embedder.inputs(text)["input_ids"].numel() for text in TEXTS)


def test_a_text_beyond_the_sentence_transformers_length_is_refused(embeddings: PoolingServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        embeddings.Embed(api.EmbedRequest(inputs=[Prompt(token_ids=TokenIds(ids=[5] * 33))]), timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "32" in refused.value.details()


def test_pairs_of_texts_get_the_cross_encoders_scores(tmp_path: Path) -> None:
    reranker = Encoder(tmp_path, "BertForSequenceClassification", id2label={"0": "LABEL_0"})
    query, *documents = TEXTS
    with serve(model=tmp_path) as (_, address, _executor):
        request = api.ScoreRequest(queries=[Prompt(text=query)], documents=[Prompt(text=text) for text in documents])
        scores = _stub(address).Score(request, timeout=TIMEOUT_S).scores
    assert scores == pytest.approx([reranker.score(query, text) for text in documents], abs=1e-4)
