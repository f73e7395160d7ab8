"""A stranger's template is rendered as transformers does, or stopped in one line."""

import multiprocessing
import os
import pickle
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat import rendering
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.rendering import TooMuchWork, render
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.records.parse import user_turn

TALK = [{"role": "user", "content": "Kaixo, ñ 🙂 \n!"}, {"role": "assistant", "content": "Bai."}]
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ day }}"


def rendered(tokenizer, template: str, **variables: str) -> str:
    return render(tokenizer, template, TALK, True, variables)


def test_as_transformers_renders(tokenizer):
    stock = tokenizer.apply_chat_template(
        TALK, chat_template=PLAIN, tokenize=False, add_generation_prompt=True, day="Astelehena"
    )
    assert rendered(tokenizer, PLAIN, day="Astelehena") == stock
    generation = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert rendered(tokenizer, generation) == TALK[0]["content"] + "Bai."
    assert rendered(tokenizer, "{{ messages | tojson }}").startswith('[{"role": "user"')


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
DOUBLED = (
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
)
BOMBS = [
    (LOOPS, "stopped after 2 seconds of work"),
    (CALLS, "stopped after 2 seconds of work"),
    ("{{ 9 ** (9 ** 9) }}", "stopped after 2 seconds of work"),
    # a slow machine is still copying when its two seconds are over
    (DOUBLED + "{{ n.s }}", "needs more than 1024 MiB of memory|stopped after 2 seconds of work"),
    ("{{ 'a' * 10 ** 11 }}", "needs more than 1024 MiB of memory"),
    ("{{ '%99999999999d' % 1 }}", "refuses the conversation"),
    ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "calls itself without end"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
    ("{{ 'a' * 20000000 }}", "writes 20000000 characters"),
    ("{% if %}", "Expected an expression"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ raise_exception('a\nb' * 4000) }}", "refuses the conversation: a b"),
    ("{{ messages[0].content + 1 }}", "can only concatenate str"),
]


@pytest.mark.parametrize(("template", "reason"), BOMBS, ids=[reason for _, reason in BOMBS])
def test_work_without_end_is_one_line(template, reason, tokenizer):
    with pytest.raises(ConfigError) as error:
        rendered(tokenizer, template)
    message = str(error.value)
    assert re.search(reason, message) and "\n" not in message and len(message) < 600
    assert rendered(tokenizer, PLAIN).startswith("<|begin_of_text|>user: Kaixo"), "begun again"


def test_a_chat_is_not_tried_twice_with_a_template_without_end(tokenizer, image_token):
    with pytest.raises(TooMuchWork):
        Chat(tokenizer, LOOPS, image_token, 1)


def test_from_many_threads(tokenizer):
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: rendered(tokenizer, PLAIN, day=str(n)), range(64)))
    assert [text.rpartition("\n")[2] for text in texts] == [str(n) for n in range(64)]


def _in_worker(chat: Chat) -> list[int]:
    return chat.prompt([user_turn("Zer?")]).tokens.tolist()


def test_in_worker_processes(tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES["llama3"] + "{# of another #}", image_token, 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_in_worker, (chat,)) == _in_worker(pickle.loads(pickle.dumps(chat)))


def test_it_ends_with_us_and_a_killed_one_is_begun_again(tokenizer):
    rendered(tokenizer, PLAIN)
    process = rendering._process(os.getpid())
    running = process._running
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(TooMuchWork, match=r"ended the process that renders it \(exit code -9\)"):
        rendered(tokenizer, PLAIN)
    rendered(tokenizer, PLAIN)
    last = process._running
    assert last is not None and last.pid != running.pid
    rendering._end(last, os.getpid())
    assert last.poll() == 0
    process._running = None


def test_ours_are_rendered_here(tokenizer, monkeypatch):
    monkeypatch.setattr(rendering, "_process", None)
    begin = time.perf_counter()
    for template in TEMPLATES.values():
        assert "Bai." in rendered(tokenizer, template)
    assert time.perf_counter() - begin < 5
