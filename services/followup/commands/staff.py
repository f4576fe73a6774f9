"""Staff: adding, changing and disabling them, passwords and absences; one enabled admin always remains."""

from __future__ import annotations

from datetime import date
from typing import Any

from email_validator import EmailNotValidError, validate_email

from services.followup.commands import owners, passwords, staff_mail
from services.followup.domain import passwords as rules
from services.followup.domain.roles import ROLES
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.events import outbox

FIRST_ADMIN = "admin"


def ensure_admin(tx: Tx) -> tuple[str, str] | None:
    """Makes the first administrator when there is no staff at all.

    Returns the login name and the one-time password, which exist nowhere else; None when there is staff.
    """
    tx.execute("SELECT pg_advisory_xact_lock(hashtext('hearback.first-admin'))")
    if tx.value("SELECT 1 FROM staff LIMIT 1"):
        return None
    password = passwords.random_one_time()
    _insert(tx, FIRST_ADMIN, "Administrator", "admin", password)
    return FIRST_ADMIN, password


def add(tx: Tx, key: bytes, *, email: str, name: str, role: str) -> tuple[str, str]:
    """Adds a staff member and mails them how to log in; returns their id and one-time password.

    `key` is the settings' key for "one-time-password". Raises `Invalid` for a bad field, `Conflict`
    when the e-mail has a login already.
    """
    email, name = _checked(email, name, role)
    if tx.value("SELECT 1 FROM staff WHERE email = %s", (email,)):
        raise Conflict("This e-mail address has a login already.", fields={"email": "has a login already"})
    nonce = tx.ids.token()
    password = passwords.one_time_of(key, nonce)
    row = _insert(tx, email, name, role, password)
    staff_mail.queue(tx, "welcome", row["id"], row["id"], {"nonce": nonce})
    owners.find_owners(tx)
    return row["id"], password


def change(tx: Tx, staff_id: str, *, name: str, role: str) -> Row:
    """Changes name and role. A new role ends their sessions, so that no page shows the old one's."""
    row = _lock(tx, staff_id)
    _, name = _checked(None, name, role)
    if (row["name"], row["role"]) == (name, role):
        return row
    _keep_an_admin(row, role=role)
    row = _update(tx, staff_id, new_epoch=role != row["role"], name=name, role=role)
    if role == "viewer":
        owners.leave(tx, staff_id, "is not an account manager any more")
    else:
        owners.owner_changed(tx, staff_id)
        owners.find_owners(tx)
    return row


def disable(tx: Tx, staff_id: str) -> Row:
    """Ends a login at once; their open tasks go to whoever is next in line."""
    row = _lock(tx, staff_id)
    if row["disabled"]:
        return row
    _keep_an_admin(row, role=None)
    row = _update(tx, staff_id, new_epoch=True, disabled=True)
    owners.leave(tx, staff_id, "has no login any more")
    return row


def enable(tx: Tx, staff_id: str) -> Row:
    """Gives a disabled login back; the old password holds."""
    row = _lock(tx, staff_id)
    if not row["disabled"]:
        return row
    row = _update(tx, staff_id, disabled=False)
    owners.find_owners(tx)
    return row


def reset_password(tx: Tx, key: bytes, staff_id: str) -> str:
    """A new one-time password, shown once by the caller and mailed; ends their sessions."""
    _lock(tx, staff_id)
    nonce = tx.ids.token()
    password = passwords.one_time_of(key, nonce)
    _update(tx, staff_id, new_epoch=True, password_hash=passwords.hashed(password), must_change_password=True)
    staff_mail.queue(tx, "reset", staff_id, staff_id, {"nonce": nonce})
    return password


def set_own_password(
    tx: Tx,
    staff_id: str,
    *,
    current: str,
    new: str,
    again: str,
    email: str | None = None,
    name: str | None = None,
) -> Row:
    """Changes one's own password (typed twice) and ends all other sessions; the caller signs a new cookie.

    The first administrator gives `email` and `name` along. Raises `Invalid` naming the field.
    """
    row = _lock(tx, staff_id)
    fields: dict[str, str] = {}
    if not passwords.matches(row["password_hash"], current):
        fields["current"] = "This is not your present password."
    first = row["email"] == FIRST_ADMIN
    if first:
        try:
            email, name = _checked(email or "", name or "", row["role"])
        except Invalid as error:
            fields |= error.fields
        if not fields.get("email") and tx.value("SELECT 1 FROM staff WHERE email = %s", (email,)):
            fields["email"] = "This e-mail address has a login already."
    else:
        email, name = row["email"], row["name"]
    wrong = rules.problem(new, [email or "", (email or "").split("@")[0], name or ""])
    if wrong is None and new == current:
        wrong = "This is the password you have now. Choose another."
    if wrong:
        fields["new"] = wrong
    elif new != again:
        fields["again"] = "This is not the same as above."
    if fields:
        raise Invalid("The password was not changed.", fields=fields)
    row = _update(
        tx,
        staff_id,
        new_epoch=True,
        password_hash=passwords.hashed(new),
        must_change_password=False,
        email=email,
        name=name,
    )
    if first:
        owners.owner_changed(tx, staff_id)
        owners.find_owners(tx)
    return row


