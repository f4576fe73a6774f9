"""What the API of the report takes and gives."""

from __future__ import annotations

from marshmallow import EXCLUDE, Schema, fields, validate

from services.reporting.domain.period import LONGEST


def _about(text: str) -> dict[str, str]:
    return {"description": text}


class Query(Schema):
    """The period, in days of the company's zone, and the filters. `from` and `to` win over `days`."""

    class Meta:
        unknown = EXCLUDE

    from_ = fields.Date(data_key="from", metadata=_about("First day, included."))
    to = fields.Date(metadata=_about("Last day, included."))
    days = fields.Integer(
        validate=validate.Range(1, LONGEST), metadata=_about("So many days, ending today. Default 30.")
    )
    program = fields.UUID(metadata=_about("Only this program, by id."))
    touchpoint = fields.String(metadata=_about("Only this touchpoint."))


class Score(Schema):
    """A score with its 95 % interval in points; null without answers. `too_few`: below 30 answers."""

    nps = fields.Float(allow_none=True)
    margin = fields.Float(allow_none=True)
    low = fields.Float(allow_none=True)
    high = fields.Float(allow_none=True)
    method = fields.String(allow_none=True, validate=validate.OneOf(("wald", "adjusted-wald")))
    n = fields.Integer()
    too_few = fields.Boolean()
    promoters = fields.Integer()
    passives = fields.Integer()
    detractors = fields.Integer()


class Change(Schema):
    """A difference to as many days before, in points, with its 95 % interval."""

    points = fields.Float()
    margin = fields.Float()
    low = fields.Float()
    high = fields.Float()
    significant = fields.Boolean()
    too_few = fields.Boolean()


class Compared(Score):
    """A score beside that of as many days before."""

    previous = fields.Nested(Score)
    change = fields.Nested(Change, allow_none=True)


class Touchpoint(Compared):
    """The score of one touchpoint."""

    touchpoint = fields.String()


class Program(Compared):
    """The score of one program, by its id."""

    program = fields.String()


class Day(Score):
    """The score of one day in the company's zone."""

    day = fields.Date()


class _Report(Schema):
    from_ = fields.Date(data_key="from")
    to = fields.Date()
    time_zone = fields.String(metadata=_about("The company's zone: a day is a day there."))
    program = fields.String(allow_none=True)
    touchpoint = fields.String(allow_none=True)


class NpsReport(_Report):
    """The score of a period. What is set apart counts nowhere in it."""

    total = fields.Nested(Compared)
    days = fields.List(fields.Nested(Day))
    touchpoints = fields.List(fields.Nested(Touchpoint))
    programs = fields.List(fields.Nested(Program))
    unconfirmed_clicks = fields.Integer(
        metadata=_about("Scores clicked in a message that no person confirmed; they count nowhere else.")
    )
    quarantined = fields.Integer()
    excluded = fields.Integer()


class ShareChange(Schema):
    """A difference of shares to as many days before, in percentage points."""

    points = fields.Float()
    margin = fields.Float()
    significant = fields.Boolean()
    too_few = fields.Boolean()


class Stage(Schema):
    """One stage; `share` in percent of the stage named `of`, in which it is contained."""

    stage = fields.String()
    title = fields.String()
    definition = fields.String()
    count = fields.Integer()
    of = fields.String(allow_none=True)
    share = fields.Float(allow_none=True)
    previous_count = fields.Integer()
    previous_share = fields.Float(allow_none=True)
    change = fields.Nested(ShareChange, allow_none=True)


class FunnelReport(_Report):
    """The funnel of the invitations handed over in a period."""

    stages = fields.List(fields.Nested(Stage))
    tried_in_time = fields.Integer()
    not_helped = fields.Integer()
