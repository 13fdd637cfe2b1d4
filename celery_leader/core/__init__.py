"""Decides: one candidate's state machine, its lease, its timing; without I/O, clock or Celery."""
