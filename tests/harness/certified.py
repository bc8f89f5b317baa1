"""A cluster of real processes that speak TLS among themselves, with certificates of its own CA."""

from collections.abc import Sequence
from pathlib import Path

from rollcall.cluster.local.local import flags
from rollcall.node import certs
from rollcall.replication.network.tls import Credentials

from harness.cluster import Cluster

CLUSTER = "rollcall"


def tls_settings(folder: Path) -> dict[str, object]:
    """The settings of a node whose certificate lies in ``folder``, as ``rollcall-node certs`` leaves it there."""
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem", "tls_ca": folder / "ca.pem"}


def credentials_of(folder: Path, cluster: str, node: str) -> Credentials:
    """The same as the transport wants them."""
    return Credentials(folder / "cert.pem", folder / "key.pem", folder / "ca.pem", cluster=cluster, node=node)


class CertifiedCluster(Cluster):
    """Like ``Cluster``, with certificates that are made when it starts."""

    @property
    def certificates(self) -> Path:
        return self.data_dir / "certificates"

    def start(self, *, wait: bool = True, only: Sequence[int] = ()) -> None:
        self.issue()
        super().start(wait=wait, only=only)

    def issue(self, *nodes: int) -> None:
        """Certificates for these nodes, or for all: new ones, or renewed."""
        named = [self.node_id(i) for i in nodes or range(self.nodes)]
        certs.make(CLUSTER, named, self.certificates)

    def settings_of(self, i: int, **changed: object) -> dict[str, object]:
        return super().settings_of(i, **{**tls_settings(self.certificates / self.node_id(i)), **changed})

    def _command(self, i: int) -> list[str]:
        return [*super()._command(i), *flags(tls_settings(self.certificates / self.node_id(i)))]
