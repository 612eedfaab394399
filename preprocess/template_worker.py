"""Owns the process in which chat templates run: reads one JSON request a line, writes one JSON answer a line.

A template is a program that comes with a checkpoint. Jinja's sandbox keeps it from the file system but not from looping
or filling the memory, and nothing inside a Python process can stop a long call into C. So templates run here, where
the kernel ends them: SIGPROF after a limit of CPU time (which a busy machine does not use up), RLIMIT_AS for memory.
The parent (preprocess/template_renderer.py) kills the process when even that does not help.

This file runs as a script and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from typing import Any

EXTRA_MEMORY_BYTES = 512 << 20


def main() -> None:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    answers = sys.stdout
    sys.stdout = sys.stderr  # a stray print must not become an answer
    _limit_memory()
    print('{"ready": true}', file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
            rendered = render_jinja_template(
                conversations=[request["messages"]],
                chat_template=request["template"],
                add_generation_prompt=request["add_generation_prompt"],
                continue_final_message=request["continue_final_message"],
                **request["named_tokens"],
            )
            answer = _checked(rendered[0][0], request["max_chars"])
        except jinja2.TemplateSyntaxError as error:
            answer = {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
        except jinja2.TemplateError as error:
            # raise_exception gives a bare TemplateError, whose text the template's author wrote for people.
            written = type(error) is jinja2.TemplateError
            answer = {"error": "refused", "message": str(error) if written else type(error).__name__}
        except MemoryError:
            answer = {"error": "cost", "message": "it fills the memory"}
        except Exception as error:  # whatever a template does is an answer here
            answer = {"error": "refused", "message": type(error).__name__}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers, flush=True)


def _checked(text: str, max_chars: int) -> dict[str, Any]:
    if len(text) > max_chars:
        return {"error": "cost", "message": f"it wrote {len(text):,} characters; {max_chars:,} are allowed"}
    return {"text": text}


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no /proc: then only time and the length of the output are limited
        with open("/proc/self/statm", encoding="ascii") as file:
            now_bytes = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + EXTRA_MEMORY_BYTES, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
