"""The chat template of a tokenizer, as the texts before and after a user's message.

An exported model brings a chat template of its own, `with_prompt`: it puts a prompt
around each message of the user first. `without_prompt` gives the template as it was.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

_USER, _REPLY = "MESSAGE-OF-THE-USER", "REPLY-OF-THE-MODEL"
# Llama 3.1 and later write the date of today into the prompt. A prompt that changes
# overnight is no basis for a run, so they get the date that they have as a default.
_CONSTANTS = {"date_string": "26 Jul 2024"}


class Chat(NamedTuple):
    """What a chat template writes around the one message of a user.

    Attributes:
      before: text before the message: BOS if the template writes it, a system prompt
        if it has one by default, and the start of the user's turn.
      after: text after the message, up to where the model's reply begins.
      end_id: id of the special token that ends the reply; None: that of the tokenizer.
      trims: whether the template drops whitespace at both ends of the message.
    """

    before: str = ""
    after: str = ""
    end_id: int | None = None
    trims: bool = False


def read(backend: PreTrainedTokenizerFast, control: Mapping[str, int]) -> Chat:
    """Returns what the chat template of a tokenizer writes.

    Args:
      backend: the tokenizer.
      control: name → id of its special tokens.

    Raises:
      ValueError: when there is no template, it fails, it changes the message in
        another way than `Chat.trims`, or no special token ends the reply.
    """
    if not backend.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; expected chat_template.jinja in its "
            "folder, or 'chat_template' in tokenizer_config.json. Add it, or set "
            "prompts.chat='none'."
        )
    backend = _unwrapped(backend)
    before, after = _around(_render(backend, _USER), _USER)
    spaced = f"\n {_USER} \n"
    texts = {before + spaced + after: False, before + _USER + after: True}
    rendered = _render(backend, spaced)
    if rendered not in texts:
        raise ValueError(
            f"the chat template writes the message {spaced!r} as "
            f"{rendered[-400:]!r}; expected it as it is, or without the whitespace at "
            "its ends. Set prompts.chat='none'."
        )
    tail = _around(_render(backend, _USER, _REPLY), _REPLY)[1]
    ends = {tail.find(name): token for name, token in control.items() if name in tail}
    if not ends:
        raise ValueError(
            f"the chat template writes {tail!r} after a reply; expected a special "
            f"token that ends it, one of {sorted(control)[:20]}. Set "
            "prompts.chat='none'."
        )
    return Chat(before, after, ends[min(ends)], texts[rendered])


def _render(backend: PreTrainedTokenizerFast, user: str, reply: str = "") -> str:
    """Returns a conversation as the template writes it."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
    if reply:
        messages.append({"role": "assistant", "content": reply})
    try:
        return backend.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not reply, **_CONSTANTS
        )
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"the chat template of the tokenizer fails ({error}); expected it to "
            f"accept the roles {[message['role'] for message in messages]}. Set "
            "prompts.chat='none'."
        ) from error


def _around(text: str, message: str) -> tuple[str, str]:
    """Returns what stands before and after a message."""
    if text.count(message) != 1:
        raise ValueError(
            f"the chat template writes a message {text.count(message)} times; expected "
            "once. Set prompts.chat='none'."
        )
    before, _, after = text.partition(message)
    return before, after


# Everything from the first of these comments to the second one is ours.
_BEGIN, _END = "{#- the prompt of stepjax -#}", "{#- end of the prompt #}"


def with_prompt(template: str, prompt: str, bos: str = "") -> str:
    """Returns a chat template that puts a prompt around each message of the user.

    Args:
      template: the chat template that goes around the prompt; "" for none, then the
        conversation is its messages, one behind the other.
      prompt: text with "{problem}", where the message goes.
      bos: text that the conversation begins with.
    """
    pieces = " ~ m['content'] ~ ".join(map(_quoted, prompt.split("{problem}")))
    dates = [
        f"{{%- set {name} = {_quoted(value)} -%}}"
        for name, value in _CONSTANTS.items()
        if name in template
    ]
    plain = f"{{{{ {_quoted(bos)} }}}}" if bos else ""
    plain += "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return "".join(
        [
            _BEGIN,
            *dates,
            "{%- set prompted = namespace(messages=[]) -%}",
            "{%- for m in messages -%}",
            "{%- if m['role'] == 'user' -%}",
            f"{{%- set m = {{'role': 'user', 'content': {pieces}}} -%}}",
            "{%- set prompted.messages = prompted.messages + [m] -%}",
            "{%- else -%}",
            "{%- set prompted.messages = prompted.messages + [m] -%}",
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- set messages = prompted.messages -%}",
            _END,
            template or plain,
        ]
    )


def without_prompt(template: str) -> str:
    """Returns a chat template as `with_prompt` was given it."""
    begin, _, rest = template.partition(_BEGIN)
    return rest.partition(_END)[2] if not begin and _END in rest else template


def _unwrapped(backend: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose chat template puts no prompt around messages."""
    if not isinstance(backend.chat_template, str):  # several templates by name
        return backend
    template = without_prompt(backend.chat_template)
    if template == backend.chat_template:
        return backend
    backend = copy.copy(backend)
    backend.chat_template = template
    return backend


def _quoted(text: str) -> str:
    """Returns a text as a literal of Jinja, in ASCII."""
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'
