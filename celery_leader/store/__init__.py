"""Keeps leases, candidates and the schedule in Redis."""
