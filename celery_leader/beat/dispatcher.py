"""Sends the message of a tick in the name of a leader, with the claim that fences it.

Where messages and leases live in one Redis, one script checks the lease, claims the tick, writes
the new state and pushes the message. It runs at the end of the publish itself (``FencedDelivery``).
With another broker, a tick is claimed, published and confirmed in three steps.

Guaranteed: the state of an entry moves past a tick only if its message was sent, or if there is
none to send. Where messages are fenced, no message goes out unfenced in silence. Not guaranteed:
that an answer comes. After ``StoreUnavailable`` try again with the same ``Dispatch``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery
from celery.beat import SchedulingError
from kombu.exceptions import OperationalError

from celery_leader.compat.celery import awaiting_no_results
from celery_leader.core.events import Dispatched, DispatchRefused
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT
from celery_leader.store.refusals import without_echo
from celery_leader.store.schedule_store import Outcome

from .broker_connection import BrokerConnection
from .delivery import FencedDelivery, Losses
from .dispatch import Dispatch
from .fenced_store import AGREED, FencedStore
from .transport import PublishBuffer

logger = get_logger(__name__)

#: Publishes one message, with the given producer and in the given term.
Publish = Callable[[Any, int], Any]


class _Attempt(NamedTuple):
    """The result of one call of ``Publish``."""

    published: bool
    raised: Exception | None
    #: Whether the broker already owed an answer before this attempt.
    awaited: bool


class Dispatcher:
    """Sends the messages of one beat.

    Methods raise ``StoreUnavailable`` where nobody knows what became of a question or an attempt.

    Args:
        app: the app whose tasks are sent.
        runtime: its part in the elections.
        store: the shared schedule.
        broker: the connection on which messages are published.
    """

    def __init__(
        self, app: Celery, runtime: AppRuntime, store: FencedStore, broker: BrokerConnection
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._broker = broker
        self._losses = Losses(app)

    @property
    def fences_messages(self) -> bool:
        """Whether a message and its claim reach Redis in one step."""
        return self._broker.buffer is not None

    def send(self, term: int, dispatch: Dispatch, publish: Publish) -> bool:
        """Send one message and move the state of its entry with it, or do neither.

        Args:
            term: the term that this beat leads with.
            dispatch: the tick to send; the same object at each attempt.
            publish: makes and publishes the message; raises what goes wrong.

        Returns:
            Whether Redis agreed. If not, the shared schedule must be read again.

        Raises:
            StoreUnavailable: nobody knows whether it was sent, or the broker cannot be reached.
                Call this again with the same ``dispatch``.
        """
        if not self._store.is_shared:
            self._publish_at_once(term, dispatch, publish)
            outcome = Outcome.SENT
        elif self.was_sent(dispatch):
            outcome = Outcome.REPEATED
        elif self._broker.buffer is not None:
            outcome = self._send_with_its_claim(self._broker.buffer, term, dispatch, publish)
        else:
            outcome = self._send_between_claim_and_confirmation(term, dispatch, publish)
        node = self._store.node
        if not self._store.has_agreed(outcome, term):
            refused = DispatchRefused(BEAT, node, term, dispatch.entry, outcome.value)
            self._runtime.observers.tell(refused)
            return False
        if dispatch.published:
            self._runtime.observers.tell(Dispatched(BEAT, node, term, dispatch.entry))
        elif not dispatch.unsendable:
            logger.info("beat: nothing was sent of %s: its task published nothing", dispatch.entry)
        return True

    def was_sent(self, dispatch: Dispatch) -> bool:
        """Whether an attempt whose answer was lost went through after all.

        Asked before a task's own ``apply_async`` is called again, since that may take a lock which
        the task releases. If the message is out already, nobody releases the second lock.
        """
        if not dispatch.in_doubt:
            return False
        if self._store.state(dispatch.entry) == dispatch.new:
            return True
        dispatch.in_doubt = False
        return False

    def sends_others(self, term: int) -> bool:
        """Whether Redis accepts writes with ``term``, and the broker can be reached.

        Asked after a message could not be sent: if others can be, that message is at fault.
        """
        try:
            if not self._store.takes_writes(term):
                return False
            self._producer()
        except StoreUnavailable:
            return False
        return True

    def is_at_fault(self, term: int, dispatch: Dispatch) -> bool:
        """Whether ``dispatch`` has failed while others can be sent."""
        try:
            return self.sends_others(term) and not self.was_sent(dispatch)
        except StoreUnavailable:
            return False

    def producer(self) -> Any:
        """A connected producer; ``None`` while the broker cannot be reached."""
        try:
            return self._producer()
        except StoreUnavailable:
            return None

    def look_for_broker(self) -> None:
        """Try to connect again, if messages could not be published lately."""
        self._broker.look_again()

    def close(self) -> None:
        """Drop the connections, unless a call is using them.

        In that case a signal handler has interrupted the call. Without its socket the call would
        fail, and its exception would replace the exit that the handler asks for.
        """
        if not self._store.work.depth:
            self._broker.disconnect()
            self._store.close()

    # -- the ways to send --------------------------------------------------------------------

    def _publish_at_once(self, term: int, dispatch: Dispatch, publish: Publish) -> None:
        attempt = self._publish(term, publish)
        dispatch.published = attempt.published
        if attempt.published:
            self._note_sent(dispatch, attempt)
        else:
            self._note_empty(dispatch, attempt)

    def _send_with_its_claim(
        self, buffer: PublishBuffer, term: int, dispatch: Dispatch, publish: Publish
    ) -> Outcome:
        if not dispatch.empty:
            delivery = FencedDelivery(self._store, term, dispatch, self._losses)
            with buffer.handing_to(delivery):
                attempt = self._publish(term, publish)
            if delivery.failure is not None:
                raise delivery.failure  # even if the task's own code has caught it
            if delivery.outcome is not None:
                if delivery.done:
                    self._note_sent(dispatch, attempt, told=delivery.told)
                return delivery.outcome
            self._note_empty(dispatch, attempt)
        return self._move(term, dispatch, dispatch.old, dispatch.new)

    def _send_between_claim_and_confirmation(
        self, term: int, dispatch: Dispatch, publish: Publish
    ) -> Outcome:
        if not (dispatch.published or dispatch.empty):
            outcome = self._move(term, dispatch, dispatch.old, dispatch.claimed)
            if outcome not in AGREED:
                return outcome
            self._publish_at_once(term, dispatch, publish)
        return self._move(term, dispatch, dispatch.claimed, dispatch.new)

    def _move(self, term: int, dispatch: Dispatch, old: str, new: str) -> Outcome:
        """Move the state of a tick, with no message."""
        try:
            return self._store.dispatch(term, dispatch.entry, old, new).outcome
        except StoreUnavailable:
            dispatch.in_doubt = True
            raise

    # -- publishing ----------------------------------------------------------------------------

    def _publish(self, term: int, publish: Publish) -> _Attempt:
        """Publish; the caller judges what the task or kombu raised."""
        producer = self._producer()
        producer.published = 0
        raised: Exception | None = None
        # Before the publish, since a silent broker may never let it end.
        awaited = self._broker.expect_answer()
        try:
            with self._store.work, awaiting_no_results():
                publish(producer, term)
        except Exception as exc:  # a user's own router or option may raise anything
            raised = exc
        return _Attempt(producer.published > 0, raised, awaited)

    def _producer(self) -> Any:
        with self._store.work:
            return self._broker.producer()

    def _note_sent(self, dispatch: Dispatch, attempt: _Attempt, *, told: bool = False) -> None:
        self._broker.answered()
        if attempt.raised is not None and not told:
            self._losses.raised(dispatch.entry, attempt.raised)

    def _note_empty(self, dispatch: Dispatch, attempt: _Attempt) -> None:
        """Note that nothing was published; raise ``StoreUnavailable`` if the broker is to blame."""
        if attempt.raised is not None:
            self._check_sendable(dispatch, attempt.raised)
        if not attempt.awaited:
            self._broker.answered()  # nothing was sent, so it owes no answer
        dispatch.empty = True

    def _check_sendable(self, dispatch: Dispatch, raised: Exception) -> None:
        """Note that nobody can make this message, or raise ``StoreUnavailable`` for the broker."""
        cause = (
            raised.__cause__ or raised.__context__
            if isinstance(raised, SchedulingError)
            else raised
        )
        by_mistake = isinstance(cause, OperationalError) and isinstance(cause.__cause__, KeyError)
        if isinstance(cause, self._broker.lost) and not by_mistake:
            self._broker.disconnect()
            told = without_echo(cause)
            raise StoreUnavailable(f"the broker does not take it: {told}") from None
        dispatch.unsendable = True
        entry = dispatch.entry
        logger.error("beat: %s cannot be sent, this tick of it is given up: %s", entry, raised)
