"""Which project owns each state of a shared schedule.

Redis keeps, beside the schedule, a short id for each project that has led it, with a description
of that project. Each state carries the id of the project that wrote it.

Guaranteed: a state without an id, or with an unknown one, is free for anybody. A project keeps its
id while most of its tasks or most of its entries stay. Not guaranteed: that two projects with
hardly any tasks and entries are told apart. Then each takes the other's states for its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from celery_leader.core.kinship import Kin, Likeness, called, kinship, sketch

from .entry_state import project_of

_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Project:
    """The description that tells one project from others.

    Attributes:
        app: the ``identity`` of its app.
        entries: a sketch of the names of its entries.
    """

    app: str
    entries: str

    @classmethod
    def of(cls, app: str, entries: Collection[str]) -> Project:
        """The project with this app and these entries."""
        return cls(app, sketch(name for name in entries if not name.startswith("celery.")))

    @classmethod
    def read(cls, text: str) -> Project | None:
        """The project that ``text`` describes; ``None`` if no version of ours wrote it."""
        try:
            said = json.loads(text)
            app, entries = said["app"], said["entries"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return cls(app, entries) if isinstance(app, str) and isinstance(entries, str) else None

    def text(self) -> str:
        """The description as Redis keeps it."""
        return json.dumps({"app": self.app, "entries": self.entries})

    def is_other(self, project: Project) -> bool:
        """Whether ``project`` is surely another one: its tasks differ, and so do its entries."""
        if kinship(self.app, project.app) is not Kin.OTHER:
            return False
        # All tasks of a project may be renamed at once; nobody renames the entries with them.
        return not Likeness.of(self.entries, project.entries).is_mostly_shared


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns the states, as this project sees it.

    Attributes:
        id: the id of this project.
        before: the description of this project that Redis has now; empty if it has none.
        text: the description of this project that Redis is to keep.
        others: by id, the name of the app of each project that is surely another one.
        unused: the ids that no state carries.
    """

    id: str
    before: str
    text: str
    others: Mapping[str, str]
    unused: list[str]

    @classmethod
    def of(
        cls, project: Project, kept: Mapping[str, str], states: Mapping[str, str], fresh: str
    ) -> Ownership:
        """Find ``project`` among the ``kept`` descriptions; a new one gets the id ``fresh``."""
        known = {each: Project.read(text) for each, text in kept.items() if _ID.fullmatch(each)}
        others = {
            each: called(other.app)
            for each, other in known.items()
            if other is not None and project.is_other(other)
        }
        same = [
            each
            for each, other in sorted(known.items())
            if other is not None and kinship(project.app, other.app) is Kin.SAME
        ]
        own = next(iter(same), None) or next(
            (each for each in sorted(known) if each not in others and known[each] is not None),
            fresh,
        )
        used = {project_of(state) for state in states.values()}
        unused = [each for each in kept if each != own and each not in used]
        return cls(own, kept.get(own, ""), project.text(), others, unused)

    def foreign(self, states: Mapping[str, str]) -> dict[str, str]:
        """The entries whose state another project wrote, with the id of that project."""
        written = {entry: project_of(state) for entry, state in states.items()}
        return {entry: each for entry, each in written.items() if each in self.others}
