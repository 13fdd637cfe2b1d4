"""The end of a fenced publish: Redis checks the lease, claims the tick and takes the message.

Guaranteed: if Redis refuses or does not answer, the publish itself raises an exception. A task's
own ``apply_async`` sees it like any other failure.
"""

from __future__ import annotations

from celery import Celery

from celery_leader.errors import NotLeader, StoreUnavailable
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT
from celery_leader.store.refusals import without_echo
from celery_leader.store.schedule_store import Outcome, Push

from .dispatch import Dispatch
from .fenced_store import AGREED, FencedStore

logger = get_logger(__name__)

#: Takes the place of a Redis command in the log if a task's own code raised an exception.
_TASK = "apply_async"


class Losses:
    """Logs failures that come after a message was sent, once for each cause.

    Args:
        app: the app that sends.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._told: set[tuple[str, str]] = set()

    def refused(self, entry: str, command: str, target: str, error: str) -> None:
        """Log that Redis refused a command that belongs to the dispatch of ``entry``."""
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

    def raised(self, entry: str, exc: Exception) -> None:
        """Log that the task's own ``apply_async`` raised ``exc`` after its message was sent."""
        self.refused(entry, _TASK, type(exc).__name__, without_echo(exc))

    def _advice(self, command: str, target: str, error: str) -> str:
        if command == _TASK:
            return ""
        if "channel" in error:
            right = f"&{target}"
        elif "permission" in error or "The user executing the script can't" in error:
            right = f"+{command.lower()} and ~{target}"
        else:
            return ""
        events = self._app.conf.event_exchange in target and "task_send_sent_event needs it: "
        return f"; {events or ''}give the Redis user of the broker {right}"


class FencedDelivery:
    """Delivers the first message of a tick together with the tick's claim."""

    def __init__(self, store: FencedStore, term: int, dispatch: Dispatch, losses: Losses) -> None:
        self._store = store
        self._term = term
        self._dispatch = dispatch
        self._losses = losses
        #: The answer of Redis; ``None`` if it was not asked, or did not answer.
        self.outcome: Outcome | None = None
        #: Why Redis did not answer.
        self.failure: StoreUnavailable | None = None
        #: Whether the log already says what failed after the message.
        self.told = False

    @property
    def done(self) -> bool:
        """Whether Redis agreed."""
        return self.outcome in AGREED

    def deliver(self, pushes: list[Push]) -> None:
        """Have Redis check the lease, claim the tick and push the message, in one step.

        Raises:
            StoreUnavailable: Redis did not answer, or it refuses this message itself.
            NotLeader: Redis refused, since this beat lost the lease or the tick was claimed.
        """
        tick = self._dispatch
        self.outcome = self.failure = None
        tick.published = bool(pushes)
        try:
            answer = self._store.dispatch(self._term, tick.entry, tick.old, tick.new, pushes)
        except StoreUnavailable as exc:
            self.failure = exc
            tick.in_doubt = True
            raise
        self.outcome = answer.outcome
        if not self.done:
            raise NotLeader(f"{BEAT}: Redis refused this tick of {tick.entry}")
        for refusal in answer.refusals:
            self._losses.refused(tick.entry, refusal.command, refusal.target, refusal.error)

    def failed_later(self, push: Push, exc: Exception) -> None:
        """Log that ``push``, which came after the message, failed with ``exc``."""
        self.told = True
        self._losses.refused(self._dispatch.entry, push.command, push.key, without_echo(exc))
