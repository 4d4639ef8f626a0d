"""The queue that wakes workers: huey on SQLite, Redis or Postgres. It carries names of subjects and nothing else."""

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

# An idle SQLite queue is looked at this often by each thread; Redis and Postgres tell by themselves.
POLL_S = 0.05
# A worker asks an unreachable queue again after this.
ASK_AGAIN_S = 1.0
log = structlog.get_logger(__name__)


class JsonSerializer(Serializer):  # type: ignore[misc]  # huey has no types
    """Messages as JSON. huey's own serializer is pickle, which runs whatever somebody put into the queue."""

    def _serialize(self, data: Any) -> bytes:
        return msgspec.json.encode(list(data) if isinstance(data, Message) else data)

    def _deserialize(self, data: Any) -> Any:
        fields = msgspec.json.decode(bytes(data), type=list[Any])
        message = Message(*fields)
        return message._replace(args=tuple(msgspec.convert(message.args, tuple[str, str])))


class _SqliteStorage(SqliteStorage):  # type: ignore[misc]  # huey has no types
    """huey's SQLite without a wait for the disk at each commit: a power cut may lose wake-ups, which is no loss.

    huey's own switch for this (`fsync=False`) lets a power cut break the file.
    """

    def _create_connection(self) -> Any:
        connection = super()._create_connection()
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


class _Thread(HueyWorker):  # type: ignore[misc]  # huey has no types
    """One thread of huey's. Unlike huey's own it says once that the queue is away, not twenty times a second."""

    _away = False

    def loop(self, now: Any = None) -> None:
        try:
            task = self.huey.dequeue()
        except (msgspec.MsgspecError, HueyException, TypeError) as error:  # it is out of the queue, and no loss
            log.warning("queue_holds_junk", error=str(error))
            return
        except Exception:
            if not self._away:
                log.exception("queue_unreachable")
            self._away = True
            self.stop_flag.wait(ASK_AGAIN_S)
            return
        self._away = False
        if task is not None:
            self.huey.execute(task, now)
        elif not self.huey.storage.blocking:
            self.sleep()

    def shutdown(self) -> None:
        super().shutdown()
        # On Postgres each thread has a connection that listens; huey leaves it to the garbage collector.
        listening = getattr(getattr(self.huey.storage, "_listen_local", None), "conn", None)
        if listening is not None:
            listening.close()


class _Consumer(Consumer):  # type: ignore[misc]  # huey has no types
    """A consumer of huey's without its signal handlers: the worker has its own, and may run outside the main thread."""

    worker_class = _Thread

    def _set_signal_handlers(self) -> None:
        pass


class Queue:
    """Wakes a worker for a subject; losing or doubling a wake-up is harmless.

    Args:
        settings: `queue_url` chooses the engine.
        run: what a worker does for (topic, subject); without it this end can only wake.

    Raises:
        MissingExtra: a Redis or Postgres URL without its extra.
    """

    def __init__(self, settings: Settings, run: Callable[[str, str], None] | None = None) -> None:
        self._huey = _open_huey(settings)
        self._run = run
        self._rest_until = 0.0

        @self._huey.task(name="wake")  # type: ignore[untyped-decorator]
        def wake(topic: str, subject: str) -> None:
            if self._run is not None:
                self._run(topic, subject)

        self._wake = wake

    def wake(self, topic: str, subject: str) -> None:
        """Tell a worker that the subject has events. Raises whatever the engine raises when it cannot be reached."""
        self._wake(topic, subject)

    def size(self) -> int:
        """How many wake-ups wait."""
        return int(self._huey.storage.queue_size())

    def consumer(self, threads: int) -> Consumer:
        """A consumer of huey's with `threads` threads, not started."""
        # backoff=1: a pause that grows while idle would be the latency of the next event.
        return _Consumer(
            self._huey, workers=threads, periodic=False, initial_delay=POLL_S, max_delay=POLL_S, backoff=1.0,
            scheduler_interval=60,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of connections."""
        self._huey.storage.close()
        pool = getattr(self._huey.storage, "pool", None)  # huey leaves Redis' connections to the garbage collector
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
            raise MissingExtra("A Postgres queue", extra="postgres") from None
        # huey makes its tables when it opens, and two "create table if not exists" at once fail on Postgres.
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as lock:
            lock.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
            return PostgresHuey(dsn=url, connect_timeout=5, **common)
    try:
        from redis import ConnectionPool
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise MissingExtra("A Redis queue", extra="redis") from None
    # Without time limits an unreachable Redis would hold up a webhook that Label Studio gives one second.
    retry = Retry(NoBackoff(), 1)  # ours are paced by ourselves; one at once mends a connection that Redis closed
    pool = ConnectionPool.from_url(url, socket_connect_timeout=0.5, socket_timeout=5.0, retry=retry)
    return RedisHuey(connection_pool=pool, **common)
