# One image for each extra of pyproject.toml, so that only the image worker carries Pillow. Packages come first and the
# code last: a change of code builds from cache in a second. The images of workers share their layers.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS base
# The code is found at /app and nowhere else, whatever the working directory.
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 warren \
 && useradd --uid 10001 --gid warren --no-create-home --home-dir /app --shell /usr/sbin/nologin warren \
 && python -m venv --without-pip /venv \
 # A volume takes the owner of the folder that it is first mounted on.
 && install -d -o warren -g warren /var/lib/warren/images /var/lib/warren/state /var/lib/warren/mail
WORKDIR /app

FROM base AS worker-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/worker.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

FROM worker-packages AS worker-image-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/image.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

FROM worker-packages AS worker-monitor-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/monitor.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

FROM base AS ops-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/ops.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

FROM base AS flower-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/flower.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

FROM ops-packages AS local-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=ops/requirements/local.txt,target=/tmp/requirements.txt \
    pip --python /venv install --require-hashes --only-binary :all: --requirement /tmp/requirements.txt

# The workers of queues with the extra `worker`, and beat.
FROM worker-packages AS worker
COPY queues queues
COPY workers workers
USER 10001:10001
CMD ["celery", "-A", "workers.app", "worker"]

# The workers of queues with the extra `image`.
FROM worker-image-packages AS worker-image
COPY queues queues
COPY workers workers
USER 10001:10001
CMD ["celery", "-A", "workers.app", "worker"]

# The workers of queues with the extra `monitor`.
FROM worker-monitor-packages AS worker-monitor
COPY queues queues
COPY workers workers
USER 10001:10001
CMD ["celery", "-A", "workers.app", "worker"]

# What prepares, checks and changes a deployment, the exporter, and the command line.
FROM ops-packages AS ops
COPY queues queues
COPY workers workers
COPY ops ops
USER 10001:10001
CMD ["python", "-m", "ops"]

# Flower as a broker user of its own.
FROM flower-packages AS flower
COPY queues queues
COPY workers workers
COPY ops ops
USER 10001:10001
CMD ["celery", "-A", "ops.flower", "flower"]

# Everything, for trying things out: the mail catcher.
FROM local-packages AS local
COPY queues queues
COPY workers workers
COPY ops ops
USER 10001:10001
CMD ["python", "-m", "ops"]
