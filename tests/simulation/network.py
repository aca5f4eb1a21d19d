"""The simulated network: sockets between machines, and within one, and what waits for them.

Owns what becomes of bytes on their way. Within one connection they arrive in order, as TCP has it, or the
connection breaks; between connections anything may overtake anything. A way that is blocked (in one
direction or both) holds bytes back until it is free again. A machine without power answers nothing; one
that came back answers what it does not know of with a reset.
"""

from __future__ import annotations

import errno
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .kernel import MS, Host, Kernel, Process

FIRST_NUMBER = 1 << 20
"""Descriptors from here on are simulated ones."""
BUFFER_BYTES = 1 << 20
PACKETS_MAX = 100
RETRANSMIT_NS = 50 * MS
LOCAL_NS = 20_000
_IN = selectors.EVENT_READ
_OUT = selectors.EVENT_WRITE


class Ways:
    """How the ways between machines are at the moment. Changed by the faults."""

    def __init__(self) -> None:
        self.blocked: set[tuple[str, str]] = set()
        """(from, to): nothing passes in this direction."""
        self.delay_ns = 150_000
        self.jitter_ns = 100_000
        self.loss = 0.0
        """How likely a unit has to be sent again, later."""
        self.breaks = 0.0
        """How likely a unit breaks its connection."""
        self.twice = 0.0
        """How likely a unit arrives twice."""


