"""docs/format.md names the fields of every small file as the code has them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from perdure.recovery import migration_plan, takeovers
from perdure.shipping import cut, faults, install, ports, rebuild, slots, unmonitored, ways
from perdure.store import consumers, flush, identity, promise, state, switch, witness

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
KINDS: list[tuple[bytes, type[msgspec.Struct]]] = [
    (identity.MAGIC, identity.Identity),
    (promise.MAGIC, promise.Promise),
    (witness.MAGIC, witness.WitnessState),
    (flush.POISON_MAGIC, flush.Poison),
    (state.MAGIC, state.StateMarker),
    (slots.MAGIC, slots.Slot),
    (takeovers.MAGIC, takeovers.TakeoverRecord),
    (ports.MAGIC, ports.NodePorts),
    (ways.MAGIC, ways.NodeWays),
    (unmonitored.MAGIC, unmonitored.Unmonitored),
    (consumers.MAGIC, consumers.Progress),
    (cut.MAGIC, cut.CutPlan),
    (install.PLAN_MAGIC, install.InstallPlan),
    (faults.MAGIC, faults.Fault),
    (rebuild.MAGIC, rebuild.Rebuild),
    (switch.MAGIC, switch.SwitchPlan),
    (migration_plan.PLAN_MAGIC, migration_plan.MigrationPlan),
    (migration_plan.KEPT_MAGIC, migration_plan.KeptState),
]


@pytest.mark.parametrize(("magic", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_small_files_row_names_its_magic_and_all_its_fields(
    magic: bytes, kind: type[msgspec.Struct]
) -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if f"`{magic.decode()}`" in line]
    assert len(rows) == 1, f"{magic!r} stands in {len(rows)} rows"
    fields = [word.strip(" `") for word in rows[0][3].split(",")]
    assert fields == list(kind.__struct_fields__)
