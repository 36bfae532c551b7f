#!/bin/sh
# Runs the tests on every Python from 3.6 up that is found: on PATH and where pyenv keeps them.
# A virtual environment for each is kept in .venv/. PYTHONS="6 13": only these minor versions.
set -u
cd "$(dirname "$0")/.."
failed=''
ran=''
for minor in ${PYTHONS:-6 7 8 9 10 11 12 13 14}; do
    found=''
    for python in "$HOME"/.pyenv/versions/3.$minor.*/bin/python3 "$(command -v python3.$minor 2>/dev/null)"; do
        if [ -x "$python" ] && "$python" -c "import sys; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
            found=$python
            break
        fi
    done
    if [ -z "$found" ]; then
        echo "== Python 3.$minor: not found"
        continue
    fi
    venv=.venv/3.$minor
    if [ ! -e "$venv/done" ]; then
        if ! "$found" -m venv "$venv" || ! "$venv/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt; then
            echo "== Python 3.$minor: no virtual environment could be made"
            failed="$failed 3.$minor"
            continue
        fi
        touch "$venv/done"
    fi
    echo "== Python 3.$minor: $found"
    "$venv/bin/python" -W error::DeprecationWarning:statbadger -m pytest -q -p no:cacheprovider -n 8 --ignore=tests/peers tests "$@" || failed="$failed 3.$minor"
    ran="$ran 3.$minor"
done
echo "== ran on:$ran; failed on:${failed:- none}"
[ -z "$failed" ] && [ -n "$ran" ]
