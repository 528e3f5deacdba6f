"""What a worker runs: see workers/app.py (celery -A workers.app worker -Q QUEUE)."""
