"""Whether the chosen providers accept us: asked at the start, now and then, and by `hearback doctor`."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass

import structlog

from shared.channels import RefusesUsError, TransportError
from shared.roles import Loop, health, together
from shared.settings import Settings

log = structlog.get_logger("hearback.providers")

# Seconds between two looks: a key that is revoked shows soon, and one that is mended sooner.
_EVERY, _AGAIN = 300.0, 30.0
_NAMES = {"sendgrid": "SendGrid", "smtp": "mail server", "twilio": "Twilio"}


@dataclass(frozen=True, slots=True)
class Checked:
    """What a provider said. `problem` is empty when all is well; `wrong` when it certainly refuses us,
    and not merely cannot be asked.
    """

    name: str
    said: str = ""
    problem: str = ""
    wrong: bool = False


def check(settings: Settings) -> list[Checked]:
    """Asks each chosen provider, the mailbox aside, by a call that changes nothing. Never raises."""
    return [_check(settings, name) for name in (settings.mail, settings.sms) if name in _NAMES]


def _check(settings: Settings, name: str) -> Checked:
    try:
        said = str(importlib.import_module(f"shared.channels.{name}").check(settings))
    except RefusesUsError as error:
        return Checked(_NAMES[name], problem=error.message.rstrip("."), wrong=True)
    except TransportError as error:
        return Checked(_NAMES[name], problem=error.message.rstrip("."))
    except Exception as error:  # whatever it is, the others are to be asked as well
        return Checked(_NAMES[name], problem=f"cannot be asked: {type(error).__name__}")
    return Checked(_NAMES[name], said)


def watched(settings: Settings, sending: Loop) -> Loop:
    """`sending`, which is ready only while the providers accept us.

    It goes on meanwhile: one provider's refusal is no reason to keep the other channel's messages, and
    those of the refused channel wait in the queue. A provider that cannot be reached is none either.
    """
    if settings.mail not in _NAMES and settings.sms not in _NAMES:
        return sending

    def watch(stop: threading.Event) -> None:
        before: list[str] = []
        while not stop.is_set():
            found = check(settings)
            problems = [f"{one.name}: {one.problem}" for one in found if one.problem]
            wrong = "; ".join(one.problem for one in found if one.wrong)
            if wrong:
                health().failed(wrong)
            else:
                health().ok()
            if problems and problems != before:
                (log.error if wrong else log.warning)(
                    "providers.refuse_us" if wrong else "providers.away", problems=problems
                )
            before = problems
            stop.wait(_AGAIN if problems else _EVERY)

    return together(sending, watch)
