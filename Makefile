# Hearback on one machine. `make` alone says what there is.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
bin := .venv/bin

.PHONY: help
help: ## What can be made
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

.PHONY: up
up: environment ## Start everything; says the address, and at the first start the password
	@$(bin)/hearback up

.PHONY: down
down: environment ## Stop everything; the data stays in var/
	@$(bin)/hearback down

.PHONY: logs
logs: environment ## Follow what all parts log
	@$(bin)/hearback logs --follow

.PHONY: demo
demo: up ## Start with made-up customers and three months of history
	@$(bin)/hearback demo

.PHONY: tour
tour: test-environment ## Take the README's pictures again, from a running demo
	@$(bin)/python docs/tour.py

.PHONY: test
test: test-environment ## Run all tests (ARGS="tests/unit -k nps" for some)
	@.ci/installed chromium tests/browser chromium chromium-browser google-chrome google-chrome-stable
	@.ci/installed pgbouncer tests/faults/test_pooler.py pgbouncer /usr/sbin/pgbouncer
	@.ci/kafka
	@.ci/helm
	@$(bin)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow_fault" $(ARGS)
	@if [ -z "$(ARGS)" ] && .ci/engine; then $(MAKE) containers; fi

.PHONY: containers
containers: test-environment ## Run the log's contract, the services' tests and the whole product in containers
	@$(bin)/python -m pytest --containers -n auto --maxprocesses 4 --dist loadfile tests/contract tests/integration
	@$(bin)/python -m pytest --containers tests/deploy

.PHONY: faults
faults: test-environment ## Kill processes at the worst moments and check that nothing is lost (SEEDS=20 for more)
	@.ci/installed pgbouncer tests/faults/test_pooler.py pgbouncer /usr/sbin/pgbouncer
	@.ci/kafka
	@TRIALS=$${TRIALS:-2000} $(bin)/python -m pytest tests/faults -n 3 --dist loadfile $(ARGS)

.PHONY: faults-mutants
faults-mutants: test-environment ## Break one promise at a time and check that its experiment sees it (ARGS="permit" for some)
	@$(bin)/python -m tests.faults.mutants $(ARGS)

.PHONY: bench
bench: test-environment ## Measure, and show a table of ratios (ARGS="answers page" for some, REPEATS=5)
	@.ci/kafka
	@$(bin)/python -m tests.bench $(if $(REPEATS),--repeats $(REPEATS)) $(ARGS)

.PHONY: lint
lint: test-environment ## Check style, types and the layers
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports

.PHONY: format
format: test-environment ## Put the code into its format
	@$(bin)/ruff check --fix --quiet . || true
	@$(bin)/ruff format --quiet .

.PHONY: lock
lock: test-environment ## Pin the newest versions of all requirements
	@$(bin)/uv pip compile -q --upgrade --universal --generate-hashes --no-header pyproject.toml -o requirements.txt
	@$(bin)/uv pip compile -q --upgrade --universal --generate-hashes --no-header --group embedded -c requirements.txt -o requirements-embedded.txt
	@$(bin)/uv pip compile -q --upgrade --universal --generate-hashes --no-header --group test -c requirements.txt -c requirements-embedded.txt -o requirements-test.txt
	@$(bin)/uv pip compile -q --upgrade --universal --generate-hashes --no-header --group bootstrap -o requirements-bootstrap.txt

.PHONY: environment
environment:
	@.ci/environment

.PHONY: test-environment
test-environment:
	@.ci/environment test
