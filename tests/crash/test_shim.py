"""The shim sees every call, strikes where it is told to, and orders what several processes do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.crash.programs import FAMILY_WRITES
from tests.support.faults.images import CrashImages, Shape
from tests.support.faults.ledger import History
from tests.support.faults.shim import KINDS, Rule, build_shim, most_calls
from tests.support.faults.trace import Base, Kind
from tests.support.faults.workload import Run, Workload, record, run

PROGRAMS = "tests.crash.programs:"


def lines_after(shim: Path, workdir: Path, *plan: Rule, count: int = 5) -> tuple[list[str], Run]:
    done = run(shim, Workload(PROGRAMS + "write_lines", [str(count)]), workdir / "run", plan=plan)
    path = done.store / "lines"
    return path.read_text().splitlines() if path.exists() else [], done


def test_every_call_is_counted_and_the_whole_image_equals_the_directory(shim: Path, workdir: Path) -> None:
    recording = record(shim, Workload(PROGRAMS + "use_every_call"), workdir / "run")
    assert {kind for _, kind in most_calls(recording.run.counts)} == set(KINDS)
    images = CrashImages(recording.trace)
    image = images.build(Shape(len(recording.trace.ops), "all"))
    assert image.contents == recording.final
    image.write(workdir / "image")
    assert sorted(Base.capture(workdir / "image").directories) == sorted(
        Base.capture(recording.run.store).directories
    )
    assert "outside" not in {Path(op.path).name for op in recording.trace.ops}


def test_what_stood_there_before_the_recording_is_in_every_image(shim: Path, workdir: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / "store" / "old").mkdir(parents=True)
        (folder / "store" / "lines").write_bytes(b"before\n")
        (folder / "store" / "old" / "kept").write_bytes(b"kept")

    recording = record(shim, Workload(PROGRAMS + "write_lines", prepare=prepare), workdir / "run")
    images = CrashImages(recording.trace)
    first = images.build(Shape(0, "none"))
    assert first.files == {"lines": b"before\n", "old/kept": b"kept"}
    last = images.build(Shape(len(recording.trace.ops), "none"))
    assert last.contents == recording.final


def test_a_family_of_processes_is_recorded_in_one_order(shim: Path, workdir: Path) -> None:
    recording = record(shim, Workload(PROGRAMS + "work_as_a_family"), workdir / "run")
    writes = [op for op in recording.trace.ops if op.kind is Kind.WRITE]
    assert b"".join(op.data for op in writes) == recording.final["shared"].whole()
    assert len({op.pid for op in writes}) == 3
    assert most_calls(recording.run.counts)["child", "write"] == FAMILY_WRITES
    assert most_calls(recording.run.counts)["anew", "write"] == 1


def test_a_plan_for_a_role_strikes_no_other_process(shim: Path, workdir: Path) -> None:
    plan = [Rule("write", 3, "KILL", role="child")]
    done = run(shim, Workload(PROGRAMS + "work_as_a_family"), workdir / "run", plan=plan)
    assert done.exit_code == 0
    assert done.struck == 1
    lines = (done.store / "shared").read_text().splitlines()
    assert lines.count("child") == 2
    assert lines.count("parent 2") == FAMILY_WRITES


def test_a_role_taken_through_the_c_function_is_counted_as_such(shim: Path, workdir: Path) -> None:
    done = run(shim, Workload(PROGRAMS + "change_role_by_hand"), workdir / "run")
    assert most_calls(done.counts)["renamed", "write"] == 1


@pytest.mark.parametrize(
    ("rule", "lines", "acknowledged"),
    [
        (Rule("write", 3, "KILL"), ["line 00001", "line 00002"], 2),
        (Rule("write", 3, "TORN=4"), ["line 00001", "line 00002", "line"], 2),
        (Rule("write", 3, "TORN=50%"), ["line 00001", "line 00002", "line "], 2),
        (Rule("write", 3, "KILL_AFTER"), ["line 00001", "line 00002", "line 00003"], 2),
        (Rule("sync", 3, "KILL_AFTER"), ["line 00001", "line 00002", "line 00003"], 2),
        (Rule("any", 1, "KILL", glob="li*"), [], 0),
        (Rule("write", 2, "KILL_GROUP"), ["line 00001"], 1),
    ],
    ids=str,
)
def test_a_kill_comes_at_the_planned_call_and_place(
    shim: Path, workdir: Path, rule: Rule, lines: list[str], acknowledged: int
) -> None:
    found, done = lines_after(shim, workdir, rule)
    assert (found, done.exit_code, done.struck) == (lines, -signal.SIGKILL, 1)
    assert History.of(done.acks()).acknowledged == acknowledged


@pytest.mark.parametrize(
    ("rule", "printed", "lines"),
    [
        (Rule("write", 2, "ENOSPC"), "2 ENOSPC", 4),
        (Rule("write", 2, "EIO", until=4), "2 EIO\n3 EIO\n4 EIO", 2),
        (Rule("fsync", 4, "EIO", until=0), "4 EIO\n5 EIO", 5),
        (Rule("write", 2, "ENOSPC_AFTER"), "2 ENOSPC", 5),
        (Rule("write", 2, "EINTR"), "", 5),
        (Rule("fsync", 1, "EIO", glob="other*"), "", 5),
        (Rule("write", 3, "DELAY=1000"), "3 slow", 5),
    ],
    ids=str,
)
def test_a_refusal_comes_at_the_planned_calls(
    shim: Path, workdir: Path, rule: Rule, printed: str, lines: int
) -> None:
    found, done = lines_after(shim, workdir, rule)
    said = done.output.splitlines()  # any call may be slow on a busy machine; the delayed one must be
    told = [line for line in said if not line.endswith("slow") or line == printed]
    assert ("\n".join(told), len(found), done.exit_code) == (printed, lines, 0)


def test_a_short_write_says_so(shim: Path, workdir: Path) -> None:
    found, done = lines_after(shim, workdir, Rule("write", 2, "SHORT=4"))
    assert found[1] == "lineline 00003"
    assert done.exit_code == 0


def test_a_stopped_process_times_out_and_is_ended(shim: Path, workdir: Path) -> None:
    workload = Workload(PROGRAMS + "write_lines", timeout_s=3.0)
    done = run(shim, workload, workdir / "run", plan=[Rule("write", 2, "STOP")])
    assert done.is_timed_out
    assert (done.store / "lines").read_text() == "line 00001\n"


@pytest.mark.parametrize("program", ["leave_a_child_behind", "leave_a_stranger_behind", "never_end"])
def test_no_process_outlives_its_run(shim: Path, workdir: Path, program: str) -> None:
    done = run(
        shim, Workload(PROGRAMS + program, timeout_s=3.0 if program == "never_end" else 20.0), workdir / "run"
    )
    assert done.is_timed_out == (program == "never_end")
    assert done.counts
    pids = {row.pid for row in done.counts}
    if program != "never_end":
        pids.add(int((done.store / "child").read_text()))
    for pid in pids:
        assert _is_gone(pid), f"process {pid} lives on"


def test_a_command_runs_like_a_function(shim: Path, workdir: Path) -> None:
    script = 'mkdir "$1"; echo one > "$1/file"; mv "$1/file" "$1/other"; echo done > "$2"'
    workload = Workload(argv=["sh", "-c", script, "sh", "{dir}", "{ack}"])
    recording = record(shim, workload, workdir / "run")
    image = CrashImages(recording.trace).build(Shape(len(recording.trace.ops), "all"))
    assert image.files == {"other": b"one\n"}
    assert image.contents == recording.final
    assert recording.trace.acks(len(recording.trace.ops)) == [b"done\n"]


def test_a_wrong_plan_is_refused_at_once(shim: Path, workdir: Path) -> None:
    _, done = lines_after(shim, workdir, Rule("scribble", 1, "KILL"))
    assert done.exit_code == 99
    assert "unknown kind of call: scribble:1:KILL" in done.output


def test_the_shim_is_compiled_once_per_source(tmp_path: Path, shim: Path) -> None:
    first = build_shim(tmp_path)
    made_at = first.stat().st_mtime_ns
    assert build_shim(tmp_path) == first
    assert first.stat().st_mtime_ns == made_at
    assert first.name == shim.name


def _is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return not os.path.exists(f"/proc/{pid}")
