"""Asks a model the questions of a task in batches, and judges its answers.

items -> groups of like length -> image embeddings, once -> greedy answers
                                                         -> log-likelihoods of options
      -> lines of answers.jsonl, a list for every group
"""

import math
from collections.abc import Iterator, Sequence

from mllm_jax.common import interrupts
from mllm_jax.common.errors import quoted, require
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.evaluation.answers import Line, make_line
from mllm_jax.evaluation.items import Item
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.task import Answer
from mllm_jax.generation.batching import Group, batches, read_ahead
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.likelihood import LogLikelihood
from mllm_jax.generation.prompt_text import prompt_text


def group_items(items: Sequence[Item], rows: int) -> list[Group]:
    """Batches of items of like length and image count, in which `rows` texts are read at a time.

    They depend on items and rows alone, so an interrupted evaluation has the same ones again.
    """
    most = max((len(item.options) for item in items if item.prompt is None), default=1)
    each = max(1, rows // max(most, 1))
    return batches([item.size for item in items], [item.slots for item in items], each)


def ask(
    opened: Answerer, task: TableTask, items: Sequence[Item], groups: Sequence[Group]
) -> Iterator[list[Line]]:
    """The lines of every group, in the order of its items; a safe point before each.

    Args:
        opened: the model.
        task: of the items.
        items: all questions of a language.
        groups: some of those that `group_items` makes of the items.
    """
    read = lambda number: opened.pictures(items[number].question.images)  # noqa: E731
    for group, pictures in read_ahead(groups, read):
        interrupts.check()
        yield _lines(opened, task, [items[number] for number in group.items], group, pictures)


def _lines(
    opened: Answerer,
    task: TableTask,
    items: Sequence[Item],
    group: Group,
    pictures: Sequence[Sequence[Tiles]],
) -> list[Line]:
    images = opened.embed(pictures)
    output_ids: list[list[int]] = [[] for _ in items]
    prompts = [item.prompt for item in items if item.prompt is not None]
    if prompts:
        output_ids = opened.answer(
            prompts, images, task.max_new_tokens, rows=group.rows, slots=group.slots
        )
    pairs = [(n, option) for n, item in enumerate(items) for option in item.options]
    scored: list[list[LogLikelihood]] = [[] for _ in items]
    if pairs:
        of_pairs = images.of([n for n, _ in pairs])
        rows = group.rows * max(len(item.options) for item in items)
        options = [option for _, option in pairs]
        found = opened.losses(options, of_pairs, rows=rows, slots=group.slots)
        for (n, _), one in zip(pairs, found, strict=True):
            scored[n].append(one)
    columns = (items, pictures, output_ids, scored)
    return [_line(opened, task, *parts) for parts in zip(*columns, strict=True)]


def _line(
    opened: Answerer,
    task: TableTask,
    item: Item,
    pictures: Sequence[Tiles],
    output_ids: list[int],
    scored: Sequence[LogLikelihood],
) -> Line:
    for one in scored:
        require(
            math.isfinite(one.sum),
            f"task {task.name}, question {quoted(item.question.id, 60)}: the log-likelihood of an "
            f"option is {one.sum}; the model's numbers are not finite",
        )
    answer = Answer(
        text=opened.text(output_ids).strip(),
        log_likelihoods=tuple(one.sum for one in scored),
        tokens=tuple(one.tokens for one in scored),
        finished=item.prompt is None or output_ids[-1] in opened.ends,
    )
    judged = task.judge(item.question, answer)
    more = {} if item.prompt is None else {"answer_ids": output_ids}
    prompt = prompt_text(opened.tokenizer, item.read, pictures)
    return make_line(task.name, item.question, answer, judged, prompt, **more)
