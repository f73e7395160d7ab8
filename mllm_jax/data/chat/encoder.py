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
trained: all behind the prompt, so those of an answer (`tokens.loss_mask`), and what ends its turn.
`<image>` becomes its placeholders, of weight 0.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.data.chat import literal_tokenizer as private
from mllm_jax.data.chat import messages as msg
from mllm_jax.data.chat.prompt_template import Items, Run, appended
from mllm_jax.data.chat.prompts import PROBE, Prompts
from mllm_jax.data.chat.switches import Switches, drop_token, move_images
from mllm_jax.data.chat.templates import END_OF_TEXT, SPECIAL, name_of
from mllm_jax.data.chat.tokens import (
    NO_TOKEN,
    Encoded,
    Encodings,
    Flat,
    ImagePlaceholders,
    counts,
    expand_all,
    flatten,
    named,
    starts,
)
from mllm_jax.data.records.parse import Turn

_OFF = Switches()


class Chat:
    """A tokenizer and a template as one function from turns to tokens."""

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        image_token: int | None,
        patches: int,
        variables: dict[str, str] | None = None,
        switches: Switches = _OFF,
    ):
        """Checks that tokenizer and template fit each other.

        Args:
            tokenizer: as `load_tokenizer` gives it; not changed.
            template: Jinja source, a value of TEMPLATES or a folder's own.
            image_token: id of the image token; None for a model that reads text only.
            patches: placeholders of an image that takes one square, P.
            variables: further names for the template, e.g. {"date_string": "1 Jan 2026"}.
            switches: what is otherwise than usual in conversations for training.

        Raises:
            ConfigError: the tokenizer has no beginning token, or a conversation does not come out
                as the tokenizer itself would encode the rendered text.
        """
        require(
            tokenizer.bos_token_id is not None,
            "the tokenizer names no bos_token, with which a conversation begins",
        )
        self._tokenizer, self._template = tokenizer, template
        self.image_token = NO_TOKEN if image_token is None else image_token
        self._patches, self._switches = patches, switches
        self._bos: int = tokenizer.bos_token_id
        mark = "" if image_token is None else private.token_text(tokenizer, image_token)
        self._control = private.control_tokens(tokenizer, mark)
        self._check_tokens()
        self._literal = private.LiteralTokenizer(
            tokenizer.backend_tokenizer, frozenset(self._control)
        )
        self._prompts = Prompts(
            tokenizer,
            template,
            self._control,
            (mark, self.image_token),
            variables or {},
            switches.train_control_tokens,
        )
        self._check_probe()

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """A whole conversation for training. Raises ConfigError, see `encode_flat`."""
        return self.encode_batch([turns])[0]

    def encode_batch(
        self,
        conversations: Sequence[Sequence[Turn]],
        names: Sequence[str] = (),
        images: Sequence[ImagePlaceholders] | None = None,
    ) -> list[Encoded]:
        """Many conversations for training; see `encode_flat` and, for `images`, `expand_all`."""
        flat = self.encode_flat(conversations, names)
        return expand_all(flat, self.image_token, self._patches, images)

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
            self._prompts.no_strings is None or not conversations,
            "the chat template takes typed parts only and cannot be trained with: with strings, "
            f"{self._prompts.no_strings}",
        )
        plans, images = [], []
        for n, turns in enumerate(conversations):
            turns = move_images(turns) if self._switches.image_first else turns
            try:
                prompt, texts = self._prompts.as_strings(turns, generate=False)
            except ConfigError as error:
                raise named(names, n, error) from error
            plans.append(prompt.fill(texts))
            images.append(prompt.images)
        flat = self._encode(plans, images, names)
        return drop_token(flat, 0) if self._switches.drop_token_zero else flat

    def completions(self, texts: Sequence[str]) -> Flat:
        """Documents for training on text alone: beginning token, text, end of text.

        Everything but the beginning token is trained.

        Raises:
            ConfigError: the tokenizer has no token that ends a text.
        """
        end = self._control.get(END_OF_TEXT, self._tokenizer.eos_token_id)
        require(end is not None, f"the tokenizer has neither {END_OF_TEXT} nor an eos_token")
        bodies = self._literal.ids(list(texts), first=True)
        ids = [[self._bos, *text_ids, end] for text_ids in bodies]
        tokens = np.fromiter(chain.from_iterable(ids), np.int32)
        ends = np.cumsum([len(text_ids) for text_ids in ids], dtype=np.int64)
        trained = np.ones(len(tokens), np.bool_)
        trained[starts(ends)] = False
        return Flat(tokens, trained, ends)

    def prompt(
        self,
        turns: Sequence[Turn],
        placeholders: ImagePlaceholders = None,
        continuation: str = "",
    ) -> Encoded:
        """A conversation that ends with a user turn, and the header that asks for an answer.

        Images go to the template as typed parts where it takes them (so do transformers'
        processors) and a line break follows each (`records.user_turn`); otherwise the string has
        `<image>` in place of the image. `placeholders` as in `expand_all`.

        All weights are 0 but those of the `continuation`: text right behind the header, tokenised
        with it as one text. Raises ConfigError where one of its tokens begins before it, see
        `tokens.loss_mask`.
        """
        require(len(turns) > 0 and turns[-1].role == "user", "a prompt ends with a user turn")
        images = msg.count_images(turns)
        typed = self._prompts.no_parts is None and all(map(msg.says_the_same_typed, turns))
        if typed and (images or self._prompts.no_strings is not None):
            prompt, texts = self._prompts.as_parts(turns)
        else:
            require(
                self._prompts.no_strings is None,
                "the chat template takes typed parts only: put a line break after every image",
            )
            prompt, texts = self._prompts.as_strings(turns, generate=True)
        items = appended(prompt.fill(texts), continuation)
        flat = self._encode([items], [images], ())
        return expand_all(flat, self.image_token, self._patches, [placeholders])[0]

    def check_answers(self) -> None:
        """Refuses a template that does not mark the end of an answer: it cannot be trained with.

        LLaVA-1.5's of the Hugging Face Hub takes typed parts alone and ends answers by a space.
        """
        self.encode(PROBE)

    def check_prompts(self) -> None:
        """Refuses a tokenizer for which a prompt is not a prefix of the trained tokens.

        GPT-2's pre-tokenization makes two tokens of two line breaks before an answer, and one at
        the end of a prompt: training and generation would disagree. So would they where a prompt
        ends by a space that a SentencePiece-style tokenizer writes into the answer's first token.
        """
        prompt = self.prompt(PROBE[:1]).tokens.tolist()
        template, texts = self._prompts.as_strings(PROBE, generate=False)
        whole = self._encode([template.fill(texts)], [0], ()).tokens.tolist()
        require(
            whole[: len(prompt)] == prompt,
            f"the prompt's tokens change when an answer is appended ({prompt} is not a prefix of "
            f"{whole}), so training and generation would disagree; use a tokenizer with Llama-3 "
            "pre-tokenization, or another format",
        )

    # --------------------------------------------------------------------------------- checks

    def _check_tokens(self) -> None:
        """Our formats write special tokens by name."""
        name = name_of(self._template)
        missing = [t for t in SPECIAL.findall(self._template) if t not in self._control]
        if name is not None and missing:
            raise ConfigError(
                f"format {name} writes {missing[0]}, which is not a special token of this "
                "tokenizer; choose a format of its own tokens, or another tokenizer"
            )

    def _check_probe(self) -> None:
        """The tokenizer itself must encode a rendered conversation to the same ids."""
        rendered, prompt, texts = self._prompts.probe()
        adds_bos = self._prompts.adds_bos and self._tokenizer.bos_token not in rendered
        name = name_of(self._template)
        require(
            name is None or adds_bos or "bos_token" in self._template,
            f"format {name} leaves {self._tokenizer.bos_token} to the tokenizer, which does not "
            "begin texts by it; set add_bos_token in tokenizer_config.json",
        )
        stock = list(self._tokenizer(rendered, add_special_tokens=adds_bos)["input_ids"])
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
        headers, ends = self._prompts.rules.headers, self._switches.train_end_of_turn
        flat = flatten(plans, self._encodings(plans), names, headers, ends)
        flat = flat._replace(trained=flat.trained & (flat.tokens != self.image_token))
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

    def _encodings(self, plans: list[Items]) -> Encodings:
        """The tokens of all runs, each text once, with offsets where they are needed."""
        borders: dict[tuple[str, bool], bool] = {}
        for run in chain.from_iterable(plans):
            if isinstance(run, Run):
                borders[run.key] = run.has_borders or borders.get(run.key, False)
        encodings: Encodings = {}
        for first in (False, True):
            keys = [key for key in borders if key[1] is first]
            whole, parted = ([key for key in keys if borders[key] is b] for b in (False, True))
            ids = self._literal.ids([text for text, _ in whole], first)
            encodings |= {key: (found, ()) for key, found in zip(whole, ids, strict=True)}
            pairs = self._literal.ids_and_offsets([text for text, _ in parted], first)
            encodings |= zip(parted, pairs, strict=True)
        return encodings
