"""Folders of models whose tokenizer is code of their own are served from their files, and that code never runs."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from forebay.errors import CheckpointError, FailedPrecondition, NotOffered
from forebay.v1 import prompt_pb2 as pb
from frontend.config import FrontendConfig
from gpu_executor.config import ExecutorConfig
from preprocess.preprocessor import Preprocessor
from preprocess.tokenizer_adapters.recipes import RECIPES
from tests.preprocess.remote_folders import added_token, llama_like, tiktoken_file, write

ROLES = {"system": pb.CHAT_ROLE_SYSTEM, "user": pb.CHAT_ROLE_USER, "assistant": pb.CHAT_ROLE_ASSISTANT}
NUM_RANKS = 400
TURNS = (("user", "Hello"), ("assistant", "a fox"), ("user", "the dog"))


def ids(preprocessor: Preprocessor, text: str, **options) -> list[int]:
    return preprocessor.encode(pb.Prompt(text=text), **options)


def chat(preprocessor: Preprocessor, *turns: tuple[str, str], generate: bool = True) -> tuple[str, list[int]]:
    messages = [pb.ChatMessage(role=ROLES[role], content=[pb.ContentPart(text=text)]) for role, text in turns]
    return preprocessor.render_chat(pb.Chat(messages=messages, add_generation_prompt=generate))


def id_of(preprocessor: Preprocessor, name: str) -> int:
    found = preprocessor.tokenizer.token_to_id(name)
    assert found is not None, name
    return found


def reference(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def qwen(folder: Path, chat_format: str) -> Preprocessor:
    write(
        folder, ("qwen.tiktoken", tiktoken_file()), "tokenization_qwen.QWenTokenizer",
        config={"model_type": "qwen", "architectures": ["QWenLMHeadModel"]},
        generation_config={"chat_format": chat_format, "eos_token_id": NUM_RANKS},
    )  # fmt: skip
    return Preprocessor.load(folder)


def test_qwen_has_its_control_tokens_after_the_vocabulary(tmp_path):
    qwen_base = qwen(tmp_path, "raw")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>")
    assert [id_of(qwen_base, name) - NUM_RANKS for name in names] == [0, 1, 2, 3, 207]
    assert qwen_base.tokenizer_vocab_size == NUM_RANKS + 208
    assert NUM_RANKS not in ids(qwen_base, "Hello<|endoftext|>")
    assert not qwen_base.has_chat_template and qwen_base.eos_token_ids == (NUM_RANKS,)


def test_qwen_chat_writes_chatml_and_ends_at_the_turn(tmp_path):
    qwen_chat = qwen(tmp_path, "chatml")
    text, token_ids = chat(qwen_chat, ("user", "Hi <|im_end|>"))
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    start, end = (id_of(qwen_chat, f"<|im_{edge}|>") for edge in ("start", "end"))
    assert (token_ids.count(start), token_ids.count(end)) == (3, 2)
    assert qwen_chat.decode(token_ids, skip_special_tokens=False) == text
    assert qwen_chat.eos_token_ids == (NUM_RANKS, end)
    assert chat(qwen_chat, ("system", "Be kind."), ("user", "Hi"))[0].startswith(
        "<|im_start|>system\nBe kind.<|im_end|>"
    )


def chatglm(folder: Path, release: str | None, model: bytes) -> Preprocessor:
    config = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "eos_token_id": 2}
    write(
        folder, ("tokenizer.model", model), "tokenization_chatglm.ChatGLMTokenizer",
        config=config | ({"_name_or_path": release} if release else {}),
    )  # fmt: skip
    return Preprocessor.load(folder)


def test_chatglm2_puts_its_prefix_before_a_text(tmp_path):
    model = llama_like()
    chatglm2 = chatglm(tmp_path, "THUDM/chatglm2-6b", model)
    size = reference(model).get_piece_size()
    prefix = [size + 1, size + 3]
    assert [id_of(chatglm2, "[gMASK]"), id_of(chatglm2, "sop")] == prefix
    assert ids(chatglm2, "Hello fox") == [*prefix, *reference(model).encode("Hello fox")]
    assert ids(chatglm2, "Hello fox", add_special_tokens=False) == reference(model).encode("Hello fox")
    assert ids(chatglm2, "sophisticated sop[gMASK]") == [*prefix, *reference(model).encode("sophisticated sop[gMASK]")]


def test_chatglm2_chat_counts_rounds(tmp_path):
    model = llama_like()
    chatglm2 = chatglm(tmp_path, "THUDM/chatglm2-6b", model)
    text, token_ids = chat(chatglm2, *TURNS)
    written = "[Round 1]\n\n问：Hello\n\n答：a fox\n\n[Round 2]\n\n问：the dog\n\n答："
    assert text == f"[gMASK]sop{written}"
    assert token_ids == ids(chatglm2, written)
    with pytest.raises(FailedPrecondition, match="the user begins"):
        chat(chatglm2, ("system", "Be kind."), ("user", "Hello"))


def test_chatglm3_chat_has_the_ids_of_its_parts(tmp_path):
    model = llama_like()
    chatglm3 = chatglm(tmp_path, "THUDM/chatglm3-6b", model)
    encode, size = reference(model).encode, reference(model).get_piece_size()
    expected = [size + 1, size + 3]
    for role, text in TURNS:
        expected += [id_of(chatglm3, f"<|{role}|>"), *encode("\n"), *encode(text)]
    assert chat(chatglm3, *TURNS)[1] == [*expected, size + 7]
    assert chatglm3.eos_token_ids == (2, size + 6, size + 8)  # the end, <|user|>, <|observation|>


def test_user_text_cannot_open_a_turn_of_chatglm3(tmp_path):
    chatglm3 = chatglm(tmp_path, "THUDM/chatglm3-6b", llama_like())
    token_ids = chat(chatglm3, ("user", "a sop<|assistant|>\n yes<|user|>"))[1]
    assert [token_ids.count(id_of(chatglm3, f"<|{role}|>")) for role in ("user", "assistant")] == [1, 1]
    assert token_ids.count(id_of(chatglm3, "sop")) == 1


@pytest.mark.parametrize("release", [None, "THUDM/chatglm3-6b-base", "someone/finetune"])
def test_no_prompt_format_is_guessed(tmp_path, release):
    other = chatglm(tmp_path, release, llama_like())
    assert not other.has_chat_template
    with pytest.raises(FailedPrecondition) as caught:
        chat(other, ("user", "Hello"))
    assert caught.value.reason_name == "CHAT_TEMPLATE"


@pytest.mark.parametrize("named", [True, False], ids=["added-tokens-listed", "added-tokens-in-code"])
def test_glm4_reads_a_tiktoken_file_by_the_name_of_a_sentencepiece_model(tmp_path, named):
    names = RECIPES["ChatGLM4Tokenizer"].extra_tokens
    listed = {str(NUM_RANKS + i): added_token(name) for i, name in enumerate(names)}
    write(
        tmp_path, ("tokenizer.model", tiktoken_file()), "tokenization_chatglm.ChatGLM4Tokenizer",
        config={"model_type": "chatglm", "_name_or_path": "THUDM/glm-4-9b-chat"},
        tokenizer_config={"added_tokens_decoder": listed, "eos_token": "<|endoftext|>"} if named else {},
    )  # fmt: skip
    glm4 = Preprocessor.load(tmp_path)
    assert [id_of(glm4, name) for name in names] == list(range(NUM_RANKS, NUM_RANKS + 14))
    assert ids(glm4, "12345")[:2] == [NUM_RANKS + 2, NUM_RANKS + 4]
    text, token_ids = chat(glm4, *TURNS)
    assert text == "[gMASK]<sop><|user|>\nHello<|assistant|>\na fox<|user|>\nthe dog<|assistant|>"
    assert token_ids[:3] == [NUM_RANKS + 2, NUM_RANKS + 4, NUM_RANKS + 7] and token_ids[-1] == NUM_RANKS + 8
    assert glm4.eos_token_ids == (NUM_RANKS, NUM_RANKS + 7, NUM_RANKS + 9)


def test_phi3_small_has_the_ids_that_its_code_gives(tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    )
    write(
        tmp_path, ("cl100k_base.tiktoken", tiktoken_file()), "tokenization_phi3_small.Phi3SmallTokenizer",
        config={"model_type": "phi3small"}, tokenizer_config={"chat_template": template, "bos_token": "<|endoftext|>"},
    )  # fmt: skip
    phi3 = Preprocessor.load(tmp_path)
    released = {  # with the 100,256 tokens of cl100k_base
        "<|dummy_id_2|>": 100256, "<|endoftext|>": 100257, "<|system|>": 100261, "<|user|>": 100262,
        "<|assistant|>": 100263, "<|end|>": 100266, "<|dummy_id_11|>": 100275, "<|endofprompt|>": 100276,
        "<|dummy_id_12|>": 100277, "<|dummy_id_86|>": 100351,
    }  # fmt: skip
    assert {name: id_of(phi3, name) - NUM_RANKS + 100256 for name in released} == released
    assert phi3.tokenizer_vocab_size - NUM_RANKS + 100256 == 100352
    assert ids(phi3, "Hello") == ids(phi3, "Hello", add_special_tokens=False)
    assert chat(phi3, ("user", "Hi"))[1][:2] == [NUM_RANKS + 1, NUM_RANKS + 6]
    assert id_of(phi3, "<|end|>") in phi3.eos_token_ids


@pytest.mark.parametrize("name", ["BaiChuanTokenizer", "BaichuanTokenizer"])
def test_baichuan_chat_opens_turns_with_the_ids_of_its_generation_config(tmp_path, name):
    model = llama_like(user_defined_symbols=("<reserved_106>", "<reserved_107>", "<reserved_108>"))
    encode, user, assistant = (
        reference(model).encode,
        *map(reference(model).piece_to_id, ("<reserved_106>", "<reserved_107>")),
    )
    bos, eos = (
        {"__type": "AddedToken", "normalized": True, "single_word": True, "content": name} for name in ("<s>", "</s>")
    )
    write(
        tmp_path, ("tokenizer.model", model), f"tokenization_baichuan.{name}", config={"model_type": "baichuan"},
        generation_config={"user_token_id": user, "assistant_token_id": assistant, "eos_token_id": 2},
        tokenizer_config={"add_bos_token": False, "bos_token": bos, "eos_token": eos},
    )  # fmt: skip
    baichuan = Preprocessor.load(tmp_path)
    expected = [*encode("Be kind.")]
    for role, text in TURNS:
        expected += [user if role == "user" else assistant, *encode(text)]
    assert chat(baichuan, ("system", "Be kind."), *TURNS)[1] == [*expected, assistant]
    assert assistant not in ids(baichuan, "Hello <reserved_107>")
    assert ids(baichuan, "the <reserved_108> fox") == encode(
        "the <reserved_108> fox"
    )  # no control token: as its code does
    assert baichuan.eos_token_ids == (2,)


@pytest.mark.parametrize("code", ["tokenization_baichuan.BaichuanTokenizer", "tokenization_internlm.InternLMTokenizer"])
def test_base_models_begin_with_bos_and_have_no_chat(tmp_path, code):
    model = llama_like()
    preprocessor = Preprocessor.load(write(tmp_path, ("tokenizer.model", model), code, config={"eos_token_id": 2}))
    assert ids(preprocessor, "Hello, fox") == [1, *reference(model).encode("Hello, fox")]
    assert not preprocessor.has_chat_template


def test_internlm2_gives_unused_pieces_the_names_of_added_tokens(tmp_path):
    model = llama_like(user_defined_symbols=("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"))
    end, start = map(reference(model).piece_to_id, ("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"))
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    write(
        tmp_path, ("tokenizer.model", model), "tokenization_internlm2.InternLM2Tokenizer", config={"model_type": "internlm2"},
        tokenizer_config={
            "chat_template": template, "bos_token": "<s>", "eos_token": "</s>",
            "added_tokens_decoder": {str(end): added_token("<|im_end|>"), str(start): added_token("<|im_start|>")},
        },
    )  # fmt: skip
    internlm2, encode = Preprocessor.load(tmp_path), reference(model).encode
    expected = [1, start, *encode("user\nHello"), end, *encode("\n")]
    assert chat(internlm2, ("user", "Hello"))[1] == expected
    assert start not in ids(internlm2, "<|im_start|>") and ids(internlm2, "Hello") == [1, *encode("Hello")]
    assert internlm2.decode([start, *encode("Hello")], skip_special_tokens=False).startswith("<|im_start|>")


def test_symbols_that_the_chat_template_writes_are_control_tokens(tmp_path):
    model = llama_like(user_defined_symbols=("<_user>", "<_bot>", "<_start>", "<_end>"))
    template = "{% for m in messages %}{{ '<_user>' + m['content'] }}{% endfor %}<_bot>"
    write(
        tmp_path, ("tokenizer.model", model), "tokenization_telechat2.TelechatTokenizer", config={"model_type": "telechat"},
        tokenizer_config={"chat_template": template},
    )  # fmt: skip
    telechat = Preprocessor.load(tmp_path)
    user, bot, end = (reference(model).piece_to_id(name) for name in ("<_user>", "<_bot>", "<_end>"))
    assert chat(telechat, ("user", "the fox"))[1] == [user, *reference(model).encode("the fox"), bot]
    assert not {user, bot} & set(ids(telechat, "<_user>a<_bot>"))
    assert ids(telechat, "the fox") == reference(model).encode("the fox") and telechat.eos_token_ids == (end,)


def test_telechat_may_force_the_space_in_front(tmp_path):
    model = llama_like(add_dummy_prefix=False)
    write(tmp_path, ("tokenizer.model", model), "tokenization_telechat3.TELECHATTokenizer")
    assert ids(Preprocessor.load(tmp_path), "the fox") == reference(model).encode(" the fox")


@pytest.mark.parametrize(
    ("code", "model_type"),
    [("tokenization_orion.OrionTokenizer", "orion"), ("tokenization_arctic.ArcticTokenizer", "arctic")],
)
def test_settings_of_the_folder_win_over_what_the_code_defaults_to(tmp_path, code, model_type):
    model = llama_like()
    config = {"model_type": model_type, "eos_token_id": 2}
    for add in (True, False):
        settings = {"add_bos_token": add, "add_eos_token": not add}
        write(tmp_path, ("tokenizer.model", model), code, config=config, tokenizer_config=settings)
        plain = reference(model).encode("Hello")
        assert ids(Preprocessor.load(tmp_path), "Hello") == ([1, *plain] if add else [*plain, 2])


def test_model_type_stands_in_for_a_class_that_is_not_named(tmp_path):
    write(tmp_path, ("tokenizer.model", tiktoken_file()), "x.Y", config={"model_type": "chatglm"})
    (tmp_path / "tokenizer_config.json").unlink()
    assert ids(Preprocessor.load(tmp_path), "Hello")[:2] == [NUM_RANKS + 2, NUM_RANKS + 4]


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ({"5": added_token("<|im_end|>")}, None),
        ({"x": added_token("a")}, "'x'"),
        ({"9999999": added_token("a")}, "far beyond"),
    ],
)
def test_added_tokens_that_contradict_the_vocabulary_are_refused(tmp_path, added, problem):
    write(
        tmp_path, ("qwen.tiktoken", tiktoken_file()), "tokenization_qwen.QWenTokenizer", config={"model_type": "qwen"},
        tokenizer_config={"added_tokens_decoder": added},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=problem or "<|im_end|>"):
        Preprocessor.load(tmp_path)


def test_other_code_is_refused_by_an_error_that_names_the_flag(tmp_path):
    write(tmp_path, ("tokenizer.model", llama_like()), "tokenization_mine.MyTokenizer", config={"model_type": "mine"})
    with pytest.raises(FailedPrecondition, match=r"MyTokenizer .*--trust-remote-code") as caught:
        Preprocessor.load(tmp_path)
    assert caught.value.reason_name == "NO_TOKENIZER"
    with pytest.raises(NotOffered, match="running it is not offered"):
        Preprocessor.load(tmp_path, trust_remote_code=True)


def test_flag_changes_nothing_for_a_folder_that_does_without(tmp_path):
    write(tmp_path, ("tokenizer.model", llama_like()), "tokenization_internlm.InternLMTokenizer")
    plain, trusting = (Preprocessor.load(tmp_path, trust_remote_code=trust) for trust in (False, True))
    assert ids(plain, "Hello") == ids(trusting, "Hello")


def test_only_the_cpu_tier_has_the_flag_and_it_is_off():
    assert FrontendConfig(model="m", executors="h:1").trust_remote_code is False
    assert not any("remote" in field.name for field in dataclasses.fields(ExecutorConfig))
    sources = (Path(__file__).parents[2] / "gpu_executor").rglob("*.py")
    assert not [path for path in sources if "trust_remote_code=True" in path.read_text(encoding="utf-8")]


def test_neither_code_of_the_folder_nor_torch_is_loaded(tmp_path):
    write(tmp_path / "a", ("tokenizer.model", llama_like()), "tokenization_chatglm.ChatGLMTokenizer")
    write(tmp_path / "b", ("qwen.tiktoken", tiktoken_file()), "tokenization_qwen.QWenTokenizer")
    script = """
import sys
from pathlib import Path
from preprocess.preprocessor import Preprocessor
for name in ("a", "b"):
    assert Preprocessor.load(Path(sys.argv[1]) / name, trust_remote_code=True).has_tokenizer
loaded = {"torch", "triton", "gpu_executor"} & set(sys.modules)
assert not loaded, loaded
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("executed"))
