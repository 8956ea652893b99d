"""The program of the process that runs chat templates; it imports nothing of weightsmith.

A template is a program that comes with a model. Its loops are finite and may still take years, and one multiplication
may fill the memory. So it runs in a process whose time and memory the operating system bounds. Requests and answers are
lines of JSON.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any


def main(seconds: int, size: int, characters: int) -> None:
    """Answer requests until there are no more.

    Parameters
    ----------
    seconds, size, characters : int
        What one conversation may take: time, bytes of memory of the process, and length of the text.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # nothing handles it, so the process ends
        answer: dict[str, Any] = {"exceeded": True}
        try:
            request = json.loads(line)
            messages, cuts = request.pop("messages"), request.pop("cuts")
            texts = [
                render_jinja_template([messages[:count]], add_generation_prompt=ask, **request)[0][0]
                for count, ask in cuts
            ]
            if sum(map(len, texts)) <= characters * len(cuts):
                answer = {"texts": texts}
        except MemoryError:
            pass
        except Exception as error:  # a template is a program: it may raise anything
            answer = {"error": str(error)[:1000] or type(error).__name__}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
