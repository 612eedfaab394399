"""An encoder-decoder gives what transformers gives, offline and through both tiers as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tokenizers import Tokenizer, processors  # noqa: E402

from forebay import LLM, Client, RequestOutput, SamplingParams  # noqa: E402
from forebay.errors import InvalidRequest  # noqa: E402
from tests.gpu_executor.models.checkpoints import Case, hub_tensors, tiny_model, write  # noqa: E402
from tests.processes import EXECUTOR_FLAGS, MODEL, Server, free_port  # noqa: E402

TEXTS = ("A generator is", "The with statement is used to")
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
START, FIRST = 2, 0


class Bart:
    """A folder with a tiny random BART and a tokenizer that writes <s> and </s>, and transformers' model and tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        backend = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        backend.add_special_tokens(["<s>", "</s>"])
        ends = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        case = Case("bart", "BartForConditionalGeneration", {
            "model_type": "bart", "vocab_size": backend.get_vocab_size(), "d_model": 48, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64,
            "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
            "decoder_start_token_id": START, "forced_bos_token_id": FIRST, "is_encoder_decoder": True})  # fmt: skip
        self.model = tiny_model(case)
        write(folder, case, hub_tensors(self.model, case))
        backend.save(str(folder / "tokenizer.json"))
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def encoder_ids(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    def generate(self, text: str, decoder: list[int]) -> list[int]:
        ids = self.encoder_ids(text)
        with torch.inference_mode():
            out = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                decoder_input_ids=torch.tensor([decoder]), max_new_tokens=8, do_sample=False, eos_token_id=None,
                forced_eos_token_id=None, forced_bos_token_id=FIRST,
            )  # fmt: skip
        return out[0, len(decoder) :].tolist()


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Bart:
    return Bart(tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="module")
def llm(bart: Bart) -> Iterator[LLM]:
    options = {"dtype": "float32", "kv_cache_memory_bytes": 32 << 20, "num_threads": 1, "disable_tqdm": True}
    with LLM(str(bart.folder), **options) as llm:
        yield llm


def prompts_of(bart: Bart) -> list[tuple[Any, list[int]]]:
    """Prompts in every form, each with the ids that the decoder begins with, for TEXTS[0]."""
    text, ids = TEXTS[0], bart.encoder_ids(TEXTS[0])
    return [
        (text, [START]), (ids, [START]), ({"prompt": text}, [START]), ({"prompt_token_ids": ids}, [START]),
        ({"prompt": text, "decoder_prompt_token_ids": [START, 5, 9]}, [START, 5, 9]),
        ({"prompt_token_ids": ids, "decoder_prompt_token_ids": [5, 9]}, [START, 5, 9]),
    ]  # fmt: skip


def check(bart: Bart, outputs: list[RequestOutput]) -> None:
    assert bart.encoder_ids(TEXTS[0])[0] == 4096, "the tokenizer writes no <s>"
    for output, (_, decoder) in zip(outputs, prompts_of(bart), strict=True):
        assert output.outputs[0].token_ids == bart.generate(TEXTS[0], decoder)
        assert output.num_prompt_tokens == len(bart.encoder_ids(TEXTS[0])) + len(decoder)


def test_offline_every_form_of_a_prompt_gives_what_transformers_gives(bart: Bart, llm: LLM) -> None:
    outputs = llm.generate([prompt for prompt, _ in prompts_of(bart)], GREEDY)
    check(bart, outputs)
    for output, (_, decoder) in zip(outputs, prompts_of(bart), strict=True):
        assert (output.prompt_token_ids, output.encoder_prompt_token_ids) == (decoder, bart.encoder_ids(TEXTS[0]))
        assert (output.outputs[0].token_ids[0] == FIRST) == (decoder == [START])


def test_several_sequences_of_a_request_share_its_encoder(bart: Bart, llm: LLM) -> None:
    (output,) = llm.generate(TEXTS[1], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, n=3, logprobs=2))
    assert [sequence.token_ids for sequence in output.outputs] == [bart.generate(TEXTS[1], [START])] * 3


def test_prompt_log_probabilities_are_those_of_the_decoders_prompt(llm: LLM) -> None:
    prompt = {"prompt": TEXTS[0], "decoder_prompt_token_ids": [START, 5, 9]}
    (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1))
    first, *others = output.prompt_logprobs
    assert first is None and [token_id in entry for token_id, entry in zip((5, 9), others, strict=True)] == [True, True]


def test_what_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="encoder's input has 65 tokens; the model takes 64"):
        llm.generate([[5] * 65], GREEDY)
    with pytest.raises(InvalidRequest, match="64"):
        llm.generate({"prompt_token_ids": [5], "decoder_prompt_token_ids": [START] * 60}, GREEDY)


@pytest.mark.xdist_group("end_to_end")
def test_served_every_form_of_a_prompt_gives_what_transformers_gives(bart: Bart) -> None:
    listen = f"127.0.0.1:{free_port()}"
    server = Server("serve", str(bart.folder), "--port", "0", "--listen", listen, *EXECUTOR_FLAGS)
    try:
        address = server.line("ready: ").split(" on ")[1].partition(";")[0]
        with Client(address, timeout=120) as client:
            check(bart, [client.generate(prompt, GREEDY) for prompt, _ in prompts_of(bart)])
            with pytest.raises(InvalidRequest, match="takes 64"):
                client.generate([5] * 65, GREEDY)
    finally:
        server.close()
