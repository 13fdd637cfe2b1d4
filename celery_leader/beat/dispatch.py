"""Sends the message of a tick in the name of a leader, with the claim that fences it.

Where messages and leases live in one Redis, lease check, claim, new state and push are
one script. It runs at the end of the publish itself, so that a task's own ``apply_async``
sees a failure or a refusal as it sees any other: as an exception. Elsewhere the tick is
claimed, published and confirmed. Guaranteed: a state moves only with its message, or
if there is none to send; and an unfenced message is never sent in silence where a
fenced one was asked for. Not guaranteed: that an answer comes; what raises
``StoreUnavailable`` is to be tried again with the same ``Dispatch``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, _state
from celery.beat import SchedulingError
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from celery_leader.core.events import Dispatched, DispatchRefused
from celery_leader.core.watchdog import BrokerHeartbeat
from celery_leader.errors import NotLeader, StoreUnavailable
from celery_leader.runtime.clock import now
from celery_leader.runtime.identity import node_name
from celery_leader.runtime.leadership import Leadership
from celery_leader.runtime.lease_source import reach
from celery_leader.runtime.runner import Campaign
from celery_leader.runtime.settings import BEAT
from celery_leader.store.client import RedisClient, without_echo
from celery_leader.store.schedule_store import (
    Answer,
    Calls,
    FencingToken,
    Outcome,
    Push,
    ScheduleStore,
    Stored,
)

from .projects import Ownership
from .transport import PublishBuffer, counting_producer, holding_transport, obeys

logger = logging.getLogger(__name__)

#: Publishes one message with the producer it is given.
Publish = Callable[[Any], Any]

#: Written and removed again, as the state of an entry of this name.
_PROBE = ""

#: Named in place of a command of Redis, where a task's own code raised something.
_TASKS_OWN = "apply_async"

_AGREED = (Outcome.SENT, Outcome.REPEATED)


@dataclass(slots=True)
class Dispatch:
    """The dispatch of one tick, and how far the attempts at it came.

    Attributes:
        entry: the entry's name.
        old: its state as it was read.
        claimed: its state between claim and confirmation, where these are two.
        new: its state afterwards.
        in_doubt: whether nobody knows if Redis did what was asked last.
        published: whether a message was published; while in doubt, whether one was if Redis did
            what was asked.
        empty: whether there is nothing to publish, so that only the state moves.
        unsendable: whether it is empty because the message cannot be made.
    """

    entry: str
    old: str
    claimed: str
    new: str
    in_doubt: bool = False
    published: bool = False
    empty: bool = False
    unsendable: bool = False


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
        broker: BrokerHeartbeat | None = None,
    ) -> None:
        self._app = app
        self._leadership = leadership
        self._campaign = campaign
        self._broker = broker
        self._store: ScheduleStore | None = None
        self._buffer: PublishBuffer | None = None
        self._connection: Any = None
        self._producer: Any = None
        self._client: RedisClient | None = None
        self._work = _Work()
        self._told: set[tuple[str, str]] = set()
        if campaign is not None:
            self._client = leadership.redis.client_beside()
            self._store = ScheduleStore(self._run, leadership.redis.keys, BEAT)
            if leadership.redis.is_broker:
                self._buffer = PublishBuffer()

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

    @property
    def projects_key(self) -> str:
        """The key that keeps what tells projects from each other."""
        return self._leadership.redis.keys.of("projects", BEAT)

    def register(self, term: int, ownership: Ownership) -> bool:
        """Keep what tells this project from others; whether Redis agreed.

        Raises:
            StoreUnavailable: nobody knows; call it again.
        """
        if self._store is None or (ownership.before == ownership.text and not ownership.unused):
            return True
        outcome = self._store.register(
            self._token(term),
            ownership.id,
            ownership.before,
            ownership.text,
            ownership.unused,
        )
        return self._agreed(outcome, term)

    def write(self, term: int, states: dict[str, tuple[str, str]]) -> bool:
        """Write ``(old, new)`` states that come with no message; whether Redis agreed to all.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same states.
        """
        if self._store is None or not states:
            return True
        return self._agreed(self._store.anchor(self._token(term), states), term)

    def forget(self, term: int, entries: Sequence[str]) -> bool:
        """Remove entries from the shared schedule; whether Redis agreed.

        Raises:
            StoreUnavailable: nobody knows; call it again.
        """
        if self._store is None or not entries:
            return True
        return self._agreed(self._store.forget(self._token(term), entries), term)

    # -- sending -----------------------------------------------------------------------

    def send(self, term: int, dispatch: Dispatch, publish: Publish) -> bool:
        """Send one message and advance the state of its entry with it, or do neither.

        Args:
            term: the leader's.
            dispatch: what is sent; the same at each attempt.
            publish: makes and publishes the message; it raises what goes wrong.

        Returns:
            Whether Redis agreed; if not, what was read is to be read again.

        Raises:
            StoreUnavailable: nobody knows, or the broker cannot be reached; call it
                again with the same ``dispatch``.
        """
        if self._store is None:
            self._publish(dispatch, publish)
            outcome = Outcome.SENT
        elif self.was_sent(dispatch):
            outcome = Outcome.REPEATED
        elif self._buffer is not None:
            outcome = self._send_with_its_claim(self._buffer, term, dispatch, publish)
        else:
            outcome = self._send_between_claim_and_confirmation(term, dispatch, publish)
        if not self._agreed(outcome, term):
            reason = outcome.value
            refused = DispatchRefused(BEAT, self._node, term, dispatch.entry, reason)
            self._leadership.observers.tell(refused)
            return False
        if dispatch.published:
            self._leadership.observers.tell(Dispatched(BEAT, self._node, term, dispatch.entry))
        elif not dispatch.unsendable:
            logger.info("beat: nothing was sent of %s: its task published nothing", dispatch.entry)
        return True

    def was_sent(self, dispatch: Dispatch) -> bool:
        """Whether an attempt whose answer was lost went through after all.

        Asked before a task's own ``apply_async`` is called again: a lock that it takes for a
        message that is out already would never be released.

        Raises:
            StoreUnavailable: nobody knows.
        """
        if not dispatch.in_doubt or self._store is None:
            return False
        if self._store.state(dispatch.entry) == dispatch.new:
            return True
        dispatch.in_doubt = False
        return False

    def works(self, term: int) -> bool:
        """Whether Redis takes what is written in the name of ``term``, and the broker is there.

        Asked when a message could not be sent: if so, that message is at fault.
        """
        if self._store is None:
            return True
        token = self._token(term)
        try:
            self._store.forget(token, [_PROBE])
            outcome = self._store.anchor(token, {_PROBE: ("", "{}")})
            self._store.forget(token, [_PROBE])
            self.producer()
        except StoreUnavailable:
            return False
        return outcome in _AGREED

    @property
    def fences_messages(self) -> bool:
        """Whether a message travels with its claim."""
        return self._buffer is not None

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
            try:
                return self._client.run(calls)
            except StoreUnavailable:
                # A connection that was idle or cut is known by its first use. All of these
                # scripts know what they have done when they come again.
                return self._client.run(calls)

    @property
    def _lost(self) -> tuple[type[Exception], ...]:
        # kombu counts KeyError among Redis's, for a case of its consumers. Here that is an
        # unknown queue, or a router's mistake: it would be tried again for ever.
        errors = self._connected().connection_errors
        # A Redis that is full or a replica refuses the declaration of a queue, for now.
        return (OperationalError, ResponseError, *(e for e in errors if e is not KeyError))

    def _send_with_its_claim(
        self, buffer: PublishBuffer, term: int, dispatch: Dispatch, publish: Publish
    ) -> Outcome:
        if not dispatch.empty:
            delivery = _Delivery(self._store_of_mine, self._token(term), dispatch, self._tell)
            with buffer.handing_to(delivery):
                self._publish(dispatch, publish, delivery)
            if delivery.outcome is not None:
                return delivery.outcome
        return self._move(term, dispatch, dispatch.old, dispatch.new)

    def _send_between_claim_and_confirmation(
        self, term: int, dispatch: Dispatch, publish: Publish
    ) -> Outcome:
        if not (dispatch.published or dispatch.empty):
            outcome = self._move(term, dispatch, dispatch.old, dispatch.claimed)
            if outcome not in _AGREED:
                return outcome
            self._publish(dispatch, publish)
        return self._move(term, dispatch, dispatch.claimed, dispatch.new)

    def _move(self, term: int, dispatch: Dispatch, old: str, new: str) -> Outcome:
        """Write the state of a tick, with no message."""
        try:
            answer = self._store_of_mine.dispatch(self._token(term), dispatch.entry, old, new, [])
        except StoreUnavailable:
            dispatch.in_doubt = True
            raise
        return answer.outcome

    def _publish(
        self, dispatch: Dispatch, publish: Publish, delivery: _Delivery | None = None
    ) -> None:
        """Publish, and note in ``dispatch`` what became of it.

        Raises:
            StoreUnavailable: the broker cannot be reached.
        """
        producer = self.producer()
        producer.published = 0
        raised: Exception | None = None
        # Before the publish, since a silent broker may never let it end.
        awaited = self._await_broker()
        try:
            with self._work, _awaiting_no_results():
                publish(producer)
        except Exception as exc:  # a user's own router or option may raise anything
            raised = exc
        if delivery is None:
            dispatch.published = producer.published > 0
        elif delivery.failure is not None:
            raise delivery.failure  # also if somebody has caught it
        elif delivery.outcome is not None and not delivery.done:
            return
        if delivery.done if delivery else dispatch.published:
            self._broker_answered()
            if raised is not None and not (delivery and delivery.told):
                kind = type(raised).__name__
                self._tell(dispatch.entry, _TASKS_OWN, kind, without_echo(raised))
            return
        if raised is not None:
            self._check_sendable(dispatch, raised)
        if not awaited:
            self._broker_answered()  # it was not asked
        dispatch.empty = True

    def _check_sendable(self, dispatch: Dispatch, raised: Exception) -> None:
        """Note that the message cannot be made, unless ``raised`` is about the broker.

        Raises:
            StoreUnavailable: ``raised`` says that the broker cannot be reached.
        """
        cause = (
            raised.__cause__ or raised.__context__
            if isinstance(raised, SchedulingError)
            else raised
        )
        by_mistake = isinstance(cause, OperationalError) and isinstance(cause.__cause__, KeyError)
        if isinstance(cause, self._lost) and not by_mistake:
            self._disconnect()
            told = without_echo(cause)
            raise StoreUnavailable(f"the broker does not take it: {told}") from None
        dispatch.unsendable = True
        entry = dispatch.entry
        logger.error("beat: %s cannot be sent, this tick of it is given up: %s", entry, raised)

    def _await_broker(self) -> bool:
        """Wait for an answer of the broker; whether one was awaited before."""
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
            buffer = self._buffer or PublishBuffer()
            connection.transport_cls = holding_transport(transport, buffer, timeout)
        elif transport.driver_type == "amqp":
            # After a lease another leader publishes what was not confirmed.
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
        return counting_producer(self._app.amqp.Producer)(connection, auto_declare=False)

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
        return self._buffer is None or obeys(producer.channel, self._buffer)

    @property
    def _node(self) -> str:
        return node_name(BEAT) if self._campaign is None else self._campaign.election.holder

    @property
    def _store_of_mine(self) -> ScheduleStore:
        assert self._store is not None
        return self._store

    def _tell(self, entry: str, command: str, target: str, error: str) -> None:
        """Log once for each cause that a part of what was sent was refused."""
        if (command, target) in self._told:
            return
        self._told.add((command, target))
        logger.warning(
            "beat: %s was sent, but not all that goes with it: %s %s: %s%s",
            entry,
            command,
            target,
            error,
            self._advice(command, target, error),
        )

    def _advice(self, command: str, target: str, error: str) -> str:
        if command == _TASKS_OWN:
            return ""
        if "channel" in error:
            right = f"&{target}"
        elif "permission" in error or "The user executing the script can't" in error:
            right = f"+{command.lower()} and ~{target}"
        else:
            return ""
        events = self._app.conf.event_exchange in target and "task_send_sent_event needs it: "
        return f"; {events or ''}give the Redis user of the broker {right}"

    def _token(self, term: int) -> FencingToken:
        assert self._campaign is not None
        return FencingToken(self._campaign.election.nonce, term)

    def _agreed(self, outcome: Outcome, term: int) -> bool:
        if outcome in _AGREED:
            return True
        assert self._campaign is not None
        logger.info("%s: dispatch refused, term %d: %s", BEAT, term, outcome.value)
        if outcome is not Outcome.CLAIMED:
            gone = outcome is Outcome.MISSING
            self._leadership.candidacies.lease_rejected(self._campaign, term, gone=gone)
        return False


class _Delivery:
    """Delivers what is published of one tick: the first message with the claim of the tick."""

    def __init__(
        self,
        store: ScheduleStore,
        token: FencingToken,
        dispatch: Dispatch,
        tell: Callable[[str, str, str, str], None],
    ) -> None:
        self._store = store
        self._token = token
        self._dispatch = dispatch
        self._tell = tell
        #: What Redis said; ``None`` if it was not asked, or did not answer.
        self.outcome: Outcome | None = None
        #: Why it did not answer.
        self.failure: StoreUnavailable | None = None
        #: Whether the log says already what failed after the message.
        self.told = False

    @property
    def done(self) -> bool:
        """Whether Redis agreed."""
        return self.outcome in _AGREED

    def deliver(self, pushes: list[Push]) -> None:
        """Have Redis check the lease, claim the tick and push the message, in one step.

        Raises:
            StoreUnavailable: nobody knows, or Redis refuses this message itself.
            NotLeader: Redis refused, since another leads or has led.
        """
        dispatch = self._dispatch
        self.outcome = self.failure = None
        dispatch.published = bool(pushes)
        try:
            answer = self._ask(pushes)
        except StoreUnavailable as exc:
            self.failure = exc
            dispatch.in_doubt = True
            raise
        self.outcome = answer.outcome
        if not self.done:
            raise NotLeader(f"{BEAT}: Redis refused this tick of {dispatch.entry}")
        for refusal in answer.refusals:
            self._tell(dispatch.entry, refusal.command, refusal.target, refusal.error)

    def failed_later(self, push: Push, exc: Exception) -> None:
        """Say that something which follows the message could not be pushed."""
        self.told = True
        self._tell(self._dispatch.entry, push.command, push.key, without_echo(exc))

    def _ask(self, pushes: list[Push]) -> Answer:
        dispatch = self._dispatch
        return self._store.dispatch(self._token, dispatch.entry, dispatch.old, dispatch.new, pushes)


class _Work:
    """Counts what is under way in this process that must not lose its connection."""

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
