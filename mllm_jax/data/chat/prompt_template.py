"""Holds the rendering that all conversations of one shape share, with placeholders for their texts.

    rendered   <|bos|> <|user|> \\n\\n <image> ① <|eot|>  <|assistant|> \\n\\n ② <|eot|>
    template   7 9 ("\\n\\n",) 5 (0,) 8               9 ("\\n\\n", 1) 8             answers {1}
    filled     7 9 "\\n\\n" 5 "\\nZer da?" 8           9 "\\n\\nKatu bat." 8         trained [2, 11)

So a chat template is rendered once for each shape of conversation; afterwards texts are filled in.
`Rules` say what of the template's own text is trained with an answer, as `Trained` literals:

    Vicuna     (" ASSISTANT:", Trained(" "), 1)      a prompt ends before the space
    newline    (1, Trained("\\n"))                   the line break is what ends a caption
    control    (Trained("assistant"),) 8 (Trained("\\n\\n"), 1)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mllm_jax.common.errors import require
from mllm_jax.data.chat import messages as msg

_SENTINEL = re.compile(f"({msg.SENTINELS})")

Part = str | int  # of a run: the template's text, or the number of a text
Item = int | tuple[Part, ...]  # the id of a special token, or a run


class Trained(str):
    """Text of the template that is trained with the answer beside it."""

    __slots__ = ()


class Run(NamedTuple):
    """Text between two special tokens, encoded whole; `spans` are its trained characters."""

    text: str
    spans: tuple[tuple[int, int], ...]
    first: bool = False  # at the beginning of what the tokenizer reads

    @property
    def has_borders(self) -> bool:
        """Whether a part of it is trained and a part is not: the only use of offsets."""
        return bool(self.spans) and self.spans != ((0, len(self.text)),)

    @property
    def key(self) -> tuple[str, bool]:
        """What decides its tokens."""
        return self.text, self.first


Items = list[int | Run]  # ids of special tokens, and the text between them


class Rules(NamedTuple):
    """What of the template's text is trained with an answer."""

    lead: str = ""  # white space before it that is not part of a prompt
    newline: bool = False  # the line break after it: nothing else ends it
    headers: bool = False  # everything since the turn before


class PromptTemplate(NamedTuple):
    """A rendering with placeholders for texts."""

    items: tuple[Item, ...]
    answers: frozenset[int]  # numbers of the texts that are trained
    images: int  # of every conversation
    rendered: str = ""  # by the chat template, with sentinels (`messages`) as placeholders
    space: tuple[tuple[str, str], ...] = ()  # around each text, where the template leaves it there
    first: bool = False  # the item after the beginning token is where the tokenizer's input begins

    def with_space(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts as they are rendered, with the white space that the template does not trim."""
        if not self.space:
            return texts
        return [f"{a}{text}{b}" for (a, b), text in zip(self.space, texts, strict=True)]

    def fill(self, texts: Sequence[str]) -> Items:
        """The template with these texts, see `with_space`, in its placeholders."""
        items: Items = []
        for number, item in enumerate(self.items):
            if not isinstance(item, tuple):
                items.append(item)
                continue
            text, spans = "", ()
            for part in item:
                start = len(text)
                text += part if isinstance(part, str) else texts[part]
                if part in self.answers or isinstance(part, Trained):
                    if spans and spans[-1][1] == start:  # with what is before
                        start, spans = spans[-1][0], spans[:-1]
                    spans += ((start, len(text)),)
            items.append(Run(text, spans, self.first and number == 1))
        return items

    def check_ends(self, image_token: int) -> None:
        """After every answer comes what ends it, at once. Raises ConfigError."""
        for item, after in zip(self.items, (*self.items[1:], None), strict=True):
            if not isinstance(item, tuple):
                continue
            token = isinstance(after, int) and after != image_token
            for part, behind in zip(item, (*item[1:], None), strict=True):
                ended = isinstance(behind, Trained) or (behind is None and token)
                require(
                    part not in self.answers or ended,
                    "the chat template does not put a special token directly after every answer",
                )


def appended(items: Items, text: str) -> Items:
    """Items with text behind them, the only trained part of its run."""
    if not text:
        return items
    last = items[-1]
    if not isinstance(last, Run):
        return [*items, Run(text, ((0, len(text)),))]
    whole = last.text + text
    return [*items[:-1], Run(whole, ((len(last.text), len(whole)),), last.first)]


def cut(rendered: str, control: Mapping[str, int], split: re.Pattern[str]) -> list[Item]:
    """Cuts a rendering at special tokens and sentinels (`messages`).

    Args:
        rendered: by a chat template.
        control: special tokens and their ids.
        split: any of them, in parentheses.
    """
    items: list[Item] = []
    for piece in _SENTINEL.split(rendered):
        if _SENTINEL.fullmatch(piece):
            parts: list[Item] = [(ord(piece) - msg.FIRST,)]
        else:
            parts = [control.get(p, (p,)) for p in split.split(piece) if p]
        for part in parts:
            before = items[-1] if items else None
            if isinstance(part, tuple) and isinstance(before, tuple):
                items[-1] = before + part
            else:
                items.append(part)
    return items


def mark(
    items: Sequence[Item], answers: frozenset[int], rules: Rules, image_token: int
) -> tuple[Item, ...]:
    """The items with what of their text is trained as `Trained`."""
    marked: list[Item] = []
    for item in items:
        if isinstance(item, tuple) and not answers.isdisjoint(item):
            if rules.headers:
                _mark_header(marked, image_token)
            item = tuple(_mark_run(item, answers, rules))
        marked.append(item)
    return tuple(marked)


def _mark_run(run: Sequence[Part], answers: frozenset[int], rules: Rules) -> Iterator[Part]:
    befores, afters = (None, *run[:-1]), (*run[1:], None)
    for before, part, after in zip(befores, run, afters, strict=True):
        if isinstance(part, int):
            yield part
            continue
        end = "\n" if rules.newline and before in answers and part.startswith("\n") else ""
        text, lead = part[len(end) :], ""
        if after in answers:
            lead = text if rules.headers else rules.lead if text.endswith(rules.lead) else ""
        pieces = Trained(end), text[: len(text) - len(lead)], Trained(lead)
        yield from (piece for piece in pieces if piece)


def _mark_header(items: list[Item], image_token: int) -> None:
    """Marks the text between the turn before and what follows `items`."""
    for n in reversed(range(len(items))):
        item = items[n]
        if item == image_token:
            return
        if isinstance(item, tuple):
            if any(isinstance(part, int) for part in item):
                return
            items[n] = tuple(Trained(part) for part in item)
