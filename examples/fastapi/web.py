"""The web app: it triggers leader-only work, shows who leads, and elects a leader of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery.result import AsyncResult
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from proj import app as celery_app
from proj import build_report

from celery_leader import LeaderElection, StoreUnavailable

ELECTIONS = ("worker", "beat", "web")


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    """Take part in the election "web" while this process serves."""
    # Starting and asking is_leader() never wait; giving up waits a moment for Redis, at the end.
    with LeaderElection(celery_app, "web") as election:
        web.state.election = election
        yield


web = FastAPI(lifespan=lifespan)


@web.exception_handler(StoreUnavailable)
def redis_is_away(_: Request, exc: StoreUnavailable) -> JSONResponse:
    """Nobody knows who leads: that is not the same as nobody leading."""
    return JSONResponse({"detail": str(exc)}, status_code=503)


# These are plain functions: FastAPI runs them in threads, where asking Redis harms nobody.


@web.post("/reports", status_code=202)
def ask_for_report(name: str) -> dict[str, str]:
    """Have the leading worker build a report, whichever process answers this."""
    return {"id": build_report.delay(name).id}


@web.get("/reports/{task_id}")
def report(task_id: str) -> dict[str, Any]:
    """How far it is, and the report once it is done."""
    result = AsyncResult(task_id, app=celery_app)
    done = result.successful()
    return {"state": result.state, "report": result.result if done else None}


@web.get("/leaders")
def leaders() -> dict[str, Any]:
    """Who leads each election, as Redis has it."""
    found: dict[str, Any] = {}
    for name in ELECTIONS:
        leader = LeaderElection(celery_app, name).leader()
        found[name] = leader and {"node": leader.holder, "term": leader.term}
    return found


@web.get("/me")
def me(request: Request) -> dict[str, Any]:
    """Whether this web process is the one that may do what only one should; asks nobody."""
    election: LeaderElection = request.app.state.election
    return {"node": election.node, "leads": election.is_leader(), "term": election.term()}
