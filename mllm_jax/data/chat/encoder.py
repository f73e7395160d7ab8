"""Encodes conversations: token ids, loss weights and image placeholders, for every chat template.

A conversation is rendered once and tokenised once, for training and generation alike. The template
sees each text as one private-use character (`messages`), so template and content can be told apart
afterwards, and nothing in a content can become a control token:

    turns      user (IMAGE, "\\nZer da?")              assistant ("Katu bat.",)
    rendered   <|bos|> <|user|> \\n\\n <image> ① <|eot|>  <|assistant|> \\n\\n ② <|eot|>
    items      <|bos|> <|user|> "\\n\\n" <image> "\\nZer da?" <|eot|>  <|assistant|>
    weights       0       0       0      0         0        0             0
               "\\n\\nKatu bat." <|eot|>
                 0    1  1 1      1

Other templates than ours may treat some texts specially: they are rendered again with the texts
themselves, and a difference is refused.

Special tokens of the template become ids directly. Runs of text between them are encoded whole, so
"\\n\\n" and the content merge as in the stock tokenizer, and character offsets say which tokens are
trained: those of an answer, and the token that ends its turn. `<image>` becomes P placeholders of
weight 0.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.data.chat import literal_tokenizer as private
from mllm_jax.data.chat import messages as msg
from mllm_jax.data.chat import rendering
from mllm_jax.data.chat.messages import Messages
from mllm_jax.data.chat.prompt_template import Items, PromptTemplate, Run
from mllm_jax.data.chat.templates import END_OF_TEXT, LEAVES_OUT_USER_TEXT, SPECIAL, TEMPLATES
from mllm_jax.data.chat.tokens import (
    NO_TOKEN,
    Encoded,
    Encodings,
    Flat,
    counts,
    expand_all,
    flatten,
    named,
    starts,
)
from mllm_jax.data.records.parse import IMAGE, Turn

_REMEMBERED = 4096  # prompt templates that are cached
_LONG = 1000  # items of one that is not cached: it hardly occurs twice
_SENTINEL = re.compile(f"({msg.SENTINELS})")
_PROBE = (Turn("user", ("Kaixo, zer moduz?",)), Turn("assistant", ("Ondo, 12 x 3 = 36.",)))


class Chat:
    """A tokenizer and a template as one function from turns to tokens."""

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        image_token: int | None,
        patches: int,
        variables: dict[str, str] | None = None,
    ):
        """Checks that tokenizer and template fit each other.

        Args:
            tokenizer: as `load_tokenizer` gives it; not changed.
            template: Jinja source, a value of TEMPLATES or a folder's own.
            image_token: id of the image token; None for a model that reads text only.
            patches: placeholders of one image.
            variables: further names for the template, e.g. {"date_string": "1 Jan 2026"}.

        Raises:
            ConfigError: the tokenizer has no beginning token, or a conversation does not come out
                as the tokenizer itself would encode the rendered text.
        """
        require(
            tokenizer.bos_token_id is not None,
            "the tokenizer names no bos_token, with which a conversation begins",
        )
        self._tokenizer, self._template = tokenizer, template
        self._is_ours = rendering.is_ours(template)
        self.image_token = NO_TOKEN if image_token is None else image_token
        self._patches = patches
        self._variables = dict(variables or {})
        self._bos: int = tokenizer.bos_token_id
        # a template may leave the beginning token to tokenizer(text), as processors do
        self._adds_bos = tokenizer("a")["input_ids"][:1] == [self._bos]
        self._mark = "" if image_token is None else private.token_text(tokenizer, image_token)
        self._control = private.control_tokens(tokenizer, self._mark)
        self._check_tokens()
        longest_first = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._literal = private.LiteralTokenizer(
            tokenizer.backend_tokenizer, frozenset(self._control)
        )
        self._prompts: dict[tuple[Any, ...], PromptTemplate] = {}
        self._no_strings = self._refusal(typed=False)
        self._no_parts = self._refusal(typed=True)
        self._check_probe()

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """A whole conversation for training. Raises ConfigError, see `encode_flat`."""
        return self.encode_batch([turns])[0]

    def encode_batch(
        self, conversations: Sequence[Sequence[Turn]], names: Sequence[str] = ()
    ) -> list[Encoded]:
        """Many conversations for training, one by one. Raises ConfigError, see `encode_flat`."""
        flat = self.encode_flat(conversations, names)
        return expand_all(flat, self.image_token, self._patches)

    def encode_flat(
        self, conversations: Sequence[Sequence[Turn]], names: Sequence[str] = ()
    ) -> Flat:
        """Many conversations for training, tokenised together, an image being one token.

        Args:
            conversations: each ends with an assistant turn.
            names: what messages call them.

        Raises:
            ConfigError: the template loses a text, changes one, does not end an answer by a special
                token, a token crosses the border of an answer, or there is not exactly one
                beginning token.
        """
        require(
            self._no_strings is None or not conversations,
            "the chat template takes typed parts only and cannot be trained with: with strings, "
            f"{self._no_strings}",
        )
        plans, images = [], []
        for n, turns in enumerate(conversations):
            try:
                prompt, texts = self._as_strings(turns, generate=False)
            except ConfigError as error:
                raise named(names, n, error) from error
            plans.append(prompt.fill(texts))
            images.append(prompt.images)
        return self._encode(plans, images, names)

    def completions(self, texts: Sequence[str]) -> Flat:
        """Documents for training on text alone: beginning token, text, end of text.

        Everything but the beginning token is trained.

        Raises:
            ConfigError: the tokenizer has no token that ends a text.
        """
        end = self._control.get(END_OF_TEXT, self._tokenizer.eos_token_id)
        require(end is not None, f"the tokenizer has neither {END_OF_TEXT} nor an eos_token")
        ids = [[self._bos, *text_ids, end] for text_ids in self._literal.ids(list(texts))]
        tokens = np.fromiter(chain.from_iterable(ids), np.int32)
        ends = np.cumsum([len(text_ids) for text_ids in ids], dtype=np.int64)
        trained = np.ones(len(tokens), np.bool_)
        trained[starts(ends)] = False
        return Flat(tokens, trained, ends)

    def prompt(self, turns: Sequence[Turn]) -> Encoded:
        """A conversation that ends with a user turn, and the header that asks for an answer.

        Images go to the template as typed parts where it takes them (so do transformers'
        processors) and a line break follows each (`records.user_turn`); otherwise the string has
        `<image>` in place of the image. All weights are 0.
        """
        require(len(turns) > 0 and turns[-1].role == "user", "a prompt ends with a user turn")
        images = msg.count_images(turns)
        typed = self._no_parts is None and all(map(msg.says_the_same_typed, turns))
        if typed and (images or self._no_strings is not None):
            prompt, texts = self._as_parts(turns)
        else:
            require(
                self._no_strings is None,
                "the chat template takes typed parts only: put a line break after every image",
            )
            prompt, texts = self._as_strings(turns, generate=True)
        flat = self._encode([prompt.fill(texts)], [images], ())
        return expand_all(flat, self.image_token, self._patches)[0]

    def check_answers(self) -> None:
        """Refuses a template that does not mark the end of an answer: it cannot be trained with.

        LLaVA-1.5's of the Hugging Face Hub takes typed parts alone and ends answers by a space.
        """
        self.encode(_PROBE)

    def check_prompts(self) -> None:
        """Refuses a tokenizer for which a prompt is not a prefix of the trained tokens.

        GPT-2's pre-tokenization makes two tokens of two line breaks before an answer, and one at
        the end of a prompt: training and generation would disagree.
        """
        prompt = self.prompt(_PROBE[:1]).tokens.tolist()
        whole = self.encode(_PROBE).tokens.tolist()
        require(
            whole[: len(prompt)] == prompt,
            f"the prompt's tokens change when an answer is appended ({prompt} is not a prefix of "
            f"{whole}), so training and generation would disagree; use a tokenizer with Llama-3 "
            "pre-tokenization",
        )

    # ------------------------------------------------------------------------------ rendering

    def _render(self, messages: Messages, generate: bool) -> str:
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
            prompt, texts = (
                self._as_parts(turns) if typed else self._as_strings(turns, generate=True)
            )
        except rendering.TooMuchWork:
            raise
        except ConfigError as error:
            return str(error)
        items = prompt.fill(texts)
        if any(isinstance(item, Run) and "'type'" in item.text for item in items):
            return "the chat template prints the list of parts itself"
        if items.count(self.image_token) != msg.count_images(turns):
            return f"the chat template does not write {self._mark!r} for an image"
        return None

    def _as_strings(
        self, turns: Sequence[Turn], generate: bool
    ) -> tuple[PromptTemplate, Sequence[str]]:
        """The prompt template of a conversation whose contents are strings, and its texts."""
        shape, texts = msg.take_texts(turns)
        prompt = self._prompts.get((shape, generate))
        if prompt is None:
            prompt = self._prompt_of_strings(shape, generate)
            prompt.check_ends(self.image_token)
            self._remember((shape, generate), prompt)
        if not self._is_ours:
            self._check_texts(prompt, msg.as_strings(shape, self._mark), texts, generate)
        return prompt, prompt.with_space(texts)

    def _prompt_of_strings(self, shape: msg.Shape, generate: bool) -> PromptTemplate:
        images = sum(piece is IMAGE for _, *pieces in shape for piece in pieces)
        roles, space = msg.roles_of_texts(shape), msg.outer_space(shape)
        bare = msg.as_strings(msg.without_space(shape), self._mark)
        prompt = self._prompt_template(bare, roles, generate, images)
        if any(a or b for a, b in space):
            spaced = self._render(msg.as_strings(shape, self._mark), generate)
            left = msg.kept_space(prompt.rendered, spaced, space)
            if left is None:
                raise ConfigError(
                    "the chat template changes more than white space if a text begins or ends with "
                    "it"
                )
            if any(a or b for a, b in left):
                return prompt._replace(space=left)
        return prompt

    def _as_parts(self, turns: Sequence[Turn]) -> tuple[PromptTemplate, list[str]]:
        """The prompt template of a prompt whose contents are typed parts, and its texts."""
        messages, texts, roles = msg.as_parts(turns)
        prompt = self._prompts.get((repr(messages),))
        if prompt is None:
            prompt = self._prompt_template(messages, roles, True, msg.count_images(turns))
            self._remember((repr(messages),), prompt)
        if not self._is_ours:
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
        rendered = self._render(msg.with_texts(messages, texts), generate)
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
        if len(self._prompts) < _REMEMBERED and len(prompt.items) < _LONG:
            self._prompts[key] = prompt

    def _prompt_template(
        self, messages: Messages, roles: list[str], generate: bool, images: int
    ) -> PromptTemplate:
        """Renders, and cuts the rendering at special tokens and sentinels."""
        items: list[Any] = []
        seen: list[int] = []
        rendered = self._render(messages, generate)
        for piece in _SENTINEL.split(rendered):
            if _SENTINEL.fullmatch(piece):
                seen.append(ord(piece) - msg.FIRST)
                parts: list[Any] = [(seen[-1],)]
            else:
                parts = [self._control.get(p, (p,)) for p in self._split.split(piece) if p]
            for part in parts:
                if isinstance(part, tuple) and items and isinstance(items[-1], tuple):
                    items[-1] += part
                else:
                    items.append(part)
        if self._adds_bos and self._bos not in items:
            items.insert(0, self._bos)
        may_lose = LEAVES_OUT_USER_TEXT in self._template
        for n, role in enumerate(roles):
            lost = n not in seen and not (may_lose and (generate or role == "user"))
            require(
                not lost and seen.count(n) < 2,
                "the chat template does not render every text exactly once",
            )
        answers = () if generate else (n for n, role in enumerate(roles) if role == "assistant")
        return PromptTemplate(tuple(items), frozenset(answers), images, rendered)

    def _check_tokens(self) -> None:
        """Our formats write special tokens by name."""
        missing = [t for t in SPECIAL.findall(self._template) if t not in self._control]
        if self._is_ours and missing:
            name = next(name for name, source in TEMPLATES.items() if source == self._template)
            raise ConfigError(
                f"format {name} writes {missing[0]}, which is not a special token of this "
                "tokenizer; choose a format of its own tokens, or another tokenizer"
            )

    def _check_probe(self) -> None:
        """The tokenizer itself must encode a rendered conversation to the same ids."""
        require(
            self._no_strings is None or self._no_parts is None,
            f"the chat template renders neither strings nor typed parts; with strings, "
            f"{self._no_strings}",
        )
        if self._no_strings is None:
            shape, texts = msg.take_texts(_PROBE)
            messages, roles = msg.as_strings(shape, ""), msg.roles_of_texts(shape)
        else:
            messages, texts, roles = msg.as_parts(_PROBE)
        rendered = self._render(messages, generate=False)
        for n, text in enumerate(texts):
            rendered = rendered.replace(chr(msg.FIRST + n), text)
        bos_is_ours = self._adds_bos and self._tokenizer.bos_token not in rendered
        stock = list(self._tokenizer(rendered, add_special_tokens=bos_is_ours)["input_ids"])
        prompt = self._prompt_template(messages, roles, False, 0)
        encoded = self._encode([prompt.fill(texts)], [0], ()).tokens.tolist()
        require(
            encoded == stock,
            "this tokenizer joins text and special tokens in a way that is not supported: it "
            f"encodes {quoted(rendered, 80)} as {quoted(stock, 80)}, piece by piece it is "
            f"{quoted(encoded, 80)}",
        )

    # ------------------------------------------------------------------------------- encoding

    def _encode(self, plans: list[Items], images: list[int], names: Sequence[str]) -> Flat:
        """Filled prompt templates -> tokens; `images` is how many each must have."""
        cut: dict[str, None] = {}  # texts, in order and once
        whole: dict[str, None] = {}
        for run in chain.from_iterable(plans):
            if isinstance(run, Run):
                (cut if run.has_borders else whole)[run.text] = None
        texts = [text for text in whole if text not in cut]
        encodings: Encodings = {
            text: (ids, ()) for text, ids in zip(texts, self._literal.ids(texts), strict=True)
        }
        encodings |= zip(cut, self._literal.ids_and_offsets(list(cut)), strict=True)
        flat = flatten(plans, encodings, names)
        begins, first = counts(flat, self._bos), flat.tokens[starts(flat.ends)]
        places = counts(flat, self.image_token)
        wrong = np.flatnonzero((begins != 1) | (first != self._bos) | (places != images))
        if not len(wrong):
            return flat
        n = int(wrong[0])
        if places[n] == images[n]:
            times = f"{begins[n]} times, not once at the start"
            reason = f"the chat template writes the beginning token {times}"
        else:
            rendered = f"{places[n]} places for them when rendered"
            reason = f"the conversation has {images[n]} images, but {rendered}"
        raise named(names, n, ConfigError(reason))
