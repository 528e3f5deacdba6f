"""The workers' app with one periodic task a second: `celery -A tests.integration.quickbeat beat`."""

from workers.app import app

app.conf.beat_schedule = {
    "tick": {
        "task": "monitor.check_status",
        "schedule": 1.0,
        "options": {"expires": 60, "ignore_result": True},
    }
}