class Network:
    """All sockets of a schedule."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.ways = Ways()
        self.hosts: dict[str, Host] = {}
        self.by_address: dict[str, Host] = {}
        self.listening: dict[tuple[str, int], Socket] = {}
        self.local: dict[str, Socket] = {}
        """Unix sockets by path."""
        self.files: dict[int, Any] = {}
        self.path_of: Callable[[str], str] = str
        self.make_file: Callable[[str], None] = lambda _path: None
        self._streams: list[Stream] = []
        self._number = FIRST_NUMBER
        self._port = 40_000

    def add(self, host: Host) -> None:
        self.hosts[host.name] = host
        self.by_address[host.address] = host

    def number(self) -> int:
        self._number += 1
        return self._number

    def port(self) -> int:
        self._port += 1
        return self._port

    def delay_ns(self, source: Host, target: Host) -> int:
        if source is target:
            return LOCAL_NS
        ways, random = self.ways, self.kernel.random
        delay = ways.delay_ns + int(random.random() * ways.jitter_ns)
        if ways.loss:
            again = RETRANSMIT_NS
            while random.random() < ways.loss:
                delay, again = delay + again, again * 2
        return delay

    def is_blocked(self, source: Host, target: Host) -> bool:
        return source is not target and (source.name, target.name) in self.ways.blocked

    def changed(self) -> None:
        """Ways were blocked or freed: what was held back goes on."""
        self._streams = [stream for stream in self._streams if not stream.is_over]
        for stream in self._streams:
            if stream.is_stuck and not self.is_blocked(stream.source, stream.target):
                stream.is_stuck = False
                self.kernel.at(self.delay_ns(stream.source, stream.target), stream.deliver)

    def power_cut(self, host: Host) -> None:
        """Every connection of the machine is forgotten there; nobody is told."""
        for key in [key for key, listener in self.listening.items() if listener.process.host is host]:
            del self.listening[key]
        for stream in self._streams:
            if stream.target is host:
                stream.reader.is_gone = True
            if stream.source is host:
                stream.units.clear()
                stream.is_over = True

    def stream(self, source: Socket, reader: Socket) -> Stream:
        made = Stream(self, source, reader)
        if made.source is not made.target:
            self._streams.append(made)
        return made


class Stream:
    """One direction of a connection."""

    def __init__(self, network: Network, writer: Socket, reader: Socket) -> None:
        self.network = network
        self.source, self.target = writer.process.host, reader.process.host
        self.writer, self.reader = writer, reader
        self.units: deque[tuple[int, bytes | None]] = deque()
        """(when it arrives, bytes or None for the end)."""
        self.bytes = 0
        self.last_ns = 0
        self.is_stuck = False
        self.is_over = False

    def put(self, data: bytes | None) -> None:
        network = self.network
        kernel = network.kernel
        can_break = bool(network.ways.breaks and data) and self.source is not self.target
        if can_break and kernel.random.random() < network.ways.breaks:
            kernel.note("connection broken", self.source.name, self.target.name)
            self.writer.reset()
            self.reader.reset()
            return
        at_ns = max(self.last_ns, kernel.now_ns + network.delay_ns(self.source, self.target))
        self.last_ns = at_ns
        self.units.append((at_ns, data))
        self.bytes += len(data) if data else 0
        if data and network.ways.twice and kernel.random.random() < network.ways.twice:
            self.units.append((at_ns, data))
        if not self.is_stuck:
            kernel.at(at_ns - kernel.now_ns, self.deliver)

    def deliver(self) -> None:
        """Hand over what is due, unless the way is blocked."""
        network = self.network
        if not self.units or self.is_stuck:
            return
        if network.is_blocked(self.source, self.target):
            self.is_stuck = True
            return
        if not self.target.is_up:
            self.is_stuck = True
            return
        now_ns, reader = network.kernel.now_ns, self.reader
        while self.units and self.units[0][0] <= now_ns:
            _, data = self.units.popleft()
            if reader.is_gone or reader.is_closed:
                self.is_over = True
                self.units.clear()
                if data is not None:
                    network.kernel.at(network.delay_ns(self.target, self.source), self._reset_writer)
                return
            if data is None:
                self.is_over = True
                reader.is_ended = True
            else:
                self.bytes -= len(data)
                reader.inbox += data
        reader.changed()
        self.writer.changed()

    def _reset_writer(self) -> None:
        if not self.network.is_blocked(self.target, self.source):
            self.writer.reset()


class Socket:
    """A socket: listening, a connection's end, or one for datagrams within a machine."""

    def __init__(self, network: Network, family: int, kind: int, process: Process) -> None:
        self.network = network
        self.kernel = network.kernel
        self.family, self.type = family, kind
        self.process = process
        self.number = network.number()
        self.inbox = bytearray()
        self.backlog: deque[Any] = deque()
        self.is_listening = self.is_closed = self.is_ended = self.is_gone = False
        self.is_connecting = self.is_connected = self.is_blocking = False
        self.error = 0
        self.out: Stream | None = None
        self.pollers: list[Any] = []
        self.name: tuple[str, int] | str = ""
        self.peer_name: tuple[str, int] | str = ""
        self.peer: Socket | None = None
        self.is_blocking = True
        network.files[self.number] = self
        process.sockets[self.number] = self

    # -- what others do to it --------------------------------------------------------------------

    def changed(self) -> None:
        for poller in self.pollers:
            poller.changed(self)

    def reset(self) -> None:
        if not self.is_closed:
            self.error = self.error or errno.ECONNRESET
            self.is_connecting = False
            self.changed()

    def ready(self, events: int) -> int:
        """Which of these events there are."""
        if self.error:
            return events
        mask = 0
        if events & _IN and (self.inbox or self.backlog or self.is_ended):
            mask = _IN
        if events & _OUT and self.is_connected and not self.is_connecting and self._room() > 0:
            mask |= _OUT
        return mask

    def _room(self) -> int:
        if self.out is None:
            return 1
        peer = self.peer
        unread = len(peer.inbox) if peer is not None else 0
        return BUFFER_BYTES - self.out.bytes - unread

    # -- as the code calls it --------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.is_closed else self.number

    def setblocking(self, is_blocking: bool) -> None:
        self.is_blocking = is_blocking

    def setsockopt(self, *_option: object) -> None:
        """Nothing of them changes what is simulated."""

    def getsockopt(self, _level: int, name: int) -> int:
        if name == socket.SO_ERROR:
            error, self.error = self.error, 0
            return error
        return 0

    def getsockname(self) -> Any:
        return self.name

    def getpeername(self) -> Any:
        return self.peer_name

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_UNIX:
            path = self.network.path_of(address)
            self.network.make_file(address)
            self.name = path
            self.network.local[path] = self
            return
        host, port = address[:2]
        port = port or self.network.port()
        taken = self.network.listening.get((host, port))
        if taken is not None and not taken.is_closed:
            raise OSError(errno.EADDRINUSE, "address in use")
        if self.network.by_address.get(host) is not self.process.host:
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this machine")
        self.name = (host, port)

    def listen(self, _backlog: int = 64) -> None:
        self.is_listening = True
        if self.family != socket.AF_UNIX:
            self.network.listening[self.name[0], int(self.name[1])] = self

    def accept(self) -> tuple[Socket, Any]:
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody waits")
        made: Socket = self.backlog.popleft()
        return made, made.peer_name

    def connect(self, address: Any) -> None:
        self.kernel.system_call()
        if self.family == socket.AF_UNIX:
            self._connect_local(self.network.path_of(address))
            return
        raise OSError(errno.EOPNOTSUPP, "only connect_ex")

    def connect_ex(self, address: Any) -> int:
        self.is_connecting = True
        self.name = (self.process.host.address, self.network.port())
        self.peer_name = (address[0], int(address[1]))
        self._greet(RETRANSMIT_NS)
        return errno.EINPROGRESS

    def send(self, data: bytes | memoryview) -> int:
        self.kernel.system_call()
        if self.is_closed:
            raise OSError(errno.EBADF, "closed")
        if self.error:
            error, self.error = self.error, 0
            raise OSError(error, errno.errorcode[error])
        if self.type == socket.SOCK_DGRAM:
            return self._send_datagram(bytes(data))
        if self.out is None:
            raise BrokenPipeError(errno.ENOTCONN, "not connected")
        room = self._room()
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        part = bytes(data[:room])
        self.out.put(part)
        return len(part)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def recv(self, size: int) -> bytes:
        if self.is_closed:
            raise OSError(errno.EBADF, "closed")
        if self.type == socket.SOCK_DGRAM:
            if not self.backlog:
                raise BlockingIOError(errno.EAGAIN, "nothing there")
            return bytes(self.backlog.popleft())
        if self.inbox:
            data = bytes(self.inbox[:size])
            del self.inbox[:size]
            return data
        if self.error:
            error, self.error = self.error, 0
            raise ConnectionResetError(error, errno.errorcode[error])
        if self.is_ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing there")

    def shutdown(self, _how: int) -> None:
        if self.out is not None and not self.is_closed:
            self.out.put(None)

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.network.files.pop(self.number, None)
        self.process.sockets.pop(self.number, None)
        if self.is_listening and self.family != socket.AF_UNIX:
            self.network.listening.pop((self.name[0], int(self.name[1])), None)
        for waiting in self.backlog if self.is_listening else ():
            waiting.close()
        if self.out is not None and not self.error and self.process.host.is_up and not self.is_gone:
            self.out.put(None)

    # -- connecting ------------------------------------------------------------------------------

    def _connect_local(self, path: str) -> None:
        found = self.network.local.get(path)
        if found is None or found.is_closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        self.is_connected, self.peer, self.peer_name = True, found, path
        if self.type == socket.SOCK_DGRAM:
            return
        other = Socket(self.network, self.family, self.type, found.process)
        other.is_connected, other.peer, self.peer = True, self, other
        self.out, other.out = self.network.stream(self, other), self.network.stream(other, self)
        found.backlog.append(other)
        found.changed()

    def _send_datagram(self, data: bytes) -> int:
        peer = self.peer
        if peer is None or peer.is_closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        if len(peer.backlog) > 200:
            raise BlockingIOError(errno.EAGAIN, "full")
        peer.backlog.append(data)
        peer.changed()
        return len(data)

    def _greet(self, again_ns: int) -> None:
        """Ask for the connection, and ask again as long as nothing comes back."""
        if self.is_closed or not self.is_connecting or self.error or self.process.is_dead:
            return
        target = self.network.by_address.get(str(self.peer_name[0]))
        if target is not None:
            source = self.process.host
            self.kernel.at(self.network.delay_ns(source, target), self._greeted, source, target)
        self.kernel.at(again_ns, self._greet, min(again_ns * 2, 500 * MS))

    def _greeted(self, source: Host, target: Host) -> None:
        if self.is_closed or not self.is_connecting or self.error:
            return
        network = self.network
        if network.is_blocked(source, target) or not target.is_up or network.is_blocked(target, source):
            return  # no answer; it asks again
        back_ns = network.delay_ns(target, source)
        listener = network.listening.get((str(self.peer_name[0]), int(self.peer_name[1])))
        if listener is None or listener.is_closed:
            self.kernel.at(back_ns, self._refused)
            return
        other = Socket(network, self.family, self.type, listener.process)
        other.name, other.peer_name = self.peer_name, self.name
        other.is_connected, other.peer = True, self
        self.is_connecting, self.peer = False, other
        other.out, self.out = network.stream(other, self), network.stream(self, other)
        listener.backlog.append(other)
        listener.changed()
        self.kernel.at(back_ns, self._connected)

    def _connected(self) -> None:
        self.is_connected = True
        self.changed()

    def _refused(self) -> None:
        if self.is_connecting and not self.is_closed:
            self.is_connecting, self.error = False, errno.ECONNREFUSED
            self.changed()


