# Every job of this repository is a target here; `make help` lists them.
# `make demo` and `make test` need only root on Debian 12 (or the packages that they name), Python 3.11
# and a Rust toolchain.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Build in target/, where the rules below look for the results, also if this user's cargo builds elsewhere.
unexport CARGO_TARGET_DIR

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
# PyO3's build script needs the interpreter that will load the module.
CARGO := PYO3_PYTHON=$(BIN)/python cargo
# The glue crate has no Rust tests; the Python tests cover it.
RUST_TESTED := --workspace --exclude vsock-python --exclude vsock-sshd
NATIVE_SOURCES := Cargo.toml Cargo.lock $(shell find crates -path crates/sshd -prune -o -path crates/sftp -prune -o -name '*.rs' -print -o -name Cargo.toml -print)
SSHD_SOURCES := Cargo.toml Cargo.lock crates/sshd/Cargo.toml crates/sftp/Cargo.toml $(shell find crates/sshd crates/sftp crates/sandbox/src -name '*.rs') tools/build-sshd
BENCH_SOURCES := $(NATIVE_SOURCES) bench/Cargo.lock $(shell find bench -name '*.rs' -o -name Cargo.toml)
# Benchmarks are a workspace of their own, built beside the package.
IN_BENCH := --manifest-path bench/Cargo.toml --target-dir target
LOAD := target/release/vsock-load
PATHS := target/release/vsock-paths
ATTACKER := target/release/vsock-hostile
GUEST_PACKAGES := qemu-system-x86
# The C library that a static program is linked with.
STATIC_PACKAGES := libc6-dev
# Programs that make a whole Debian as a disk image.
DISK_PACKAGES := mmdebstrap fakeroot e2fsprogs
# Programs that the tests run, unmodified, under `vsock run`; and strace, which shows their system calls.
PROGRAM_PACKAGES := socat ncat nbdkit libnbd-bin openssh-client sshfs strace openssl systemd curl git rsync libnss-wrapper
# Tests fail if their programs are missing. To skip them where nothing can be installed: make VSOCK_REQUIRE_PROGRAMS= test
export VSOCK_REQUIRE_PROGRAMS ?= 1
TEST_PARTS := check test-rust test-python bench-instructions test-hostile test-dist test-guests
FUZZ_SECONDS ?= 60

##@ Start here

.PHONY: demo
demo: build ## Boot real guests and check what the switch does
	@tools/debian-packages $(GUEST_PACKAGES) || true # prints what is missing; the demo works without it
	@tools/sign-of-life --show "making Linux guests" guests/fetch
	$(BIN)/vsock demo

.PHONY: test
test: build ## Everything that must pass: checks, Rust, Python, real guests; ends with a line for each
	@$(PYTHON) tools/test_parts.py '$(MAKE)' $(TEST_PARTS)

.PHONY: help
help: ## List these targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Building

.PHONY: setup
setup: $(VENV)/.tools ## Make the virtual environment with all tools, in .venv

.PHONY: build
build: $(VENV)/.built ## Build both libraries and install the package in .venv (editable)

.PHONY: sshd
sshd: src/vsock/_lib/vsock-sshd ## Build vsock-sshd, for guests without an SSH server; part of the tests and of `dist`

.PHONY: dist
dist: $(VENV)/.tools ## Make sdist and wheel, in build/dist
	$(BIN)/python -m build --outdir build/dist

.PHONY: guests
guests: ## Fetch guest kernels and make guest images, in build/guests
	@tools/debian-packages $(GUEST_PACKAGES) $(DISK_PACKAGES)
	@guests/fetch --all --strict

