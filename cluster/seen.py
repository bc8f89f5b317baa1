"""Up to where a client has seen the registry: an index, and the name of the history that it is of.

Pure. An index alone says nothing of a registry that began anew, after the loss of all
its disks or because it was put back from a copy: its numbers mean other changes, and are
mostly lower. So the two are remembered, sent and forgotten together. A registry of an
older release, or one that has just been born, names no history: then the index stands alone.
"""


class Seen:
    """Not for several threads at once. ``history`` is empty until one was named."""

    def __init__(self) -> None:
        self.history: str = ""
        self.index: int = 0
        self._former: str = ""

    def took(self, history: str, index: int) -> bool:
        """Takes note of where an answer was read, and says whether that is another history than before."""
        if history and history == self._former:
            return False  # it was on its way while another answer told of the change
        if history and self.history and history != self.history:
            if not index:
                # A node that lags may say so. An answer that was read somewhere tells, or a 410.
                return False
            self._former, self.history, self.index = self.history, history, index
            return True
        self.history = self.history or history
        self.index = max(self.index, index)
        return False

    def refused(self, history: str, index: int, told: str) -> bool:
        """The registry, whose history is ``told``, never was at ``index`` of ``history``. Says whether that is news.

        Then all that was known is forgotten. It is none if it was forgotten already, or if nobody
        but the caller believed in that index.
        """
        if history and self.history and history != self.history:
            return False
        another = bool(told and self.history and told != self.history)
        if not another and self.index < index:
            return False
        if another:
            self._former = self.history
        self.history, self.index = told, 0
        return True