class Pipe:
    """One end of a pipe within a process."""

    def __init__(self, network: Network, process: Process) -> None:
        self.number = network.number()
        self.inbox = bytearray()
        self.pollers: list[Any] = []
        self.other: Pipe | None = None
        self.is_ended = False
        network.files[self.number] = self
        process.sockets[self.number] = self
        self._network, self._process = network, process

    def ready(self, events: int) -> int:
        return events & ((_IN if self.inbox or self.is_ended else 0) | _OUT)

    def write(self, data: bytes) -> int:
        if self.other is None:
            raise BrokenPipeError
        self.other.inbox += data
        for poller in self.other.pollers:
            poller.changed(self.other)
        return len(data)

    def read(self, size: int) -> bytes:
        if not self.inbox and not self.is_ended:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    def close(self) -> None:
        self._network.files.pop(self.number, None)
        self._process.sockets.pop(self.number, None)
        if self.other is not None:
            self.other.is_ended = True
            for poller in self.other.pollers:
                poller.changed(self.other)


class Packets:
    """One end of a pair that a node keeps for two of its processes, however often these are started."""

    def __init__(self, network: Network) -> None:
        self.number = network.number()
        self.pollers: list[Any] = []
        self.other: Packets | None = None
        self._waiting: deque[bytes] = deque()
        network.files[self.number] = self

    def ready(self, events: int) -> int:
        return events & ((_IN if self._waiting else 0) | _OUT)

    def fileno(self) -> int:
        return self.number

    def setblocking(self, _is_blocking: bool) -> None:
        """It never blocks."""

    def send(self, data: bytes) -> int:
        other = self.other
        if other is None or len(other._waiting) >= PACKETS_MAX:
            raise BlockingIOError(errno.EAGAIN, "full")
        other._waiting.append(bytes(data))
        for poller in other.pollers:
            poller.changed(other)
        return len(data)

    def recv(self, _size: int) -> bytes:
        if not self._waiting:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        return self._waiting.popleft()

    def close(self) -> None:
        """The node keeps it."""


