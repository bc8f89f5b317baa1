"""What a node remembers of the heartbeats that it passed on."""

from rollcall.node import heard
from rollcall.node.heard import Heard
from rollcall.replication.records import Key


def test_the_last_one_counts_and_the_number_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(heard, "HEARD_MAX", 3)
    kept, keys = Heard(), [Key("default", "cart", str(number)) for number in range(5)]

    kept.note(keys[:3], 1.0)
    kept.note(keys[:1], 2.5)
    assert [kept.ms_ago(key, 3.0) for key in keys[:4]] == [500, 2000, 2000, None]
    kept.note(keys[3:], 3.0)
    assert [kept.ms_ago(key, 3.0) for key in keys] == [500, None, None, 0, 0]
