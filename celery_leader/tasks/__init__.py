"""Binds a task to its leader: marks it, routes it, and tells its body who leads."""