def packet_pair(network: Network) -> tuple[Packets, Packets]:
    one, other = Packets(network), Packets(network)
    one.other, other.other = other, one
    return one, other


class _Waiting:
    """Waits until one of its files is ready."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._kernel = network.kernel
        self._task: Any = None

    def _wake(self) -> None:
        if self._task is not None:
            self._kernel.wake(self._task)

    def _file(self, what: Any) -> Any:
        number = what if isinstance(what, int) else what.fileno()
        file = self._network.files.get(number)
        if file is None:
            raise ValueError(f"no simulated descriptor: {what!r}")
        return file

    def _wait(self, look: Callable[[], list[Any]], timeout_s: float | None) -> list[Any]:
        kernel = self._kernel
        found = look()
        if found or (timeout_s is not None and timeout_s <= 0):
            kernel.pass_time(5_000)
            return found or look()
        deadline_ns = None if timeout_s is None else kernel.now_ns + max(1_000, int(timeout_s * 1_000 * MS))
        self._task = kernel.running()
        try:
            while not (found := look()):
                left_ns = None if deadline_ns is None else deadline_ns - kernel.now_ns
                if left_ns is not None and left_ns <= 0:
                    break
                kernel.wait(left_ns)
        finally:
            self._task = None
        return found


class Selector(_Waiting):
    """selectors.DefaultSelector."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._keys: dict[int, tuple[selectors.SelectorKey, Any]] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        file = self._file(fileobj)
        if file.number in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        key = selectors.SelectorKey(fileobj, file.number, events, data)
        self._keys[file.number] = (key, file)
        file.pollers.append(self)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        for number, (key, file) in self._keys.items():
            if key.fileobj is fileobj or key.fileobj == fileobj:
                del self._keys[number]
                file.pollers.remove(self)
                return key
        raise KeyError(f"{fileobj!r} is not registered")

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        file = self._file(fileobj)
        if file.number not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        key = selectors.SelectorKey(fileobj, file.number, events, data)
        self._keys[file.number] = (key, file)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._wait(self._ready, timeout)

    def changed(self, file: Any) -> None:
        """Wake who waits here, if this is something it waits for."""
        if self._task is not None and file.ready(self._keys[file.number][0].events):
            self._wake()

    def get_map(self) -> dict[int, selectors.SelectorKey]:
        return {number: key for number, (key, _) in self._keys.items()}

    def close(self) -> None:
        for _, file in self._keys.values():
            file.pollers.remove(self)
        self._keys.clear()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        for key, file in self._keys.values():
            mask = file.ready(key.events)
            if mask:
                found.append((key, mask))
        return found


