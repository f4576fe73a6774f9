"""Specifications become SVG, once per content; the renderer is loaded when the first chart is asked for."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

_KEPT = 256
# The renderer is large and not made for many threads at once; a chart takes tens of milliseconds.
_lock = threading.Lock()
_kept: OrderedDict[str, Drawn] = OrderedDict()


def digest(spec: dict[str, Any]) -> str:
    """The name of the chart's content: the same specification has the same, any other another."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart as SVG, as it is and gzipped."""

    plain: bytes
    compressed: bytes


def svg(spec: dict[str, Any]) -> Drawn:
    """The chart. Raises `ValueError` when the specification is none that can be drawn."""
    name = digest(spec)
    with _lock:
        if name in _kept:
            _kept.move_to_end(name)
            return _kept[name]
        import vl_convert

        plain: bytes = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).encode()
        _kept[name] = Drawn(plain, gzip.compress(plain, mtime=0))
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
        return _kept[name]
