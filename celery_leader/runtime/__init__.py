"""One process's part: its settings, its candidates, and what it believes about who leads."""
