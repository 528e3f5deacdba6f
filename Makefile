# `make` lists what there is; `make demo` and `make test` do their own set-up.
SHELL := /bin/bash
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup broker demo up test test-unit test-compose check format render requirements clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment and packages
	@ops/bootstrap

broker: ## the same, and RabbitMQ from Debian's packages where it is missing
	@ops/bootstrap broker

demo: broker ## real work through every queue on an embedded TLS broker, shown
	@$(PY) -m ops demo

up: broker ## the same stack, until Ctrl-C
	@$(PY) -m ops up

test: broker ## the whole suite
	@$(PY) -m pytest -q -m "not compose"

test-unit: setup ## what needs no broker
	@$(PY) -m pytest -q tests/unit tests/drift

test-compose: setup ## the Compose file on a real Docker engine
	@$(PY) -m pytest -q -m compose tests/compose

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

requirements: setup ## compile requirements.txt from pyproject.toml
	@ops/compile-requirements

clean: ## the environment and the embedded stack's data
	rm -rf .venv .warren build *.egg-info
