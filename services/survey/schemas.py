"""Schemas of the company, customers and imports: what APIs, pages and the terminal accept and show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marshmallow import Schema, ValidationError, fields, pre_load, validate, validates_schema

from services.survey import addresses
from services.survey.domain import hours, values
from services.survey.domain.rows import Checks
from services.survey.domain.values import BadValue
from services.survey.words import LANGUAGES
from shared.web.paging import PageArgs


class Clean(fields.String):
    """Text that a rule cleans: what the rule returns is kept, its reason is the error."""

    def __init__(self, rule: Callable[[str], Any], says: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule
        self.says = says

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs).strip()
        if not text and self.allow_none:
            return None
        try:
            return self.rule(text)
        except BadValue as error:
            raise ValidationError(f"{self.says} {error}.") from None


def _line(least: int, most: int, says: str) -> Any:
    message = f"{says} needs {least} to {most} characters on one line."
    return Clean(_one_line, says, required=True, validate=validate.Length(least, most, error=message))


def _one_line(text: str) -> str:
    if "\0" in text:
        raise BadValue("contains a NUL byte")
    return values.one_line(text)


def _lower_email(text: str) -> str:
    return addresses.email(text).casefold()


class Hours(fields.Field[dict[str, list[str]]]):
    """Business hours: `{"mon": ["09:00", "17:00"], …}`, or in words ("mon-fri 09:00-17:00")."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, list[str]]:
        try:
            if isinstance(value, str):
                return hours.parse(value)
            if not isinstance(value, dict) or not all(
                isinstance(pair, list | tuple) and all(isinstance(time, str) for time in pair)
                for pair in value.values()
            ):
                raise ValueError("write them like “mon-fri 09:00-17:00, sat 10:00-14:00”")
            given = {
                day: list(value[day])
                for day in (*hours.DAYS, *sorted(set(value) - set(hours.DAYS)))
                if day in value
            }
            hours.check(given)
            return given
        except ValueError as error:
            raise ValidationError(f"Business hours: {error}.") from None


class Company(Schema):
    """The company's settings; `Company(partial=True)` for some of them."""

    name = _line(1, 200, "The name")
    sender_name = _line(1, 100, "The sender's name")
    sender_email = Clean(addresses.email, "The sender's address", required=True)
    reply_to = Clean(addresses.email, "The address for replies", required=True)
    postal_address = fields.String(
        required=True,
        validate=validate.Length(1, 500, error="Mails must carry a postal address (at most 500 characters)."),
    )
    colour = fields.String(
        required=True,
        validate=validate.Regexp(r"^#[0-9a-fA-F]{6}$", error="The colour must look like #1f5fbf."),
    )
    language = fields.String(
        required=True, validate=validate.OneOf(LANGUAGES, error="The language is one of en, de and es.")
    )
    time_zone = Clean(values.time_zone, "The time zone", required=True)
    business_hours = Hours(required=True)
    first_contact_hours = fields.Integer(
        required=True,
        validate=validate.Range(1, 400, error="Promise a first contact within 1 to 400 business hours."),
    )
    fallback_owner = Clean(_lower_email, "The fallback owner", required=True, allow_none=True)
    ask_gap_days = fields.Integer(
        required=True, validate=validate.Range(0, 3650, error="Days between two asks: 0 to 3,650.")
    )
    contact_limit = fields.Integer(
        required=True, validate=validate.Range(1, 1000, error="Messages in 30 days: 1 to 1,000.")
    )

    @pre_load
    def tidy(self, data: Any, **_: Any) -> Any:
        """Ends of texts are no content."""
        if isinstance(data, dict):
            return {name: value.strip() if isinstance(value, str) else value for name, value in data.items()}
        return data


class CompanyState(Schema):
    """The settings as they stand."""

    version = fields.Integer()
    name = fields.String()
    sender_name = fields.String()
    sender_email = fields.String()
    reply_to = fields.String()
    postal_address = fields.String()
    colour = fields.String()
    language = fields.String()
    time_zone = fields.String()
    business_hours = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
    first_contact_hours = fields.Integer()
    fallback_owner = fields.String(allow_none=True)
    ask_gap_days = fields.Integer()
    contact_limit = fields.Integer()
    setup_done_at = fields.DateTime(allow_none=True)


class Account(Schema):
    """A customer's account."""

    id = fields.String()
    name = fields.String()
    tier = fields.String(allow_none=True)
    annual_value = fields.String(allow_none=True, metadata={"description": "A decimal as text."})
    manager_email = fields.String(allow_none=True)


