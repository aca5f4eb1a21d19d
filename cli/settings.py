"""What a command takes from the configuration where its command line says nothing.

Owns the way from a command's directory to the options of its node; what options there are is the store's.
An option of the command line always wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..store import (
    Configuration,
    SessionStore,
    StorageError,
    UsageError,
    has_identity,
    load_config,
    read_identity,
)
from ..store.option import format_address, parse_address
from ..store.options import StoreOptions, option
from .options import SECRET_VARIABLE, parse_nodes, read_secret
from .render import note

if TYPE_CHECKING:
    from ..recovery import ElectionOptions, Policy, Reach
    from ..shipping import Credentials, MonitorOptions, NodeWays, TlsFiles, Way

T = TypeVar("T")
LOOPBACK = "127.0.0.1"


class Settings:
    """The configuration as the node in one directory sees it."""

    def __init__(self, directory: Path, config: Configuration | None = None) -> None:
        self._directory = directory
        self._config = config if config is not None else load_config(directory=directory)
        self._store = self._config.name_of(directory)

    def value(self, given: T | None, section: str, name: str) -> Any:
        """What the command line gives, else what the configuration does, else the default."""
        return given if given is not None else self._config.setting(section, name, self._store).value

    def seconds(self, given: float | None, section: str, name: str) -> float:
        """As value, of an option that the command line has in seconds and the table in ms."""
        return given if given is not None else float(self.value(None, section, name)) / 1000

    def needed(self, given: T | None, section: str, name: str, flag: str) -> Any:
        """As value. Raises UsageError if there is none."""
        found = self.value(given, section, name)
        if found is None:
            raise UsageError(
                f"{flag} is missing", hint=f"Give it, or set {name} in [{section}] of the configuration."
            )
        return found

    def policy(
        self,
        *,
        log_age_ms: int | None = None,
        snapshots: int | None = None,
        consumer_age_ms: int | None = None,
    ) -> Policy:
        """What retention keeps. Times in ms."""
        from ..recovery import Policy

        return Policy(
            log_age_ms=self.value(log_age_ms, "recovery", "log_age_ms"),
            snapshots=self.value(snapshots, "recovery", "snapshots_kept"),
            snapshot_age_ms=self.value(None, "recovery", "snapshot_age_ms"),
            slot_bytes=self.value(None, "shipping", "slot_budget_bytes"),
            consumer_bytes=self.value(None, "recovery", "consumer_budget_bytes"),
            consumer_age_ms=self.value(consumer_age_ms, "recovery", "consumer_age_ms"),
        )

    def address(self, given: str | None) -> tuple[str, int]:
        """Where the node listens."""
        return parse_address(self.needed(given, "node", "listen", "--listen HOST:PORT"))

    def serve_address(self) -> tuple[str, int] | None:
        """Where the node's server listens, None for the port after the receiver's."""
        configured = self.value(None, "node", "serve")
        return None if configured is None else parse_address(configured)

    def monitor_address(self) -> tuple[str, int] | None:
        """Where the node's monitor listens, None for the second port after the receiver's."""
        configured = self.value(None, "node", "monitor")
        return None if configured is None else parse_address(configured)

    def monitor_host(self) -> str:
        """Where this node's monitor is asked from here: as configured, else as the node was told."""
        configured = self.value(None, "node", "monitor") or self.value(None, "node", "listen")
        host = parse_address(configured)[0] if configured else self._told().monitor_host
        return _reachable(host or LOOPBACK)

    def own_address(self, directory: Path) -> tuple[str, int]:
        """Where this node's receiver is asked from here: the port that it took last."""
        from ..shipping import read_ports

        configured = self.value(None, "node", "listen")
        host, port = parse_address(configured) if configured else (self._told().listen_host, 0)
        return _reachable(host or LOOPBACK), read_ports(directory).listen or port

    def coordinator(self, given: str | None) -> str:
        """What decides about promotions. Raises UsageError for what nothing is called."""
        if given is None:
            return str(self.value(None, "failover", "coordinator"))
        try:
            return str(option("failover", "coordinator").check(given))
        except ValueError as error:
            raise UsageError(f"--coordinator: {error}") from error

    def etcd_endpoints(self, coordinator: str | None) -> tuple[str, ...]:
        """Where etcd answers, if it is the coordinator. Raises UsageError if that cannot be used."""
        if self.coordinator(coordinator) != "etcd":
            return ()
        from .elector_process import load_etcd

        load_etcd()
        return tuple(self.needed(None, "failover", "etcd_endpoints", "the coordinator etcd's endpoints"))

    def election(self) -> ElectionOptions:
        """When this node stands for primary."""
        from ..recovery import ElectionOptions

        return ElectionOptions(
            silence_ms=self.value(None, "failover", "silence_ms"),
            candidacy_ms=self.value(None, "failover", "candidacy_ms"),
            preferred=self.value(None, "failover", "preferred") or "",
        )

    def health(self) -> MonitorOptions:
        """How this node watches the others, and itself."""
        from ..shipping import MonitorOptions

        return MonitorOptions(
            heartbeat_ms=self.value(None, "failover", "heartbeat_ms"),
            silence_ms=self.value(None, "failover", "silence_ms"),
            disk_stall_ms=self.value(None, "failover", "disk_stall_ms"),
        )

    def peers(self, given: list[str] | None) -> dict[str, tuple[str, int]]:
        """The other nodes' addresses by name; the configuration may name this one among them."""
        if given:
            return parse_nodes(given)
        listed: Mapping[str, str] = self.value(None, "node", "peers") or {}
        own = read_identity(self._directory).node if has_identity(self._directory) else ""
        return {node: parse_address(address) for node, address in listed.items() if node != own}

    def reach(self, given: list[str] | None, secret_file: Path | None = None) -> Reach:
        """The way to the other nodes: by the command line, the cluster's own list, the configuration, else
        as the node process was told."""
        from ..recovery import known_reach

        return known_reach(
            self._directory, parse_nodes(given), self.proof(secret_file), configured=self.listed()
        )

    def listed(self) -> dict[str, tuple[str, int]]:
        """The other nodes' addresses by name as configured, else as the node process was told."""
        listed = self.peers(None)
        if not listed and has_identity(self._directory):
            listed = self._told().addresses(read_identity(self._directory).node)
        return listed

    def proof(self, secret_file: Path | None) -> Credentials:
        """As secret(), of a command that asks nodes: what neither the command line nor the configuration says
        is as the node process was told. A secret that cannot be read is missing, and that is said.

        Raises UsageError for certificates or a secret that are no good. Files that this user cannot read are
        told where they are needed: what a node says of itself takes none.
        """
        from ..shipping import Credentials, check_secret

        said, told = self.secret(secret_file), self._told()
        secret = said.secret
        if not secret:
            try:
                secret = _told_secret(told, "command")
            except UsageError as error:
                note(f"{error.message}. {error.hint}")
        proof = Credentials(secret, said.tls or told.tls, said.allow_plain or told.allow_plain)
        with suppress(StorageError):
            check_secret(proof, LOOPBACK)
        return proof

    def way(self) -> Way:
        """The way to the other nodes for an application on this one: as its configuration says, else as the
        node process was told.

        Raises UsageError if the nodes share a secret that this application does not have, and as secret().
        """
        from ..shipping import Credentials, Way

        told = self._told()
        peers = self.peers(None) or told.addresses(read_identity(self._directory).node)
        shared = self._shared(None) or _told_secret(told, "application")
        allow_plain = self.value(None, "node", "allow_plain") or told.allow_plain
        return Way(peers, Credentials(shared, self._tls() or told.tls, allow_plain))

    def told(self, given: list[str] | None, secret_file: Path | None, listen_host: str = "") -> NodeWays:
        """What this node's applications and commands are to know of a node that is started so."""
        from ..shipping import ways_of

        monitor = self.monitor_address()
        file = self._secret_file(secret_file)
        peers = {node: format_address(*address) for node, address in self.peers(given).items()}
        return ways_of(
            peers,
            self.secret(secret_file),
            file,
            listen_host=listen_host,
            monitor_host=monitor[0] if monitor else listen_host,
        )

    def secret(self, file: Path | None) -> Credentials:
        """What the node proves itself with to others: secret, certificates, or both.

        The secret is from the file that is given, the environment, or the configured file. Raises UsageError
        if some of the files of TLS are given and not all.
        """
        from ..shipping import Credentials

        return Credentials(self._shared(file), self._tls(), self.value(None, "node", "allow_plain"))

    def _told(self) -> NodeWays:
        from ..shipping import read_ways

        return read_ways(self._directory)

    def _tls(self) -> TlsFiles | None:
        from ..shipping import TlsFiles

        paths = {name: self.value(None, "node", name) for name in ("tls_cert", "tls_key", "tls_ca")}
        missing = [name for name, path in paths.items() if path is None]
        if len(missing) == len(paths):
            return None
        if missing:
            raise UsageError(
                f"TLS takes certificate, key and CA: {', '.join(missing)} of [node] is not set",
                hint="Set all three, or none.",
            )
        return TlsFiles(paths["tls_cert"], paths["tls_key"], paths["tls_ca"])

    def _shared(self, file: Path | None) -> bytes:
        return read_secret(self._secret_file(file))

    def _secret_file(self, file: Path | None) -> Path | None:
        """The one that is given; else the environment has the secret; else the configured one."""
        if file is None and not os.environ.get(SECRET_VARIABLE, "").strip():
            configured = self.value(None, "node", "secret_file")
            file = None if configured is None else Path(configured)
        return file


