"""Store and write queue of the aggregator; they survive a reload of the settings."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from ..common.logs import ProblemLog
from ..common.threads import run_periodically, start_thread
from ..store.base import Store, StoreUnavailable
from ..store.factory import open_store
from ..store.settings import StoreSettings
from ..store.sqlite import SqliteStore
from .recall import Recall
from .settings import AggregatorSettings, SpoolSettings
from .spool import Spool
from .write_queue import WriteQueue

LOG = logging.getLogger("scroogevm.aggregator")

#: How long the backlog may take to be written at the end.
_FLUSH_S = 10.0
_EXPIRE_EVERY_S = 600.0


class WriterSettings(NamedTuple):
    """The settings of a writer; a reload that changes them replaces the writer."""

    store: StoreSettings
    queue_bytes: int
    spool: SpoolSettings | None = None


def writer_settings(settings: AggregatorSettings) -> WriterSettings:
    """The part of the aggregator's settings that a writer uses."""
    return WriterSettings(settings.store, settings.queue_bytes, settings.spool)


class StoreWriter:
    """An open store, the queue of samples to write to it, and the deletion of old samples.

    Parameters
    ----------
    settings : WriterSettings
    store : Store
        Closed together with the writer.

    Attributes
    ----------
    recall : Recall
        Reads what was stored last of a node.
    """

    def __init__(self, settings: WriterSettings, store: Store) -> None:
        self.settings = settings
        spool = None if settings.spool is None else Spool(settings.spool.path, settings.spool.most_bytes)
        self.queue = WriteQueue(store, settings.queue_bytes, spool)
        self._store = store
        self._problems = ProblemLog(LOG)
        self._stopped = threading.Event()
        self.recall = Recall(store)

    def start(self, *, expire: bool) -> None:
        """Start writing and, with ``expire``, delete and thin old samples of the embedded store."""
        self.queue.start()
        store = self._store
        if expire and isinstance(store, SqliteStore):
            start_thread("expire", run_periodically, lambda: self._expire(store), _EXPIRE_EVERY_S, self._stopped)

    def close(self) -> bool:
        """Write the backlog to the store or the spool, and close the store; whether nothing is lost."""
        self._stopped.set()
        flushed = self.queue.close(_FLUSH_S)
        self._store.close()
        return flushed

    def _expire(self, store: SqliteStore) -> None:
        try:
            expired = store.expire(stopped=self._stopped)
        except StoreUnavailable as error:
            self._problems.report("deletion of old samples", str(error))
            return
        self._problems.resolve("deletion of old samples")
        LOG.info(
            "old samples deleted: samples=%d thinned=%d retention_s=%g",
            *(expired.deleted, expired.thinned, store.retention_s),
        )


def open_writer(settings: AggregatorSettings) -> StoreWriter:
    """Open the store of the settings.

    Raises
    ------
    StoreRefused
        When the store cannot be opened.
    """
    return StoreWriter(writer_settings(settings), open_store(settings.store))