class Customer(Schema):
    """A customer as they stand."""

    id = fields.String()
    version = fields.Integer()
    external_id = fields.String(allow_none=True)
    email = fields.String(allow_none=True)
    phone = fields.String(allow_none=True, metadata={"description": "E.164."})
    name = fields.String(allow_none=True)
    account = fields.Nested(Account, allow_none=True)
    language = fields.String(allow_none=True)
    time_zone = fields.String(allow_none=True)
    touchpoint = fields.String(allow_none=True)
    properties = fields.Dict(keys=fields.String(), values=fields.String())
    may_email = fields.Boolean()
    may_sms = fields.Boolean()
    email_opt_out_at = fields.DateTime(allow_none=True)
    sms_opt_out_at = fields.DateTime(allow_none=True)
    last_score = fields.Integer(allow_none=True)
    last_asked_at = fields.DateTime(allow_none=True)
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


def _checked(name: str, says: str) -> Any:
    def rule(text: str) -> Any:
        return Checks(email=addresses.email, phone=addresses.phone).clean(name, text)

    return Clean(rule, says, allow_none=True)


class CustomerInput(Schema):
    """What is known of a customer: an absent field changes nothing, null (or nothing) clears it."""

    external_id = _checked("external_id", "The external id")
    email = _checked("email", "The e-mail")
    phone = _checked("phone", "The phone number")
    name = _checked("name", "The name")
    account = _checked("account", "The account")
    account_manager = _checked("manager_email", "The account manager")
    tier = _checked("tier", "The tier")
    annual_value = _checked("annual_value", "The annual value")
    language = _checked("language", "The language")
    time_zone = _checked("time_zone", "The time zone")
    touchpoint = _checked("touchpoint", "The touchpoint")
    properties = fields.Dict(
        keys=fields.String(validate=validate.Length(1, 100)),
        values=fields.String(allow_none=True, validate=validate.Length(max=values.MAX_PROPERTY)),
        metadata={"description": "Merged by name; null removes one."},
    )

    @validates_schema
    def without_nul(self, data: Any, **_: Any) -> None:
        """PostgreSQL keeps no NUL bytes."""
        for name, value in (data.get("properties") or {}).items():
            if "\0" in name or "\0" in (value or ""):
                raise ValidationError("Contains a NUL byte.", "properties")


def split(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """A loaded `CustomerInput` as a row's values and properties."""
    found = dict(data)
    properties = found.pop("properties", None) or {}
    if "account_manager" in found:
        found["manager_email"] = found.pop("account_manager")
    return found, properties


class CustomerQuery(PageArgs):
    """Which customers to list."""

    q = fields.String(
        load_default="",
        validate=validate.Length(max=200),
        metadata={"description": "Beginnings of words of name, address, account or comments."},
    )
    external_id = fields.String(load_default=None, validate=validate.Length(max=200))
    email = fields.String(load_default=None, validate=validate.Length(max=254))
    phone = fields.String(load_default=None, validate=validate.Length(max=40))
    account_id = fields.UUID(load_default=None)


class CustomerPage(Schema):
    """One page of customers; `next` is the cursor of the one after, or null."""

    customers = fields.List(fields.Nested(Customer))
    next = fields.String(allow_none=True)


class ImportSummary(Schema):
    """An import: how far it is, what it did."""

    id = fields.String()
    file_name = fields.String()
    state = fields.String(
        metadata={"description": "uploading, waiting, running, done, stopped or failed (see `message`)."}
    )
    by = fields.String()
    region = fields.String(allow_none=True)
    started_at = fields.DateTime()
    ended_at = fields.DateTime(allow_none=True)
    total_bytes = fields.Integer(allow_none=True)
    done_bytes = fields.Integer()
    rows = fields.Integer()
    created = fields.Integer()
    updated = fields.Integer()
    unchanged = fields.Integer()
    failed = fields.Integer()
    encoding = fields.String(allow_none=True)
    delimiter = fields.String(allow_none=True)
    unknown_managers = fields.List(fields.String())
    message = fields.String(allow_none=True)


class BadLine(Schema):
    """A line that was not taken, and why."""

    line = fields.Integer()
    column = fields.String(attribute="column_name", allow_none=True)
    reason = fields.String()


class ImportRun(ImportSummary):
    """An import with its first bad lines."""

    errors = fields.List(fields.Nested(BadLine), metadata={"description": "The first 100."})


class ImportErrorPage(Schema):
    """One page of bad lines."""

    errors = fields.List(fields.Nested(BadLine))
    next = fields.String(allow_none=True)


class ImportQuery(Schema):
    """How to import."""

    region = fields.String(
        load_default=None,
        validate=validate.Regexp(r"^[A-Za-z]{2}$", error="A country is two letters, like DE."),
        metadata={"description": "Country (ISO 3166) of phone numbers without a country code."},
    )
    file_name = fields.String(load_default=None, validate=validate.Length(max=200))
    wait = fields.Boolean(
        load_default=False,
        metadata={"description": "Answer 200 with the report, if it is ready within 20 s."},
    )


class ImportPage(Schema):
    """One page of imports, newest first."""

    imports = fields.List(fields.Nested(ImportSummary))
    next = fields.String(allow_none=True)
