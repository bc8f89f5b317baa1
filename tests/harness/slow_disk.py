"""A cluster of real processes whose disks can be slow."""

from pathlib import Path

from harness.cluster import Cluster


class SlowDisks(Cluster):
    """The bench, and ``slow_disk``."""

    def _command(self, i: int) -> list[str]:
        command = super()._command(i)
        at = command.index("-m")
        program = str(Path(__file__).with_name("slow_node.py"))
        return [command[0], "-P", program, str(self._orders(i)), *command[at + 2 :]]

    def _orders(self, i: int) -> Path:
        return self.data_dir / f"sync-{i}"

    def slow_disk(self, i: int, sync_s: float) -> None:
        """Every sync of node i takes so much longer from now on."""
        new = self._orders(i).with_suffix(".new")
        new.write_text(str(sync_s))
        new.replace(self._orders(i))
