"""Defines the chat formats as Jinja templates: the same for training, exports and other runtimes.

    plain     <|begin_of_text|><image>a caption<|end_of_text|>
              LLaVA's alignment format: of the user's turn only the images stay.
    llama3    <|begin_of_text|>, then for every turn
              <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>
    llama31   the same, always begun by a system turn: knowledge cut-off, date, then the system text
              if there is one. Meta's Llama-3.1 template without tools; `date_string` may be given.
    plain_newline  <|begin_of_text|><image>a caption\\n
              `plain` as LLaVA's code writes it: a line break and no token ends a caption.
    vicuna_v1 {system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: ...
              LLaVA-1.5's `v1`, with its system sentence unless there is another. The beginning
              token is the tokenizer's to add, as before llava-1.5-7b-hf's own prompts: a
              SentencePiece-style tokenizer encodes the first word of a text in another way.

Contents are strings, or lists of typed parts ({"type": "image"}, {"type": "text", "text": ...}) as
processors of transformers pass them; an image part becomes `<image>` on a line of its own. Contents
are trimmed.
"""

import re
from collections.abc import Container
from typing import Any

SPECIAL = re.compile(r"<\|\w+\|>|</s>")  # special tokens in the source of TEMPLATES

# A template with this comment may leave out the user's text; any other that loses text is refused.
LEAVES_OUT_USER_TEXT = "{#- leaves out the user's text -#}"

# In one with this comment, the line break after an answer ends it, and is trained with it.
ENDS_BY_NEWLINE = "{#- an answer ends by a line break -#}"

# What the formats write after an answer; trained, and where generation stops.
END_OF_TEXT = "<|end_of_text|>"
END_TOKENS = ("<|eot_id|>", END_OF_TEXT, "</s>")

PLAIN_FORMATS = ("plain", "plain_newline")  # captions, which nobody asks for

_CONTENT = """\
{%- macro flat(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>\\n' -}}
            {%- else -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

_TURN = """\
{%- macro turn(role, text) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + text + '<|eot_id|>' -}}
{%- endmacro -%}
"""

_GENERATION = """\
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- for _ in range(flat(message['content']).count('<image>')) -%}
            {{- '<image>' -}}
        {%- endfor -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- flat(message['content']) | trim + '<|end_of_text|>' -}}
    {%- else -%}
        {{- raise_exception('the plain format has no system turn') -}}
    {%- endif -%}
{%- endfor -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- turn(message['role'], flat(message['content']) | trim) -}}
{%- endfor -%}
"""

_LLAMA31 = """\
{%- if date_string is not defined -%}
    {%- set date_string = '26 Jul 2024' -%}
{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = flat(messages[0]['content']) | trim -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
{%- endif -%}
{{- bos_token -}}
{%- set dates = 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' -%}
{{- turn('system', dates + system) -}}
{%- for message in messages -%}
    {{- turn(message['role'], flat(message['content']) | trim) -}}
{%- endfor -%}
"""

_VICUNA_V1 = """\
{%- if messages[0]['role'] == 'system' -%}
    {{- flat(messages[0]['content']) | trim -}}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
    {{- 'The assistant gives helpful, detailed, and polite answers to the user' -}}
    {{- "'s questions." -}}
{%- endif -%}
{{- ' ' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- 'USER: ' + flat(message['content']) | trim + ' ' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'ASSISTANT: ' + flat(message['content']) | trim + '</s>' -}}
    {%- else -%}
        {{- raise_exception('vicuna_v1 has a system turn at the beginning only') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
"""

_PLAIN_SOURCE = LEAVES_OUT_USER_TEXT + _CONTENT + _PLAIN
_END = f"'{END_OF_TEXT}'"

TEMPLATES: dict[str, str] = {
    "plain": _PLAIN_SOURCE,
    "llama3": _CONTENT + _TURN + _LLAMA3 + _GENERATION,
    "llama31": _CONTENT + _TURN + _LLAMA31 + _GENERATION,
    "plain_newline": ENDS_BY_NEWLINE + _PLAIN_SOURCE.replace(_END, "'\\n'"),
    "vicuna_v1": _CONTENT + _VICUNA_V1,
}

# `plain` for tokenizers without <|end_of_text|>: their own end, `</s>`
_PLAIN_EOS = _PLAIN_SOURCE.replace(_END, "eos_token")
_NAMES = {source: name for name, source in TEMPLATES.items()} | {_PLAIN_EOS: "plain"}


def format_for(chat_format: str, tokenizer: Any) -> str:
    """The template of a format for a tokenizer as `load_tokenizer` gives it."""
    return source_for(chat_format, tokenizer.get_added_vocab(), tokenizer.eos_token)


def source_for(chat_format: str, tokens: Container[str], eos: str | None) -> str:
    """The template of a format for a tokenizer with these tokens: `plain` ends by its own.

    Args:
        chat_format: a key of TEMPLATES.
        tokens: special tokens of the tokenizer.
        eos: the one that ends its texts.
    """
    plain = chat_format == "plain" and END_OF_TEXT not in tokens and eos is not None
    return _PLAIN_EOS if plain else TEMPLATES[chat_format]


def name_of(template: str) -> str | None:
    """The format whose template it is; None for one of others."""
    return _NAMES.get(template)


def special_tokens(template: str) -> tuple[str, ...]:
    """The special tokens that one of our templates writes beside the beginning token, in order."""
    return tuple(dict.fromkeys(SPECIAL.findall(template)))
