# One runner for people, hooks and CI.
PYTHON ?= python3.11
BIN := .venv/bin
HOME_FOLDER := $(abspath $(or $(NIGHTJAR_HOME),.nightjar))
PREFECT_HOME := $(HOME_FOLDER)/prefect
# Python keeps what it has compiled, which saves each of the tests' several hundred processes up to 0.3 s.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help nightly test test-fast stack-test torture lint bench ui up down deploy clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@# Creating the empty databases of Prefect and MLflow takes long, so it is part of the install.
	@umask 077 && mkdir -p $(PREFECT_HOME)
	@PREFECT_HOME=$(PREFECT_HOME) DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
		$(BIN)/prefect server database upgrade --yes >/dev/null
	@umask 077 && test -e $(HOME_FOLDER)/mlflow.db || DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true MLFLOW_LOGGING_LEVEL=WARNING \
		$(BIN)/mlflow db upgrade sqlite:///$(HOME_FOLDER)/mlflow.db
	@touch $@

nightly: $(BIN)/.installed ## run the bundled payments detector
	@$(BIN)/nightjar run payments

test: $(BIN)/.installed ## run the test suite
	@# More workers than cores: a third of the time is spent waiting for servers and processes.
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/stack

test-fast: $(BIN)/.installed ## run only fast tests, without servers and processes (under a minute)
	$(BIN)/pytest -n 2 -m "not server and not slow" tests/models tests/tasks tests/flows/config/test_params.py \
		tests/test_architecture.py tests/test_old_versions.py tests/test_watching.py

stack-test: $(BIN)/.installed ## test the stack of make up end to end; needs Chromium
	$(BIN)/pytest tests/stack

torture: $(BIN)/.installed ## long tests with kills, races, faults and fuzzing (one to two hours); make test has a short form
	$(BIN)/pytest tests/torture tests/faults tests/fuzz tests/models/test_neighbours.py \
		tests/tasks/follow_up/test_actions.py --kills 100 --rounds 250 --hypothesis-profile=torture \
		-o timeout=7200

lint: $(BIN)/.installed ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pip check

bench: $(BIN)/.installed ## measure detection and speed (half an hour)
	$(BIN)/python bench/payments_detectors.py
	$(BIN)/python bench/throughput.py

ui: $(BIN)/.installed ## show this folder's runs in Prefect and MLflow
	@$(BIN)/python -m flows.team.ui

up: $(BIN)/.installed ## start PostgreSQL, Prefect, MLflow and two workers on this machine, and deploy
	@$(BIN)/nightjar up

down: $(BIN)/.installed ## stop what make up started
	@$(BIN)/nightjar down

deploy: $(BIN)/.installed ## create or update deployments, pools, limits and automations on PREFECT_API_URL
	@$(BIN)/nightjar deploy

clean: ## delete everything Nightjar wrote here: lake, warehouse, models, runs
	rm -rf .nightjar
