"""The queues of the cases, for a copy of the project."""

ROWS = """\
        QueueSpec(
            name="cases",
            module="tests.cases.tasks",
            tasks=(
                TaskSpec(name="cases.echo", soft_time_limit=25, time_limit=30),
                TaskSpec(name="cases.pair", soft_time_limit=25, time_limit=30),
                TaskSpec(name="cases.again", soft_time_limit=25, time_limit=30, retry_backoff=1, retry_backoff_max=1),
                TaskSpec(name="cases.replace", soft_time_limit=25, time_limit=30),
                TaskSpec(name="cases.steady", soft_time_limit=25, time_limit=30, once=True),
                TaskSpec(name="cases.say", soft_time_limit=25, time_limit=30),
                TaskSpec(name="cases.die", soft_time_limit=25, time_limit=30),
            ),
        ),
        QueueSpec(
            name="classes",
            module="tests.cases.classes",
            tasks=(
                TaskSpec(name="classes.registered", soft_time_limit=25, time_limit=30),
                TaskSpec(name="classes.based", soft_time_limit=25, time_limit=30),
                TaskSpec(name="classes.shared", soft_time_limit=25, time_limit=30),
            ),
        ),"""
