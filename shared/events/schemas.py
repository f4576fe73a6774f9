"""What each event says: one strict marshmallow schema per shape; a field it does not know is refused."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from shared.events import fields as f

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = validate.Regexp(r"^\d\d:\d\d$", error="not HH:MM")


class Company(Schema):
    """The settings that messages and deadlines need."""

    name = f.text()
    sender_name = f.text()
    sender_email = f.text()
    reply_to = f.text()
    postal_address = f.text()
    colour = f.text()
    language = f.text()
    time_zone = f.text()
    business_hours = fields.Dict(
        keys=fields.String(validate=validate.OneOf(_DAYS)),
        values=fields.List(fields.String(validate=_CLOCK), validate=validate.Length(equal=2)),
        required=True,
    )
    first_contact_hours = f.whole()
    fallback_owner = f.text_or_none()
    ask_gap_days = f.whole()
    contact_limit = f.whole()


class Program(Schema):
    """One recommend question."""

    id = f.id_()
    name = f.text()
    touchpoint = f.text()
    channels = fields.List(fields.String(validate=validate.OneOf(f.CHANNELS)), required=True)
    wording = fields.Dict(keys=fields.String(), values=fields.Dict(keys=fields.String()), required=True)
    answer_days = f.whole(1)
    state = f.one_of("active", "paused")


class Customer(Schema):
    """A customer's full state."""

    id = f.id_()
    external_id = f.text_or_none()
    email = f.text_or_none()
    phone = f.text_or_none()
    name = f.text_or_none()
    account = f.account()
    language = f.text_or_none()
    time_zone = f.text_or_none()
    touchpoint = f.text_or_none()
    properties = f.mapping()
    may_email = f.flag()
    may_sms = f.flag()
    email_opt_out_at = f.at_or_none()
    sms_opt_out_at = f.at_or_none()
    created_at = f.at()
    updated_at = f.at()


class InvitationSent(Schema):
    """An invitation that was handed to a provider."""

    invitation_id = f.id_()
    customer_id = f.id_()
    program_id = f.id_()
    program_name = f.text()
    touchpoint = f.text()
    channel = f.one_of(*f.CHANNELS)
    account_id = f.id_or_none()
    delivery_id = f.id_()
    created_at = f.at()
    sent_at = f.at()
    expires_at = f.at()
    test = f.flag()


class InvitationSkipped(Schema):
    """A recorded decision not to ask; `invitation_id` when it had been made already."""

    skip_id = f.id_()
    invitation_id = f.id_or_none()
    customer_id = f.id_()
    program_id = f.id_()
    program_name = f.text()
    touchpoint = f.text()
    account_id = f.id_or_none()
    reason = f.text()
    at = f.at()


class InvitationExpired(Schema):
    """An invitation whose answer is not accepted any more."""

    invitation_id = f.id_()
    customer_id = f.id_()
    at = f.at()


class Response(Schema):
    """An answer as it stands in this version; without contact data."""

    response_id = f.id_()
    invitation_id = f.id_()
    customer_id = f.id_()
    program_id = f.id_()
    program_name = f.text()
    touchpoint = f.text()
    channel = f.one_of(*f.CHANNELS)
    score = f.score()
    band = f.one_of(*f.BANDS)
    comment = f.text_or_none()
    callback = f.one_of_or_none("please", "dont")
    account = f.account()
    language = f.text_or_none()
    time_zone = f.text_or_none()
    answered_at = f.at()
    revised_at = f.at()
    source = f.one_of("page", "sms", "api")
    state = f.one_of("counted", "quarantined", "excluded")
    test = f.flag()


class ResponseExcluded(Response):
    """An answer that was taken out of every count, or put back (`excluded` is false)."""

    excluded = f.flag()
    reason = f.text_or_none()
    by = f.text_or_none()
    at = f.at()


class ResponseUnconfirmed(Schema):
    """A score clicked in a message that no person confirmed."""

    invitation_id = f.id_()
    customer_id = f.id_()
    program_id = f.id_()
    program_name = f.text()
    touchpoint = f.text()
    channel = f.one_of(*f.CHANNELS)
    account = f.account()
    score = f.score()
    band = f.one_of(*f.BANDS)
    clicked_at = f.at()


class DeliveryReported(Schema):
    """What the provider said of one message."""

    delivery_id = f.id_()
    kind = f.one_of("invitation", "notice", "reply")
    ref_id = f.id_()
    customer_id = f.id_()
    channel = f.one_of(*f.CHANNELS)
    state = f.one_of("delivered", "bounced", "complained", "failed")
    reason = f.text_or_none()
    at = f.at()


class MessageReceived(Schema):
    """A text from a customer that answers no invitation."""

    message_id = f.id_()
    customer_id = f.id_()
    account_id = f.id_or_none()
    channel = f.one_of(*f.CHANNELS)
    text = f.text()
    at = f.at()


class Task(Schema):
    """A callback task's full state."""

    task_id = f.id_()
    state = f.one_of("open", "resolved", "withdrawn")
    account_id = f.id_or_none()
    customer_id = f.id_()
    customer_ids = f.ids()
    response_ids = f.ids()
    owner_id = f.id_or_none()
    owner_name = f.text_or_none()
    owner_email = f.text_or_none()
    opened_at = f.at()
    due_at = f.at()
    call_by = f.at_or_none()
    first_contact_at = f.at_or_none()
    contacted_at = f.at_or_none()
    dont_call = f.flag()
    call_please = f.flag()
    lowest_score = f.score()
    theme_id = f.id_or_none()
    theme = f.text_or_none()
    outcome = f.text_or_none()
    resolved_at = f.at_or_none()
    escalated_at = f.at_or_none()
    withdrawn_reason = f.text_or_none()
    reopened = f.flag()
    at = f.at()


class Change(Schema):
    """Something the company changed, and how many will hear of it."""

    change_id = f.id_()
    title = f.text()
    was_wrong = f.text()
    is_different = f.text()
    language = f.text()
    themes = fields.List(fields.Nested(f.Theme), required=True)
    published_at = f.at_or_none()
    published_by = f.text_or_none()
    audience_count = f.whole()
    withdrawn_at = f.at_or_none()


class _Notice(Schema):
    notice_id = f.id_()
    change_id = f.id_()
    customer_id = f.id_()
    response_id = f.id_or_none()
    channel = f.one_of_or_none(*f.CHANNELS)
    delivery_id = f.id_or_none()
    quote = f.text_or_none()
    sent_at = f.at_or_none()
    reason = f.text_or_none()
    helped = f.flag_or_none()
    helped_at = f.at_or_none()
    at = f.at()


class NoticeSent(_Notice):
    """A notice that was handed to a provider."""


class NoticeSkipped(_Notice):
    """A notice that was not sent, with its reason."""


class NoticeAnswered(_Notice):
    """A notice whose reader said whether it helped."""


class Staff(Schema):
    """A staff member without their password."""

    id = f.id_()
    email = f.text()
    name = f.text()
    role = f.one_of(*f.ROLES)
    disabled = f.flag()
    epoch = f.whole()


class ApiKey(Schema):
    """An API key; `hash` is the SHA-256 of the key in hex."""

    id = f.id_()
    name = f.text()
    hash = fields.String(
        required=True, validate=validate.Regexp(r"^[0-9a-f]{64}$", error="not a SHA-256 in hex")
    )
    scopes = f.texts()
    disabled = f.flag()
    created_by = f.id_or_none()