.PHONY: clean
clean: ## Remove everything that was built, guest kernels too
	rm -rf .venv build target fuzz/target src/vsock/*.so src/vsock/_lib
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

##@ Checking

.PHONY: check
check: lint types ## Format, lint, types, layers, stub: quick and without guests
	$(BIN)/pytest -q tests/test_layers.py

.PHONY: lint
lint: setup build ## Formatters (without changes), clippy, ruff, paths
	cargo fmt --all --check
	cargo fmt --all --check --manifest-path bench/Cargo.toml
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy $(IN_BENCH) --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	tools/check-paths

.PHONY: types
types: setup build ## mypy, and the stub against the built module
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest vsock._native

.PHONY: fmt
fmt: setup ## Format Rust and Python, and make ruff's safe corrections
	cargo fmt --all
	cargo fmt --all --manifest-path bench/Cargo.toml
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: test-rust
test-rust: build ## Rust tests: core, device against driver
	$(CARGO) test $(RUST_TESTED) --locked
	cargo test $(IN_BENCH) --workspace --locked

.PHONY: test-sshd
test-sshd: setup build sshd ## Rust tests of vsock-sshd; test-python and test-guests use the program
	cargo test --package vsock-sshd --locked

# Two files at a time: the tests wait for other processes more than they compute.
PYTEST_BY_TWO := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: test-python
test-python: setup build sshd ## Python tests that need no VM
	@tools/debian-packages $(PROGRAM_PACKAGES) || true # prints what is missing; their tests fail, or are skipped
	$(PYTEST_BY_TWO) -m 'not vm and not dist'

.PHONY: test-hostile
test-hostile: build $(LOAD) $(ATTACKER) ## Ten attacks on a running switch; `make hostile` has all
	$(BIN)/python -m bench.hostile --quick

.PHONY: test-dist
test-dist: setup build ## Build sdist and wheel, and install them in an empty environment
	$(BIN)/pytest -m dist

.PHONY: test-guests
test-guests: setup build guests sshd ## Tests with real guests: QEMU and User-Mode Linux
	@tools/debian-packages $(PROGRAM_PACKAGES)
	VSOCK_REQUIRE_GUESTS=1 $(PYTEST_BY_TWO) -m "vm and not long"

.PHONY: test-guests-long
test-guests-long: setup build guests sshd ## Those that wait for minutes: a guest that is paused for too long, or reset
	@tools/debian-packages $(PROGRAM_PACKAGES)
	VSOCK_REQUIRE_GUESTS=1 $(BIN)/pytest -m "vm and long"

BREAKS ?= 100

.PHONY: test-breaks
test-breaks: setup build ## Break the connections of copies at random moments; BREAKS=1000: so many sequences of breaks
	VSOCK_TEST_BREAKS=$(BREAKS) $(BIN)/pytest tests/ssh/test_plain.py -k random_moments

CONFORMANCE := build/conformance

.PHONY: conformance
conformance: setup build guests ## Run the kernel's own vsock_test over the switch, in all roles; RUNS=10: ten times
	@tests/conformance/build-suite $(CONFORMANCE)
	$(BIN)/python -m tests.conformance --suite $(CONFORMANCE) --runs $(or $(RUNS),1)

.PHONY: oracle
oracle: setup build guests ## Run every case on a guest's kernel, with vsock.socket and under vsock run, and compare
	$(BIN)/python -m tests.oracle $(ORACLE)

.PHONY: cpython-tests
cpython-tests: build ## Run CPython's own tests of streams with vsock.socket and under vsock run
	$(BIN)/python -m tests.cpython

.PHONY: fuzz
fuzz: $(VENV)/.tools ## Fuzz the parsers for FUZZ_SECONDS (60) in total
	tools/fuzz $(FUZZ_SECONDS)

##@ Measuring

.PHONY: bench
bench: build $(LOAD) $(ATTACKER) ## Measure and compare with limits and peers, 15 minutes; QUICK=1: under 2; results in bench/results
	@guests/fetch
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

.PHONY: hostile
hostile: build guests $(LOAD) $(ATTACKER) ## Attack a running switch and measure a neighbour, 20 minutes; QUICK=1: ten cases
	$(BIN)/python -m bench.hostile $(if $(QUICK),--quick) $(HOSTILE)

.PHONY: bench-peers
bench-peers: ## Unpack Debian's vhost-device-vsock in build/peers, for `make bench` to compare with
	guests/suites.py sid vhost-device-vsock build/peers

.PHONY: bench-micro
bench-micro: ## Times of the per-packet paths, with Criterion
	cargo bench $(IN_BENCH) --locked --package vsock-paths

.PHONY: bench-instructions
bench-instructions: $(PATHS) ## Count the instructions per packet and compare; UPDATE=1: store the counts
	@tools/debian-packages valgrind
	$(PYTHON) -m bench.instructions $(if $(UPDATE),--update) $(PATHS)

# Stamps: if these are newer than their sources, there is nothing to do.

$(VENV)/.base: pyproject.toml tools/make-venv
	@tools/make-venv $(PYTHON) $(VENV) build
	@touch $@

$(VENV)/.tools: $(VENV)/.base
	@tools/make-venv $(PYTHON) $(VENV) dev
	@touch $@

$(LOAD): $(BENCH_SOURCES)
	cargo build $(IN_BENCH) --release --locked --package vsock-load
	@touch $@

$(ATTACKER): $(BENCH_SOURCES)
	cargo build $(IN_BENCH) --release --locked --package vsock-hostile
	@touch $@

$(PATHS): $(BENCH_SOURCES)
	cargo build $(IN_BENCH) --release --locked --package vsock-paths
	@touch $@

# As tools/build_backend.py compiles it for a wheel, so that test-dist need not compile other packages anew.
AS_FOR_DIST := CARGO_TARGET_DIR=build/dist-target \
  RUSTFLAGS="--remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}/registry/src=registry"
src/vsock/_lib/vsock-sshd: $(SSHD_SOURCES)
	@tools/debian-packages $(STATIC_PACKAGES) || true # prints what is missing
	@$(AS_FOR_DIST) tools/sign-of-life "building vsock-sshd" tools/build-sshd

# maturin warns that it is not the build backend itself; tools/build_backend.py calls it.
$(VENV)/.built: export MATURIN_NO_MISSING_BUILD_BACKEND_WARNING = 1
$(VENV)/.built: $(VENV)/.base $(NATIVE_SOURCES)
	@tools/sign-of-life "building the preload library" tools/build-preload
	@PIP_QUIET=1 VIRTUAL_ENV=$(VENV) tools/sign-of-life "building the package" \
	  $(BIN)/maturin develop --release --quiet --extras cli,proxy,ssh,switch
	@touch $@
