# `make` lists what there is; `make demo` and `make test` do their own set-up.
SHELL := /bin/bash
PY := .venv/bin/python
# Thousands of tests make a folder each: in memory, where there is such a place.
RAM := $(if $(wildcard /dev/shm/.),TMPDIR=/dev/shm)
# Without bytecode every process compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: bench-guard bench-email bench-exporter faults cases suites test-setup help setup broker demo up test test-unit test-compose check format render requirements clean hooks-moved hooks-newest bench-image fuzz-image contact-sheet

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment and packages
	@ops/bootstrap

broker: ## the same, and RabbitMQ from Debian's packages where it is missing
	@ops/bootstrap broker

test-setup:
	@ops/bootstrap broker prometheus postfix redis postgresql

demo: broker ## real work through every queue on an embedded TLS broker, shown
	@$(PY) -m ops demo

up: broker ## the same stack, until Ctrl-C
	@$(PY) -m ops up

test: test-setup ## the whole suite, four files at a time
	@$(PY) -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m "not compose"

test-unit: setup ## what needs no broker, on all cores
	@$(RAM) $(PY) -m pytest -q -n auto --dist worksteal -p no:legacypath -p no:cacheprovider tests/unit tests/drift

test-compose: setup ## the Compose file on a real Docker engine
	@$(PY) -m pytest -q -s -m compose tests/compose

bench-guard: broker ## what guard, measuring and ledger cost a worker (12 minutes)
	@$(PY) -m tests.benchmarks.guard

bench-exporter: test-setup ## what measuring costs and how exact it is, beside danihodovic's exporter (about 40 minutes)
	@$(PY) -m tests.benchmarks.exporter

faults: broker ## every fault, our workers beside stock Celery, lost and doubled tasks counted (45 minutes); or CASE=...
	@$(PY) -m tests.faults $(CASE:%=--case %) $(BROKER:%=--broker %) $(BASE:%=--base %) $(STORE:%=--store %)

cases: test-setup ## what people reported of Celery and Warren, tried: a table, each difference with its reason
	@$(PY) -m tests.cases $(CASE) $(BROKER:%=--broker %) $(STORE:%=--store %)

suites: ## Celery's own tests on Warren's worker, beside stock Celery; each difference with its reason (half an hour)
	@ops/bootstrap broker redis
	@$(PY) -m tests.suites $(FILE)

bench-email: test-setup ## mails: time, rate and crashes, with Postfix beside aiosmtpd (45 minutes)
	@$(PY) -m tests.benchmarks.bench_email

bench-image: broker ## the image worker against the guide's task, Pillow and libvips
	@$(PY) -m tests.benchmarks.bench_image

contact-sheet: setup ## docs/images/contact-sheet.png, made by the image worker
	@$(PY) -m tests.benchmarks.image_sheet

fuzz-image: setup ## 5000 mutated image files against the image worker's code
	@$(PY) -m tests.unit.image.fuzz --files 5000 --json tests/benchmarks/results/image-fuzz.json

check: setup ## format, lint, types and drift
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m ops render --check

format: setup ## format and mend what can be mended
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

render: setup ## write everything that is generated from the table
	@$(PY) -m ops render

hooks-moved: setup ## each hook of the register moved in turn: does the drift test notice (a few minutes)
	@$(PY) -m tests.drift.rename

hooks-newest: broker ## the register and a smoke against the newest releases of Celery's family, pre-releases too
	@$(PY) -m tests.drift.newest $(VERSIONS)

requirements: setup ## compile requirements.txt from pyproject.toml
	@ops/compile-requirements

clean: ## the environment and the embedded stack's data
	rm -rf .venv .warren build *.egg-info
