"""The fault suite: one fault under load at a time, Warren's workers and stock Celery on the same broker."""
