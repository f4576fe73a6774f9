"""Errors that people and programs outside may see; each is mapped to HTTP in one place (`shared.web`)."""

from __future__ import annotations

from collections.abc import Mapping


class HearbackError(Exception):
    """An error with a slug for programs and a sentence for people.

    `slug` is stable and lower-case with hyphens; `message` says what was wrong and what to do.
    `fields` maps an input's field to what is wrong with it. `retry_after` is in whole seconds.
    """

    status = 500
    slug = "internal"

    def __init__(
        self,
        message: str,
        *,
        slug: str | None = None,
        fields: Mapping[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.slug = slug or type(self).slug
        self.fields: dict[str, str] = dict(fields or {})
        self.retry_after = retry_after


class Invalid(HearbackError):
    """What was sent cannot be accepted; nothing was changed."""

    status, slug = 422, "invalid"


class Unauthenticated(HearbackError):
    """Nobody is logged in, or the key is unknown."""

    status, slug = 401, "unauthenticated"


class Forbidden(HearbackError):
    """Somebody is logged in who may not do this."""

    status, slug = 403, "forbidden"


class NotFound(HearbackError):
    """There is no such thing, or it is none of the asker's business."""

    status, slug = 404, "not-found"


class Conflict(HearbackError):
    """What was asked for contradicts the present state."""

    status, slug = 409, "conflict"


class Gone(HearbackError):
    """It was there, and is not any more (an expired link)."""

    status, slug = 410, "gone"


class TooMany(HearbackError):
    """Asked too often; `retry_after` says when to come back."""

    status, slug = 429, "too-many-requests"


class Unavailable(HearbackError):
    """A part that is needed does not answer now; the same request may succeed later."""

    status, slug = 503, "unavailable"
