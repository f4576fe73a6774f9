"""What a password must be, and how a one-time password looks."""

from __future__ import annotations

import base64

SHORTEST, LONGEST = 10, 200


def problem(password: str, names: list[str]) -> str | None:
    """Why a new password is refused, as a sentence, or None. `names`: what it must not contain."""
    if len(password) < SHORTEST:
        return f"Use at least {SHORTEST} characters. Three or four unrelated words make a good password."
    if len(password) > LONGEST:
        return f"Use at most {LONGEST} characters."
    if len(set(password)) < 5:
        return "This repeats the same few characters. Three or four unrelated words make a good password."
    folded = password.casefold()
    for name in names:
        if len(name) >= 4 and name.casefold() in folded:
            return "It contains your name or e-mail address, which is what others try first."
    if "hearback" in folded:
        return "It contains the name of this program, which is what others try first."
    return None


def one_time(random: bytes) -> str:
    """A one-time password that can be read out over the phone: 80 bits as four groups of four characters."""
    text = base64.b32encode(random[:10]).decode().lower()
    return "-".join(text[i : i + 4] for i in range(0, 16, 4))
