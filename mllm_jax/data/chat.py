"""Conversation -> token ids, loss weights, image seats: ONE renderer for every template.

A conversation is rendered once and tokenised once, for training and generation alike. The template
sees each text as one private-use character (`messages`), so afterwards it is known what is template
and what is content, and nothing in a content can turn into a control token:

    turns      user (IMAGE, "\\nZer da?")              assistant ("Katu bat.",)
    rendered   <|bos|> <|user|> \\n\\n <image> ① <|eot|>  <|assistant|> \\n\\n ② <|eot|>
    items      <|bos|> <|user|> "\\n\\n" <image> "\\nZer da?" <|eot|>  <|assistant|>
    weights       0       0       0      0         0        0             0
               "\\n\\nKatu bat." <|eot|>
                 0    1  1 1      1

Special tokens of the template become ids directly. Runs of text between them are encoded whole, so
"\\n\\n" and the content merge as in the stock tokenizer, and character offsets say which tokens are
trained: those of an answer, and the token that ends its turn. `<image>` becomes P seats, weight 0.
"""

import re
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from mllm_jax.data import messages as msg
from mllm_jax.data import private_tokenizer as private
from mllm_jax.data.messages import Messages, Slot
from mllm_jax.data.records import IMAGE, Turn
from mllm_jax.data.spans import Encoded, Items, Run, check_ends, expand_all, span_weights
from mllm_jax.data.templates import END_OF_TEXT, LEAVES_OUT_USER_TEXT
from mllm_jax.errors import ConfigError, require

_KEPT = 4096  # shapes of conversations whose rendering is remembered
_SENTINEL = re.compile(f"({msg.SENTINELS})")
_PROBE = (Turn("user", ("Kaixo, zer moduz?",)), Turn("assistant", ("Ondo, 12 x 3 = 36.",)))


