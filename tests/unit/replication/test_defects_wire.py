"""The library's defects on the wire between nodes: our transport has none of them, the library's each.

The numbers are those of DESIGN.md.
"""

import errno

from harness.members import proves, require


@proves
def test_d16_a_failed_accept_does_not_close_the_listener_for_good(side):
    ends = side.ends()
    ends.start("a")
    ends.net.accept_errors.append(errno.EMFILE)

    ends.start("b")
    ends.tick(30.0)

    require(ends.connected(), "after 30 s nobody can connect")


@proves
def test_d20_an_answer_to_a_process_before_completes_nothing(side):
    asker = side.asker()
    earlier, _ = asker.ask("x")
    asker.restart()
    _, answer = asker.ask("y")

    asker.answer(earlier)
    asker.wait(1.0)

    require(not answer.done, "a client was told that its write succeeded; it was somebody else's, before the restart")


@proves
def test_d21_a_request_that_was_lost_with_its_connection_is_answered(side):
    asker = side.asker()
    _, answer = asker.ask("x")

    asker.reconnect()
    asker.wait(60.0)

    require(answer.done, "after a minute with a good connection the client still waits")
    assert not answer.succeeded


@proves
def test_d22_a_message_arrives_however_long_the_connection_was_idle(side):
    ends = side.ends()
    ends.start("a", "b")
    ends.tick(1.0)
    idle_s = [3.4 + tenths / 10 for tenths in range(8)]

    for number, seconds in enumerate(idle_s):
        ends.tick(seconds)
        ends.talk("a", number)
        ends.talk("b", number)

    ends.tick(1.0)
    everything = list(range(len(idle_s)))
    require(ends.heard == {"a": everything, "b": everything}, f"what arrived is {ends.heard}")


@proves
def test_d23_nothing_is_taken_from_a_connection_that_a_newer_one_replaced(side):
    ends = side.ends()
    ends.start("a")
    first = ends.dial_as_b()
    ends.say(first, 1)
    ends.round()
    second = ends.dial_as_b()
    ends.say(second, 2)
    ends.round()

    if not first.other.closed:
        ends.say(first, 3)
    ends.round()

    require(ends.heard["a"] == [1, 2], f"heard {ends.heard['a']}: the last came on the old connection")
