"""Holds the rendering that all conversations of one shape share, with placeholders for their texts.

    rendered   <|bos|> <|user|> \\n\\n <image> ① <|eot|>  <|assistant|> \\n\\n ② <|eot|>
    template   7 9 ("\\n\\n",) 5 (0,) 8               9 ("\\n\\n", 1) 8             answers {1}
    filled     7 9 "\\n\\n" 5 "\\nZer da?" 8           9 "\\n\\nKatu bat." 8         trained [2, 11)

So a chat template is rendered once for each shape of conversation; afterwards texts are filled in.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mllm_jax.common.errors import require


class Run(NamedTuple):
    """Text between two special tokens, encoded whole; `spans` are its trained characters."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def has_borders(self) -> bool:
        """Whether a part of it is trained and a part is not: the only use of offsets."""
        return bool(self.spans) and self.spans != ((0, len(self.text)),)


Items = list[int | Run]  # ids of special tokens, and the text between them


class PromptTemplate(NamedTuple):
    """A rendering with placeholders for texts."""

    items: tuple[int | tuple[str | int, ...], ...]  # an id, or a run: template texts, text numbers
    answers: frozenset[int]  # numbers of the texts that are trained
    images: int  # of every conversation
    rendered: str = ""  # by the chat template, with sentinels (`messages`) as placeholders
    space: tuple[tuple[str, str], ...] = ()  # around each text, where the template leaves it there

    def with_space(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts as they are rendered, with the white space that the template does not trim."""
        if not self.space:
            return texts
        return [f"{a}{text}{b}" for (a, b), text in zip(self.space, texts, strict=True)]

    def fill(self, texts: Sequence[str]) -> Items:
        """The template with these texts, see `with_space`, in its placeholders."""
        items: Items = []
        for item in self.items:
            if not isinstance(item, tuple):
                items.append(item)
                continue
            text, spans = "", ()
            for part in item:
                if isinstance(part, str):
                    text += part
                    continue
                start, text = len(text), text + texts[part]
                if part in self.answers:
                    spans += ((start, len(text)),)
            items.append(Run(text, spans))
        return items

    def check_ends(self, image_token: int) -> None:
        """After every answer comes a special token, at once. Raises ConfigError."""
        for item, after in zip(self.items, (*self.items[1:], None), strict=True):
            inside = self.answers.intersection(item) if isinstance(item, tuple) else ()
            ended = len(inside) == 1 and item[-1] in inside  # type: ignore[index]
            require(
                not inside or (ended and isinstance(after, int) and after != image_token),
                "the chat template does not put a special token directly after every answer",
            )
