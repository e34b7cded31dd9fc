# Everything is installed into .venv beside this file, for root and ordinary users alike.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --disable-pip-version-check install -qq

# Debian packages of programs that tests compare kcap with, pipe through, or build with.
ORACLES := binutils-bpf bpftrace clang forkstat gcc gcc-multilib iproute2 libc6-dev llvm sysdig tcpdump tshark zstd \
	openssl rabbitmq-server rsyslog rsyslog-openssl
MACHINES := busybox-static e2fsprogs qemu-system-x86

# Says that servers are not to be started because they are installed: tests start their own.
POLICY := /usr/sbin/policy-rc.d

.DEFAULT_GOAL := help
.PHONY: help bpf bundle demo test test-kernels test-long bench lint oracles
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.kcap ## record (as root on Linux) or take the shipped capture; look at it, replay it, verify it
	@sh docs/demo.sh $(VENV)/bin/kcap

test: lint oracles ## check style and types, run every test that ends within minutes
	@status=0; \
	$(RUN) -m pytest -q -m 'not long and not host' -n 2 --dist loadgroup || status=1; \
	$(RUN) -m pytest -q -m 'not long and host' || status=1; \
	exit $$status

test-long: $(VENV)/.dev oracles ## run the slow tests, and those of generated examples with many more of them (an hour)
	@export HYPOTHESIS_PROFILE=long; status=0; \
	$(RUN) -m pytest -q -m '(long or hypothesis) and not host and not kernels' --timeout 3600 \
		-n 2 --dist loadgroup || status=1; \
	$(RUN) -m pytest -q -m '(long or hypothesis) and host and not kernels' --timeout 3600 || status=1; \
	exit $$status

test-kernels: ORACLES += $(MACHINES)
test-kernels: $(VENV)/.dev oracles ## record under Debian's kernels 6.1 and 6.12, and as its service, in QEMU
	@$(RUN) -m pytest -q -s -m kernels

bundle: $(VENV)/.dev ## pack what records on a host that has nothing (Debian 12: its Python 3.11 goes into it)
	@$(RUN) bundle/build.py

bench: $(VENV)/.dev ## measure size and speed beside other formats
	@$(PIP) --group bench
	@$(RUN) tests/bench/run.py

bpf: ## build the kernel programs anew (clang 14; the objects are committed beside their sources)
	@cd readers/live/bpf && for source in *.bpf.c; do object=$${source%.c}.o; \
	clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-compilation-dir=. -c $$source -o $$object && \
	llvm-strip -g $$object && \
	llvm-objcopy -R .BTF.ext -R .rel.BTF.ext -R .rel.BTF --strip-unneeded $$object || exit 1; done

lint: $(VENV)/.dev ## check style and types
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m mypy --no-error-summary

oracles: # where they cannot be installed, the tests that need them skip and say so
	@command -v apt-get >/dev/null && test "$$(id -u)" = 0 || exit 0; \
	missing=; for p in $(ORACLES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	test -z "$$missing" && exit 0; export DEBIAN_FRONTEND=noninteractive; failed=; \
	timeout 120 apt-get update -qq >/dev/null; \
	if ! test -e $(POLICY); then \
		printf '#!/bin/sh\nexit 101\n' >$(POLICY); chmod +x $(POLICY); trap 'rm -f $(POLICY)' EXIT; \
	fi; \
	for p in $$missing; do \
		timeout 240 apt-get install -qq -y --no-install-recommends $$p >/dev/null || failed="$$failed $$p"; \
	done </dev/null; \
	test -z "$$failed" || echo "make: not installed:$$failed; tests that need them skip"

$(VENV)/.kcap: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: kcap needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --editable .
	@touch $@

# pip reads dependency groups since 25.1.
$(VENV)/.dev: $(VENV)/.kcap
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --group dev
	@touch $@
