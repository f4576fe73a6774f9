"""Which column of a customer file means what: header names recognised generously."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Field → the header names that mean it, without case, accents, spaces and punctuation.
_NAMES: dict[str, str] = {
    "external_id": "externalid extid id customerid customernumber customerno clientid userid contactid crmid "
    "reference ref kundennummer kundennr kundenid idcliente numerocliente",
    "email": "email emailaddress mail mailaddress emailadresse correo correoelectronico",
    "phone": "phone phonenumber mobile mobilephone mobilenumber cell cellphone telephone tel telephonenumber "
    "telefon telefonnummer handy mobil mobiltelefon telefono movil msisdn",
    "name": "name fullname customername contactname displayname contact kundenname nombre nombrecompleto",
    "first_name": "firstname givenname vorname forename",
    "last_name": "lastname surname familyname nachname apellido apellidos",
    "account": "account accountname company companyname organisation organization customeraccount firma "
    "unternehmen empresa cuenta",
    "manager_email": "accountmanager accountmanageremail manager manageremail owner owneremail accountowner "
    "accountowneremail csm betreuer kundenbetreuer kundenbetreuerin gestor gestordecuenta",
    "tier": "tier plan segment level accounttier kundenstufe stufe nivel",
    "annual_value": "annualvalue value arr acv annualrevenue revenue annualrecurringrevenue contractvalue "
    "jahreswert jahresumsatz umsatz valoranual ingresosanuales",
    "language": "language lang locale preferredlanguage sprache idioma lengua",
    "time_zone": "timezone tz timezonename zeitzone zonahoraria",
    "touchpoint": "touchpoint journeystage kontaktpunkt puntodecontacto",
}
FIELDS: dict[str, str] = {alias: field for field, aliases in _NAMES.items() for alias in aliases.split()}

# How a field is called in reports.
LABELS = {
    "external_id": "external id",
    "email": "e-mail",
    "phone": "phone",
    "name": "name",
    "first_name": "first name",
    "last_name": "last name",
    "account": "account",
    "manager_email": "account manager",
    "tier": "tier",
    "annual_value": "annual value",
    "language": "language",
    "time_zone": "time zone",
    "touchpoint": "touchpoint",
}
MAX_COLUMNS = 200
MAX_PROPERTY_NAME = 100


class BadHeader(ValueError):
    """The first line cannot be the header of a customer file; the message says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What each column of a file is: a field of the customer, a property, or nothing.

    `fields` and `properties` map a column's position to its field or property; `labels` to what the
    file calls it.
    """

    fields: dict[int, str]
    properties: dict[int, str]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def plain(header: str) -> str:
    """A header without case, accents, spaces and punctuation."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", header) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "", bare).casefold()


def known(header: Sequence[str]) -> int:
    """How many of these column names are recognised."""
    return sum(plain(cell) in FIELDS for cell in header)


def recognise(header: Sequence[str]) -> Columns:
    """What the columns of a file mean. Raises `BadHeader` when none of them can identify a customer."""
    labels = tuple(cell.strip() for cell in header)
    if len(labels) > MAX_COLUMNS:
        raise BadHeader(f"The first line has {len(labels)} columns; at most {MAX_COLUMNS} are read.")
    fields: dict[int, str] = {}
    properties: dict[int, str] = {}
    seen: dict[str, str] = {}
    full_name = any(FIELDS.get(plain(label)) == "name" for label in labels)
    for position, label in enumerate(labels):
        if not label:
            continue
        field = FIELDS.get(plain(label))
        if full_name and field in ("first_name", "last_name"):
            field = None
        if field and field in seen and plain(label) != plain(seen[field]):
            field = None  # a second name for it ("plan" beside "tier"): the first is it, this is a property
        what = field or f"property {label}"
        if what in seen:
            raise BadHeader(
                f"Two columns are both read as {LABELS.get(what, what)}: “{seen[what]}” and “{label}”. "
                "Rename or remove one of them."
            )
        seen[what] = label
        if field:
            fields[position] = field
        elif len(label) > MAX_PROPERTY_NAME or "\0" in label:
            raise BadHeader(
                f"The name of column {position + 1} is longer than {MAX_PROPERTY_NAME} characters."
            )
        else:
            properties[position] = label
    if not {"external_id", "email", "phone"} & set(fields.values()):
        found = ", ".join(f"“{label[:40]}”" for label in labels[:12] if label) or "nothing"
        raise BadHeader(
            "No column is an external id, an e-mail or a phone number, so nobody can be told from"
            " anybody else. "
            f"The first line must name the columns; it says: {found}."
        )
    return Columns(fields, properties, labels)
