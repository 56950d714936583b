# make run    a house with two batteries covers its own load (simulated devices, real protocols)
# make test   everything proven
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STATE := $(CURDIR)/.run/home_demo
export ROS_PYTHON_CHECK_FIELDS := 1
# Each process would compile all modules again, a third of the time that it takes to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test lint bench soak colcon wheel native docs browser clean

help:
	@sed -n 's/^# make /make /p' Makefile; echo 'make setup|lint|bench|soak|colcon|wheel|native|docs|clean'

setup:
	@$(PYTHON) tools/setup_env.py

run: setup
	@$(VENV)/bin/bess up home_demo --state $(STATE)

browser:
	@sh tools/ensure_browser.sh

# The most part of the tests waits (for messages, leases, devices): four at once use two cores. Whole sites and crowds
# run in real time: they have the machine to themselves afterwards.
ALONE := test/site test/launch test/drivers/test_big_site.py test/virtual/test_crowd.py
test: setup browser
	@rc=0; \
	$(PY) -m pytest -n 4 --dist loadfile $(ALONE:%=--ignore=%) || rc=1; \
	$(PY) -m pytest $(ALONE) || rc=1; exit $$rc

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy bess_core bess_drivers bess_virtual bess_control bess_telemetry bess_sim
	@$(PY) tools/check_rooms.py
	@$(PY) tools/generate_docs.py --check

bench: setup
	@$(PY) -m bench

soak: setup browser
	@BESS_SOAK=1 $(PY) -m pytest --timeout 7200

# On a machine with a sourced ROS 2 the build uses that and none of the wheels.
colcon: $(if $(ROS_DISTRO),,setup)
	@sh tools/check_colcon.sh

wheel: setup
	@sh tools/check_wheel.sh

# The pure modules compiled, for simulations without ROS: docs/figures.md.
native: setup
	@$(PY) tools/build_native.py

docs: setup
	@$(PY) tools/generate_docs.py

clean:
	rm -rf build install log wheels .run $(VENV)
