"""Makes the prompt template of a conversation's shape with a chat template, once for each shape.

Other templates than ours may treat some texts specially: they are rendered again with the texts
themselves, and a difference is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.data.chat import messages as msg
from mllm_jax.data.chat import rendering
from mllm_jax.data.chat.messages import Messages
from mllm_jax.data.chat.prompt_template import PromptTemplate, Rules, Run, cut, mark
from mllm_jax.data.chat.templates import ENDS_BY_NEWLINE, LEAVES_OUT_USER_TEXT
from mllm_jax.data.records.parse import IMAGE, Turn

_REMEMBERED = 4096  # prompt templates that are cached
_LONG = 1000  # items of one that is not cached: it hardly occurs twice
PROBE = (Turn("user", ("Kaixo, zer moduz?",)), Turn("assistant", ("Ondo, 12 x 3 = 36.",)))


class Prompts:
    """Turns -> the prompt template of their shape, and their texts.

    Attributes:
        no_strings, no_parts: why the chat template does not take contents of this kind; None if it
            does.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        control: Mapping[str, int],
        image_token: tuple[str, int],
        variables: Mapping[str, str],
        headers: bool,
    ):
        """Tries the chat template.

        Args:
            tokenizer: as `load_tokenizer` gives it.
            template: Jinja source.
            control: special tokens and their ids.
            image_token: its text and id; the text is empty for a model that reads text only.
            variables: further names for the template.
            headers: see `Rules`.

        Raises:
            ConfigError: the template renders neither strings nor typed parts.
        """
        self._tokenizer, self._template = tokenizer, template
        self._variables = dict(variables)
        self._mark, self._image_token = image_token
        self._control = control
        longest_first = sorted(control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._bos: int = tokenizer.bos_token_id
        # a template may leave the beginning token to tokenizer(text), as processors do
        self.adds_bos = tokenizer("a")["input_ids"][:1] == [self._bos]
        self._cached: dict[tuple[Any, ...], PromptTemplate] = {}
        self.rules = Rules()
        self.no_strings = self._refusal(typed=False)
        self.no_parts = self._refusal(typed=True)
        require(
            self.no_strings is None or self.no_parts is None,
            f"the chat template renders neither strings nor typed parts; with strings, "
            f"{self.no_strings}",
        )
        self.rules = Rules(self._lead(), ENDS_BY_NEWLINE in template, headers)
        self._cached.clear()

    def probe(self) -> tuple[str, PromptTemplate, list[str]]:
        """A small conversation: rendered, its prompt template, without answers, and its texts."""
        if self.no_strings is None:
            shape, texts = msg.take_texts(PROBE)
            messages, roles = msg.as_strings(shape, ""), msg.roles_of_texts(shape)
        else:
            messages, texts, roles = msg.as_parts(PROBE)
        prompt = self._prompt_template(messages, roles, False, 0, trained=False)
        table = {msg.FIRST + n: text for n, text in enumerate(texts)}
        return prompt.rendered.translate(table), prompt, texts

    def render(self, messages: Messages, generate: bool) -> str:
        """Messages as text; see `rendering.render`."""
        return rendering.render(
            self._tokenizer, self._template, messages, generate, self._variables
        )

    def _refusal(self, typed: bool) -> str | None:
        """Why the template does not take this kind of content, tried on a small conversation."""
        image = (IMAGE, "\n") if self._mark else ()
        turns = (
            Turn("user", (*image, "a")),
            Turn("assistant", ("b",)),
            Turn("user", ("c",)),
        )
        try:
            prompt, texts = self.as_parts(turns) if typed else self.as_strings(turns, generate=True)
        except rendering.TooMuchWork:
            raise
        except ConfigError as error:
            return str(error)
        items = prompt.fill(texts)
        if any(isinstance(item, Run) and "'type'" in item.text for item in items):
            return "the chat template prints the list of parts itself"
        if items.count(self._image_token) != msg.count_images(turns):
            return f"the chat template does not write {self._mark!r} for an image"
        return None

    def as_strings(
        self, turns: Sequence[Turn], generate: bool
    ) -> tuple[PromptTemplate, Sequence[str]]:
        """The prompt template of a conversation whose contents are strings, and its texts."""
        shape, texts = msg.take_texts(turns)
        prompt = self._cached.get((shape, generate))
        if prompt is None:
            prompt = self._prompt_of_strings(shape, generate)
            prompt.check_ends(self._image_token)
            self._remember((shape, generate), prompt)
        if not rendering.is_ours(self._template):
            self._check_texts(prompt, msg.as_strings(shape, self._mark), texts, generate)
        return prompt, prompt.with_space(texts)

    def _prompt_of_strings(self, shape: msg.Shape, generate: bool) -> PromptTemplate:
        images = sum(piece is IMAGE for _, *pieces in shape for piece in pieces)
        roles, space = msg.roles_of_texts(shape), msg.outer_space(shape)
        bare = msg.as_strings(msg.without_space(shape), self._mark)
        prompt = self._prompt_template(bare, roles, generate, images)
        if any(a or b for a, b in space):
            spaced = self.render(msg.as_strings(shape, self._mark), generate)
            left = msg.kept_space(prompt.rendered, spaced, space)
            if left is None:
                raise ConfigError(
                    "the chat template changes more than white space if a text begins or ends with "
                    "it"
                )
            if any(a or b for a, b in left):
                return prompt._replace(space=left)
        return prompt

    def as_parts(self, turns: Sequence[Turn]) -> tuple[PromptTemplate, list[str]]:
        """The prompt template of a prompt whose contents are typed parts, and its texts."""
        messages, texts, roles = msg.as_parts(turns)
        prompt = self._cached.get((repr(messages),))
        if prompt is None:
            prompt = self._prompt_template(messages, roles, True, msg.count_images(turns))
            self._remember((repr(messages),), prompt)
        if not rendering.is_ours(self._template):
            self._check_texts(prompt, messages, texts, True)
        return prompt, texts

    def _check_texts(
        self, prompt: PromptTemplate, messages: Messages, texts: Sequence[str], generate: bool
    ) -> None:
        """Refuses a chat template that renders these texts otherwise than the prompt template.

        Some depend on the texts: they cut an answer at `</think>`, or omit an empty one.
        """
        table = {msg.FIRST + n: text for n, text in enumerate(prompt.with_space(texts))}
        expected = prompt.rendered.translate(table)
        rendered = self.render(msg.with_texts(messages, texts), generate)
        if rendered == expected:
            return
        pairs = zip(rendered, expected, strict=False)
        end = min(len(rendered), len(expected))
        n = next((n for n, (a, b) in enumerate(pairs) if a != b), end)
        begin = max(0, n - 10)
        written, place = (quoted(text[begin : n + 30], 60) for text in (rendered, expected))
        raise ConfigError(
            f"the chat template depends on the texts: it writes {written} where other texts would "
            f"be written as {place}; leave out what it treats specially, or use another template"
        )

    def _remember(self, key: tuple[Any, ...], prompt: PromptTemplate) -> None:
        if len(self._cached) < _REMEMBERED and len(prompt.items) < _LONG:
            self._cached[key] = prompt

    def _prompt_template(
        self,
        messages: Messages,
        roles: list[str],
        generate: bool,
        images: int,
        trained: bool = True,
    ) -> PromptTemplate:
        """Renders, and cuts the rendering at special tokens and sentinels."""
        rendered = self.render(messages, generate)
        items = cut(rendered, self._control, self._split)
        seen = [part for item in items if isinstance(item, tuple) for part in item]
        first = self.adds_bos and self._bos not in items
        if first:
            items.insert(0, self._bos)
        may_lose = LEAVES_OUT_USER_TEXT in self._template
        for n, role in enumerate(roles):
            lost = n not in seen and not (may_lose and (generate or role == "user"))
            require(
                not lost and seen.count(n) < 2,
                "the chat template does not render every text exactly once",
            )
        said = (n for n, role in enumerate(roles) if role == "assistant")
        answers = frozenset(said if trained and not generate else ())
        marked = mark(items, answers, self.rules, self._image_token)
        return PromptTemplate(marked, answers, images, rendered, first=first)

    def _lead(self) -> str:
        """White space between a prompt and its answer: Vicuna's prompts end by "ASSISTANT:"."""
        if self.no_strings is not None:
            return ""
        shape, _ = msg.take_texts(PROBE)
        asked, told = msg.as_strings(shape[:1], ""), msg.as_strings(shape, "")
        prompt = self.render(asked, generate=True)
        before, *_ = self.render(told, generate=False).partition(told[1]["content"])
        lead = before.removeprefix(prompt)
        return lead if lead != before and lead.isspace() else ""
