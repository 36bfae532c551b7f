"""Prints every point below a folder of whisper files as JSON: {"path.of.metric": {"time": value}}.

Runs under the interpreter that has the whisper library (Debian: the system's own), whatever runs the tests.
"""
import json
import os
import sys
import time

import whisper


def points(path):
    """{time: value} of one file, holes left out."""
    try:
        answer = whisper.fetch(path, 0, int(time.time()) + 60)
    except whisper.WhisperException:            # carbon is making the file this moment
        return {}
    if answer is None:
        return {}
    (start, end, step), values = answer
    return {start + i * step: value for i, value in enumerate(values) if value is not None}


def main(top):
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            if name.endswith('.wsp'):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, top)[:-4].replace(os.sep, '.')] = points(path)
    json.dump(found, sys.stdout)


main(sys.argv[1])
