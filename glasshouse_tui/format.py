"""Format numbers, times and texts for display. Unknown values are an en dash, never zero."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

_GPU_NOISE: Final = re.compile(r"\b(NVIDIA|GeForce|Blackwell|\d+GB|HBM\d\w*)\b ?")
DASH: Final = "\u2013"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNNAMED_FIELDS: Final = ("segment", "state", "status", "reason", "message", "text")


def count(value: int | None) -> str:
    """Thousands with commas."""
    return DASH if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Steps per second with three significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def loss(value: float | None) -> str:
    """A loss with four decimals, or in scientific notation where those would be zeros."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3e}"


def duration(seconds: float | None) -> str:
    """Seconds as `4.2 s`, `42 s`, `12m 03s`, `3h 04m` or `2d 03h`."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR:02d}h"


def percent(value: float | None, *, signed: bool = True) -> str:
    """A percentage with two decimals and a true minus sign; `+0.86 %`."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = round(value, 2) or 0.0
    sign = "\u2212" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):.2f} %"


def slack(value: float | None) -> str:
    """By how much an overhead could be off with step times that no clock contradicts; `timing slack ±2.90 %`."""
    return f"timing slack {'unknown' if value is None else f'±{value:.2f} %'}"


def whole_percent(part: float | None) -> str:
    """A fraction from 0 to 1 as whole percent; 100 only if it is complete."""
    if part is None:
        return DASH
    return f"{min(100, math.floor(part * 100 + 1e-9)):d} %"


def money(value: float | None, unit: str = "") -> str:
    """US dollars with cents: `$0.35/h` for the unit `/h`."""
    return DASH if value is None else f"${value:,.2f}{unit}"


def short_id(run_id: str) -> str:
    """The first eight characters; the store resolves any unique prefix. A published row's id stays whole."""
    return run_id if run_id.startswith("pub-") else run_id[:8]


def gpu(name: str | None) -> str:
    """A GPU's model without the vendor's common prefixes and memory size."""
    return DASH if not name else plain(_GPU_NOISE.sub("", name).strip(), 40)


def model(name: str) -> str:
    """A model's name without its owner."""
    return plain(name.rpartition("/")[2], 60)


def digest(value: str | None) -> str:
    """The first twelve characters of a digest."""
    return DASH if not value else f"{value[:12]}…"


def parse_time(value: str | None) -> datetime | None:
    """An aware UTC time from RFC 3339, or None if `value` is not one."""
    if not value:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def seconds_between(earlier: str | None, later: str | datetime | None) -> float | None:
    """Seconds from one time to another, or None if either is unknown."""
    start = parse_time(earlier)
    end = later if isinstance(later, datetime) else parse_time(later)
    return None if start is None or end is None else (end - start).total_seconds()


def clock(value: str | None) -> str:
    """Local time of day, `14:03:22`."""
    parsed = parse_time(value)
    return DASH if parsed is None else f"{parsed.astimezone():%H:%M:%S}"


def day(value: str | None) -> str:
    """Local date, `2026-05-17`."""
    parsed = parse_time(value)
    return DASH if parsed is None else f"{parsed.astimezone():%Y-%m-%d}"


def moment(value: str | None) -> str:
    """Local date and time to the minute, `2026-05-17 14:03`."""
    parsed = parse_time(value)
    return DASH if parsed is None else f"{parsed.astimezone():%Y-%m-%d %H:%M}"


def zone(at: datetime) -> str:
    """The name of the local zone at that time."""
    return at.astimezone().tzname() or "local"


def plain(text: str, limit: int = 400) -> str:
    """One line without control characters, cut at `limit` characters: safe to display whatever its origin."""
    kept = text[: limit + 1]
    line = "".join(char if char.isprintable() else "·" for char in kept)
    return line if len(kept) <= limit else f"{line[:limit]}…"


def words(name: str) -> str:
    """An identifier as words: `same_allocation` and `same-allocation` become `same allocation`."""
    return plain(name).replace("_", " ").replace("-", " ")


def brief(body: dict[str, Any], limit: int = 200) -> str:
    """The short scalar fields of an event, separated by dots; self-explanatory ones unnamed, blobs left out."""
    parts: list[str] = []
    for key, value in sorted(body.items(), key=_unnamed_first):
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        elif isinstance(value, float):
            shown = f"{value:.4g}"
        elif isinstance(value, int):
            shown = f"{value:,}"
        elif isinstance(value, str) and value:
            shown = f"{value[:12]}…" if len(value) > 80 or _is_digest(value) else plain(value, 80)
        else:
            continue
        parts.append(shown if key in _UNNAMED_FIELDS else f"{plain(key, 24)} {shown}")
    return plain(" · ".join(parts), limit)


def _unnamed_first(item: tuple[str, Any]) -> int:
    return _UNNAMED_FIELDS.index(item[0]) if item[0] in _UNNAMED_FIELDS else len(_UNNAMED_FIELDS)


def _is_digest(value: str) -> bool:
    return len(value) in (40, 64) and all(char in "0123456789abcdef" for char in value)


def controls_text(enforcement: Mapping[str, str]) -> str:
    """How many controls the evidence reports as enforced, and the others by name: `11 of 12 enforced; yama absent`."""
    others = [f"{name} {value}" for name, value in enforcement.items() if value != "enforced"]
    enforced = f"{len(enforcement) - len(others)} of {len(enforcement)} enforced"
    return "; ".join([enforced, *others])


def environment_text(environment: Mapping[str, Any]) -> str:
    """The source of an allocation's Python and the time it took: `lock linux-x86_64.txt, installed in 73 s`."""
    source, seconds = environment.get("source"), environment.get("seconds")
    if source == "own":
        return "this machine's own"
    took = "" if not isinstance(seconds, int | float) else f" in {seconds:.0f} s"
    if source == "image":
        text = f"from the image, checked{took}"
    elif environment.get("installed"):
        text = f"lock {environment.get('lock')}, installed{took}"
    else:
        text = f"lock {environment.get('lock')}, already installed"
    size = environment.get("bytes")
    if not isinstance(size, int):
        return text
    return f"{text}; {environment.get('files')} files, {size / 1e9:.1f} GB measured"
