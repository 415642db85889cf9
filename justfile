# `just` lists the recipes. Tools come from .venv when it is there, else from the PATH.

export PATH := justfile_directory() / ".venv/bin" + ":" + env("PATH")
export PYTHONPATH := justfile_directory() + ":" + justfile_directory() / "quant" + ":" + justfile_directory() / "calibration" + ":" + justfile_directory() / "cli"

default:
    @just --list

# Everything that needs no test run: style, types, layers, lengths, generated pages
check:
    ruff check
    ruff format --check
    mypy
    lint-imports
    python3 tests/project/house_rules.py
    python3 docs/write_cli_page.py --check
    python3 docs/write_json_page.py --check
    python3 docs/write_fit_table.py --check

# The default tests: CPU, no network, no downloaded weights
test *arguments:
    pytest {{arguments}}

# The tests that build wheels, install them, or take their time
test-slow *arguments:
    pytest -m slow {{arguments}}

# The C++ kernels without Python: under sanitizers, and for 64-bit ARM where a cross compiler and an emulator are there
test-native:
    csrc/tests/run.sh

# Write the generated pages
docs:
    python3 docs/write_cli_page.py
    python3 docs/write_json_page.py
    python3 docs/write_fit_table.py
    python3 docs/write_chat_svg.py

# Put the code into the form that `check` wants
format:
    ruff check --fix
    ruff format

# Build the native module into the checkout, without an install
native:
    cmake -B build/dev
    cmake --build build/dev
