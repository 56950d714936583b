"""Bare cells behind a measuring front end: checks, relay, balancing, state of charge and limits are made here."""
