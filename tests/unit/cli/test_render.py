"""How values look to people: moments as date and time, everything else as it is."""

from __future__ import annotations

import pytest

from perdure.cli import render

AT_MS = 1_700_000_000_123
AT = "2023-11-14T22:13:20.123+00:00"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("expires_at", AT_MS, AT),
        ("last_failover", {"epoch": 2, "at_ms": AT_MS}, f"epoch 2, at_ms {AT}"),
        ("expires_at", None, "-"),
        ("last_seen_ms", 0, "0"),
        ("at_ms", 1 << 63, f"{1 << 63:,}"),
        ("timeout_ms", 1_800_000, "1,800,000"),
        ("metadata", {"created_at": AT_MS}, f"created_at {AT_MS:,}"),
    ],
)
def test_moments_are_shown_as_date_and_time_and_what_metadata_hold_is_not(
    name: str, value: object, shown: str
) -> None:
    assert render.field(name, value) == shown
