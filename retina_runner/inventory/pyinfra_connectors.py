"""What pyinfra's connectors make of their words, asked in a process of its own: `python -m … @vagrant @docker/nginx`.

pyinfra needs gevent's patches for that (`@vagrant` fails without them), and gevent then waits for the process's children,
agents of this machine among them. Neither is for a process that does anything else.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(words: list[str]) -> int:
    """Print one JSON object in the last line: word to its hosts, or to why there are none."""
    from gevent import monkey

    monkey.patch_all()
    from pyinfra.api import connectors
    from pyinfra.api.exceptions import PyinfraError

    known: Any = connectors
    every, executing = known.get_all_connectors(), known.get_execution_connectors()
    answers: dict[str, Any] = {}
    for word in words:
        connector, _, argument = word[1:].partition("/")
        if connector not in every:
            answers[word] = {"unknown": connector, "known": sorted(every)}
            continue
        try:
            hosts = [[n, d, list(g)] for n, d, g in every[connector].make_names_data(argument or None)]
            answers[word] = {"hosts": hosts, "reached_by": connector if connector in executing else "ssh"}
        except (PyinfraError, OSError, ValueError, TypeError, KeyError) as error:
            answers[word] = {"why": str(error) or type(error).__name__}
    print("\n" + json.dumps(answers, default=str), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