def log_out_everywhere(tx: Tx, staff_id: str) -> Row:
    """Ends all sessions of a staff member, the caller's own included."""
    _lock(tx, staff_id)
    return _update(tx, staff_id, new_epoch=True)


def set_absence(
    tx: Tx, staff_id: str, *, absent_from: date | None, absent_until: date | None, deputy_id: str | None
) -> Row:
    """Sets from when until when (both included) somebody is away and who stands in; None ends it.

    Tasks that wait for a call go to the deputy when the absence begins.
    """
    _lock(tx, staff_id)
    fields: dict[str, str] = {}
    if absent_from is None:
        absent_until = deputy_id = None
    elif absent_until is not None and absent_until < absent_from:
        fields["absent_until"] = "The last day is before the first."
    if deputy_id == staff_id:
        fields["deputy_id"] = "Nobody can stand in for themselves."
    elif deputy_id and not tx.value(
        "SELECT 1 FROM staff WHERE id = %s AND NOT disabled AND role <> 'viewer'", (deputy_id,)
    ):
        fields["deputy_id"] = "This person cannot take owners."
    if fields:
        raise Invalid("The absence was not saved.", fields=fields)
    row = _update(tx, staff_id, absent_from=absent_from, absent_until=absent_until, deputy_id=deputy_id)
    owners.hand_to_deputies(tx)
    return row


def event_of(row: Row) -> dict[str, Any]:
    """The data of `staff.changed`: never a password, hashed or not."""
    return {
        "id": row["id"],
        "email": row["email"],
        "name": row["name"],
        "role": row["role"],
        "disabled": row["disabled"],
        "epoch": row["epoch"],
    }


def _insert(tx: Tx, email: str, name: str, role: str, password: str) -> Row:
    row = tx.one(
        """INSERT INTO staff (id, version, email, name, role, disabled, epoch, password_hash,
                              must_change_password, created_at)
           VALUES (%s, 1, %s, %s, %s, false, 1, %s, true, %s) RETURNING *""",
        (tx.ids.new(), email, name, role, passwords.hashed(password), tx.now),
    )
    assert row is not None  # noqa: S101 - for the type checker
    outbox.append(tx, "staff.changed", row["id"], row["version"], event_of(row))
    return row


def _lock(tx: Tx, staff_id: str) -> Row:
    # The enabled admins are locked along, in order: two admins who disable each other at the same
    # moment must not both succeed.
    rows = tx.all(
        """SELECT * FROM staff WHERE id = %s OR (role = 'admin' AND NOT disabled)
           ORDER BY id FOR NO KEY UPDATE""",
        (staff_id,),
    )
    for row in rows:
        if row["id"] == staff_id:
            row["other_admins"] = sum(
                1 for r in rows if r["id"] != staff_id and r["role"] == "admin" and not r["disabled"]
            )
            return row
    raise NotFound("There is no such person here.")


def _keep_an_admin(row: Row, *, role: str | None) -> None:
    if row["role"] == "admin" and not row["disabled"] and role != "admin" and not row["other_admins"]:
        raise Conflict(
            f"{row['name']} is the only administrator. Make somebody else one first.", slug="last-admin"
        )


def _update(tx: Tx, staff_id: str, *, new_epoch: bool = False, **columns: Any) -> Row:
    sets = "".join(f", {name} = %({name})s" for name in columns)
    row = tx.one(
        f"""UPDATE staff SET version = version + 1, epoch = epoch + %(rise)s {sets}
            WHERE id = %(id)s RETURNING *""",  # noqa: S608 (column names are this module's own)
        {**columns, "id": staff_id, "rise": 1 if new_epoch else 0},
    )
    assert row is not None  # noqa: S101 - for the type checker
    outbox.append(tx, "staff.changed", row["id"], row["version"], event_of(row))
    return row


def _checked(email: str | None, name: str, role: str) -> tuple[str, str]:
    fields: dict[str, str] = {}
    if email is not None:
        try:
            email = validate_email(
                email.strip(), check_deliverability=False, test_environment=True
            ).normalized.casefold()
        except EmailNotValidError as error:
            fields["email"] = f"This is not an e-mail address. {error}"
    name = " ".join(name.split())
    if not name:
        fields["name"] = "Customers' messages and colleagues' lists show this name: please give one."
    elif len(name) > 100:
        fields["name"] = "Use at most 100 characters."
    if role not in ROLES:
        fields["role"] = f"Choose one of {', '.join(ROLES)}."
    if fields:
        raise Invalid("This was not saved.", fields=fields)
    return email or "", name
