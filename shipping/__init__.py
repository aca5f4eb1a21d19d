"""Every byte on the wire: shipper and receiver, slots, acknowledgements; imports only the store room."""

from .asking import NodeClient
from .children import Child, Task, spawn_receiver, start_child
from .credentials import Credentials, Secret, TlsFiles, check_secret
from .detection import PeerHealth, Verdict
from .faults import read_fault
from .folder import run_folder
from .forward_service import ForwardService
from .forwarder import NodeForwarder, Way
from .gate import Gate, open_gate
from .messages import PromiseReply, StatusReply
from .messages_health import HealthAsk, HealthReply, HealthRow, StandAsk, StandReply
from .monitor import MonitorOptions, run_monitor
from .monitor_pipe import Pipe, pipe_pair
from .nodelog import NodeLog, open_node_log
from .permission import Permission
from .ports import NodePorts, read_ports, write_ports
from .rebuild import check_not_emptied
from .receiver import serve_receiver
from .rejoin_plan import decide_rejoin
from .replica import run_replica
from .server import Handler, Server
from .server import merged as merged_handlers
from .server_client import AnswerLost, ServerClient
from .shipper import ShipperOptions, run_shipper
from .slots import Slot, read_slot, read_slots, remove_slot, write_slot
from .standby import run_standby
from .status import ReplicaStatus, ShippingStatus, shipping_status
from .unmonitored import Unmonitored, read_unmonitored, set_monitored
from .ways import NodeWays, read_ways, ways_of, write_ways

__all__ = [
    "AnswerLost",
    "Child",
    "Credentials",
    "ForwardService",
    "Gate",
    "Handler",
    "HealthAsk",
    "HealthReply",
    "HealthRow",
    "MonitorOptions",
    "NodeClient",
    "NodeForwarder",
    "NodeLog",
    "NodePorts",
    "NodeWays",
    "PeerHealth",
    "Permission",
    "Pipe",
    "PromiseReply",
    "ReplicaStatus",
    "Secret",
    "Server",
    "ServerClient",
    "ShipperOptions",
    "ShippingStatus",
    "Slot",
    "StandAsk",
    "StandReply",
    "StatusReply",
    "Task",
    "TlsFiles",
    "Unmonitored",
    "Verdict",
    "Way",
    "check_not_emptied",
    "check_secret",
    "decide_rejoin",
    "merged_handlers",
    "open_gate",
    "open_node_log",
    "pipe_pair",
    "read_fault",
    "read_ports",
    "read_slot",
    "read_slots",
    "read_unmonitored",
    "read_ways",
    "remove_slot",
    "run_folder",
    "run_monitor",
    "run_replica",
    "run_shipper",
    "run_standby",
    "serve_receiver",
    "set_monitored",
    "shipping_status",
    "spawn_receiver",
    "start_child",
    "ways_of",
    "write_ports",
    "write_slot",
    "write_ways",
]