def _told_secret(told: NodeWays, who: str) -> bytes:
    """The secret from where the node process read it; empty if there is none."""
    if not told.has_secret:
        return b""
    hint = f"Set {SECRET_VARIABLE} for the {who}, or secret_file in [node] of its configuration."
    if not told.secret_file:
        raise UsageError(f"the nodes share a secret, and this {who} was not told it", hint=hint)
    try:
        return read_secret(Path(told.secret_file))
    except StorageError as error:
        raise UsageError(
            f"the nodes share a secret, and this {who} cannot read {told.secret_file}: {error.message}",
            hint=hint,
        ) from error


def _reachable(host: str) -> str:
    """An address that can be connected to, for one that is listened on."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def only_store() -> Path:
    """The directory of the one named store that the configuration has. Raises UsageError."""
    config = load_config()
    if len(config.stores) != 1:
        known = ", ".join(f"@{name}" for name in config.stores) or "none"
        raise UsageError(
            f"no directory is given, and the configuration does not have one named store: {known}",
            path=config.file,
            hint="Give DIR or @NAME; a named store stands as [stores.NAME] with a path.",
        )
    return next(iter(config.stores.values()))


def open_store(
    directory: Path, *, reads: bool = False, timeout_ms: int | None = None, keys: Path | None = None
) -> SessionStore:
    """The store of a command, with the options that the configuration gives; it must be there.

    With `reads` nothing waits for replicas. `keys` is a key file of the command line, `timeout_ms` how long
    it waits for others that have the store. Raises as perdure.open.
    """
    from .. import open as open_replicated

    options: StoreOptions = {"create": False}
    if timeout_ms is not None:
        options["write_timeout_ms"] = timeout_ms
    if keys is not None:
        options["keys"] = keys
    if not reads:
        return open_replicated(directory, **options)
    config = load_config(directory=directory)
    given: dict[str, Any] = {**config.given("store", config.name_of(directory)), **options}
    return SessionStore.open(directory, **given)