# a rendering with holes: ids of special tokens, and runs of (template text | slot number)
_Skeleton = tuple[int | tuple[str | int, ...], ...]


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
            patches: seats of one image.
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
        self._image, self._patches = image_token, patches
        self._variables = dict(variables or {})
        self._bos: int = tokenizer.bos_token_id
        # a template may leave the beginning token to tokenizer(text), as processors do
        self._adds_bos = tokenizer("a")["input_ids"][:1] == [self._bos]
        self._mark = "" if image_token is None else private.token_text(tokenizer, image_token)
        self._control = private.control_tokens(tokenizer, self._mark)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._literal = private.literal_copy(tokenizer.backend_tokenizer, frozenset(self._control))
        self._skeletons: dict[tuple[Any, ...], _Skeleton] = {}
        self._takes_strings = self._renders(typed=False)
        self._takes_parts = self._renders(typed=True)
        self._check_probe()

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """A whole conversation for training. Raises ConfigError, see `encode_batch`."""
        return self.encode_batch([turns])[0]

    def encode_batch(
        self, conversations: Sequence[Sequence[Turn]], names: Sequence[str] = ()
    ) -> list[Encoded]:
        """Many conversations for training, tokenised together.

        Args:
            conversations: each ends with an assistant turn.
            names: what messages call them.

        Raises:
            ConfigError: the template loses a text, an answer is not ended by a special token, a
                token lies across the border of an answer, or there is not exactly one beginning
                token.
        """
        require(
            self._takes_strings or not conversations,
            "the chat template takes typed parts only and cannot be trained with",
        )
        plans = []
        for n, turns in enumerate(conversations):
            try:
                items = self._fill(*msg.as_strings(turns, self._mark), generate=False)
                check_ends(items, self._image)
            except ConfigError as error:
                raise _named(names, n, error) from error
            plans.append((items, msg.count_images(turns)))
        return self._encode(plans, names)

    def completions(self, texts: Sequence[str]) -> list[Encoded]:
        """Documents for training on text alone: beginning token, text, end of text.

        Everything but the beginning token is trained.

        Raises:
            ConfigError: the tokenizer has no token that ends a text.
        """
        end = self._control.get(END_OF_TEXT, self._tokenizer.eos_token_id)
        require(end is not None, f"the tokenizer has neither {END_OF_TEXT} nor an eos_token")
        done = []
        for encoding in private.encode_literally(self._literal, list(texts), offsets=False):
            tokens = np.array([self._bos, *encoding.ids, end], np.int32)
            weights = np.ones(len(tokens), np.float32)
            weights[0] = 0
            done.append(Encoded(tokens, weights, np.full(len(tokens), -1, np.int32)))
        return done

    def prompt(self, turns: Sequence[Turn]) -> Encoded:
        """A conversation that ends with a user turn, and the header that asks for an answer.

        Images go to the template as typed parts where it takes them (so do transformers'
        processors) and a line break follows each (`records.user_turn`); otherwise `<image>` stands
        in the string where the image stood. All weights are 0.
        """
        require(len(turns) > 0 and turns[-1].role == "user", "a prompt ends with a user turn")
        images = msg.count_images(turns)
        typed = self._takes_parts and all(map(msg.says_the_same_typed, turns))
        if typed and (images or not self._takes_strings):
            messages, slots = msg.as_parts(turns)
        else:
            require(
                self._takes_strings,
                "the chat template takes typed parts only: put a line break after every image",
            )
            messages, slots = msg.as_strings(turns, self._mark)
        slots = [slot._replace(role="") for slot in slots]  # nothing is trained
        return self._encode([(self._fill(messages, slots, generate=True), images)], ())[0]

    def check_prompts(self) -> None:
        """Refuses a tokenizer for which a prompt is not the beginning of what was trained.

        GPT-2's way to split text takes two line breaks before an answer for two tokens, and at the
        end of a prompt for one: the model would be asked in a way that it never saw.
        """
        prompt = self.prompt(_PROBE[:1]).tokens.tolist()
        whole = self.encode(_PROBE).tokens.tolist()
        require(
            whole[: len(prompt)] == prompt,
            "the tokenizer splits the end of a prompt in another way when an answer follows: "
            f"{prompt} is not the beginning of {whole}; use Llama-3's way to split text",
        )

    # ------------------------------------------------------------------------------ rendering

    def _render(self, messages: Messages, generate: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generate,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the chat template refuses the conversation: {reason}") from error

    def _renders(self, typed: bool) -> bool:
        """Whether the template takes this kind of content, tried on one small conversation."""
        image = (IMAGE, "\n") if self._image is not None else ()
        turns = (
            Turn("user", (*image, "a")),
            Turn("assistant", ("b",)),
            Turn("user", ("c",)),
        )
        messages, slots = msg.as_parts(turns) if typed else msg.as_strings(turns, self._mark)
        try:
            items = self._fill(messages, slots, generate=True)
        except ConfigError:
            return False
        if any(isinstance(item, Run) and "'type'" in item.text for item in items):
            return False  # the list itself was printed
        return self._image is None or items.count(self._image) == msg.count_images(turns)

    def _fill(self, messages: Messages, slots: list[Slot], generate: bool) -> Items:
        """Special ids and runs of text, in order."""
        key = (generate, repr(messages), tuple(slot.role for slot in slots))
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            skeleton = self._parse(self._render(messages, generate), slots)
            if len(self._skeletons) < _KEPT:
                self._skeletons[key] = skeleton
        items: Items = []
        for item in skeleton:
            if isinstance(item, int):
                items.append(item)
                continue
            text, spans = "", []
            for part in item:
                slot = slots[part] if isinstance(part, int) else Slot(part, "")
                if slot.role == "assistant":
                    spans.append((len(text), len(text) + len(slot.text)))
                text += slot.text
            items.append(Run(text, tuple(spans)))
        return items

    def _parse(self, rendered: str, slots: list[Slot]) -> _Skeleton:
        """Cuts a rendering at special tokens and sentinels."""
        items: list[Any] = []
        seen: list[int] = []
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
        may_lose = LEAVES_OUT_USER_TEXT in self._template
        for n, slot in enumerate(slots):
            lost = n not in seen and not (may_lose and slot.role in ("user", ""))
            require(
                not lost and seen.count(n) < 2,
                "the chat template does not render every text exactly once",
            )
        return tuple(items)

    def _check_probe(self) -> None:
        """The tokenizer itself must encode a rendered conversation to the same ids."""
        require(
            self._takes_strings or self._takes_parts,
            "the chat template renders neither strings nor typed parts",
        )
        strings = self._takes_strings
        messages, slots = msg.as_strings(_PROBE, "") if strings else msg.as_parts(_PROBE)
        rendered = self._render(messages, generate=False)
        for n, slot in enumerate(slots):
            rendered = rendered.replace(chr(msg.FIRST + n), slot.text)
        bos_is_ours = self._adds_bos and self._tokenizer.bos_token not in rendered
        stock = list(self._tokenizer(rendered, add_special_tokens=bos_is_ours)["input_ids"])
        items = self._fill(messages, slots, generate=False)
        found = self._encode([(items, 0)], ())[0].tokens.tolist()
        require(
            found == stock,
            "this tokenizer joins text and special tokens in a way that is not supported: it "
            f"encodes {rendered!r} as {stock}, piece by piece it is {found}",
        )

    # ------------------------------------------------------------------------------- encoding

    def _encode(self, plans: list[tuple[Items, int]], names: Sequence[str]) -> list[Encoded]:
        runs = [item for items, _ in plans for item in items if isinstance(item, Run)]
        cut = {run.text for run in runs if run.has_borders}
        encodings: dict[str, Any] = {}
        for texts, offsets in ((cut, True), ({run.text for run in runs} - cut, False)):
            texts = list(texts)
            found = private.encode_literally(self._literal, texts, offsets)
            encodings |= zip(texts, found, strict=True)
        tokens: list[int] = []
        weights: list[float] = []
        ends: list[int] = []
        for n, (items, images) in enumerate(plans):
            try:
                own = self._join(items, images, encodings)
            except ConfigError as error:
                raise _named(names, n, error) from error
            tokens += own[0]
            weights += own[1]
            ends.append(len(tokens))
        flat = np.asarray(tokens, np.int32), np.asarray(weights, np.float32)
        return expand_all(*flat, ends, self._image, self._patches) if plans else []

    def _join(
        self, items: Items, images: int, encodings: dict[str, Any]
    ) -> tuple[list[int], list[float]]:
        """Tokens and weights of a conversation, an image being one token."""
        tokens: list[int] = []
        weights: list[float] = []
        answered = False  # the item before was an answer: this one ends its turn
        for item in items:
            if isinstance(item, Run):
                tokens += encodings[item.text].ids
                weights += span_weights(item, encodings[item.text])
                answered = bool(item.spans)
            else:
                tokens.append(item)
                weights.append(float(answered))
                answered = False
        if self._adds_bos and self._bos not in tokens:
            tokens.insert(0, self._bos)
            weights.insert(0, 0.0)
        begins = tokens.count(self._bos)
        require(
            begins == 1 and tokens[0] == self._bos,
            f"the chat template writes the beginning token {begins} times, not once at the start",
        )
        found = 0 if self._image is None else tokens.count(self._image)
        require(
            found == images,
            f"the conversation has {images} images, but {found} places for them when rendered",
        )
        return tokens, weights


def _named(names: Sequence[str], number: int, error: ConfigError) -> ConfigError:
    """The error with the name of the conversation that caused it before it."""
    return ConfigError(f"{names[number]}: {error}" if names else str(error))
