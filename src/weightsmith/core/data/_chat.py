"""Conversations as text, by a model's chat template, in bounded time and memory."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsmith.core.data import _chat_process
from weightsmith.core.errors import CalibrationError, WeightsmithError

__all__ = ["render_chat", "render_cuts"]

SECONDS, BYTES, CHARACTERS = 10, 2**30, 2**24
"""What one conversation may take: time, memory of the process, and length of the text."""

TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files that hold a chat template, of which the first counts."""


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, ask: bool = False, who: str = "a chat"
) -> str:
    """Write a conversation as text, by the tokenizer's chat template.

    Parameters
    ----------
    tokenizer, messages, who
        As for :func:`render_cuts`.
    ask : bool, default: False
        End with the start of the assistant's answer.

    Raises
    ------
    CalibrationError
        As :func:`render_cuts`.
    """
    return render_cuts(tokenizer, messages, [(len(messages), ask)], who)[0]


def render_cuts(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], cuts: Sequence[tuple[int, bool]], who: str
) -> list[str]:
    """Write the beginnings of a conversation as text, by the tokenizer's chat template.

    The template runs in a process of its own, whose time and memory are bounded. The first call starts it.

    Parameters
    ----------
    tokenizer : object
        A transformers tokenizer with a chat template.
    messages : sequence of mapping
        With ``role`` and ``content``.
    cuts : sequence of (int, bool)
        Of each beginning the number of messages, and whether it ends with the start of the assistant's answer.
    who : str
        What the conversation is called in errors.

    Raises
    ------
    CalibrationError
        If the template is damaged, refuses the conversation, or takes more time, memory or text than it may.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise CalibrationError(f"the chat template of {_place(tokenizer)}", found=error) from error
    request = {
        **tokenizer.special_tokens_map,
        "chat_template": template,
        # as transformers' apply_chat_template has it: a key without a value is no key
        "messages": [{key: value for key, value in each.items() if value is not None} for each in messages],
        "cuts": cuts,
    }
    answer = _process.ask(json.dumps(request, default=lambda value: f"<{type(value).__name__}>"))
    if "error" in answer:
        raise CalibrationError(f"the chat template of {_place(tokenizer)} refuses {who}", found=answer["error"])
    if "texts" not in answer:
        raise CalibrationError(
            f"the chat template of {_place(tokenizer)} does not finish {who}",
            found="work or text without end",
            expected=f"at most {SECONDS} s, {BYTES >> 30} GiB of memory and {CHARACTERS:,} characters",
            do="Repair the template.",
        )
    return list(answer["texts"])


def _place(tokenizer: Any) -> str:
    """The file of the tokenizer's chat template, or the tokenizer's name."""
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    return next((str(file) for each in TEMPLATES if (file := Path(name, each)).is_file()), name)


class _Process:
    """The process that runs templates, started when it is needed; any thread may ask it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._child: subprocess.Popen[str] | None = None

    def ask(self, request: str) -> dict[str, Any]:
        """Return the answer to one request; empty where the process came to its end."""
        with self._lock:
            if self._owner != os.getpid():  # a fork does not share its parent's
                self._child, self._owner = None, os.getpid()
            try:
                child = self._child = self._child or _start()
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(request + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
                answer: dict[str, Any] = json.loads(line) if line else {}
            except BrokenPipeError:
                answer = {}
            except BaseException:
                self.stop()  # its answer would be taken for that to the next request
                raise
            if not answer:
                self.stop()
            return answer

    def stop(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.communicate()


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-P", str(_chat_process.__file__), *map(str, (SECONDS, BYTES, CHARACTERS))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env=environment,
        start_new_session=True,  # Ctrl-C is for the process that asks
    )
    assert child.stdout is not None
    if not child.stdout.readline():
        child.communicate()
        raise WeightsmithError("the process that runs chat templates did not start", found=f"status {child.returncode}")
    return child


_process = _Process()
atexit.register(_process.stop)
