"""The store that torch's agents use among themselves, with a wait that a signal or a lost node can end."""

from __future__ import annotations

import time
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]  # not in its __all__

from distrain.launcher.membership import Membership

__all__ = ["AgentStore"]

_LOOK_S = 0.1


class AgentStore(PrefixStore):
    """A part of the round's store.

    torch's agent waits here for the others once its own workers are done, in native code, where no signal handler runs
    and nobody tells it that it waits in vain.

    Args:
        prefix: The part's name.
        store: The round's store.
        membership: What becomes of the others.
    """

    def __init__(self, prefix: str, store: Store, membership: Membership) -> None:
        super().__init__(prefix, store)
        self._membership = membership

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for keys; give up when who was to set them has gone.

        Raises:
            EndedElsewhereError: The run is to end.
            DistStoreError: The time is over.
        """
        end = time.monotonic() + (timeout or self._patience()).total_seconds()
        while not self.check(keys):
            self._membership.check()
            if self._membership.changed():
                return
            if time.monotonic() > end:
                raise DistStoreError(f"{', '.join(keys)} did not come")
            time.sleep(_LOOK_S)

    def _patience(self) -> timedelta:
        patience: timedelta = self.timeout  # type: ignore[attr-defined]  # the stubs do not know it
        return patience
