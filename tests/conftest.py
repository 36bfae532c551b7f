"""What all tests share: the program, a way to run it, frozen hosts, a clock, and the table of skips."""
import os
import subprocess
import sys
import time
import zlib

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
PROGRAM = os.path.join(ROOT, 'statbadger.py')
sys.path.insert(0, ROOT)
sys.path.insert(0, TESTS)

import statbadger  # noqa: E402


class Finished:
    """What a finished run of the program left: code, out (text), err (text), seconds."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds


def clean_environment(more=None):
    """The environment without what would change the program's course."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('HOST_') and k != 'STATBADGER_NO_REEXEC'}
    env.update(more or {})
    return env


@pytest.fixture
def run():
    """run(*args, stdin=b'', env={}, cwd=None, timeout=30) -> Finished"""
    def runner(*args, **more):
        started = time.monotonic()
        process = subprocess.Popen(
            [more.get('python', sys.executable), more.get('program', PROGRAM)] + [str(a) for a in args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean_environment(more.get('env')), cwd=more.get('cwd'))
        try:
            out, err = process.communicate(more.get('stdin', b''), timeout=more.get('timeout', 30))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError('did not end: %r %r' % (out[-500:], err[-2000:]))
        finished = Finished(process.returncode, out.decode(), err.decode(), time.monotonic() - started)
        assert 'Traceback' not in finished.err, finished.err
        return finished
    return runner


@pytest.fixture
def agent():
    """agent(*args, **Popen) -> a running agent, ended by its pid when the test is over."""
    started = []

    def starter(*args, **more):
        more.setdefault('stdout', subprocess.PIPE)
        more.setdefault('stderr', subprocess.PIPE)
        more['env'] = clean_environment(more.get('env'))
        process = subprocess.Popen([sys.executable, PROGRAM] + [str(a) for a in args], **more)
        started.append(process)
        return process
    yield starter
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def host(tmp_path):
    """host({'proc/stat': text, ...}) -> a Tree over a folder that holds these files; .when is set by .clock[0]."""
    def make(files, folder='host'):
        root = tmp_path / folder
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        root.mkdir(parents=True, exist_ok=True)
        clock = [0.0]
        tree = statbadger.Tree({'': str(root), 'proc': str(root / 'proc'), 'sys': str(root / 'sys')},
                               lambda: clock[0])
        tree.clock, tree.folder = clock, root
        return tree
    return make


class FakeClock:
    """wall() and monotonic() in ms, both moved by hand."""

    def __init__(self, wall=1700000000000.0, monotonic=5000.0):
        self.now, self.steady = wall, monotonic

    def wall(self):
        return self.now

    def monotonic(self):
        return self.steady

    def sleep(self, seconds):
        self.advance(seconds * 1000.0)

    def advance(self, ms):
        self.now += ms
        self.steady += ms


@pytest.fixture
def clock():
    return FakeClock()


def options(**values):
    """Options as a checked configuration would give them."""
    return statbadger.Options(values)


def role(chosen=None, talk=None, delivery='sent', target=('none',), secrets=()):
    """What a Sender and its Cursor are told to be."""
    values = dict(dict(interval=0, flush=0, batch=100, timeout=10), **(chosen.__dict__ if chosen else {}))
    return statbadger.Role(options(**values), talk, delivery, target, secrets)


def pytest_collection_modifyitems(config, items):
    """Spreads the tests of a file over all workers: those that mostly wait stand together in theirs. A file of tests
    of a real server stays with the worker that has started it."""
    if hasattr(config, 'workerinput'):
        items.sort(key=lambda item: 0 if 'peers' in item.nodeid else zlib.crc32(item.nodeid.encode()))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get('skipped', [])
    if skipped:
        terminalreporter.section('skipped, and what they need')
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            terminalreporter.write_line('%s  %s' % (report.nodeid, reason.replace('Skipped: ', '')))
