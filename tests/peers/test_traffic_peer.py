"""TCP bytes by group through the whole program: what it prints while two processes talk, against what they sent and
against the interface of the network namespace that they are alone in."""
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import PROGRAM, clean_environment
from peer import finished_well
from test_flows_peer import CLIENT, SERVER, Talker, interface, namespace, start  # noqa: F401

LONG, ANSWER = 60000000, 40000000               # of the long connection: 100 MB
COUNT, ASKED, ANSWERED = 2000, 1234, 4321       # of the short ones
SENT, RETURNED = LONG + COUNT * ASKED, ANSWER + COUNT * ANSWERED
OTHERS = ('other', 'unknown')


class Printed:
    """The program in a namespace, a payload a line, all of it recorded too. wait(n): until it has printed so many."""

    def __init__(self, prefix, folder, *options):
        self.out, self.err = open(str(folder / 'out'), 'w+'), open(str(folder / 'err'), 'w+')
        self.process = subprocess.Popen(
            list(prefix) + [sys.executable, PROGRAM, '-i', '1', '-e', 'stdout'] + list(options),
            stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err, env=clean_environment())

    def payloads(self):
        self.out.seek(0)
        return [json.loads(line) for line in self.out.read().split('\n')[:-1]]

    def wait(self, n, seconds=60):
        end = time.monotonic() + seconds
        while len(self.payloads()) < n:
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.1)

    def said(self):
        self.err.seek(0)
        return self.err.read()

    def end(self):
        self.process.terminate()
        self.process.wait(30)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.out.close()
        self.err.close()


@pytest.fixture
def printed(tmp_path):
    running = []

    def make(prefix, *options):
        running.append(Printed(prefix, tmp_path, *options))
        return running[-1]
    yield make
    for one in running:
        one.close()


def points(payload):
    return {name: value['value'] for point in payload['points'] for name, value in point.items()}


def replayed(run, folder):
    """{(metric, group): bytes} of a recording: each rate times the seconds between its two snapshots. Live, a module in
    a thread of its own may be late for a tick, and what it says then has no time beside it."""
    times = sorted(float(name) for name in os.listdir(str(folder)))
    again = finished_well(run('-m', 'processes,groups.server=the-server,groups.client=the-client',
                              '-m', 'network,interfaces=lo', '-e', 'stdout', '--replay', folder, timeout=60))
    assert len(again) == len(times) - 1
    total = {}
    for before, now, payload in zip(times, times[1:], again):
        for name, rate in points(payload).items():
            family, metric, group = name.split('.', 2)
            if family == 'net' or metric.startswith('net_'):
                assert rate >= 0, (name, rate)
                total[metric, group] = total.get((metric, group), 0) + rate * (now - before)
    return total


def talk(start, namespace, printed, *options):
    """(the program, growth of lo) after all has been said. server and client have a mark in their command lines."""
    server = start(Talker, '-c', SERVER, '127.0.0.1', 'the-server', prefix=namespace)
    port = server.hear()
    client = start(Talker, '-c', CLIENT, '127.0.0.1', port, 'the-client', prefix=namespace)
    program = printed(namespace, *options)
    program.wait(1)
    first = interface(namespace, 'lo')
    assert client.say('hold %d %d' % (LONG, ANSWER)) == 'done'
    program.wait(len(program.payloads()) + 2)           # a reading has seen it open
    assert client.say('%d %d %d' % (COUNT, ASKED, ANSWERED)) == 'done'
    last = interface(namespace, 'lo')
    program.wait(len(program.payloads()) + 4)
    program.end()
    assert program.process.returncode == 0 and 'Traceback' not in program.said(), program.said()
    return program, [b - a for a, b in zip(first, last)]


def test_what_the_program_prints_adds_up_to_what_was_sent(run, start, namespace, printed, tmp_path):
    folder = tmp_path / 'record'
    program, moved = talk(start, namespace, printed, '-m', 'processes,groups.server=the-server,groups.client=the-client',
                          '-m', 'network,interfaces=lo', '--record', str(folder))
    total = replayed(run, folder)

    def received(*groups):
        return sum(total['net_rx_bytes', group] for group in groups)

    def sent(*groups):
        return sum(total['net_tx_bytes', group] for group in groups)
    # The times of snapshots are in whole ms: half a thousandth at most.
    assert received('server') == pytest.approx(SENT, rel=1e-3)
    assert sent('server') == pytest.approx(RETURNED, rel=1e-3)
    # Nearly all short connections of the client were in no dump: nobody is known for them.
    assert received('client', 'unknown') == pytest.approx(RETURNED, rel=1e-3)
    assert sent('client', 'unknown') == pytest.approx(SENT, rel=1e-3)
    assert received('client') >= ANSWER * 0.999 and sent('client') >= LONG * 0.999
    assert received('other') == sent('other') == 0
    everybody = ('server', 'client') + OTHERS
    again = sum(total['net_retrans_bytes', group] for group in everybody)
    for found in (received(*everybody), sent(*everybody)):
        assert found == pytest.approx(SENT + RETURNED, rel=1e-3)
    # lo counts a header of 14 + 20 + 32 bytes per packet of up to 64 kB, and what was sent again.
    size, packets = moved[2], moved[3]
    assert size - 66 * packets == pytest.approx(SENT + RETURNED + again, rel=0.01)
    assert total['tx_bytes', 'lo'] == pytest.approx(size, rel=0.01)
    # What was printed at once: a tick for which the reading was late lacks it, and the next one is about both. How long
    # each of them took stands nowhere, so that this sum is but a rough one.
    printed_sum, since = 0, program.payloads()[0]['timestamp']
    for payload in program.payloads():
        rates = [v for n, v in points(payload).items() if n.startswith('proc.net_rx_bytes.')]
        if rates:
            printed_sum, since = printed_sum + sum(rates) * (payload['timestamp'] - since), payload['timestamp']
    assert 0.5 < printed_sum / (SENT + RETURNED) < 2
    assert min(v for payload in program.payloads() for n, v in points(payload).items() if n.startswith('proc.')) >= 0
