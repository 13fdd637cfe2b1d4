"""Deliberate bugs, one at a time: every one of them must be caught by some test.

A mutant replaces one piece of the source by another. ``tests`` are those likely to see it,
asked first; where they do not, the whole of the quick tests is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CORE = ("tests/core/test_election.py", "tests/simulation")
_STORE = ("tests/store/test_lease_store_contract.py", "tests/store/test_lease_store.py")
_THREAD = ("tests/runtime/test_election_thread.py",)
_DISPATCH = ("tests/store/test_schedule_store.py",)
_IN_FLIGHT = ("tests/store/test_in_flight.py",)
_FETCHER = ("tests/worker/test_fetcher.py",)
_PLAN = ("tests/beat/test_plan.py",)
_FORKS = ("tests/runtime/test_forks.py",)
_IDENTITIES = ("tests/core/test_namesakes.py",)
_HOSTILE = "tests/store/test_hostile_record.py::test_"
_MARKED = ("tests/tasks/test_leader_only.py",)
_HANDOVER = "tests/worker/test_handover.py::test_"
_LEADING = "tests/worker/test_leading.py::test_"
_WAYS = "tests/tasks/test_every_way_to_send.py::test_"
_CUTS = "tests/worker/test_cuts.py::test_"
_PROJECTS = "tests/beat/test_two_projects.py::test_"
_DELAYED = "tests/beat/test_rabbitmq_queues.py::test_"
_LINK = "tests/worker/test_each_link.py::test_"
_LINKS = _LINK + "those_lead_whose_links_let_them_work"
_TOOLS = "tests/beat/test_other_tools.py::test_"
_UNSEEN = (
    "tests/beat/test_django_rows.py"
    "::test_a_row_that_was_switched_on_unseen_is_not_sent_again_by_the_next_leader"
)
_SCHEDULES = ("tests/simulation/test_simulated_schedules.py",)
_CONFIGURED = "tests/worker/test_configuration.py::test_"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug: in ``file`` of the package, ``old`` is ``new``, at each of its ``times`` places."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    times: int = 1

    def applied_to(self, text: str) -> str:
        """``text`` with the bug in it.

        Raises:
            ValueError: the source has changed, and the mutant is to be changed with it.
        """
        found = text.count(self.old)
        if found != self.times:
            raise ValueError(
                f"mutant {self.name!r}: its text is {found} times in celery_leader/{self.file}"
                f" and not {self.times}; bring it up to date:\n{self.old}"
            )
        return text.replace(self.old, self.new)

    def path(self, root: Path) -> Path:
        """The file it changes, in the tree at ``root``."""
        return root / "celery_leader" / self.file


def _election(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "core/election.py", old, new, _CORE)


def _script(verb: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"store/lua/{verb}.lua", old, new, _STORE)


def _slot(verb: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"store/lua/{verb}.lua", old, new, ("tests/store/test_slots.py",))


def _in_flight(verb: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"store/lua/{verb}.lua", old, new, _IN_FLIGHT)


def _fetcher(file: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, file, old, new, _FETCHER)


def _dispatch(verb: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"store/lua/{verb}.lua", old, new, _DISPATCH)


def _unknown(name: str, old: str, new: str) -> Mutant:
    return Mutant(
        name, "worker/unknown_tasks.py", old, new, ("tests/worker/test_unknown_tasks.py",)
    )


MUTANTS = (
    # -- the state machine --------------------------------------------------------------
    Mutant(
        "no margin",
        "core/timing.py",
        "return max(0.05 * self.lease_duration, 0.1)",
        "return 0.0",
        _CORE,
    ),
    _election(
        "the deadline counts from the receipt",
        "valid_until = sent_at + timing.lease_duration",
        "valid_until = now + timing.lease_duration",
    ),
    Mutant(
        "leading does not end by itself",
        "core/election.py",
        "return self._own.term if now < self._own.valid_until else None",
        "return self._own.term",
        _CORE,
    ),
    Mutant(
        "a missing record counts as free",
        "core/observed_lease.py",
        "return now >= self._may_make_record_at(now)",
        "return True",
        _CORE,
    ),
    Mutant(
        "one witness only: the server's clock",
        "core/observed_lease.py",
        "return self._watched if now >= self._run_out_at else None",
        "return self._watched",
        _CORE,
    ),
    Mutant(
        "a lease is silent at once",
        "core/observed_lease.py",
        "return self._watched is not None and now >= self._silent_at",
        "return self._watched is not None",
        _CORE,
    ),
    Mutant(
        "an old copy's time is believed",
        "core/observed_lease.py",
        "old_copy = self._watched is not None and state < self._watched",
        "old_copy = False",
        _CORE,
    ),
    Mutant(
        "the server's clock is never compared with our own",
        "core/observed_lease.py",
        "record.remaining + clock_gained",
        "record.remaining",
        _CORE,
    ),
    Mutant(
        "a clock set back is no reason for distrust",
        "core/observed_lease.py",
        'return max(moved, 0.0) if moved >= -self._timing.margin else float("inf")',
        "return max(moved, 0.0)",
        _CORE,
    ),
    Mutant(
        "the attempts of a renewal never end",
        "core/pace.py",
        "return self._failures >= self._timing.renew_attempts",
        "return False",
        _CORE,
    ),
    Mutant(
        "who resigns in doubt leaves the lease behind",
        "core/election.py",
        "elif not self._resignation.due and (self._in_doubt or self.requester.attempt):",
        "elif False:",
        _CORE,
    ),
    _election(
        "a release that found another leader counts as the end that was told",
        "if self._resignation.tells_end:",
        "if True:",
    ),
    Mutant(
        "an error in a log line begins another line",
        "runtime/log.py",
        "if isinstance(value, str | Exception) else value",
        "if isinstance(value, str) else value",
        ("tests/runtime/test_log.py",),
    ),
    Mutant(
        "a grant after resigning makes a leader",
        "core/election.py",
        "if not self.campaigning or self._resignation.due:",
        "if False:",
        _CORE,
    ),
    _election(
        "a late grant is believed",
        "if valid_until <= now:",
        "if False:",
    ),
    Mutant(
        "every attempt has the same number",
        "core/requester.py",
        "self.attempt += 1",
        "self.attempt = 1",
        _CORE,
    ),
    Mutant(
        "a leader whose record is gone lets go",
        "core/own_lease.py",
        "return record.term < self.term or (record.term == self.term and ours)",
        "return False",
        _CORE,
    ),
    Mutant(
        "the wait for a missing record goes on across another's leadership",
        "core/election.py",
        'case "elected" | "resigned" | "reserved" if self.observed.is_missing:',
        'case "elected" if False:',
        _CORE,
    ),
    Mutant(
        "a bootstrap delay is not waited for",
        "core/observed_lease.py",
        "return self.longest_lease or self._timing.bootstrap_delay",
        "return self.longest_lease",
        _CORE,
    ),
    Mutant(
        "what was granted is not remembered",
        "core/observed_lease.py",
        "self.seen_term = max(self.seen_term, term)",
        "pass",
        _CORE,
    ),
    Mutant(
        "a refused candidate asks all the time",
        "core/observed_lease.py",
        "return max(over_at, self._run_out_at) if record.state is State.TAKEN else over_at",
        "return over_at",
        _CORE,
    ),
    # -- the scripts of the lease -----------------------------------------------------------
    _script(
        "acquire",
        "the end of a leadership is told an hour late",
        "whole(now - ended_ago)",
        "whole(now - ended_ago + 3600000)",
    ),
    _script(
        "acquire",
        "an expired leadership ends an hour late",
        "now + math.min(record.left or 0, 0)",
        "now + math.min(record.left or 0, 0) + 3600000",
    ),
    _script(
        "acquire",
        "a leadership ends after the next has begun",
        "now + math.min(record.left or 0, 0)",
        "now + (record.left or 0)",
    ),
    _script(
        "acquire",
        "a term from a plain counter",
        "math.max(term + 1, seen_term + 1, micros)",
        "term + 1",
    ),
    _script(
        "acquire",
        "a term does not heed what the candidate saw",
        "math.max(term + 1, seen_term + 1, micros)",
        "math.max(term + 1, micros)",
    ),
    _script(
        "acquire",
        "a term is printed as a float",
        "whole(math.max(term + 1, seen_term + 1, micros))",
        "tostring(math.max(term + 1, seen_term + 1, micros))",
    ),
    _script(
        "acquire",
        "no nonce: a record of our name is ours",
        "local ours = record.nonce == nonce",
        "local ours = record.holder == holder",
    ),
    _script(
        "renew",
        "whoever knows the term may renew",
        "if not leads(record, nonce, term) or",
        "if not leads(record, record.nonce, term) or",
    ),
    _script(
        "release",
        "whoever asks may release",
        "if record.nonce ~= nonce or tonumber(attempt) <= tonumber(record.attempt) then",
        "if tonumber(attempt) <= tonumber(record.attempt) then",
    ),
    _script(
        "acquire",
        "an overtaken acquire is granted",
        "if ours and attempt <= tonumber(record.attempt) then",
        "if false then",
    ),
    _script(
        "renew",
        "an overtaken renewal is granted",
        " or tonumber(attempt) <= tonumber(record.attempt) then",
        " then",
    ),
    _script(
        "release",
        "an overtaken release is obeyed",
        "if record.nonce ~= nonce or tonumber(attempt) <= tonumber(record.attempt) then",
        "if record.nonce ~= nonce then",
    ),
    _script(
        "renew",
        "a lease is renewed after it has run out",
        "if not leads(record, nonce, term) or",
        "record.left = 1\nif not leads(record, nonce, term) or",
    ),
    _script(
        "renew",
        "a released lease is renewed",
        "if not leads(record, nonce, term) or",
        "record.state = 'held'\nif not leads(record, nonce, term) or",
    ),
    _script(
        "release",
        "a release deletes the record",
        "expires_at', whole(now + (successor == '' and 0 or reservation)))\nend\n",
        "expires_at', whole(now + (successor == '' and 0 or reservation)))\nend\nredis.call('DEL', KEYS[1])\n",
    ),
    _script(
        "acquire",
        "a renewal since it was watched does not count",
        "local watched = watched_term == term and watched_renewals == record.renewals",
        "local watched = watched_term == term",
    ),
    _script(
        "acquire",
        "an expired lease is for who has not watched it",
        "if silent or (watched and record.left <= 0) then",
        "if silent or record.left <= 0 then",
    ),
    _script(
        "acquire",
        "a watched lease is taken although the server says it runs",
        "if silent or (watched and record.left <= 0) then",
        "if watched then",
    ),
    _script(
        "acquire",
        "silence is no reason to take a lease",
        "if silent or (watched and record.left <= 0) then",
        "if watched and record.left <= 0 then",
    ),
    _script(
        "acquire",
        "a reservation is for anybody",
        "if record.successor == holder or record.left <= 0 or silent then",
        "if true then",
    ),
    _script(
        "acquire",
        "a reservation has no end",
        "if record.successor == holder or record.left <= 0 or silent then",
        "if record.successor == holder then",
    ),
    _script(
        "acquire",
        "an older record is taken for the truth",
        "local gone = not record.term or term < seen_term",
        "local gone = not record.term",
    ),
    _script(
        "acquire",
        "a missing record is made by anybody",
        "if not held and (from_missing or live_term > term) then return grant() end",
        "if true then return grant() end",
    ),
    _script(
        "renew",
        "an old copy that is renewed counts on as before",
        "'renewals', attempt - record.attempt)",
        "'renewals', 1)",
    ),
    _script(
        "acquire",
        "a lost reply to an acquire starts another term",
        "if record.left <= 0 or term <= seen_term then return grant() end",
        "if true then return grant() end",
    ),
    _script(
        "acquire",
        "the record has a time to live",
        "redis.call('HINCRBY', KEYS[1], 'transitions', 1)",
        "redis.call('HINCRBY', KEYS[1], 'transitions', 1)\n"
        "  redis.call('PEXPIRE', KEYS[1], 2 * lease)",
    ),
    _script(
        "acquire",
        "priorities do not count",
        "if not best or highest <= priority then return grant() end",
        "if true then return grant() end",
    ),
    Mutant(
        "the key prefix of the broker is left out",
        "store/scripts.py",
        'return f"{self.prefix}celery-leader:',
        'return f"celery-leader:',
        _STORE,
    ),
    # -- who is who, and what no candidate can have written ----------------------------------
    Mutant(
        "a namesake's resignation is taken for one's own",
        "core/requester.py",
        "return news.life == self.life if news.life else news.node == self.holder",
        "return news.node == self.holder",
        _IDENTITIES,
    ),
    _script(
        "register",
        "two living nodes of one name share a place in the register",
        "if own == 1 or not own and new then return node, own == 1 end",
        "if true then return node, own == 1 end",
    ),
    Mutant(
        "a killed namesake is warned of",
        "runtime/answer_checks.py",
        "if namesake.seen_at <= self._namesake or self._namesake_told:",
        "if self._namesake_told:",
        ("tests/runtime/test_election_thread.py",),
    ),
    Mutant(
        "a copy of a process goes on as the same life",
        "core/requester.py",
        "return record.life == self.life and record.attempt >= request.attempt",
        "return False",
        _IDENTITIES,
    ),
    Mutant(
        "a term of the far future is learnt",
        "store/lua/record.lua",
        "term = micros + 1000 * FAR, ",
        "term = 1e16, ",
        (_HOSTILE + "an_election_recovers_from_every_absurd_value_of_its_record_by_itself",),
    ),
    Mutant(
        "an absurd lease is waited for",
        "store/lua/record.lua",
        "lease = LONGEST_LEASE,",
        "lease = 1e16,",
        (_HOSTILE + "an_absurd_lease_of_a_leader_that_is_gone_is_waited_for_by_nobody",),
    ),
    _script(
        "acquire",
        "a record that makes no sense is free",
        "if record.damaged and not held and (from_damaged or live_term > 0) then",
        "if record.damaged then",
    ),
    Mutant(
        "a fresh candidate does not wait where a record makes no sense",
        "core/election.py",
        "self.observed.saw(0, self.timing.lease_duration)",
        "pass",
        _IDENTITIES,
    ),
    Mutant(
        "behind a line of the future nothing is heard",
        "core/observed_lease.py",
        "if cursor_order(self.cursor)[0] > 1000 * (server_time + 1):",
        "if False:",
        _IDENTITIES,
    ),
    Mutant(
        "a candidate of the future stays for ever",
        "store/lua/register.lua",
        "for _, range in ipairs({{'-inf', now - 3 * lease}, {'(' .. now + 3 * lease, '+inf'}}) do",
        "for _, range in ipairs({{'-inf', now - 3 * lease}}) do",
        (_HOSTILE + "an_election_goes_on_whatever_is_written_to_its_other_keys",),
    ),
    Mutant(
        "a forged line of history is believed",
        "store/history.py",
        "if line.kind in _WITH_RECORD and last and last < cursor_order(line.cursor):",
        "if False:",
        (_HOSTILE + "a_forged_line_of_history_is_not_shown",),
    ),
    Mutant(
        "who is refused asks as often for ever",
        "core/pace.py",
        "if not over or most <= timing.renew_retry_delay:",
        "if True:",
        _CORE,
    ),
    # -- the thread and what is believed ---------------------------------------------------
    Mutant(
        "the election's thread takes the time of sending from the receipt",
        "runtime/election_thread.py",
        "candidate.election.replied(request, reply, sent_at=sent_at, now=moment)",
        "candidate.election.replied(request, reply, sent_at=moment, now=moment)",
        _THREAD,
    ),
    Mutant(
        "resigning waits for the thread",
        "runtime/election_thread.py",
        "        candidate.wanted = False\n        candidate.view.withdraw()\n        done = ",
        "        done = ",
        _THREAD,
    ),
    Mutant(
        "no answer is taken for a no",
        "runtime/election_thread.py",
        "candidate.election.unanswered(request, moment, lasting=reply.lasting)",
        "candidate.election.lease_rejected(getattr(request, 'term', 0), moment, gone=False)",
        _THREAD,
    ),
    Mutant(
        "a new term is published beside the old deadline",
        "runtime/shared_memory.py",
        "            cells[self._valid_until] = 0.0\n            cells[self._term] = float(term)",
        "            cells[self._term] = float(term)",
        ("tests/runtime/test_shared_memory.py",),
    ),
    # -- slots ----------------------------------------------------------------------------
    _slot(
        "take_slot", "a task runs as often as it is sent", "if taken < slots then", "if true then"
    ),
    _slot("take_slot", "one more runs than may", "if taken < slots", "if taken <= slots"),
    _slot("take_slot", "who does not lead gets a slot", "if refused then return refused end", ""),
    _slot("take_slot", "asking again counts twice", "and slot.tag ~= tag ", ""),
    _slot(
        "take_slot",
        "a message of another life gets a slot",
        "or each.nonce ~= nonce or not value",
        "or not value",
    ),
    _slot(
        "take_slot",
        "the slots of dead lives count",
        "(slot.nonce == nonce or is_kept(slot.nonce))",
        "true",
    ),
    _slot(
        "take_slot",
        "the slots of earlier lives do not count",
        "(slot.nonce == nonce or is_kept(slot.nonce))",
        "slot.nonce == nonce",
    ),
    _slot("take_slot", "what need not wait is set aside", "if not parks then", "if false then"),
    _slot("end_slot", "the end of a body lets nobody go on", "unpark(task, free)", ""),
    _slot("end_slot", "the slot of another life is freed", "and slot.nonce == nonce then", "then"),
    _slot(
        "slots",
        "a parked message is in flight, too",
        "SEPARATOR))\n  settle(each.tag)",
        "SEPARATOR))",
    ),
    _slot("slots", "what waits again loses its place", "or each.number)", "and each.number)"),
    _slot(
        "slots", "a parked message goes on twice", "    redis.call('ZREM', KEYS[8], found[i])\n", ""
    ),
    _slot(
        "slots",
        "a parked message loses its priority",
        "FIRST_LIST - 1 + tonumber(list)",
        "FIRST_LIST",
    ),
    _slot(
        "slots",
        "a killed life keeps its slots",
        "leave_slot(slot.tag, true) end",
        "end",
    ),
    _slot(
        "slots",
        "after a kill nobody goes on",
        "leave_slot(slot.tag, true) end",
        "leave_slot(slot.tag, false) end",
    ),
    _slot("slots", "a busy task is taken for forgotten", "if not busy[task] then", "do"),
    _slot(
        "giving_back",
        "what goes back keeps its slot",
        "  leave_slot(each.tag, push == 'LPUSH')\n",
        "",
    ),
    _slot("giving_back", "what goes back in front is overtaken", "push == 'LPUSH'", "true"),
    _slot("giving_back", "what goes back behind stops the others", "push == 'LPUSH'", "false"),
    _slot(
        "fetch",
        "a forgotten message waits for ever",
        "then unpark_forgotten(TASKS) end",
        "then end",
    ),
    # -- messages in flight ---------------------------------------------------------------
    _in_flight("fetch", "who does not lead fetches", "if refused then return {refused} end", ""),
    _in_flight(
        "fetch",
        "what dead lives held is not given back",
        "if till <= now then",
        "if false then",
    ),
    _in_flight(
        "fetch",
        "what living lives hold is given back",
        "if till <= now then",
        "if true then",
    ),
    _in_flight(
        "fetch",
        "a new leader fetches before everything is back",
        "if left > 0 then return reply end",
        "",
    ),
    _in_flight(
        "fetch",
        "a connection that was replaced fetches",
        "> tonumber(connection) then\n  return {'replaced'}\nend",
        "> tonumber(connection) then\nend",
    ),
    _in_flight(
        "fetch",
        "nobody notes who has a message",
        "      redis.call('HSET', KEYS[3], tag, number",
        "      redis.call('ECHO', tag .. number",
    ),
    _in_flight(
        "fetch",
        "a message is fetched and stays",
        "redis.call('RPOP', KEYS[list])",
        "most = most - 1",
    ),
    _in_flight(
        "fetch",
        "a message that came twice is one",
        "if redis.call('HGET', KEYS[4], tag) then",
        "if false then",
    ),
    _in_flight(
        "giving_back",
        "what goes back stands in the wrong order",
        "return a.number > b.number",
        "return a.number < b.number",
    ),
    _in_flight(
        "giving_back",
        "what goes back is not marked as redelivered",
        "with_mark(with_mark(text, 'headers', REDELIVERED), 'delivery_info', REDELIVERED)",
        "text",
    ),
    _in_flight(
        "giving_back",
        "what was given back is still in flight",
        "  settle(each.tag)\n  leave_slot",
        "  leave_slot",
    ),
    _in_flight(
        "settle",
        "a message of another life is settled",
        "if each and each.nonce == ARGV[1] then",
        "if each then",
    ),
    _in_flight(
        "give_back",
        "a message of another life is given back",
        "local function is_named(each) return each.nonce == nonce end",
        "local function is_named(each) return true end",
    ),
    _in_flight(
        "renew",
        "a renewal does not keep what the leader holds",
        "keep_in_flight(nonce, lease)",
        "",
    ),
    _in_flight(
        "acquire",
        "a deposed life that is heard of keeps nothing",
        "keep_in_flight(nonce, 2 * lease)",
        "",
    ),
    # -- fetching -----------------------------------------------------------------------------
    _fetcher(
        "worker/fetching.py",
        "an acknowledgement counts for what came again with the same tag",
        "        if self._held.get(tag) is channel:\n            del self._held[tag]\n",
        "        if tag in self._held:\n            del self._held[tag]\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "a message is rejected that came again with the same tag",
        "        if self._held.get(tag) is not channel:\n            return\n",
        "        if tag not in self._held:\n            return\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "a message is given back that came again with the same tag",
        "        if self._held.get(tag) is message.channel:\n            self._settling.owed.discard(tag)\n",
        "        if tag in self._held:\n            self._settling.owed.discard(tag)\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "what is done is owed though it came again",
        "        if self._held.get(tag) is message.channel:\n            self._settling.owed.add(tag)\n",
        "        if tag in self._held:\n            self._settling.owed.add(tag)\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "what is owed is given back",
        "kept = [*self._held, *self._settling.owed]",
        "kept = [*self._held]",
    ),
    _fetcher(
        "worker/fetching.py",
        "what an outage swallowed is not told at the next connection",
        "            self._astray = True\n            self._settling.tell()\n",
        "            self._astray = True\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "what could not be given back is this worker's still",
        "                del self._held[tag]\n                self.slots.gone(tag)\n            self._astray = True",
        "                self.slots.gone(tag)\n            self._astray = True",
    ),
    _fetcher(
        "worker/fetching.py",
        "what could not be given back is forgotten",
        "            self._astray = True\n            self._settling.tell()\n",
        "            self._settling.tell()\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "a fetch that is under way at the end is forgotten",
        "            self._astray = self._astray or channel.awaits_answer\n",
        "",
    ),
    _fetcher(
        "worker/fetching.py",
        "a fetch whose answer was lost is forgotten",
        '        """What the last fetch has brought will never be read."""\n        self._astray = True\n',
        '        """What the last fetch has brought will never be read."""\n',
    ),
    _fetcher(
        "worker/fetching.py",
        "who fetches again does not give back first",
        "        if self._astray:\n            try:\n",
        "        if False:\n            try:\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "what went astray with a connection is forgotten",
        "        self._astray = self._connection > 0\n",
        "",
    ),
    _fetcher(
        "worker/fetching.py",
        "a connection is not replaced by a give-back",
        "        self._connection = connection\n",
        "",
    ),
    _fetcher(
        "worker/fetching.py",
        "nothing that runs is kept",
        "for tag in self._held.keys() - running:",
        "for tag in list(self._held):",
    ),
    _fetcher(
        "worker/fetching.py",
        "a worker that ends keeps what runs",
        "            self._held.clear()\n",
        "",
    ),
    _fetcher(
        "worker/fetching.py",
        "the watch goes by one look",
        "for tag in ended_now.intersection(ended):",
        "for tag in ended_now:",
    ),
    _fetcher(
        "worker/fetching.py",
        "the watch gives nothing back",
        "for tag in ended_now.intersection(ended):",
        "for tag in ended.__class__():",
    ),
    _fetcher(
        "worker/fetching.py",
        "the watch takes what is owed for ended",
        "kept.difference(self._running(), self._settling.owed)",
        "kept.difference(self._running())",
    ),
    _fetcher(
        "worker/fetching.py",
        "the watch looks at this connection too",
        "if came.closed}",
        "if came}",
    ),
    _fetcher(
        "worker/fetching.py",
        "the watch looks once",
        "        if kept:\n            self._call_after(",
        "        if False:\n            self._call_after(",
    ),
    _fetcher(
        "worker/fetching.py",
        "a refused term is asked with again",
        "            self._refused_term = self._term\n",
        "            pass\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "who does not lead asks",
        "return term is not None and term != self._refused_term",
        "return term != self._refused_term",
    ),
    _fetcher(
        "worker/pausing.py",
        "a refusal of Redis is followed by the next at once",
        "        self.begin()\n        text",
        "        text",
    ),
    _fetcher(
        "worker/fetching.py",
        "a missing record is asked for again at once",
        "            self._pause.begin(_MISSING_PAUSE)\n",
        "            pass\n",
    ),
    _fetcher(
        "worker/pausing.py",
        "a pause never ends",
        "        self.lasts = False\n        self._wake()",
        "        self._wake()",
    ),
    _fetcher(
        "worker/pausing.py",
        "a refusal is told each time",
        "if text == self._trouble and now()",
        "if not text and now()",
    ),
    _fetcher(
        "worker/fetching.py",
        "more is fetched than there is room for",
        "max(1, min(_MOST, room))",
        "_MOST",
    ),
    _fetcher(
        "worker/fetching.py",
        "nothing is fetched where there is no room",
        "max(1, min(_MOST, room))",
        "min(_MOST, room)",
    ),
    _fetcher(
        "worker/fetching.py",
        "much is fetched ahead where nothing may be",
        '        if solo or self._runtime.app.conf.get("worker_disable_prefetch"):\n',
        "        if solo:\n",
    ),
    _fetcher(
        "worker/fetching.py",
        "a solo worker fetches ahead",
        "        if solo or self._runtime",
        "        if self._runtime",
    ),
    _fetcher(
        "worker/fetching.py",
        "lost lives are looked for each time",
        "        self._cleared_term = self._term\n",
        "",
    ),
    _fetcher(
        "worker/fetching.py",
        "lost lives are never looked for",
        "all_lives=self._term != self._cleared_term",
        "all_lives=False",
    ),
    _fetcher(
        "worker/fetching.py",
        "what cannot be read stays in flight",
        "        self._settling.tell(loads(",
        "        repr(loads(",
    ),
    _fetcher(
        "worker/settling.py",
        "an acknowledgement that is swallowed is forgotten",
        "        self.owed.update(tags)\n        if not self.owed:\n            return\n        told = list(self.owed)\n",
        "        if not tags:\n            return\n        told = list(tags)\n",
    ),
    _fetcher(
        "worker/settling.py",
        "an acknowledgement that is swallowed is not told again",
        "                self._call_after(_PAUSE, self._try_again)\n",
        "                pass\n",
    ),
    _fetcher(
        "worker/settling.py",
        "each swallowed acknowledgement has a timer of its own",
        "                self._tries_again = True\n",
        "                self._tries_again = False\n",
    ),
    _fetcher(
        "worker/settling.py",
        "a timer is taken for running that was dropped",
        "        self._tries_again = False\n\n    def tell",
        "        pass\n\n    def tell",
    ),
    _fetcher(
        "worker/settling.py",
        "what was told is owed for ever",
        "            self.owed.difference_update(told)\n",
        "",
    ),
    _fetcher(
        "worker/settling.py",
        "what another has is put back too",
        "            self._lost.extend(lost)\n",
        "",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "an answer that is lost is not told",
        "        if self._unanswered:  # kombu",
        "        if False:  # kombu",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "an answer that was read counts as lost",
        "            self._unanswered = False\n        finally",
        "            pass\n        finally",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "a channel that fetches asks for no credit",
        "        return bool(self._qos.can_consume())\n",
        "        return True\n",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "a channel that fetches delivers nothing of others again",
        "        return self._qos.restore_visible(*args, **kwargs)\n",
        "        return None\n",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "a script that Redis does not know is not sent",
        "            self._text_wanted, self._waits = True, False\n",
        "            self._waits = False\n",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "it waits though there may be more",
        "            self._waits = count < self._asked\n",
        "",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "it waits for the first list only",
        "                self._wait_for = came_from\n",
        "",
    ),
    _fetcher(
        "worker/leader_channel.py",
        "a refusal is not told",
        "        if refusals:\n            self.source.failed(refusals[0])\n",
        "",
    ),
    Mutant(
        "what is fetched is dropped where the wait was refused",
        "worker/leader_channel.py",
        "        if answer not in refusals:\n",
        "        if not refusals:\n",
        (
            "tests/worker/test_fetching.py"
            "::test_what_is_fetched_is_received_though_the_wait_for_it_is_refused",
        ),
    ),
    _fetcher(
        "worker/leader_channel.py",
        "a channel that closes is polled on",
        "            stop_polling(self, self._hub)\n",
        "            pass\n",
    ),
    _fetcher(
        "compat/kombu.py",
        "what is fetched takes no credit",
        "credit_left(channel, held()) != 0\n",
        "credit_left(channel, 0) != 0\n",
    ),
    _fetcher(
        "worker/giving_back.py",
        "what cannot be given back is given up",
        "        state.consumer.timer.call_after(_PAUSE, partial(_give_back_again, state, election))\n",
        "",
    ),
    Mutant(
        "a pool of an old Celery forgets what runs",
        "compat/celery_worker.py",
        "            self._jobs.setdefault(number, job)",
        "            pass",
        ("tests/package/test_compat.py",),
    ),
    # -- dispatch ---------------------------------------------------------------------------
    _dispatch(
        "record",
        "a dispatch of an old term goes through",
        "if not leads(record, nonce, term) then return 'refused' end",
        "if not leads(record, nonce, record.term) then return 'refused' end",
    ),
    _dispatch(
        "record",
        "a dispatch in another's name goes through",
        "if not leads(record, nonce, term) then return 'refused' end",
        "if not leads(record, record.nonce, term) then return 'refused' end",
    ),
    _dispatch(
        "record",
        "a dispatch after the lease has run out goes through",
        "  if not leads(record, nonce, term) then return 'refused' end",
        "  record.left = 1\n  if not leads(record, nonce, term) then return 'refused' end",
    ),
    _dispatch(
        "record",
        "a dispatch after the release goes through",
        "  if not leads(record, nonce, term) then return 'refused' end",
        "  record.state = 'held'\n  if not leads(record, nonce, term) then return 'refused' end",
    ),
    _dispatch(
        "schedule_dispatch",
        "a tick is not claimed",
        "if state ~= old then return {'claimed'} end",
        "",
    ),
    _dispatch(
        "schedule_dispatch",
        "a dispatch sent twice is not known again",
        "if state == new then return {'repeated'} end",
        "",
    ),
    _dispatch(
        "schedule_dispatch",
        "a first push that is refused advances the state",
        "if failed(reply) and i == 6 then",
        "if failed(reply) and i == 0 then",
    ),
    _dispatch(
        "schedule_dispatch",
        "a later push that is refused leaves the state as it was",
        "  elseif failed(reply) then\n",
        "  elseif failed(reply) then\n    redis.call('HSET', KEYS[2], entry, state)\n",
    ),
    _dispatch(
        "record",
        "a missing record refuses a dispatch for good",
        "if not record.term or tonumber(record.term) < tonumber(term) then return 'missing' end",
        "if not record.term then return 'refused' end",
    ),
    # -- beat --------------------------------------------------------------------------------
    Mutant(
        "the lead is asked for once per turn and not per entry",
        "beat/mixin.py",
        "            self._candidate.show_life()\n            term = self.leading_term()\n",
        "            self._candidate.show_life()\n            term = self._led_term\n",
        ("tests/beat/test_each_entry.py",),
    ),
    Mutant(
        "what is new counts from the start of its process",
        "beat/scheduler.py",
        "        if entry.name not in self._given:\n",
        "        if False:\n",
        ("tests/beat/test_versions.py",),
    ),
    Mutant(
        "a changed schedule counts from its takeover",
        "beat/planner.py",
        "            plan = Plan.of_another_schedule(entry, state)\n",
        "            plan = None\n",
        ("tests/beat/test_versions.py",),
    ),
    Mutant(
        "what one leader does not know is gone for the next",
        "beat/entry_state.py",
        "            elif since <= (now - retention) * 1000:\n",
        "            else:\n",
        ("tests/beat/test_entry_state.py",),
    ),
    Mutant(
        "what a user sets again counts as sent",
        "beat/plan.py",
        'return sent and not state.get("noted")',
        "return sent",
        _PLAN,
    ),
    Mutant(
        "a row that was reset is what the last leader could not write",
        "beat/django.py",
        "        return None if by_a_leader else last\n",
        "        return None\n",
        (_UNSEEN,),
    ),
    Mutant(
        "a message is published outside of its claim",
        "beat/transport.py",
        "if self._delivering and self.buffer.collects:",
        "if False:",
        ("tests/beat/test_transports.py",),
    ),
    Mutant(
        "a refusal does not come out of the publish",
        "beat/delivery.py",
        "        if not self.done:\n            raise NotLeader(",
        "        if not self.done:\n            NotLeader(",
        (f"{_TOOLS}a_refusal_comes_out_of_the_publish",),
    ),
    Mutant(
        "a failure does not come out of the publish",
        "beat/delivery.py",
        "            tick.in_doubt = True\n            raise\n        self.outcome = answer.outcome",
        "            tick.in_doubt = True\n            return\n        self.outcome = answer.outcome",
        (
            f"{_TOOLS}a_failure_comes_out_of_the_publish_and_the_same_tick_is_tried_again_under_its_id",
        ),
    ),
    Mutant(
        "a task is asked again for a message that is out",
        "beat/dispatcher.py",
        "        if self._store.state(dispatch.entry) == dispatch.new:",
        "        if False:",
        (
            f"{_TOOLS}a_failure_comes_out_of_the_publish_and_the_same_tick_is_tried_again_under_its_id",
        ),
    ),
    Mutant(
        "what published nothing is said to be dispatched",
        "beat/delivery.py",
        "tick.published = bool(pushes)",
        "tick.published = True",
        (f"{_TOOLS}what_sends_nothing_is_not_said_to_be_sent_and_its_ticks_go_on",),
    ),
    Mutant(
        "an event is part of the fenced message",
        "beat/transport.py",
        "if delivery is None or delivery.done:",
        "if delivery is None:",
        (f"{_TOOLS}a_sent_event_goes_out_after_its_message",),
    ),
    Mutant(
        "what was due is counted from the election",
        "beat/plan.py",
        "return cls(restored, sequence, due, stored, claimed, project_of(stored))",
        "return None",
        _PLAN,
    ),
    Mutant(
        "each publisher of a tick has a task id of its own",
        "beat/plan.py",
        "return str(uuid.uuid5(uuid.NAMESPACE_URL, name))",
        "return str(uuid.uuid4())",
        _PLAN,
    ),
    # -- the worker ---------------------------------------------------------------------------
    Mutant(
        "acknowledged before it is handed over",
        "worker/handing_over.py",
        "    try:\n        _pass_on(stray)\n",
        "    stray.acknowledge()\n    stray.acknowledge = lambda: None\n"
        "    try:\n        _pass_on(stray)\n",
        ("tests/worker/test_handing_over.py",),
    ),
    Mutant(
        "before_start is not asked",
        "tasks/guarded_task.py",
        "options is not None\n            and not admission(",
        "False\n            and not admission(",
        (
            "tests/worker/test_pools.py::test_nothing_starts_with_the_old_term_on_a_leader_that_was_frozen",
        ),
    ),
    Mutant(
        "a follower lets leader-only messages in",
        "worker/message_guard.py",
        "if here.takes:",
        "if not here.steps_down:",
        (_LEADING + "a_follower_forwards_at_once_also_while_its_own_pool_is_busy",),
    ),
    Mutant(
        "a follower consumes from the leader queue",
        "worker/leader_queue.py",
        "not self._stopped and admission(self._runtime.app, election).takes",
        "not self._stopped and not admission(self._runtime.app, election).steps_down",
        (_LEADING + "only_the_leader_consumes_from_the_leader_queue",),
    ),
    Mutant(
        "resigned before the pool has drained",
        "worker/resigning.py",
        "                if not bodies:",
        "                if True:",
        ("tests/worker/test_handover.py",),
    ),
    Mutant(
        "a shutdown aborts what has no grace",
        "worker/resigning.py",
        "return settings.abort_grace is not None and waited",
        "return settings.abort_grace is None or waited",
        ("tests/worker/test_giving_the_lease_up.py",),
    ),
    Mutant(
        "who passes the lease on in a shutdown is heard of no more",
        "worker/resigning.py",
        "                    self._pass_on(name)",
        "                    self._runtime.participation.resign(kept.pop(name))",
        ("tests/worker/test_giving_the_lease_up.py",),
    ),
    Mutant(
        "an order to go now waits",
        "core/events.py",
        "return self.reason.endswith(AT_ONCE)",
        "return False",
        ("tests/worker/test_giving_the_lease_up.py",),
    ),
    Mutant(
        "a lost connection resigns",
        "worker/consumer_step.py",
        "        self._link.lost()\n",
        "        self._runtime.participation.resign_all()\n",
        (
            "tests/worker/test_network.py::test_a_leader_whose_connections_are_torn_down_keeps_its_lease_and_its_queue",
        ),
    ),
    Mutant(
        "what is forked off keeps the port of the metrics",
        "metrics_server.py",
        "os.register_at_fork(after_in_child=listening.close)",
        "pass",
        ("tests/package/test_metrics.py",),
    ),
    Mutant(
        "a lost connection is not counted",
        "worker/broker_link.py",
        """        if not self._over.is_set():
            self.heartbeat.expect(now())
