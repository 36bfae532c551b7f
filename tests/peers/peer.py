"""A real server for the length of a test: started by argv in a folder of its own, stopped by its own pid."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

SYSTEM = os.pathsep.join(['/usr/local/sbin', '/usr/sbin', '/sbin'])     # not on every user's PATH


def require(found, name, reason):
    """Skips the test when `found` is nothing, saying which peer is missing; REQUIRE_PEERS=1 makes that a failure."""
    if not found:
        message = 'peer %s: %s' % (name, reason)
        (pytest.fail if os.environ.get('REQUIRE_PEERS') == '1' else pytest.skip)(message)
    return found


def command(name):
    """The path of a program, or None."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM)


def free_port(kind=socket.SOCK_STREAM):
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def is_free(port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(('127.0.0.1', port))
        except OSError:
            return False
    return True


def lasting_ports(n):
    """So many free ports that no outgoing connection is given, so that a restart finds them free."""
    with open('/proc/sys/net/ipv4/ip_local_port_range') as file:
        end = min(32000, int(file.read().split()[0]))
    found = (port for port in random.sample(range(end // 2, end), end // 2) if is_free(port))
    return [next(found) for _ in range(n)]


def payloads(text):
    """The payloads of whole lines of standard output."""
    return [json.loads(line) for line in text.split('\n')[:-1]]


def finished_well(done, ticks=None):
    """The payloads of a run that ended as it should, with so many ticks."""
    assert (done.code, done.err) == (0, '')
    found = payloads(done.out)
    assert found and len(found) == (ticks or len(found))
    return found


def live(agent, folder, *args):
    """A running agent whose standard output and errors go to files."""
    with open(str(folder / 'out'), 'wb') as out, open(str(folder / 'err'), 'wb') as err:
        return agent(*args, stdout=out, stderr=err)


def ended(process, folder, seconds=60):
    """(exit code, payloads, errors) of an agent once it has ended."""
    code = process.wait(seconds)
    return code, payloads((folder / 'out').read_text()), (folder / 'err').read_text()


def until_ticks(folder, n, seconds=30):
    """Waits until standard output holds so many ticks."""
    end = time.monotonic() + seconds
    while (folder / 'out').read_text().count('\n') < n:
        assert time.monotonic() < end, (folder / 'err').read_text()
        time.sleep(0.02)


def firsts(items):
    """The items without those that were there before."""
    seen = set()
    return [item for item in items if not (item in seen or seen.add(item))]


LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}


def flat_points(lines, tags):
    """What messages with a point each ought to be, worked out from the payloads of the same ticks."""
    out = []
    for line in lines:
        tick = json.loads(line)
        who = {key: tick[key] for key in tick if key != 'points'}
        for point in tick['points']:
            for flat, entry in point.items():
                words = flat.split('.', 2)
                labelled = len(words) > 2 and words[0] in LABELS
                metric = '.'.join(words[:2]) if labelled else flat
                out.append(dict(who, metric=metric, **tags))
                out[-1].update(entry, **({LABELS[words[0]]: words[2]} if labelled else {}))
    return out


def large_recording(folder, large):
    """Ticks 1 to 6 after the priming read; that one (and the reading before it) has 2,500 interfaces."""
    heading = 'Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n'
    for i in range(7):
        names = ['eth0'] + ['if%d' % n for n in range(2500)] * (i in (large - 1, large))
        lines = ['%s: %s\n' % (name, ' '.join(str((i + 1) * 10 + c) for c in range(16))) for name in names]
        path = folder / ('%d.000' % (1700000000 + i)) / 'proc' / 'net' / 'dev'
        path.parent.mkdir(parents=True)
        path.write_text(heading + ''.join(lines))


HEADING = b'Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n'


def hostile_table(form, known, columns, growth):
    """Lines of a kernel file for these names, each with numbers of its own."""
    return b''.join(form % (name, b' '.join(b'%d' % ((c + 1) * (i + 3) * growth) for c in range(columns)))
                    for i, name in enumerate(known))


def hostile_host(folder, interfaces, devices, hostname):
    """Four snapshots of a host whose interfaces and disks are called so; the folder they are in."""
    for tick in range(4):
        top, growth = folder / 'recording' / ('%d.000' % (1700000000 + tick)), tick * tick + 1
        (top / 'proc/sys/kernel').mkdir(parents=True)
        (top / 'proc/net').mkdir()
        (top / 'proc/net/dev').write_bytes(HEADING + hostile_table(b'%6s: %s\n', interfaces, 16, growth))
        (top / 'proc/diskstats').write_bytes(hostile_table(b'   8 0 %s %s\n', devices, 11, growth))
        (top / 'proc/sys/kernel/hostname').write_bytes(hostname)
    return folder / 'recording'


def accepts(port):
    """Whether a TCP connection to that port of 127.0.0.1 succeeds."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(('127.0.0.1', port)) == 0


class Peer:
    """One server process. ready() says whether it serves. A with statement stops it, whatever happens.

    start() and stop() may be called again and again: the folder stays, and with it what is stored.
    """

    def __init__(self, name, argv, folder, ready, env=None, patience=20.0):
        self.name, self.argv, self.folder, self.ready = name, argv, str(folder), ready
        self.env, self.patience, self.process = env, patience, None
        self.log = os.path.join(self.folder, name + '.log')

    def start(self):
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(self.argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=dict(os.environ, **(self.env or {})))
        try:
            self.until(self.ready, self.patience, 'be ready')
        except BaseException:
            self.stop()
            raise
        return self

    def until(self, condition, seconds, what):
        """What condition() gives once it is true; fails with the end of the log when the time is over."""
        end = time.monotonic() + seconds
        while True:
            answer = condition()
            if answer:
                return answer
            if self.process.poll() is not None:
                raise AssertionError('%s ended with %d\n%s' % (self.name, self.process.returncode, self.tail()))
            if time.monotonic() > end:
                raise AssertionError('%s did not %s within %g s\n%s' % (self.name, what, seconds, self.tail()))
            time.sleep(0.05)

    def stop(self, number=signal.SIGTERM):
        """Ends the process by its pid; one that does not go is killed."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines=30):
        """The last lines of its log."""
        try:
            with open(self.log, 'rb') as log:
                text = log.read().decode('utf-8', 'replace')
        except OSError as error:
            return 'no log: %s' % error
        return '-- %s --\n%s' % (self.log, '\n'.join(text.split('\n')[-lines - 1:]))

    def __enter__(self):
        return self if self.process is not None else self.start()

    def __exit__(self, *error):
        self.stop()
