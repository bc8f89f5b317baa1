"""The product's own nodes in one process, on virtual time, under every fault that one seed draws.

    ./scripts/chaos simulate --schedules 1000 --nodes 3
    ./scripts/chaos simulate --nodes 3 --seed 4711

What is real: engine, journal, state files, state machine, change feed, leases,
eviction, who checks whom and what becomes of it, the desk where peers' requests are
answered. What is not: threads, sockets, the clock, the instances that are asked, and
what a power cut leaves of a file.

How it reads: ``plan`` draws a schedule, which is plain data; ``world`` plays it,
node by node on one clock (``node``, and ``asking`` for the health checks of one);
``network``, ``faults`` and ``workload`` are what happens to the nodes; ``judge`` sees
everything and raises ``Violation``, ``health`` tells it what is wrong with checks;
``shrink`` makes a failing schedule short; ``pool`` plays many, each in a process
of its own; ``command`` is what people type.

A world that can fail: ``World`` takes what makes a node (``make_node``). Hand it
``partial(EngineNode, make_engine=Weakened)`` with an ``Engine`` that lacks a
rule, or anything else that is a ``node.Node``, such as the bare library:

    play(draw(seed=1, nodes=3), make_node=partial(EngineNode, make_engine=Weakened)).violation

``play`` changes the process that it runs in (clocks, sizes), so call it in a
child of its own: ``pool.play_many`` does.
"""
