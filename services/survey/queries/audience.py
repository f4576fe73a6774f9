"""Who an ask is for: everybody, a list, or a filter; checked, counted, and turned into SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.survey.domain.values import account_key
from shared.errors import Invalid
from shared.ids import is_id

AUDIENCE = "LEFT JOIN account a ON a.id = c.account_id"
# On customers that exist only because somebody sent a test message to themselves: "all" leaves them out.
TEST_PROPERTY = "test_recipient"
MAX_LISTED = 10_000
_FILTERS = ("account", "touchpoint", "property")


def check_audience(audience: Mapping[str, Any]) -> dict[str, Any]:
    """The audience in its one form: `{"all": true}`, `{"customers": [ids or external ids]}`, or any of
    `account` (name), `touchpoint`, `property` ({"name", "value"}) together.

    Raises `Invalid` when it is none of these: nobody is asked by mistake.
    """
    given = {name: value for name, value in audience.items() if value not in (None, "", [], {}, False)}
    if given.get("all"):
        if len(given) > 1:
            raise Invalid("Ask all, or choose: not both.", fields={"audience": "all stands alone"})
        return {"all": True}
    if "customers" in given:
        listed = given["customers"]
        if len(given) > 1 or not isinstance(listed, Sequence) or isinstance(listed, str):
            raise Invalid(
                "Give the customers as a list of ids.", fields={"audience.customers": "a list, alone"}
            )
        if len(listed) > MAX_LISTED:
            raise Invalid(
                f"A list has at most {MAX_LISTED:,} customers; it has {len(listed):,}.",
                fields={"audience.customers": "too long"},
            )
        return {"customers": list(dict.fromkeys(str(item) for item in listed))}
    unknown = sorted(set(given) - set(_FILTERS))
    if unknown or not given:
        raise Invalid(
            "Say who is to be asked: all, a list of customers, an account, a touchpoint or a property.",
            fields={f"audience.{unknown[0]}" if unknown else "audience": "nobody is meant by this"},
        )
    found = given.get("property")
    if found is not None and (
        not isinstance(found, Mapping) or not found.get("name") or "value" not in found
    ):
        raise Invalid("A property has a name and a value.", fields={"audience.property": "name and value"})
    return dict(given)


def audience_sql(audience: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The condition on customer `c` and account `a`, and its named arguments."""
    if audience.get("all"):
        return f"NOT c.properties ? '{TEST_PROPERTY}'", {}
    if "customers" in audience:
        listed = audience["customers"]
        return (
            "(c.id = ANY(%(listed_ids)s::uuid[]) OR c.external_id = ANY(%(listed)s))",
            {"listed_ids": [item for item in listed if is_id(item)], "listed": listed},
        )
    conditions, args = [], {}
    if "account" in audience:
        conditions.append("a.name_key = %(account)s")
        args["account"] = account_key(str(audience["account"]))
    if "touchpoint" in audience:
        conditions.append("c.touchpoint = %(at_touchpoint)s")
        args["at_touchpoint"] = str(audience["touchpoint"])
    if "property" in audience:
        conditions.append("c.properties ->> %(property)s = %(value)s")
        args |= {"property": str(audience["property"]["name"]), "value": str(audience["property"]["value"])}
    return " AND ".join(conditions), args
