"""Rules of customer data: who a row is about, what columns and cells mean, how files are taken apart."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.survey import addresses
from services.survey.domain import columns, csvrows, hours, identity, rows, values
from services.survey.domain.columns import BadHeader
from services.survey.domain.identity import KEYS, Clash
from services.survey.domain.values import BadValue

CHECKS = addresses.checks()


# A busy machine is no finding.
patient = settings(deadline=None)

# --- identity -------------------------------------------------------------------------------------------

some_key = st.none() | st.sampled_from("abc")
keys = st.fixed_dictionaries(dict.fromkeys(KEYS, some_key))


def distinct(customers: list[dict[str, Any]]) -> bool:
    """As the database has them: no key twice, everybody has one."""
    used = [(key, customer[key]) for customer in customers for key in KEYS if customer[key]]
    return len(used) == len(set(used)) and all(any(customer.values()) for customer in customers)


@patient
@given(keys, st.lists(keys, max_size=4).filter(distinct), st.randoms())
def test_a_row_is_about_one_customer_whatever_their_order_or_clashes(
    row: Any, known: Any, random: Any
) -> None:
    def outcome(candidates: list[dict[str, Any]]) -> Any:
        try:
            return identity.match(row, candidates)
        except Clash as clash:
            return clash.reason

    found = outcome(known)
    shuffled = list(known)
    random.shuffle(shuffled)
    assert outcome(shuffled) == found
    sharing = [c for c in known if any(row[key] and row[key] == c[key] for key in KEYS)]
    if len(sharing) > 1:
        assert "two customers" in found
    elif not sharing:
        assert found is None
    else:
        both = [key for key in KEYS if row[key] and sharing[0][key]]
        strongest_agrees = row[both[0]] == sharing[0][both[0]]
        assert (found == sharing[0]) == strongest_agrees


@patient
@given(keys, keys)
def test_a_match_never_changes_a_stronger_key_by_a_weaker_one(row: Any, customer: Any) -> None:
    try:
        found = identity.match(row, [customer])
    except Clash:
        return
    if found is not None:
        first = next(key for key in KEYS if row[key] and customer[key])
        assert row[first] == customer[first]


# --- columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("E-Mail Address", "email"),
        ("EMAIL", "email"),
        ("external_id", "external_id"),
        ("Kundennummer", "external_id"),
        ("Mobile phone", "phone"),
        ("Account  Manager", "manager_email"),
        ("Account-Owner", "manager_email"),
        ("Correo electrónico", "email"),
        ("Teléfono", "phone"),
        ("annual_value", "annual_value"),
        ("Time Zone", "time_zone"),
        ("TouchPoint", "touchpoint"),
        ("Tier", "tier"),
        ("Company", "account"),
        ("Sprache", "language"),
    ],
)
def test_headers_are_recognised_generously(header: str, field: str) -> None:
    found = columns.recognise(["id", header] if field != "external_id" else [header])
    assert field in found.fields.values()


def test_what_is_not_known_is_a_property_and_nameless_columns_are_left_out() -> None:
    found = columns.recognise(["id", "Shoe size", "", "Plan B"])
    assert found.properties == {1: "Shoe size", 3: "Plan B"}
    assert len(found) == 4


def test_first_and_last_name_make_the_name_unless_there_is_one() -> None:
    assert set(columns.recognise(["id", "First name", "Last name"]).fields.values()) >= {
        "first_name",
        "last_name",
    }
    found = columns.recognise(["id", "Name", "First name"])
    assert found.properties == {2: "First name"}


@pytest.mark.parametrize("header", [["name"], [""], ["email", "E-mail"], ["id", "x", "x"], ["id"] * 300])
def test_a_header_that_cannot_be_right_is_refused(header: list[str]) -> None:
    with pytest.raises(BadHeader):
        columns.recognise(header)


# --- cells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1.234,56", "1234.56"),
        ("€1,234.56", "1234.56"),
        ("1 234,5 €", "1234.5"),
        ("1'234.50 CHF", "1234.5"),
        ("1,234", "1234"),
        ("1.234", "1234"),
        ("1,23", "1.23"),
        ("1.234.567", "1234567"),
        ("12", "12"),
        ("0", "0"),
        ("USD 1,000,000.00", "1000000"),
        ("$5", "5"),
        ("12\u00a0000", "12000"),
        ("1234.5", "1234.5"),
    ],
)
def test_money_is_read_as_people_write_it(text: str, amount: str) -> None:
    assert values.money(text) == Decimal(amount)


@pytest.mark.parametrize(
    "text", ["-1", "(5)", "abc", "1,2,3", "1.2.3,4,5", "12.345,678", "9" * 13, "", "1e5", "."]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        values.money(text)


@patient
@given(
    st.decimals(0, 10**9, places=2),
    st.sampled_from([(",", "."), (".", ","), (" ", ","), ("'", "."), ("", ".")]),
)
def test_money_survives_every_usual_notation(amount: Decimal, marks: tuple[str, str]) -> None:
    thousands, decimal = marks
    written = f"{amount:,.2f}".replace(",", "T").replace(".", decimal).replace("T", thousands)
    assert values.money(written) == amount


@patient
@given(st.text(max_size=30))
def test_any_text_gives_a_value_or_a_reason(text: str) -> None:
    for name in values.MAX:
        try:
            CHECKS.clean(name, text)
        except BadValue as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "tag"),
    [("DE", "de"), ("de_DE", "de-de"), ("pt-BR", "pt-br"), ("German", "de"), ("Español", "es")],
)
def test_languages_are_tags_or_names(text: str, tag: str) -> None:
    assert values.language(text) == tag


def test_time_zones_are_found_whatever_their_case() -> None:
    assert values.time_zone("europe/berlin") == "Europe/Berlin"
    assert values.time_zone("America/New York") == "America/New_York"
    with pytest.raises(BadValue):
        values.time_zone("Berlin")


@pytest.mark.parametrize(
    ("text", "region", "number"),
    [
        ("+49 (0)30 123456", None, "+4930123456"),
        ("+1 415-555-0123", None, "+14155550123"),
        ("030 123456", "DE", "+4930123456"),
        ("0044 20 7946 0000", "DE", "+442079460000"),
        ("+34600111222", "DE", "+34600111222"),
    ],
)
def test_phones_become_e164(text: str, region: str | None, number: str) -> None:
    assert addresses.phone(text, region) == number


@pytest.mark.parametrize("text", ["030 123456", "+", "abc", "+49", "+1 415 555 0123 ext. 7", "+999 1234567"])
def test_what_is_no_full_number_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        addresses.phone(text)


@pytest.mark.parametrize("text", ["a@b.co", "A.B+c@Sub.Example.com", "ü@exämple.de", "o'neil@example.org"])
def test_addresses_are_kept_with_their_domain_in_lower_case(text: str) -> None:
    assert addresses.email(text).rpartition("@")[2] == text.rpartition("@")[2].lower()


@pytest.mark.parametrize(
    "text", ["a", "a@", "@b.co", "a b@c.de", "a@b", "a..b@c.de", "a@-b.de", f"{'a' * 65}@b.co", "a@b.local"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        addresses.email(text)


def test_an_address_is_remembered_by_each_key_and_channel_apart() -> None:
    of = addresses.fingerprints([b"old", b"new"])
    assert of("email", "Ann@example.com") == of("email", "ann@EXAMPLE.com")
    assert len({*of("email", "x"), *of("sms", "x")}) == 4


# --- files ----------------------------------------------------------------------------------------------

cell = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\"',;"), max_size=12)
table = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cell, min_size=n, max_size=n), max_size=8))


@patient
@given(table, st.sampled_from(csvrows.DELIMITERS))
def test_every_well_formed_file_is_read_as_it_was_written(written: list[list[str]], delimiter: str) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(written)
    found = list(csvrows.records(io.StringIO(out.getvalue(), newline=""), delimiter))
    assert [record.problem for record in found if record.problem] == []
    assert [record.cells for record in found] == [row for row in written if any(c.strip() for c in row)]


@patient
@given(st.lists(st.text('ab",;\n\r\0', max_size=8), max_size=12))
def test_whatever_is_in_a_file_each_line_is_accounted_for_once(lines: list[str]) -> None:
    text = "\n".join(lines)
    found = list(csvrows.records(io.StringIO(text, newline=""), ","))
    spans = [(record.line, record.last_line) for record in found]
    assert all(first <= last for first, last in spans)
    assert all(before[1] < after[0] for before, after in pairwise(spans))


def test_a_quote_that_is_never_closed_costs_its_own_line_only() -> None:
    text = 'a,b\n1,"open\n' + "".join(f"{n},x\n" for n in range(2, 500))
    found = list(csvrows.records(io.StringIO(text, newline=""), ","))
    assert [(record.line, record.problem) for record in found if record.problem] == [
        (2, "a quotation mark is opened and never closed")
    ]
    assert len(found) == 500


def test_an_endless_line_is_left_out_and_reading_goes_on() -> None:
    text = "1,a\n2," + "x" * (csvrows.MAX_LINE_CHARS * 3) + "\n3,c\n"
    found = list(csvrows.records(io.StringIO(text, newline=""), ","))
    assert [(record.line, bool(record.problem)) for record in found] == [(1, False), (2, True), (3, False)]


@patient
@given(st.text(st.characters(codec="cp1252", exclude_categories=["Cc"]), min_size=1))
def test_western_files_are_never_misread_as_another_alphabet(text: str) -> None:
    line = f"id,name\n1,{text}\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        found = csvrows.sniff_encoding(io.BytesIO(line.encode(encoding)))
        assert csvrows.open_text(io.BytesIO(line.encode(encoding)), found).read() == line


def test_rows_say_where_they_are_wrong() -> None:
    known = columns.recognise(["Kundennr", "Mail", "Note"])
    for cells, column in (
        (["1", "nope", ""], "Mail"),
        (["", "", "x"], None),
        (["1"], None),
        (["1", "", "x" * 3000], "Note"),
    ):
        with pytest.raises(rows.BadRow) as caught:
            rows.read(csvrows.Record(7, 7, cells), known, CHECKS)
        assert (caught.value.line, caught.value.column) == (7, column)
    row = rows.read(csvrows.Record(7, 7, ["1", " ", " n ", ""]), known, CHECKS)
    assert (row.values, row.properties) == ({"external_id": "1"}, {"Note": "n"})


# --- business hours -------------------------------------------------------------------------------------

clock = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")
week = st.dictionaries(
    st.sampled_from(hours.DAYS), st.lists(clock, min_size=2, max_size=2, unique=True).map(sorted), min_size=1
)


@patient
@given(week)
def test_hours_are_read_as_they_are_written(given_: dict[str, list[str]]) -> None:
    assert hours.parse(hours.text(given_)) == given_


@pytest.mark.parametrize(
    "text",
    ["", "never", "mon 9-17", "mon 17:00-09:00", "mon 09:00-10:00, mon 11:00-12:00", "xyz 09:00-10:00"],
)
def test_hours_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        hours.parse(text)


def test_a_second_name_of_a_field_becomes_a_property() -> None:
    found = columns.recognise(["external id", "Tier", "plan", "phone", "mobile"])

    assert found.fields == {0: "external_id", 1: "tier", 3: "phone"}
    assert found.properties == {2: "plan", 4: "mobile"}
