"""What a reading of the modules processes and threads costs, beside pidstat where there is one.

    python tests/bench/processes.py [ticks]

300 and 2,000 processes that sleep, the same of which a tenth do something between two readings, and all of them; then
processes that come and go for 1,000 ticks, with the memory of this program at the start and at the end.
"""
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import statbadger  # noqa: E402

DEFAULTS = {o.name: o.default for name in ('processes', 'threads') for o in statbadger.MODULES[name].options}


def children(n):
    """n processes that sleep until a byte comes: [(pid, end of a pipe to wake it)]."""
    out = []
    for _ in range(n):
        end, wake = os.pipe()
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.close(wake)
            while os.read(end, 1):
                pass
            os._exit(0)
        os.close(end)
        os.set_inheritable(wake, False)
        out.append((pid, wake))
    return out


def end(some):
    """Ends them, those that began last first, for each has the pipes of those before it."""
    for pid, wake in some:
        os.kill(pid, signal.SIGKILL)
        os.close(wake)
        os.waitpid(pid, 0)


class Traffic:
    """Stands for the connections: none."""

    def read(self, tree, owners):
        owners(set())
        return {}


def parts(module, **options):
    values = statbadger.Options(dict(DEFAULTS, **options))
    if module == 'threads':
        values.processes = statbadger.Options(dict(DEFAULTS))
    tree = statbadger.host_tree(None, {}, time.monotonic)
    return statbadger.Parts(module, statbadger.MODULES[module].parts, values, tree, lambda *words: None,
                            {'flows': Traffic()}, alone=True)


def cost(source, some, awake, ticks):
    """(median, most) ms of processor time of a reading, with so many of the processes awake in between."""
    source.read(time.monotonic())
    source.read(time.monotonic())
    times = []
    for _ in range(ticks):
        for pid, wake in some[:awake]:
            os.write(wake, b'x')
        time.sleep(0.1)
        before = time.process_time()
        source.read(time.monotonic())
        times.append((time.process_time() - before) * 1000)
    return sorted(times)[len(times) // 2], max(times)


def resident():
    with open('/proc/self/status') as file:
        return [int(line.split()[1]) for line in file if line.startswith('VmRSS')][0]


def pidstat(processes):
    """ms of processor time of one more reading of pidstat -u -r -w -d."""
    if not shutil.which('pidstat'):
        return None
    spent = []
    for n in (1, 6):
        process = subprocess.Popen(['pidstat', '-u', '-r', '-w', '-d', '-p', 'ALL', '1', str(n)], stdout=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
        process.returncode = 0
        spent.append(usage.ru_utime + usage.ru_stime)
    return (spent[1] - spent[0]) / 5 * 1000


def coming_and_going(ticks):
    """(kB resident at a tenth, at the end) of so many ticks in which five processes begin and five end."""
    source, alive, first = parts('processes', by='pid'), [], 0
    for tick in range(ticks):
        alive += children(5)
        if len(alive) > 50:
            end(alive[:5])
            del alive[:5]
        source.read(time.monotonic())
        if tick == ticks // 10:
            first = resident()
    last = resident()
    end(alive)
    return first, last


def main(ticks=15):
    there = len([n for n in os.listdir('/proc') if n.isdigit()])
    print('%d processes that were there, threads of the kernel included; ms of processor time a reading: median, most' % there)
    for n in (300, 2000):
        some = children(n - there if n > there else n)
        try:
            for module, options in (('processes', {}), ('processes', {'by': 'pid'}),
                                    ('processes', {'groups': {'a': 'nothing', 'b': 'python'}}), ('threads', {})):
                for awake in (0, n // 10, n):
                    print('%5d %-30s %5d awake %7.1f %7.1f' % ((n, module + ' ' + ' '.join(options), awake)
                                                               + cost(parts(module, **options), some, awake, ticks)))
            took = pidstat(n)
            print('%5d pidstat -u -r -w -d %s' % (n, '%28.1f' % took if took is not None else 'is not here'))
        finally:
            end(some[::-1])
    print('resident after 100 and 1,000 ticks of processes that come and go: %d kB, %d kB' % coming_and_going(1000))


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
