"""The system itself: what is to know about it, and its parameters while it runs."""
