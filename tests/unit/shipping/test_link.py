"""Links: a host whose name cannot be looked up is an error of the link, whoever asks for it."""

from __future__ import annotations

import pytest

from perdure.shipping.link import begin_connect, listen
from perdure.store import WireError

IMPOSSIBLE = ["a..b", ".lan", f"{'a' * 64}.lan"]


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_an_impossible_name_cannot_be_reached(host: str) -> None:
    with pytest.raises(WireError, match="cannot reach") as caught:
        begin_connect(host, 1, "n4", b"")
    assert caught.value.node == "n4"
    assert "name" in caught.value.hint


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_nobody_listens_under_an_impossible_name(host: str) -> None:
    with pytest.raises(WireError, match="cannot listen") as caught:
        listen(host, 0)
    assert caught.value.hint == "Give an address of this machine."
