"""Renders messages by a chat template: ours in this process, any other in a process of its own.

One process of `template_process` serves all templates of this process; it starts when it is first
needed, and ends with this process.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jinja2

from mllm_jax.common.errors import ConfigError, one_line
from mllm_jax.data.chat import template_process
from mllm_jax.data.chat.messages import Messages
from mllm_jax.data.chat.templates import name_of

_SCRIPT = Path(__file__).with_name("template_process.py")
_REFUSES = "the chat template refuses the conversation: "


class TooMuchWork(ConfigError):
    """A template that exceeds the limits of time or memory."""


def is_ours(template: str) -> bool:
    """Whether it is one of our formats', which look at no text (tests/data/chat/test_encoder)."""
    return name_of(template) is not None


def render(
    tokenizer: Any, template: str, messages: Messages, generate: bool, variables: dict[str, str]
) -> str:
    """Messages as text.

    Args:
        tokenizer: its special tokens are names for the template.
        template: Jinja source.
        messages: with strings or typed parts as content.
        generate: with the header that asks for an answer.
        variables: further names for the template.

    Raises:
        ConfigError: the template refuses, with its reason.
        TooMuchWork: it needs more time or memory than any template of its kind.
    """
    if not is_ours(template):
        return _elsewhere(tokenizer, template, messages, generate, variables)
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generate,
            **variables,
        )
    except jinja2.TemplateError as error:
        raise ConfigError(_REFUSES + one_line(str(error))) from error


def _elsewhere(
    tokenizer: Any, template: str, messages: Messages, generate: bool, variables: dict[str, str]
) -> str:
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    request = {"chat_template": template, "messages": messages, "add_generation_prompt": generate}
    answer = _process(os.getpid()).ask(tokens | variables | request)
    if "text" not in answer:
        raise ConfigError(_REFUSES + one_line(answer["error"]))
    return answer["text"]


@functools.cache
def _process(_: int) -> "_Process":
    """The one of this process; a forked one begins its own."""
    return _Process()


class _Process:
    """A running `template_process`, restarted after a template has ended it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Its answer: `text` or `error`. Raises TooMuchWork."""
        with self._lock:
            if self._running is None:
                self._running = _begin()
            answer = _exchange(self._running, json.dumps(request) + "\n")
            if answer is not None:
                return answer
            code, self._running = self._running.wait(), None
        if code == -signal.SIGPROF:
            seconds = f"{template_process.CPU_SECONDS:.0f} seconds"
            reason = f"it was stopped after {seconds} of work; no chat template needs that"
        else:
            reason = f"it ended the process that renders it (exit code {code})"
        raise TooMuchWork(f"the chat template cannot be rendered: {reason}")


def _begin() -> "subprocess.Popen[str]":
    # -P: files beside the script are no modules for it. Its own session: Ctrl-C is for us to judge
    running = subprocess.Popen(
        [sys.executable, "-P", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    atexit.register(_end, running, os.getpid())
    assert running.stdout is not None
    if running.stdout.readline() != '"ready"\n':
        raise ConfigError(
            "the process that renders chat templates did not start (exit code "
            f"{running.wait()}); its message is printed above"
        )
    return running


def _end(running: "subprocess.Popen[str]", owner: int) -> None:
    if os.getpid() == owner:  # a forked process has this duty in its list too
        running.communicate()


def _exchange(running: "subprocess.Popen[str]", line: str) -> dict[str, str] | None:
    """A request and its answer; None if it ended."""
    assert running.stdin is not None and running.stdout is not None
    try:
        running.stdin.write(line)
        running.stdin.flush()
    except BrokenPipeError:
        return None
    answer = running.stdout.readline()
    return json.loads(answer) if answer.endswith("\n") else None
