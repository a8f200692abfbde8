# One runner with few verbs; people, hooks and CI call exactly these.
PYTHON ?= python3.11
BIN := .venv/bin
PREFECT_HOME := $(abspath $(or $(NIGHTJAR_HOME),.nightjar))/prefect

.DEFAULT_GOAL := help
.PHONY: help nightly test test-fast stack-test torture lint bench ui up down deploy clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@# Prefect's empty database takes longer to make than to use: it is part of the install.
	@mkdir -p $(PREFECT_HOME)
	@PREFECT_HOME=$(PREFECT_HOME) DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
		$(BIN)/prefect server database upgrade --yes >/dev/null
	@touch $@

nightly: $(BIN)/.installed ## the main job on the bundled payments detector
	@$(BIN)/nightjar run payments

test: $(BIN)/.installed ## the test suite
	@# More workers than cores: a third of the time is waiting for servers and processes.
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/stack

test-fast: $(BIN)/.installed ## the pure functions: no server, no process, nothing slow; for while you edit (under a minute)
	$(BIN)/pytest -n 2 -m "not server and not slow" tests/models tests/tasks tests/flows/test_params.py \
		tests/test_architecture.py tests/test_old_versions.py tests/test_watching.py

stack-test: $(BIN)/.installed ## the stack of make up from end to end; needs Chromium
	$(BIN)/pytest tests/stack

torture: $(BIN)/.installed ## kills, races, faults and fuzzing at length (an hour or two); the short form is in make test
	$(BIN)/pytest tests/torture tests/faults tests/fuzz --kills 100 --rounds 250 --hypothesis-profile=torture \
		-o timeout=7200

lint: $(BIN)/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pip check

bench: $(BIN)/.installed ## detection and speed, measured side by side (half an hour)
	$(BIN)/python bench/payments_detectors.py
	$(BIN)/python bench/throughput.py

ui: $(BIN)/.installed ## the Prefect and MLflow pages over the runs made here
	@$(BIN)/python -m flows.ui

up: $(BIN)/.installed ## PostgreSQL, Prefect, MLflow and two workers on this machine, deployed
	@$(BIN)/nightjar up

down: $(BIN)/.installed ## stop what make up has started
	@$(BIN)/nightjar down

deploy: $(BIN)/.installed ## deployments, pools, limits and automations, on the server of PREFECT_API_URL
	@$(BIN)/nightjar deploy

clean: ## forget everything Nightjar wrote here: lake, warehouse, models, runs
	rm -rf .nightjar
