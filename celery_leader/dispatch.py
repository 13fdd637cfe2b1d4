"""Sends the message of a tick in the name of a leader, with the claim that fences it.

Where messages and leases live in one Redis, lease check, claim, new state and push are
one script. Elsewhere the tick is claimed, published and confirmed. Guaranteed: a state
moves only with its message, and an unfenced message is never sent in silence where a
fenced one was asked for. Not guaranteed: that an answer comes; what raises
``StoreUnavailable`` is to be tried again with the same states.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celery import Celery, _state
from celery.beat import SchedulingError
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from .app import Leadership, node_name
from .broker import reach
from .clock import now
from .errors import StoreUnavailable
from .observe import Dispatched, DispatchRefused
from .redis_client import RedisClient, without_echo
from .runner import Campaign
from .schedule_store import Calls, Mandate, Outcome, Push, ScheduleStore, Stored
from .settings import BEAT
from .transport import Hold, holding_transport, holds
from .watchdog import BrokerPulse

logger = logging.getLogger(__name__)

#: Publishes one message with the producer it is given.
Publish = Callable[[Any], Any]

#: Written and removed again, as the state of an entry of this name.
_PROBE = ""

_AGREED = (Outcome.SENT, Outcome.REPEATED)


class Dispatcher:
    """What one beat sends with, from its election to its end.

    Args:
        app: the app whose broker gets the messages.
        leadership: its part in the elections.
        campaign: in whose name is sent; ``None`` where this process always leads, and
            nothing is fenced or shared.
        broker: told whether messages can be published, where that may end the campaign.
    """

    def __init__(
        self,
        app: Celery,
        leadership: Leadership,
        campaign: Campaign | None,
        broker: BrokerPulse | None = None,
    ) -> None:
        self._app = app
        self._leadership = leadership
        self._campaign = campaign
        self._broker = broker
        self._store: ScheduleStore | None = None
        self._hold: Hold | None = None
        self._connection: Any = None
        self._producer: Any = None
        self._client: RedisClient | None = None
        self._work = _Work()
        if campaign is not None:
            self._client = leadership.client_beside()
            self._store = ScheduleStore(self._run, leadership.keys, BEAT)
            if leadership.leases_on_broker:
                self._hold = Hold()

    # -- the shared schedule -------------------------------------------------------

    @property
    def shares_state(self) -> bool:
        """Whether there is a shared schedule at all."""
        return self._store is not None

    def load(self) -> Stored:
        """The shared schedule; an empty one where there is none.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return Stored({}, 0.0) if self._store is None else self._store.load()

    def write(self, term: int, states: dict[str, tuple[str, str]]) -> bool:
        """Write ``(old, new)`` states that come with no message; whether all was agreed to.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same states.
        """
        if self._store is None or not states:
            return True
        return self._agreed(self._store.anchor(self._mandate(term), states), term)

    def forget(self, term: int, entries: Sequence[str]) -> bool:
        """Remove entries from the shared schedule; whether that was agreed to.

        Raises:
            StoreUnavailable: nobody knows; call it again.
        """
        if self._store is None or not entries:
            return True
        return self._agreed(self._store.forget(self._mandate(term), entries), term)

    # -- sending -----------------------------------------------------------------------

    def send(
        self, term: int, entry: str, old: str, claimed: str, new: str, publish: Publish
    ) -> bool:
        """Send one message and advance the state of ``entry`` with it, or do neither.

        Args:
            term: the leader's.
            entry: its name.
            old: its state as it was read.
            claimed: its state between claim and confirmation, where these are two.
            new: its state afterwards.
            publish: makes and publishes the message.

        Returns:
            Whether Redis agreed; if not, what was read is to be read again.

        Raises:
            StoreUnavailable: nobody knows, or the broker cannot be reached; call it
                again with the same states.
        """
        if self._store is None:
            if self._publish(entry, publish):
                self._note_dispatched(entry, term)
            return True
        mandate = self._mandate(term)
        if self._hold is not None:
            with self._hold.collecting() as pushes:
                sendable = self._publish(entry, publish)
            # What cannot be sent moves on all the same, or it would be tried for ever.
            held: list[Push] = pushes if sendable else []
            outcome = self._store.dispatch(mandate, entry, old, new, held)
        else:
            outcome = self._store.dispatch(mandate, entry, old, claimed, [])
            if outcome in _AGREED:
                sendable = self._publish(entry, publish)
                outcome = self._store.dispatch(mandate, entry, claimed, new, [])
        if not self._agreed(outcome, term):
            reason = outcome.value
            self._leadership.tell(DispatchRefused(BEAT, self._node, term, entry, reason))
            return False
        if sendable:
            self._note_dispatched(entry, term)
        return True

    def works(self, term: int) -> bool:
        """Whether Redis takes what is written in the name of ``term``, and the broker is there.

        Asked when a message could not be sent: if so, that message is at fault.
        """
        if self._store is None:
            return True
        mandate = self._mandate(term)
        try:
            self._store.forget(mandate, [_PROBE])
            outcome = self._store.anchor(mandate, {_PROBE: ("", "{}")})
            self._store.forget(mandate, [_PROBE])
            self.producer()
        except StoreUnavailable:
            return False
        return outcome in _AGREED

    @property
    def fences_messages(self) -> bool:
        """Whether a message travels with its claim."""
        return self._hold is not None

    def producer(self) -> Any:
        """A connected producer, whose messages can be held back where that is needed.

        Raises:
            StoreUnavailable: the broker cannot be reached.
        """
        try:
            with self._work:
                return self._ready_producer()
        except self._lost as exc:
            self._disconnect()
            self._await_broker()
            raise StoreUnavailable(f"the broker cannot be reached: {without_echo(exc)}") from None

    def look_for_broker(self) -> None:
        """Try to connect again, if messages could not be published lately."""
        if self._broker is None or not self._broker.awaited:
            return
        with contextlib.suppress(StoreUnavailable):
            self.producer()
            self._broker_answered()

    def close(self) -> None:
        """Drop the connections, unless something is under way on them.

        Then this is a signal handler that has interrupted it. Without its socket that
        would fail, and the failure would take the place of the exit the handler asks for.
        """
        if self._work.depth:
            return
        self._disconnect()
        if self._client is not None:
            self._client.close()

    # -- small parts --------------------------------------------------------------------

    def _disconnect(self) -> None:
        """Drop the broker connection; the next message makes another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    def _run(self, calls: Calls) -> list[Any]:
        assert self._client is not None
        with self._work:
            return self._client.run(calls)

    @property
    def _lost(self) -> tuple[type[Exception], ...]:
        # kombu counts KeyError among Redis's, for a case of its consumers. Here that is an
        # unknown queue, or a router's mistake: it would be tried again for ever.
        errors = self._connected().connection_errors
        # A Redis that is full or a replica refuses the declaration of a queue, for now.
        return (OperationalError, ResponseError, *(e for e in errors if e is not KeyError))

    def _publish(self, entry: str, publish: Publish) -> bool:
        """Publish; whether the message could be made.

        Raises:
            StoreUnavailable: the broker cannot be reached.
        """
        producer = self.producer()
        # Before, since nothing may come back from a silent one.
        awaited = self._await_broker()
        try:
            with self._work, _awaiting_no_results():
                publish(producer)
        except Exception as exc:  # what a user's own router or option has raised, too
            cause = exc.__cause__ or exc.__context__ if isinstance(exc, SchedulingError) else exc
            by_mistake = isinstance(cause, OperationalError) and isinstance(
                cause.__cause__, KeyError
            )
            if isinstance(cause, self._lost) and not by_mistake:
                self._disconnect()
                raise StoreUnavailable(
                    f"the broker does not take it: {without_echo(cause)}"
                ) from None
            logger.error("beat: %s cannot be sent, this tick of it is given up: %s", entry, exc)
            if not awaited:
                self._broker_answered()  # or was not asked
            return False
        self._broker_answered()
        return True

    def _await_broker(self) -> bool:
        """Whether the broker has not answered since before."""
        if self._broker is None:
            return False
        awaited = self._broker.awaited
        self._broker.expect(now())
        return awaited

    def _broker_answered(self) -> None:
        if self._broker is not None:
            self._broker.suspend()

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._prepare(self._connection)
        return self._connection

    def _prepare(self, connection: Any) -> None:
        """Have ``connection`` use our transport, or confirm what it publishes."""
        transport = connection.get_transport_cls()
        if transport.driver_type == "redis":
            timeout = self._leadership.settings.timing.operation_timeout
            hold = self._hold or Hold()
            connection.transport_cls = holding_transport(transport, hold, timeout)
        elif transport.driver_type == "amqp":
            # What is not confirmed within a lease is another leader's to publish.
            patience = self._leadership.settings.timing.lease_duration
            connection.transport_options = {
                "read_timeout": patience,
                "write_timeout": patience,
                **(connection.transport_options or {}),
                "confirm_publish": True,
            }

    def _reach(self, connection: Any) -> Any:
        """Connect to one of its URLs; a producer there."""
        reach(connection)
        return self._app.amqp.Producer(connection, auto_declare=False)

    def _ready_producer(self) -> Any:
        if self._producer is not None and self._obeys(self._producer):
            return self._producer
        self._disconnect()
        connection = self._connected()
        self._producer = self._reach(connection)
        if not self._obeys(self._producer):
            # kombu has gone on to another URL and taken its own transport for it.
            connection.close()
            self._prepare(connection)
            self._producer = self._reach(connection)
        if not self._obeys(self._producer):
            raise StoreUnavailable("this broker connection cannot hold messages back")
        return self._producer

    def _obeys(self, producer: Any) -> bool:
        return self._hold is None or holds(producer.channel, self._hold)

    @property
    def _node(self) -> str:
        return node_name(BEAT) if self._campaign is None else self._campaign.election.holder

    def _note_dispatched(self, entry: str, term: int) -> None:
        self._leadership.tell(Dispatched(BEAT, self._node, term, entry))

    def _mandate(self, term: int) -> Mandate:
        assert self._campaign is not None
        return Mandate(self._campaign.election.nonce, term)

    def _agreed(self, outcome: Outcome, term: int) -> bool:
        if outcome in _AGREED:
            return True
        assert self._campaign is not None
        logger.info("%s: dispatch refused, term %d: %s", BEAT, term, outcome.value)
        if outcome is not Outcome.CLAIMED:
            gone = outcome is Outcome.MISSING
            self._leadership.contradicted(self._campaign, term, gone=gone)
        return False


class _Work:
    """How deep in something that must not lose its connection this process is."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1


@contextlib.contextmanager
def _awaiting_no_results() -> Iterator[None]:
    # Celery subscribes to the result of what it sends. Nobody in a beat waits for it, and
    # with the result backend away each send would block for 20 s and then fail for good.
    before = _state.task_join_will_block()
    _state._set_task_join_will_block(True)
    try:
        yield
    finally:
        _state._set_task_join_will_block(before)
