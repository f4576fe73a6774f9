"""Log lines: JSON for machines, coloured text on a terminal, without tokens or personal data in either."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import structlog

# Whatever is logged under these names is nobody's business.
_SECRET_NAMES = frozenset(
    "token password secret authorization cookie api_key email phone address to from comment text html "
    "subject body name customer_name data values parameters".split()
)
_HIDDEN = "…"
_PATTERNS = (
    # Links to customers' pages carry their token; queries may carry anything.
    (re.compile(r"(/(?:a|u|n)/)[A-Za-z0-9_-]{8,}"), r"\1" + _HIDDEN),
    (re.compile(r"(\s|^|\"|')(/[^\s?\"']*)\?[^\s\"']+"), r"\1\2?" + _HIDDEN),
    (re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+"), r"\1?" + _HIDDEN),
    (re.compile(r"(?i)\b(bearer|service|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 " + _HIDDEN),
    (re.compile(r"://([^/\s:@]+):[^@\s/]+@"), r"://\1:" + _HIDDEN + "@"),
    (re.compile(r"[^\s@<>\"'(),:;=]+@[^\s@<>\"'(),:;=]+\.[A-Za-z]{2,}"), _HIDDEN + "@" + _HIDDEN),
    (re.compile(r"(?<![\w.:-])\+\d[\d ()/-]{6,}\d"), "+" + _HIDDEN),
    # PostgreSQL's DETAIL shows the row, LINE and QUERY the statement with what psycopg2 put into it.
    (re.compile(r"(?m)^(DETAIL|CONTEXT|QUERY|LINE \d+):.*$"), r"\1: " + _HIDDEN),
    (re.compile(r"(invalid input \w+ for [^:\n]+|field value out of range): .*"), r"\1: " + _HIDDEN),
)


# What one of the patterns above could be about; most of what is logged holds nothing of the kind.
_SUSPECT = re.compile(
    r"[@?+]|://|/[aun]/|DETAIL|CONTEXT|QUERY|LINE \d|invalid input|out of range|(?i:bearer|service|basic)\s"
)


def mask(text: str) -> str:
    """`text` without tokens, passwords, queries of addresses, e-mail addresses and phone numbers."""
    if _SUSPECT.search(text) is None:
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _masked(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if depth > 3:
        return _HIDDEN
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN if str(key).lower() in _SECRET_NAMES else _masked(inner, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner, depth + 1) for inner in value]
    return mask(str(value))


def hide_personal_data(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that masks a line; runs after everything that adds to it."""
    for name, value in event.items():
        event[name] = _HIDDEN if name.lower() in _SECRET_NAMES else _masked(value)
    return event


def set_up(part: str, *, pretty: bool | None = None, level: int = logging.INFO) -> None:
    """Sends all log lines of this process, the libraries' too, to stderr under the name `part`.

    `pretty` is for people; by default when stderr is a terminal.
    """
    pretty = sys.stderr.isatty() if pretty is None else pretty
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _naming(part),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    render: Any = (
        structlog.dev.ConsoleRenderer(colors=True)
        if pretty
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                hide_personal_data,
                render,
            ],
        )
    )
    global _plain
    _plain = None if pretty or level > logging.INFO else (part, handler)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    # No line says where in the code it was written; finding that out would take a fifth of writing it
    # (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    # Libraries that tell of each step they take; Twilio's tells to whom, too.
    for name in ("alembic", "urllib3", "sqlalchemy", "twilio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It tells of every refused connection, many times a second; what follows from it is told by us.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


# The part's name and where its lines go, when they are JSON; see `note`.
_plain: tuple[str, logging.StreamHandler[Any]] | None = None


def note(logger: str, event: str, fields: Mapping[str, Any]) -> None:
    """Writes a line of level info, as structlog would, in a third of its time: every request writes one.

    What structlog keeps for the context is not added; `fields` has to have it.
    """
    if _plain is None:
        structlog.get_logger(logger).info(event, **fields)
        return
    part, handler = _plain
    line = {
        **fields,
        "event": event,
        "level": "info",
        "logger": logger,
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "part": part,
    }
    text = json.dumps(hide_personal_data(None, "", line), ensure_ascii=False, default=repr)
    # Whoever took our lines may be gone (a killed process manager): as with logging's own handlers, that
    # must not fail what the line is about.
    with handler.lock or nullcontext(), suppress(OSError):
        handler.stream.write(text + "\n")
        handler.flush()


def _naming(part: str) -> Any:
    def name(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("part", part)
        return event

    return name
