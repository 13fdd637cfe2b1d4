"""Decides: the state machine of one candidate, its lease, its timing; no I/O, clock or Celery."""
