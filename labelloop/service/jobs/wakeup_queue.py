"""The queue that wakes workers: huey on SQLite, Redis or Postgres. Messages are (topic, subject) only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from huey import Huey, PostgresHuey, RedisHuey
from huey.consumer import Consumer
from huey.consumer import Worker as HueyWorker
from huey.exceptions import HueyException
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import SqliteStorage

from labelloop.service.db.engine import MIGRATION_LOCK
from labelloop.service.errors import MissingExtra
from labelloop.service.settings import Settings

# Poll interval of each thread on an idle SQLite queue; Redis and Postgres block instead.
POLL_S = 0.05
# Delay before a worker retries an unreachable queue.
RECONNECT_S = 1.0
log = structlog.get_logger(__name__)


class JsonSerializer(Serializer):  # type: ignore[misc]  # huey has no types
    """Messages as JSON. huey's default serializer is pickle, which executes code from the queue."""

    def _serialize(self, data: Any) -> bytes:
        return msgspec.json.encode(list(data) if isinstance(data, Message) else data)

    def _deserialize(self, data: Any) -> Any:
        fields = msgspec.json.decode(bytes(data), type=list[Any])
        message = Message(*fields)
        return message._replace(args=tuple(msgspec.convert(message.args, tuple[str, str])))


class _SqliteStorage(SqliteStorage):  # type: ignore[misc]  # huey has no types
    """huey's SQLite storage without fsync at each commit; a power cut may lose wake-ups, which is harmless.

    huey's own option `fsync=False` would let a power cut corrupt the file.
    """

    def _create_connection(self) -> Any:
        connection = super()._create_connection()
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


class _Thread(HueyWorker):  # type: ignore[misc]  # huey has no types
    """A huey worker thread that logs an unreachable queue once, not twenty times a second."""

    _unreachable = False

    def loop(self, now: Any = None) -> None:
        try:
            task = self.huey.dequeue()
        except (msgspec.MsgspecError, HueyException, TypeError) as error:  # already dequeued; losing it is harmless
            log.warning("queue_holds_junk", error=str(error))
            return
        except Exception:
            if not self._unreachable:
                log.exception("queue_unreachable")
            self._unreachable = True
            self.stop_flag.wait(RECONNECT_S)
            return
        self._unreachable = False
        if task is not None:
            self.huey.execute(task, now)
        elif not self.huey.storage.blocking:
            self.sleep()

    def shutdown(self) -> None:
        super().shutdown()
        # On Postgres each thread has a LISTEN connection, which huey leaves to the garbage collector.
        listening = getattr(getattr(self.huey.storage, "_listen_local", None), "conn", None)
        if listening is not None:
            listening.close()


class _Consumer(Consumer):  # type: ignore[misc]  # huey has no types
    """A huey consumer without signal handlers: the worker has its own and may run outside the main thread."""

    worker_class = _Thread

    def _set_signal_handlers(self) -> None:
        pass


class WakeupQueue:
    """Wake a worker for a subject; lost or duplicate wake-ups are harmless.

    Args:
        settings: `queue_url` selects the storage.
        run: Called by a worker with (topic, subject); None: this process only sends wake-ups.

    Raises:
        MissingExtra: A Redis or Postgres URL without its extra.
    """

    def __init__(self, settings: Settings, run: Callable[[str, str], None] | None = None) -> None:
        self._huey = _open_huey(settings)
        self._run = run

        @self._huey.task(name="wake")  # type: ignore[untyped-decorator]
        def wake(topic: str, subject: str) -> None:
            if self._run is not None:
                self._run(topic, subject)

        self._wake = wake

    def wake(self, topic: str, subject: str) -> None:
        """Notify a worker that the subject has events. Raises the storage's own errors if it is unreachable."""
        self._wake(topic, subject)

    def size(self) -> int:
        """The number of waiting wake-ups."""
        return int(self._huey.storage.queue_size())

    def consumer(self, threads: int) -> Consumer:
        """Create a huey consumer with `threads` threads, not started."""
        # backoff=1: a delay that grows while idle would add latency to the next event.
        return _Consumer(
            self._huey, workers=threads, periodic=False, initial_delay=POLL_S, max_delay=POLL_S, backoff=1.0,
            scheduler_interval=60,
        )  # fmt: skip

    def close(self) -> None:
        """Close all connections."""
        self._huey.storage.close()
        pool = getattr(self._huey.storage, "pool", None)  # huey leaves Redis connections to the garbage collector
        if pool is not None:
            pool.disconnect()


def _open_huey(settings: Settings) -> Huey:
    url = settings.queue_url
    common: dict[str, Any] = {"name": "labelloop", "results": False, "serializer": JsonSerializer()}
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        file = Path(url.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        return Huey(storage_class=_SqliteStorage, filename=str(file), timeout=30, **common)
    if scheme == "postgresql":
        try:
            import psycopg
        except ModuleNotFoundError:
            raise MissingExtra(what="A Postgres queue", extra="postgres") from None
        # huey creates its tables on opening; concurrent "create table if not exists" fail on Postgres.
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as lock:
            lock.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
            return PostgresHuey(dsn=url, connect_timeout=5, **common)
    try:
        from redis import ConnectionPool
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise MissingExtra(what="A Redis queue", extra="redis") from None
    # Without timeouts an unreachable Redis would delay a webhook beyond Label Studio's limit of one second.
    retry = Retry(
        NoBackoff(), 1
    )  # one immediate retry reopens a connection that Redis closed; callers pace further retries
    pool = ConnectionPool.from_url(url, socket_connect_timeout=0.5, socket_timeout=5.0, retry=retry)
    return RedisHuey(connection_pool=pool, **common)
