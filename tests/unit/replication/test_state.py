"""Reading a service while another thread is in the middle of changing it."""

import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator
from typing import Any

import pytest
from rollcall.replication.commands import FORMAT, Envelope, Register
from rollcall.replication.records import Instance, Registration
from rollcall.replication.registry import services as services_module
from rollcall.replication.registry.registry import Registry
from rollcall.replication.registry.services import ServiceOutline, ServiceState, ServiceView
from rollcall.replication.registry.state import Facts, State


def instance(id: str, version: str) -> Instance:
    index = int(version)
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), index)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), index)
    return Instance(env="default", service="web", id=id, version=version, **stamps, **indexes)


def all_of(version: str) -> dict[str, Instance | None]:
    return {id: instance(id, version) for id in "ab"}


def service_at(version: str) -> ServiceState:
    service = ServiceState(("default", "web"), object())
    service.change(all_of(version), int(version), int(version))
    return service


def is_whole(view: ServiceView, version: str) -> bool:
    index = int(version)
    return (view.modify_index, view.latest_timestamp, [i.version for i in view.instances]) == (
        index,
        index,
        [version] * 2,
    )


class Interrupted(dict[str, Any]):
    """Changes that are taken over with a pause after the first."""

    def __init__(self, changed: dict[str, Any], pause: Callable[[], None]) -> None:
        super().__init__(changed)
        self._pause = pause

    def items(self) -> Any:
        return self._items(super().items())

    def _items(self, items: ItemsView[str, Any]) -> Iterator[tuple[str, Any]]:
        for number, item in enumerate(items):
            if number == 1:
                self._pause()
            yield item


class Reader:
    """A thread that looks once."""

    def __init__(self, service: ServiceState) -> None:
        self._views: list[ServiceView] = []
        self._thread = threading.Thread(target=lambda: self._views.append(service.look()))

    def start(self) -> None:
        self._thread.start()
        self._thread.join(0.02)

    def view(self) -> ServiceView:
        self._thread.join(10)
        return self._views[0]


def test_in_the_middle_of_a_change_one_sees_what_was_before() -> None:
    service = service_at("1")
    before = service.look()
    seen: list[ServiceView] = []
    service.change(Interrupted(all_of("2"), lambda: seen.append(service.look())), 2, 2)

    assert seen == [before]
    assert is_whole(service.look(), "2")


def test_without_a_view_of_what_was_before_one_waits_for_what_comes_after() -> None:
    service = service_at("1")
    reader = Reader(service)
    service.change(Interrupted(all_of("2"), reader.start), 2, 2)

    assert is_whole(reader.view(), "2")


def test_a_view_from_before_other_changes_is_too_old_to_be_an_answer() -> None:
    service = service_at("1")
    service.look()
    service.change(all_of("2"), 2, 2)
    reader = Reader(service)
    service.change(Interrupted(all_of("3"), reader.start), 3, 3)

    assert is_whole(reader.view(), "3")


class ChangedWhileRead(dict[str, Instance]):
    """Instances that somebody changes just after a reader has copied them."""

    def __init__(self, instances: dict[str, Instance], change: Callable[[], None]) -> None:
        super().__init__(instances)
        self._change = change

    def values(self) -> Any:
        values = list(super().values())
        change, self._change = self._change, lambda: None
        change()
        return values


def test_a_reader_that_was_overtaken_by_a_change_looks_again() -> None:
    service = service_at("1")
    service.instances = ChangedWhileRead(service.instances, lambda: service.change(all_of("2"), 2, 2))

    assert is_whole(service.look(), "2")
    assert is_whole(service.look(), "2")


def test_a_large_service_is_written_in_the_order_of_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is sorted: the same state gives the same bytes on every node."""
    service = ServiceState(("default", "web"), object())
    for number in range(50):
        id = f"i{number * 37 % 50}"
        service.instances[id] = instance(id, "1")
    state = State(
        applied_index=1,
        term=1,
        last_time_ns=1,
        services={service.name: service},
        requests={},
        instances=50,
        total=0,
        facts=Facts(),
    )
    at_once = list(state.chunks(500))

    monkeypatch.setattr(services_module, "SORT_MAX", 7)

    assert list(state.chunks(500)) == at_once
    assert len(at_once) > 5


def test_what_is_sorted_is_sorted_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other thread runs in the middle of a sort, and the node's others cannot wait for one of a hundred thousand."""
    lengths: list[int] = []

    def noted(values: Iterable[Any], **options: Any) -> list[Any]:
        made = sorted(values, **options)
        lengths.append(len(made))
        return made

    monkeypatch.setattr(services_module, "SORT_MAX", 7)
    monkeypatch.setattr(services_module, "sorted", noted, raising=False)
    registry = Registry()
    for number in range(50):
        id = f"i{number * 37 % 50}"
        for name in ("web", f"s{id}"):
            entry = Envelope(FORMAT, 0, Register(Registration(service=name, id=id)))
            registry.apply(registry.applied_index + 1, 1, entry)

    view = registry.service("default", "web")
    assert view is not None
    assert [i.id for i in view.instances] == sorted(f"i{n}" for n in range(50))
    assert [view.name for view in registry.services()] == sorted(["web", *(f"si{n}" for n in range(50))])
    assert max(lengths) == 7


def test_an_outline_is_never_newer_than_what_is_seen_after_it() -> None:
    service = service_at("1")
    service.look()
    outlines: list[ServiceOutline] = []
    asking = threading.Thread(target=lambda: outlines.append(service.outline()))

    def ask() -> None:
        asking.start()
        asking.join(0.02)
        assert not outlines, "half of a change has no outline"

    service.change(Interrupted(all_of("2"), ask), 2, 2)
    asking.join(10)
    assert outlines == [service.outline()] == [ServiceOutline(2, 2, 2)]
    assert is_whole(service.look(), "2")