class Poll(_Waiting):
    """select.poll()."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._wanted: dict[int, tuple[Any, int]] = {}

    def register(self, what: Any, mask: int = select.POLLIN) -> None:
        file = self._file(what)
        events = (_IN if mask & select.POLLIN else 0) | (_OUT if mask & select.POLLOUT else 0)
        self._wanted[file.number] = (file, events)

    def unregister(self, what: Any) -> None:
        del self._wanted[self._file(what).number]

    def changed(self, file: Any) -> None:
        """As Selector.changed."""
        if self._task is not None and file.ready(self._wanted[file.number][1]):
            self._wake()

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        for file, _ in self._wanted.values():
            file.pollers.append(self)
        try:
            return self._wait(
                self._ready, None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
            )
        finally:
            for file, _ in self._wanted.values():
                file.pollers.remove(self)

    def _ready(self) -> list[tuple[int, int]]:
        found = []
        for number, (file, events) in self._wanted.items():
            mask = file.ready(events)
            if mask:
                flags = select.POLLIN if mask & _IN else 0
                found.append((number, flags | (select.POLLOUT if mask & _OUT else 0)))
        return found


def release_sockets(process: Process) -> None:
    """A process died: the system closes its sockets, and tells the peers if it can."""
    for file in list(process.sockets.values()):
        file.close()


def socket_of(network: Network) -> SimpleNamespace:
    """What stands for the module `socket`."""

    def make(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, _protocol: int = 0) -> Socket:
        return Socket(network, family, kind, network.kernel.running().process)

    def getaddrinfo(host: str, port: int, **_wanted: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, int(port)))]

    names = {name: value for name, value in vars(socket).items() if not name.startswith("__")}
    names |= {"socket": make, "getaddrinfo": getaddrinfo}
    return SimpleNamespace(**names)
