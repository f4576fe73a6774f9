"""Loads what the program loads, so that Python compiles it; fails where the image lacks any of it.

Only for building the image: a container cannot write what it compiles.
"""

from __future__ import annotations

import importlib
import pkgutil
from datetime import UTC, datetime

import babel.dates
import phonenumbers
import twilio.rest
import vl_convert
from babel import Locale

import services
import shared
from services.survey.words import LANGUAGES
from shared.web.assets import assets, icon

for package in (shared, services):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # These do their work when they are loaded.
        if not module.name.endswith("__main__") and ".migrations" not in module.name:
            importlib.import_module(module.name)

# What is loaded only where it is used.
now = datetime.now(UTC)
for language in LANGUAGES:
    babel.dates.format_date(now, "long", locale=language)
    babel.dates.format_time(now, "short", locale=language)
    assert Locale(language).territories  # noqa: S101
assert assets() and icon("search")  # noqa: S101
phonenumbers.parse("+14155550100", None)
twilio.rest.Client("AC0", "0").messages  # noqa: B018
vl_convert.vegalite_to_svg({"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {}})
importlib.import_module("alembic.command")
importlib.import_module("sqlalchemy.dialects.postgresql.psycopg2")
