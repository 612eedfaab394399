"""Chat templates run under limits: each way to misbehave has its error, and the next render works."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from forebay.errors import FailedPrecondition
from preprocess.template_renderer import MAX_CHARS, TemplateRenderer, TemplateSyntaxError, TemplateTooCostly

MESSAGES = [{"role": "user", "content": "Hello"}]
FINE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def renderer():
    # CPU time, which a busy machine does not use up; the wall clock only ends what neither computes nor answers
    renderer = TemplateRenderer(cpu_seconds=0.3, wall_seconds=60)
    yield renderer
    renderer.close()


def render(renderer: TemplateRenderer, template: str, messages: list[dict[str, Any]] = MESSAGES, **options: Any) -> str:
    defaults = {"named_tokens": {}, "add_generation_prompt": False, "continue_final_message": False}
    return renderer.render(template, messages, **(defaults | options))


def worker_pid(renderer: TemplateRenderer) -> int:
    assert renderer._worker is not None
    return renderer._worker.pid


# One that never comes back to Python: nothing inside the process could end it.
LONG_CALL = "{{ (7 ** 9999999) ** 99 % 3 }}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
COSTLY = {
    "endless_loop": (LOOP, "longer than 0.3 s"),
    "one_long_call": (LONG_CALL, "longer than 0.3 s"),
    "memory_hog": ("{% set ns = namespace(x='a' * 1000000) %}{% set y = [ns.x * 1000] %}{{ y[0] | length }}", "memory"),
    "huge_output": ("{{ 'ab' * " + str(MAX_CHARS // 2) + " }}c", f"wrote {MAX_CHARS + 1:,} characters"),
}


@pytest.mark.parametrize("case", COSTLY)
def test_costly_template_is_ended_and_the_next_render_works(renderer, case):
    template, problem = COSTLY[case]
    with pytest.raises(TemplateTooCostly, match=problem) as caught:
        render(renderer, template)
    assert caught.value.reason_name == "CHAT_TEMPLATE"
    assert render(renderer, FINE) == "Hello"


def test_output_may_be_as_long_as_the_limit(renderer):
    assert len(render(renderer, "{{ 'ab' * " + str(MAX_CHARS // 2) + " }}")) == MAX_CHARS


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ 'a", "{% endif %}", "{% nonsense %}", "{{ 1 | unknown_filter }}"]
)
def test_template_that_does_not_compile_is_a_syntax_error_with_its_line(renderer, template):
    with pytest.raises(TemplateSyntaxError, match="line 2: ") as caught:
        render(renderer, "\n" + template)
    assert caught.value.reason_name == "CHAT_TEMPLATE"
    assert render(renderer, FINE) == "Hello"


def test_refusal_has_the_words_of_the_template(renderer):
    with pytest.raises(FailedPrecondition, match=r"refuses these messages: no +system here$") as caught:
        render(renderer, "{{ raise_exception('no\\n system here') }}")
    assert not isinstance(caught.value, (TemplateTooCostly, TemplateSyntaxError))


def test_refusal_is_cut_to_a_readable_length(renderer):
    with pytest.raises(FailedPrecondition) as caught:
        render(renderer, "{{ raise_exception('x' * 100000) }}")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.x.y }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_failure_names_its_kind_only(renderer, template, name):
    with pytest.raises(FailedPrecondition, match=f": {name}$"):
        render(renderer, template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/hostname' %}", "{{ messages.append(1) }}",
    ],
)  # fmt: skip
def test_template_reaches_nothing_outside_its_sandbox(renderer, template):
    with pytest.raises(FailedPrecondition, match="refuse"):
        render(renderer, template)


def test_template_sees_what_it_is_given(renderer):
    template = "{{ bos_token }}|{{ add_generation_prompt }}|{{ messages[0].content }}|{{ tools is defined and tools }}"
    text = render(renderer, template, named_tokens={"bos_token": "<s>"}, add_generation_prompt=True)
    assert text == "<s>|True|Hello|None"


def test_text_of_every_script_and_control_characters_pass_unchanged(renderer):
    text = 'a\n\r\t\0\u2028\x85 naïve 東京 😀 \U000f0000 {{ messages }} {% for %} \\n "'
    assert render(renderer, FINE, [{"role": "user", "content": text}]) == text


def test_renders_share_one_worker_and_a_closed_renderer_starts_another(renderer):
    render(renderer, FINE)
    first = worker_pid(renderer)
    render(renderer, FINE)
    assert worker_pid(renderer) == first
    renderer.close()
    assert render(renderer, FINE) == "Hello"
    assert worker_pid(renderer) != first


def test_worker_that_is_killed_is_replaced(renderer):
    render(renderer, FINE)
    renderer._worker.kill()
    renderer._worker.wait()
    assert render(renderer, FINE) == "Hello"


def test_one_render_does_not_see_what_another_left(renderer):
    render(renderer, "{% set x = 5 %}{% macro m() %}{% endmacro %}")
    assert render(renderer, "{{ x is defined }}{{ m is defined }}") == "FalseFalse"


def test_threads_get_their_own_answers(renderer):
    answers: dict[int, list[str]] = {}

    def work(number: int) -> None:
        answers[number] = [render(renderer, FINE, [{"role": "user", "content": f"{number}.{i}"}]) for i in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [f"{number}.{i}" for i in range(20)] for number in range(4)}


def test_worker_has_no_terminal_group_of_ours_so_that_an_interrupt_does_not_end_it(renderer):
    render(renderer, FINE)
    assert os.getpgid(worker_pid(renderer)) != os.getpgrp()
