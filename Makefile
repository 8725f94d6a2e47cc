# The only door: `make demo` shows pgward at work, `make test` proves it. A fresh Debian machine
# with git, make and cargo is enough: the rest is installed, or named where that can't be done.

CARGO ?= cargo
export QUICK FUZZ_SECONDS FUZZ_TARGETS CONFORMANCE_PSYCOPG

.PHONY: help demo test check conformance bench fuzz soak build fmt clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: ## Four local Postgres shards with replicas behind pgward, to try it out
	@.ci/need cargo cc libclang postgres
	$(CARGO) run --locked -- demo

test: ## All tests, against real Postgres
	@.ci/need cargo cc libclang postgres psycopg
	$(CARGO) test --locked

check: ## What must pass before merging: format, lints, licences, tests
	@.ci/need cargo cc libclang
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check; \
	else echo "licences and advisories: not checked, cargo-deny is not installed"; fi
	$(MAKE) test

conformance: ## Drivers' own test suites and applications through pgward (SUITE=psql MODE=session)
	@.ci/need cargo cc libclang postgres libpq python node
	$(CARGO) build --locked
	python3 tests/conformance/run.py --binary target/debug/pgward --suites "$(SUITE)" --modes "$(MODE)"

bench: ## CPU per transaction beside PgBouncer (QUICK=1: two minutes)
	@.ci/need cargo cc libclang postgres pgbouncer valgrind strace
	$(CARGO) bench --locked --bench '*'

fuzz: ## Look for bytes that break something (FUZZ_SECONDS=60 for each target, FUZZ_TARGETS=...)
	@.ci/need cargo cc c++ libclang
	@.ci/fuzz

soak: ## A million statements on eight shards against one Postgres (SOAK_STATEMENTS, SOAK_SEED)
	@.ci/need cargo cc libclang postgres
	SOAK_STATEMENTS=$${SOAK_STATEMENTS:-1000000} $(CARGO) test --locked --test it -- --nocapture soak::

build: ## The release binary, target/release/pgward
	@.ci/need cargo cc libclang
	$(CARGO) build --locked --release

fmt: ## Format the code
	$(CARGO) fmt

clean: ## Remove what was built
	$(CARGO) clean
