"""The engines that Erlang programs keep sessions in, driven by an escript within their virtual machine.

Owns the virtual machines and how they are spoken to; what a session is there, and each call, stands in
sessions.escript. Nodes that form a pair find each other by an epmd of their own, all on loopback.

| engine | what it is | class |
|---|---|---|
| ets | a public table with read and write concurrency; updates by several callers are not atomic | none |
| ets-server | the table's owner, a gen_server, makes all changes; reads go to the table | none |
| dets | one file; it delays writes, and a kill leaves a file to be repaired | none |
| | with `sync` after each change | disk |
| mnesia | disc_copies, a transaction each change, dirty reads; its log is buffered | none |
| | with `sync_log` after each change | disk |
| mnesia-two | disc_copies on two nodes, `sync_transaction`: both have committed before the answer | two |
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from array import array
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from .embedded import allocated_bytes
from .ports import Driver, DriverCase, DriverRun, Driving, Durability, PairDriving
from .processes import ServerError, ServerProcess, await_end, ending_with_us, family, free_port, run_once

_SCRIPT = Path(__file__).with_name("sessions.escript")
_ANSWER_S = 300.0
_SYNCED = (Durability.DISK,)
_HOST = "127.0.0.1"
_OTP_VERSION = '[erlang:system_info(otp_release), ", erts ", erlang:system_info(version)]'
_WHERE_IT_IS = 'case code:lib_dir({}) of {{error, _}} -> "nowhere"; Path -> Path end'


class Erlang:
    """One engine on one node."""

    def __init__(self, engine: str, settings: Mapping[Durability, str]) -> None:
        self.name = engine
        self.settings = settings
        self._engine = engine.replace("-", "_")

    def why_not(self) -> str:
        if shutil.which("escript") is None:
            return "Erlang is not installed (Debian: erlang-base)"
        for library in ("crypto", "mnesia") if "mnesia" in self.name else ("crypto",):
            if _said_by_erlang(_WHERE_IT_IS.format(library)) == "nowhere":
                return f"Erlang's {library} is not installed (Debian: erlang-{library})"
        return ""

    def version(self) -> str:
        return f"Erlang/OTP {_said_by_erlang(_OTP_VERSION)}"

    def start(self, folder: Path, durability: Durability) -> Driving:
        return _Machine(folder, self._engine, is_synced=durability in _SYNCED)


class ErlangPair(Erlang):
    """Mnesia with a copy on a second node."""

    def start(self, folder: Path, durability: Durability) -> PairDriving:
        return _TwoMachines(folder)


class _Machine:
    """A virtual machine that runs the script, and its sessions in a folder."""

    def __init__(
        self, folder: Path, engine: str, *, is_synced: bool, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._data.mkdir()
        self._command = [
            "escript",
            str(_SCRIPT),
            engine,
            str(self._data),
            "sync" if is_synced else "buffered",
        ]
        self._environment = {**os.environ, "ERL_CRASH_DUMP_SECONDS": "0", **(environment or {})}
        self._some = ""
        self._launch("now")

    def _launch(self, when: str) -> None:
        """`when` it opens its table: now, or later."""
        self._said = open(self._folder / "erlang.out", "ab")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            ending_with_us([*self._command, when]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=self._environment,
        )
        try:
            self._expect("ready")
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        return family(self._process.pid) if self._process.poll() is None else ()

    def fill(self, sessions: int, value_bytes: int) -> None:
        self.ask(f"fill {sessions} {value_bytes}")
        self._some = self.ask("some")

    def stop(self) -> None:
        self.ask("stop")

    def kill(self) -> None:
        """And have another virtual machine, which has not opened anything."""
        self.close()
        self._launch("later")

    def start_again(self) -> float:
        answer = self.ask(f"start {self._some}")
        while answer.startswith("dets: "):  # it says on the same stream that it repairs
            answer = self._answer()
        return float(answer)

    def run(self, case: DriverCase) -> DriverRun:
        file = self._folder / "latencies"
        mix = ",".join(f"{operation}={float(share)}" for operation, share in case.mix.items())
        skew = "zipf" if case.is_zipfian else "even"
        said = json.loads(self.ask(f"run {mix} {case.calls} {case.callers} {skew} {file}"))
        latencies = array("Q", file.read_bytes())
        file.unlink()
        return DriverRun(float(said["seconds"]), int(said["units"]), latencies)

    def disk_bytes(self) -> Mapping[str, int]:
        log = allocated_bytes(self._data, "*.LOG")
        return {"state": allocated_bytes(self._data, "*") - log, "log": log}

    def close(self) -> None:
        pids = self.pids
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._said.close()
        await_end(pids)

    def ask(self, command: str) -> str:
        """What it answers to a command. Raises ServerError if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _expect(self, text: str) -> None:
        answer = self._answer()
        if answer != text:
            raise ServerError(f"the escript said {answer!r}, not {text!r}")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        silence = threading.Timer(_ANSWER_S, self._process.kill)
        silence.start()
        try:
            answer = self._process.stdout.readline().strip()
        finally:
            silence.cancel()
        if not answer:
            words = (self._folder / "erlang.out").read_text("utf-8", "replace")[-2000:]
            raise ServerError(f"the escript ended, or did not answer in {_ANSWER_S} s: {words}")
        return answer


