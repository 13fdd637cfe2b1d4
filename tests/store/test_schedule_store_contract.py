"""The schedule that simulations run on does what the scripts do."""

from __future__ import annotations

import random
from typing import Any

from celery_leader.core.lease import Granted
from celery_leader.store.schedule_store import FencingToken, Push, ScheduleStore
from tests.support.fake_schedule import FakeSchedule, Lease
from tests.support.fixtures import MakeStore
from tests.support.lease_requests import LONG, NAME, acquire, release

ENTRIES = ("a", "b", "c\u00e9")
TEXTS = ("", '{"sequence": 1}', '{"sequence": 2}')
STEPS = 400


def test_the_schedule_in_memory_answers_and_writes_as_the_scripts_do(make_store: MakeStore) -> None:
    leases = make_store()
    pushed: list[bytes] = []
    fake = FakeSchedule(lambda: 0, lambda what: pushed.extend(what.pushed))
    keys, chance = leases.keys, random.Random(7)
    stores = [ScheduleStore(run, keys, NAME) for run in (leases.client.run, fake.run)]
    nonces, term = ["life of n1", "life of n2"], 0
    sent = attempt = 0
    for step in range(STEPS):
        token = FencingToken(chance.choice(nonces), max(1, term + chance.choice([-1, 0, 0, 0, 1])))
        entry, old, new = chance.choice(ENTRIES), *chance.sample(TEXTS, 2)
        if fake.lease is not None and chance.random() < 0.7:
            token = FencingToken(fake.lease.nonce, fake.lease.term)
        if chance.random() < 0.7:
            old = fake.states.get(entry, "")
        match chance.choice(["dispatch", "dispatch", "anchor", "forget", "register", "elect"]):
            case "elect":
                if fake.lease is not None and fake.lease.held:
                    leases.perform([release(fake.lease.nonce.split()[-1], step + 1)])
                    fake.lease = Lease(fake.lease.nonce, fake.lease.term, held=False)
                    continue
                holder = chance.choice(["n1", "n2"])
                attempt = step + 1
                (reply,) = leases.perform([acquire(holder, attempt, lease_duration=LONG)])
                assert isinstance(reply, Granted), reply
                term = reply.term
                fake.lease = Lease(f"life of {holder}", term)
                answers: list[Any] = [None, None]
            case "dispatch":
                push = Push("LPUSH", "queue", f"message {step}".encode())
                answers = [each.dispatch(token, entry, old, new, [push]) for each in stores]
                sent += answers[0].outcome.value == "sent"
            case "anchor":
                answers = [each.anchor(token, {entry: (old, new)}) for each in stores]
            case "forget":
                answers = [each.forget(token, [entry]) for each in stores]
            case "register":
                answers = [each.register(token, entry, old, new, [ENTRIES[0]]) for each in stores]
        assert answers[0] == answers[1], step
        real, ours = (each.load() for each in stores)
        assert (real.states, real.projects) == (ours.states, ours.projects), step
        assert stores[0].state(entry) == stores[1].state(entry)
    assert sent > STEPS / 40
    assert len(pushed) == sent
