"""The record of an instance, and what a registration makes of it."""

from ..checks import Check, begun, worst
from ..errors import Superseded
from ..records import Instance, Registration


def registered(sent: Registration, index: int, now: int, stored: Instance | None = None) -> Instance:
    """The record that a registration makes, of ``stored`` what outlives it."""
    dirty_timestamp = sent.dirty_timestamp if sent.dirty_timestamp is not None else now
    checks: tuple[Check, ...] = sent.checks or ()
    # What was found at the same place by the same questions still holds.
    states = stored.check_states if stored and _same_place(stored, sent, checks) else begun(checks, index)
    return Instance(
        env=sent.env,
        service=sent.service,
        id=sent.id,
        hostname=sent.hostname,
        address=sent.address,
        port=sent.port,
        addrs=sent.addrs,
        version=sent.version,
        region=sent.region,
        zone=sent.zone,
        tags=sent.tags,
        # Sorted, so that equal records have equal bytes, whatever the client's order.
        meta=dict(sorted(sent.meta.items())) if len(sent.meta) > 1 else sent.meta,
        weight=sent.weight,
        status=sent.status,
        status_override=stored.status_override if stored else None,
        status_reason=stored.status_reason if stored else "",
        status_until=stored.status_until if stored else None,
        ttl_s=float(sent.ttl_s) if sent.ttl_s is not None else None,
        # Without checks an address is passing.
        health=worst(states),
        reg_timestamp=now,
        up_timestamp=stored.up_timestamp if stored else now,
        dirty_timestamp=dirty_timestamp,
        latest_timestamp=now,
        create_index=stored.create_index if stored else index,
        reg_index=index,
        modify_index=index,
        checks=checks,
        check_states=states,
    )


def superseded(instance: Instance, reg_index: int) -> Superseded:
    """What becomes of a removal that means the registration of ``reg_index`` while ``instance`` is another."""
    return Superseded(
        f"instance {instance.id!r} was registered again, at index {instance.reg_index}: the one "
        f"of index {reg_index} is gone already, and this one stays",
        reg_index=instance.reg_index,
    )


def _same_place(stored: Instance, sent: Registration, checks: tuple[Check, ...]) -> bool:
    place = (stored.hostname, stored.address, stored.port, stored.addrs, stored.checks)
    return place == (sent.hostname, sent.address, sent.port, sent.addrs, checks)
