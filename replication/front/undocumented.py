"""What this wing uses of waitress beyond its documents, and the versions of it where that was read.

A node must not be held by clients that do nothing, and waitress' documents end where
that begins. So some of its inner names are used, and overridden, here: all of them stand
in this table. Another version may mean something else by them; before it is added to
``VERSIONS``, each name is read again there. ``tests/unit/node/test_undocumented.py`` fails on a
version that is not named, on a name that is gone, and on one that is used and not listed.
"""

from collections.abc import Mapping

VERSIONS = ("3.0.2",)
"""Those that were read. Not 3.0.1: there a channel sends from where it lies only what is of waitress' own class."""

NAMES: Mapping[str, tuple[str, ...]] = {
    # The socket loop's end of a server (``server``, ``keeper``).
    "server.TcpWSGIServer": (
        "_map",
        "accept",
        "active_channels",
        "adj",
        "channel_class",
        "close",
        "effective_port",
        "handle_accept",
        "maintenance",
        "next_channel_cleanup",
        "pull_trigger",
        "run",
        "set_socket_options",
        "trigger",
    ),
    "trigger.trigger": ("close", "del_channel", "pull_trigger"),
    "adjustments.Adjustments": ("connection_limit", "socket_options"),
    # A client's connection (``channel``; ``server`` closes it, ``pool`` queues it).
    "channel.HTTPChannel": (
        "_fileno",
        "_flush_outbufs_below_high_watermark",
        "addr",
        "cancel",
        "close_when_flushed",
        "connected",
        "del_channel",
        "error_task_class",
        "handle_close",
        "last_activity",
        "outbufs",
        "parser_class",
        "received",
        "request",
        "requests",
        "requests_lock",
        "send",
        "send_continue",
        "server",
        "service",
        "socket",
        "task_class",
        "total_outbufs_len",
        "will_close",
        "write_soon",
    ),
    "buffers.ReadOnlyFileBasedBuffer": ("close", "file", "get", "remain", "skip"),
    # One request as it comes (``request``).
    "parser.HTTPRequestParser": (
        "body_bytes_received",
        "body_rcv",
        "chunked",
        "close",
        "command",
        "completed",
        "content_length",
        "empty",
        "error",
        "expect_continue",
        "header_bytes_received",
        "header_plus",
        "headers",
        "headers_finished",
        "parse_header",
        "path",
        "received",
        "request_uri",
        "version",
    ),
    "receiver.FixedStreamReceiver": ("buf", "getfile"),
    "receiver.ChunkedReceiver": ("buf", "control_line", "getfile", "trailer"),
    "buffers.OverflowableBuffer": ("append", "close", "getfile"),
    "utilities.Error": ("body", "code", "reason"),
    # Its answer (``channel``), and the threads that make it (``pool``).
    "task.WSGITask": (
        "build_response_header",
        "channel",
        "content_bytes_written",
        "content_length",
        "has_body",
        "set_close_on_finish",
        "write",
        "wrote_header",
    ),
    "task.ErrorTask": ("execute", "request", "response_headers", "status"),
    "task.ThreadedTaskDispatcher": ("add_task", "lock", "queue", "set_thread_count", "start_new_thread"),
}
"""By class, what is read, set, called or overridden of it."""
