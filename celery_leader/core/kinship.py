"""Tells one project from another by its app's name and the names of its tasks.

An identity is ``name|digest|sketch``, and no longer than a field of a record may be. The sketch
holds the smallest hashes of the task names, so that the share of common tasks can be estimated:
the two versions of a rolling deployment share most tasks, and a web process shares the tasks that
it imports. Guaranteed: an app always counts as the same project as itself. Not guaranteed: that
two projects of one name are told apart if they have one task each (their kinship is unknown), nor
that two projects are told apart that have only the tasks of one library (they count as one).
"""

from __future__ import annotations

import base64
import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from .names import printable

_LONGEST_NAME = 100  # bytes
_MOST = 192  # hashes in a sketch; all tasks of an app with no more of them are compared
_CHARACTERS = 3  # in each hash, with 6 bits each
_NO_TASKS = hashlib.sha1(b"", usedforsecurity=False).hexdigest()[:12]
_ENOUGH = 2  # the fewest comparable hashes that can tell two apps of one name apart
_MOSTLY, _HARDLY = 0.5, 0.1  # shares of the hashes that could be in both sketches


class Kin(enum.Enum):
    """How two apps are related."""

    #: They share most tasks, or a name and some tasks: two versions or parts of one project.
    SAME = "same"
    #: They share only a name, and have too few tasks to be sure.
    UNKNOWN = "unknown"
    #: They share hardly a task: two projects.
    OTHER = "other"


def sketch(names: Iterable[str]) -> str:
    """The smallest hashes of ``names``, in order."""
    return "".join(sorted({_hash(name) for name in names})[:_MOST])


def _hash(name: str) -> str:
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).decode()[:_CHARACTERS]


def identity(name: str, tasks: Iterable[str]) -> str:
    """The identity of an app with this name and these tasks."""
    own = sorted(task for task in tasks if not task.startswith("celery."))
    digest = hashlib.sha1("\n".join(own).encode(), usedforsecurity=False).hexdigest()[:12]
    shown = printable(name).replace("|", "/").encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{shown}|{digest}|{sketch(own)}"


def called(identity: str) -> str:
    """The name of the app, for people."""
    return repr(identity.partition("|")[0] or "an app without a name")


def kinship(one: str, other: str) -> Kin:
    """How the apps of two identities are related.

    Without a sketch (an earlier version, or an app without tasks) only the names are compared. A
    process without a name and tasks belongs to any project.
    """
    (name, digest, few), (their_name, their_digest, their_few) = _parts(one), _parts(other)
    if digest and digest == their_digest != _NO_TASKS:
        return Kin.SAME
    likeness = Likeness.of(few, their_few)
    if likeness.most == 0:
        return Kin.SAME if name == their_name or not (name and their_name) else Kin.OTHER
    if likeness.is_mostly_shared:
        return Kin.SAME
    if name != their_name or likeness.is_hardly_shared:
        return Kin.OTHER
    return Kin.SAME if likeness.shared else Kin.UNKNOWN


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much two sketches have in common.

    Attributes:
        shared: how many of the hashes that can be compared are in both.
        most: how many would be in both if the smaller one were a part of the other.
    """

    shared: int
    most: int

    @classmethod
    def of(cls, one: str, other: str) -> Likeness:
        """Compare two sketches in the range of hashes that both cover."""
        ours, theirs = _hashes(one), _hashes(other)
        # A full sketch says nothing of what comes after its largest hash.
        bounds = [each[-1] for each in (ours, theirs) if len(each) >= _MOST]
        bound = min(bounds, default="~")
        mine = {each for each in ours if each <= bound}
        yours = {each for each in theirs if each <= bound}
        return cls(len(mine & yours), min(len(mine), len(yours)))

    @property
    def is_mostly_shared(self) -> bool:
        """Whether the smaller one is mostly a part of the other."""
        return self.most > 0 and self.shared >= _MOSTLY * self.most

    @property
    def is_hardly_shared(self) -> bool:
        """Whether nearly nothing is shared, and there is enough to be sure."""
        return self.most >= _ENOUGH and self.shared < _HARDLY * self.most


def _parts(identity: str) -> tuple[str, str, str]:
    name, _, rest = identity.partition("|")
    digest, _, hashes = rest.partition("|")
    return name, digest, hashes


def _hashes(text: str) -> list[str]:
    # Anybody may have written it: text that is no sketch compares as another project's.
    whole = len(text) - len(text) % _CHARACTERS
    return [
        text[i : i + _CHARACTERS] for i in range(0, min(whole, _MOST * _CHARACTERS), _CHARACTERS)
    ]