""",
        "",
        (_LINKS + "[broker-reset]",),
    ),
    Mutant(
        "a silent broker is not asked",
        "worker/broker_link.py",
        "answered = answers(c.app, self.heartbeat.patience / 2)",
        "answered = True",
        (_LINKS + "[broker-mute]",),
    ),
    Mutant(
        "a worker that is connected again is not fit to lead",
        "worker/broker_link.py",
        """        self._consumer = c
        self.heartbeat.suspend()
""",
        "        self._consumer = c\n",
        ("tests/worker/test_broker_link.py",),
    ),
    Mutant(
        "a shutdown waits for its broker's answers",
        "worker/broker_link.py",
        """        self._over.set()
        self.heartbeat.suspend()
""",
        "        self._over.set()\n",
        ("tests/worker/test_broker_link.py",),
    ),
    Mutant(
        "a beat that cannot publish leads on",
        "beat/broker_connection.py",
        "        self._heartbeat.expect(now())\n",
        "",
        (_LINK + "with_the_broker_away_from_all_nobody_leads_until_it_is_back",),
    ),
    Mutant(
        "a belief that lapses right before a send costs the entry's next tick",
        "beat/elected.py",
        "            self._take_over_again()\n            return entry",
        "            return entry",
        ("tests/beat/test_each_entry.py",),
    ),
    Mutant(
        "a row that was on again before its leader saw it off is noted as off after its message",
        "beat/django.py",
        "        self._rows_to_note.pop(entry.name, None)\n",
        "",
        (_UNSEEN,),
    ),
    Mutant(
        "a leader writes an old run over a row that it has switched off",
        "beat/django.py",
        "        if not self.model.enabled:\n            return  # this",
        "        if False:\n            return  # this",
        (_UNSEEN,),
    ),
    Mutant(
        "an emulated kernel that ignores advice counts as one that empties pages",
        "runtime/forks.py",
        "if _takes(page, _NO_ADVICE) or not",
        "if not",
        ("tests/runtime/test_fork_watch.py",),
    ),
    Mutant(
        "a beat whose broker is back does not notice",
        "beat/elected.py",
        "            self._dispatcher.look_for_broker()\n",
        "            pass\n",
        (_LINK + "with_the_broker_away_from_all_nobody_leads_until_it_is_back",),
    ),
    Mutant(
        "one requirement that holds again is enough",
        "runtime/local_candidate.py",
        "if self.wanted and not self.unmet:",
        "if self.wanted:",
        _THREAD,
    ),
    Mutant(
        "a body starts although the shutdown has begun",
        "tasks/admission.py",
        "return self.leads and not self.shuts_down",
        "return self.leads",
        ("tests/tasks/test_admission.py",),
    ),
    Mutant(
        "what waits is given back in the wrong order",
        "worker/front_of_queue.py",
        "    for message in reversed(messages):\n        payload",
        "    for message in messages:\n        payload",
        (
            _HANDOVER
            + "what_waits_in_a_worker_that_stops_runs_on_the_next_leader_at_once_and_in_order",
        ),
    ),
    Mutant(
        "what is handed over loses its expiry",
        "worker/handing_over.py",
        'properties["expiration"] = expiration / 1000',
        "pass",
        (_WAYS + "a_message_that_is_handed_over_arrives_as_it_was_sent",),
    ),
    Mutant(
        "the leader's route comes before the user's",
        "compat/celery.py",
        "amqp._rtable = [*table, route]",
        "amqp._rtable = [route, *table]",
        (*_MARKED, _CONFIGURED + "routes_of_the_users_own_come_first_and_do_not_undo_the_others"),
    ),
    Mutant(
        "a state from the future is believed",
        "beat/entry_state.py",
        "if last is None or claimed or last <= now + tolerance:",
        "if True:",
        ("tests/beat/test_entry_state.py",),
    ),
    Mutant(
        "a clock that was set is not looked at before the next answer of Redis",
        "beat/wall_clock.py",
        "return 0.0 if self._offset is None else self._read() - now - self._offset",
        "return 0.0",
        ("tests/beat/test_wall_clock.py",),
    ),
    Mutant(
        "who abstains outranks a priority below zero",
        "store/lua/register.lua",
        " and not abstaining(each) then",
        " then",
        ("tests/store/test_lease_store_contract.py",),
    ),
    Mutant(
        "who abstains is granted the lease",
        "store/lua/acquire.lua",
        "if abstains then\n",
        "if false then\n",
        _STORE,
    ),
    Mutant(
        "a fork believes what its parent believed",
        "runtime/beliefs.py",
        "self._own = {name: parents[name] for name in self._staged}",
        "pass",
        _FORKS,
    ),
    Mutant(
        "who campaigns in a forked process falls back on its parent's belief",
        "runtime/beliefs.py",
        "return self._worker_views().get(election) if own is None else own",
        "return (*(own or ()), *self._worker_views().get(election, ())) or None",
        _FORKS,
    ),
    Mutant(
        "a fork that Python is not told of is not noticed",
        "runtime/forks.py",
        "elif not self._mark[0]:\n            self.forked",
        "elif False:\n            self.forked",
        _FORKS,
    ),
    Mutant(
        "a body goes on with the term that its worker won afterwards",
        "tasks/bodies.py",
        "return term if body is None or body.term == term else None",
        "return term",
        ("tests/package/test_testing.py",),
    ),
    Mutant(
        "a body is known after its end",
        "tasks/bodies.py",
        "            self.runs = False\n            _bodies.reset(token)",
        "            pass",
        ("tests/package/test_testing.py",),
    ),
    Mutant(
        "a body is not stopped when its worker leads with another term",
        "runtime/beliefs.py",
        "return until if self.term(election) == term else None",
        "return until if self.term(election) is not None else None",
        (
            "tests/tasks/test_abort.py::test_a_body_is_aborted_when_its_worker_leads_on_with_another_term",
        ),
    ),
    Mutant(
        "a retry stays where its attempt came from",
        "tasks/guarded_task.py",
        "            queue = leader_queue(self.app, bound.election)\n        return super().signature",
        "            pass\n        return super().signature",
        (_WAYS + "a_retry_is_sent_to_the_leader_queue_even_if_the_attempt_came_by_another",),
    ),
    Mutant(
        "what waits for its time in RabbitMQ finds no queue of an election found late",
        "tasks/routing.py",
        'return {"queue": queue, "declare": [queue]}',
        'return {"queue": queue}',
        (_DELAYED + "an_election_that_no_worker_knows_yet_loses_no_task_that_waits_for_its_time",),
    ),
    Mutant(
        "Celery does not know the leaders' queues",
        "worker/leader_queue.py",
        "queues.add(queue)",
        "pass",
        (_DELAYED + "what_waits_for_its_time_runs_on_the_leader_when_that_has_come",),
    ),
    Mutant(
        "a request does not ask before its message can be acknowledged",
        "worker/message_guard.py",
        "if not admission(self.app, election).starts:",
        "if False:",
        ("tests/worker/test_message_guard.py",),
    ),
    Mutant(
        "what was acknowledged and cannot be handed over is forgotten",
        "worker/handing_over.py",
        "if not lost or stray.is_ours_alone:",
        "if not lost:",
        ("tests/worker/test_handing_over.py",),
    ),
    Mutant(
        "each message is given back by itself",
        "worker/front_of_queue.py",
        "STEP = 500",
        "STEP = 1",
        (_CUTS + "a_leader_that_stops_gives_thousands_back_in_a_few_steps_and_in_order",),
    ),
    Mutant(
        "removed before it is put back",
        "store/lua/put_back.lua",
        "    redis.call('RPUSH', list, text)\n    redis.call('HDEL', KEYS[1], tag)\n",
        "    redis.call('HDEL', KEYS[1], tag)\n    redis.call('RPUSH', list, text)\n",
        (_CUTS + "what_cannot_be_given_back_stays_unacknowledged",),
    ),
    Mutant(
        "two projects of one name are taken for one",
        "core/kinship.py",
        "if name != their_name or likeness.is_hardly_shared:",
        "if name != their_name:",
        (
            "tests/core/test_kinship.py",
            _PROJECTS
            + "a_second_project_of_the_same_name_is_told_loudly_and_a_second_version_is_not",
        ),
    ),
    Mutant(
        "a state of another project is written over",
        "beat/shared_states.py",
        "self.project, self._foreign = ownership.id, ownership.foreign(stored.states)",
        "self.project = ownership.id",
        (_PROJECTS + "what_another_project_wrote_is_neither_deleted_nor_written_over",),
    ),
    Mutant(
        "a crontab in the hour that clocks repeat is due at each look",
        "beat/planner.py",
        "            if wait > 0:\n                return False, wait",
        "            if False:\n                return False, wait",
        _SCHEDULES,
    ),
    Mutant(
        "the next tick is told from before Redis was asked",
        "beat/scheduler.py",
        "            if in_doubt:\n",
        "            if False:\n",
        _SCHEDULES,
    ),
    Mutant(
        "a claimed tick that is not due yet comes again",
        "beat/planner.py",
        "        if plan.claimed:\n            # It need",
        "        if False:\n            # It need",
        _SCHEDULES,
    ),
    Mutant(
        "what was caught up with ran in another zone",
        "beat/plan.py",
        "        ran = in_zone_of(self.entry, at)\n",
        "        ran = at\n",
        _SCHEDULES,
    ),
    _unknown(
        "an unknown task is kept for ever",
        "if moment - since >= timeout:",
        "if False:",
    ),
    _unknown(
        "the time of an unknown task counts anew at each worker",
        "return since if valid else int(moment)",
        "return int(moment)",
    ),
    _unknown(
        "unknown tasks fill the prefetch",
        "if len(self._held) < _MOST else 0",
        "if False else 0",
    ),
    _unknown(
        "an unknown task that was put back comes back at once",
        "min(max(_SHORTEST, moment - since), self._longest)",
        "0.0",
    ),
    _unknown(
        "an unknown task of another queue goes back into that queue",
        "if election in self._elections and key_of(message) != self._runtime.queue(election):",
        "if False:",
    ),
    _unknown(
        "a shutdown keeps unknown tasks until its bodies have ended",
        "for held in list(self._held.values()):",
        "for held in ():",
    ),
    Mutant(
        "the message of a leader-only task does not say so",
        "tasks/routing.py",
        "message.headers[LEADER_ONLY] = bound.election",
        "pass",
        ("tests/tasks/test_headers.py",),
    ),
    _in_flight(
        "giving_back",
        "a header is written once more each time",
        "if header and not string.find(text, header, 1, true) then",
        "if header then",
    ),
    _in_flight(
        "fetch",
        "a fetch of large messages keeps Redis from everything else",
        "while #reply < 6 + most and bytes < MOST_BYTES do",
        "while #reply < 6 + most do",
    ),
    Mutant(
        "a fetched message may be of any content type",
        "worker/fetching.py",
        "            message.accept = self._task_consumer.accept\n",
        "",
        ("tests/worker/test_message_check.py",),
    ),
    Mutant(
        "a message that ends the worker ends one leader after the other",
        "worker/fetching.py",
        "            check_message(message)\n",
        "",
        (
            "tests/worker/test_fetching.py::test_what_is_no_message_is_set_aside_and_the_others_go_on",
        ),
    ),
)