class _TwoMachines:
    """Two nodes; cases run on the first one until it is killed."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        command = ["epmd", "-address", _HOST, "-port", str(port)]
        self._epmd = ServerProcess(command, folder / "epmd.out")
        names = ["epmd", "-port", str(port), "-names"]
        cookie = os.urandom(16).hex()
        self._machines: list[_Machine] = []
        try:
            self._epmd.start(lambda: not subprocess.run(names, capture_output=True, check=False).returncode)
            for name in ("one", "two"):
                (folder / name).mkdir()
                flags = f"-name {name}@{_HOST} -setcookie {cookie} -start_epmd false"
                flags += " -kernel inet_dist_use_interface {127,0,0,1}"
                environment = {"ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": _HOST, "ERL_FLAGS": flags}
                if name == "two":
                    environment["SESSIONS_FOLLOWER"] = "1"
                self._machines.append(
                    _Machine(folder / name, "mnesia", is_synced=False, environment=environment)
                )
            self._machines[0].ask(f"follow two@{_HOST}")
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for machine in self._machines for pid in machine.pids)

    def fill(self, sessions: int, value_bytes: int) -> None:
        self._machines[0].fill(sessions, value_bytes)

    def run(self, case: DriverCase) -> DriverRun:
        return self._machines[0].run(case)

    def disk_bytes(self) -> Mapping[str, int]:
        return self._machines[0].disk_bytes()

    def kill(self) -> None:
        self._machines.pop(0).close()

    def take_over(self) -> None:
        while self._machines[0].ask("write") != "ok":
            pass

    def close(self) -> None:
        while self._machines:
            self._machines.pop().close()
        self._epmd.kill()


@lru_cache
def _said_by_erlang(expression: str) -> str:
    return run_once(["erl", "-noshell", "-eval", f"io:put_chars({expression}), halt()."])


DRIVERS: tuple[Driver, ...] = (
    Erlang("ets", {Durability.NONE: "called directly"}),
    Erlang("ets-server", {Durability.NONE: "changes through a gen_server"}),
    Erlang("dets", {Durability.NONE: "writes delayed", Durability.DISK: "dets:sync after each change"}),
    Erlang(
        "mnesia",
        {
            Durability.NONE: "disc_copies, transactions, log buffered",
            Durability.DISK: "disc_copies, transactions, mnesia:sync_log after each",
        },
    ),
    ErlangPair("mnesia-two", {Durability.TWO: "sync_transaction on two nodes, two memories"}),
)
