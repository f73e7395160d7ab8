"""Defines the chat formats as Jinja templates: the same for training, exports and other runtimes.

    plain     <|begin_of_text|><image>a caption<|end_of_text|>
              LLaVA's alignment format: of the user's turn only the images stay.
    llama3    <|begin_of_text|>, then for every turn
              <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>
    llama31   the same, always begun by a system turn: knowledge cut-off, date, then the system text
              if there is one. Meta's Llama-3.1 template without tools; `date_string` may be given.

Contents are strings, or lists of typed parts ({"type": "image"}, {"type": "text", "text": ...}) as
processors of transformers pass them; an image part becomes `<image>` on a line of its own. Contents
are trimmed.
"""

import re

SPECIAL = re.compile(r"<\|\w+\|>")  # special tokens in the source of TEMPLATES

# A template with this comment may leave out the user's text; any other that loses text is refused.
LEAVES_OUT_USER_TEXT = "{#- leaves out the user's text -#}"

# What the formats write after an answer; trained, and where generation stops.
END_OF_TEXT = "<|end_of_text|>"
END_TOKENS = ("<|eot_id|>", END_OF_TEXT)

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

TEMPLATES: dict[str, str] = {
    "plain": LEAVES_OUT_USER_TEXT + _CONTENT + _PLAIN,
    "llama3": _CONTENT + _TURN + _LLAMA3 + _GENERATION,
    "llama31": _CONTENT + _TURN + _LLAMA31 + _GENERATION,
}


def special_tokens(chat_format: str) -> tuple[str, ...]:
    """The special tokens that a format writes beside the beginning token, in order."""
    return tuple(dict.fromkeys(SPECIAL.findall(TEMPLATES[chat_format])))
