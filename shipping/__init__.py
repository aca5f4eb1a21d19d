"""Every byte on the wire: shipper and receiver, slots, acknowledgements; imports only the store room."""

__all__: list[str] = []
