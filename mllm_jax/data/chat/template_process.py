"""Renders chat templates of model folders in a process of its own, within limits of work.

Run as a file by `rendering`, with lines of JSON in and out. A template is an untrusted program:
nested loops, 9**9**9 or a text that doubles fifty times end this process, not the run.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

CPU_SECONDS = 2.0  # of one rendering; Llama 3.1's own template takes a thousandth of that
MEMORY = 2**30  # bytes beside what the process has when it begins
LONGEST = 2**24  # characters of a rendering


def main() -> None:
    """Answers requests until the input ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # of the processor's time, also of operations that Python cannot interrupt; ends the process
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = _render(render_jinja_template, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _render(render: Any, request: dict[str, Any]) -> dict[str, str]:
    try:
        (text,), _ = render([request.pop("messages")], **request)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply, or calls itself without end"}
    # jinja2's errors are RuntimeErrors and their kin; the others are what operators of Python raise
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
        *(SyntaxError, TypeError, ValueError, _template_error()),
    ) as error:
        return {"error": str(error)[:1000] or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text)} characters"}
    return {"text": text}


def _template_error() -> type[BaseException]:
    import jinja2

    return jinja2.TemplateError


def _limit_memory() -> None:
    """Holds the process to MEMORY more than it has, where the system tells that (Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except OSError:
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
