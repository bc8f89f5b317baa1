"""The bytes of an example of each message: what its class is called is no part of them."""

import pytest
from rollcall.replication.network import wire
from rollcall.replication.network.wire import FrameReader, Message, encode
from rollcall.replication.storage.starts import Claims, Known, Position, Start

HELLO = ("cluster", "node-1", "0123456789abcdef", 2**62 - 1, {"lease_ttl_s": "15"})
CLAIMS = Claims(0, 3, (Start("token", Position(6, 6, 298)),), Position(7, 6, 300), {"node-2": Known("disk-2", 1, 4)})

BYTES: list[tuple[Message, str]] = [
    (
        wire.Hello(1, *HELLO),
        "470000009c0001a7636c7573746572a66e6f64652d31b030313233343536373839616263646566cf3fffffffffffffff"
        "81ab6c656173655f74746c5f73a2313501a0a66d656d62657280c0",
    ),
    (
        wire.Hello(1, *HELLO, 5, "disk-1", "rejoining", {"node-2": "disk-2"}, CLAIMS),
        "8b0000009c0001a7636c7573746572a66e6f64652d31b030313233343536373839616263646566cf3fffffffffffffff"
        "81ab6c656173655f74746c5f73a2313505a66469736b2d31a972656a6f696e696e6781a66e6f64652d32a66469736b2d"
        "329500039192a5746f6b656e930606cd012a930706cd012c81a66e6f64652d3295a66469736b2d320104a093000000",
    ),
    (wire.Refused("it belongs elsewhere"), "180000009301b469742062656c6f6e677320656c73657768657265c2"),
    (
        wire.Refused("it has an older directory", True),
        "1d0000009301b969742068617320616e206f6c646572206469726563746f7279c3",
    ),
    (wire.Ping(True), "060000009502c3c0c0c0"),
    (
        wire.Ping(False, 12.5, 1_700_000_000_123_456_789, 12.25),
        "1e0000009502c2cb4029000000000000cf17979cfe3d85cd15cb4028800000000000",
    ),
    (wire.RequestVote(7, 300, 6), "08000000950307cd012c06c2"),
    (wire.RequestVote(7, 300, 6, True), "08000000950307cd012c06c3"),
    (wire.RequestVoteResponse(7), "03000000920407"),
    (
        wire.AppendEntries(7, 299, 300, 6, ((b"one", 301, 7), (b"", 302, 7))),
        "280000009a0507cd012bcd012c069293c4036f6e65cd012d0793c400cd012e07c2c0cb0000000000000000c0",
    ),
    (
        wire.AppendEntries(7, 299, 0, 0, (), True, 12.5, 0.125, {"node-2": 12.25}),
        "2d0000009a0507cd012b000090c3cb4029000000000000cb3fc000000000000081a66e6f64652d32cb4028800000000000",
    ),
    (wire.AppendEntriesResponse(7, 303, True, False), "0c000000990607cd012fc3c2c3c0c0c3"),
    (
        wire.AppendEntriesResponse(7, 280, False, True, False, 12.5, 12.25, False),
        "1c000000990607cd0118c2c3c2cb4029000000000000cb4028800000000000c2",
    ),
    (wire.TimeoutNow(2**63 - 1), "0b0000009207cf7fffffffffffffff"),
    (
        wire.InstallSnapshot(7, 300, 65_536, 131_072, bytes(range(8))),
        "1a000000960807cd012cce00010000ce00020000c4080001020304050607",
    ),
    (wire.InstallSnapshotResponse(7, 300, 65_544), "0b000000940907cd012cce00010008"),
    (wire.Request(2**48, "submit", b"payload"), "1b000000940acf0001000000000000a67375626d6974c4077061796c6f6164"),
    (wire.Answer(2**48, b"payload", ""), "15000000940bcf0001000000000000c4077061796c6f6164a0"),
    (
        wire.Answer(2**48, b"", "nobody serves 'submit' here"),
        "29000000940bcf0001000000000000c400bb6e6f626f64792073657276657320277375626d6974272068657265",
    ),
    (wire.PreVote(7, 300, 6), "07000000940c07cd012c06"),
    (wire.PreVoteResponse(7, True), "04000000930d07c3"),
    (wire.ReadProbe(7, 12), "04000000930e070c"),
    (wire.ReadProbeResponse(7, 12), "04000000930f070c"),
]


@pytest.mark.parametrize(("message", "expected"), BYTES, ids=lambda value: type(value).__name__)
def test_a_message_has_these_bytes(message, expected):
    assert encode(message).hex() == expected


@pytest.mark.parametrize(("message", "data"), BYTES, ids=lambda value: type(value).__name__)
def test_these_bytes_are_that_message(message, data):
    assert list(FrameReader().feed(bytes.fromhex(data))) == [message]


def test_every_kind_of_message_has_an_example():
    assert {type(message) for message, _ in BYTES} == set(wire.Message.__args__)
