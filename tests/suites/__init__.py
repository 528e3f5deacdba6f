"""Celery's own tests on Warren's worker, beside stock Celery; nothing of Celery's is kept here."""
