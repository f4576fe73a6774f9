"""Whether what runs in this container is ready: exit code 0, or 1 and a sentence. Run it with `python -IS`.

Containers ask this every few seconds, each time in a new process: it loads next to nothing.
"""

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_TIMEOUT = 4.0
_STALE = 10.0  # s; a worker writes its report each second


def problems(run: Path, port: int) -> Iterator[str]:
    """What is not ready of the processes that noted themselves in `run`; nothing when all is well."""
    webs = sorted(path.name.removesuffix("-web.pid") for path in run.glob("*-web.pid"))
    reports = sorted(run.glob("worker-*.json"))
    if not webs and not reports:
        yield "nothing runs here yet"
    for name in webs:
        yield from _web(name, port)
    for path in reports:
        yield from _worker(path)


def _web(name: str, port: int) -> Iterator[str]:
    # The mailbox is a provider and has no /readyz; its list needs its database as well.
    path = "/mailbox/api/messages?limit=1" if name == "mailbox" else f"/{name}/readyz"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        if reply.status != 200:
            yield f"{name} web answers {reply.status}"
    except OSError as error:
        yield f"{name} web does not answer: {error}"
    finally:
        connection.close()


def _worker(path: Path) -> Iterator[str]:
    name = path.stem.removeprefix("worker-")
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        yield f"{name} does not report"
        return
    if time.time() - report["beat"] > _STALE:
        yield f"{name} has stopped reporting"
    for role, state in report["roles"].items():
        if not state["ready"]:
            yield f"{name}: {role} is not ready: {state['error'] or 'it is starting'}"


def main() -> int:
    home = Path(os.environ.get("HEARBACK_HOME") or "var")
    found = list(problems(home / "run", int(os.environ.get("HEARBACK_PORT") or 8080)))
    print("; ".join(found) or "ready")  # noqa: T201 (what the engine keeps of a check)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
