"""What a producer imports: `from queues import tasks`. Needs Celery and nothing else."""
