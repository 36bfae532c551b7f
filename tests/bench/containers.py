"""What a reading of the containers module costs, by the real kernel: cgroups as Docker's, a process in each.

    containers.py [--containers N] [--readings N]

Needs root and cgroups that may be written to. Processor time is that of this process, kernel and user.
"""
import argparse
import os
import resource
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
import statbadger  # noqa: E402

FILES = {'default of 1024': 1024, '8192': 8192}       # descriptors that the module may count on


def places():
    """Where the hierarchies are mounted."""
    tree = statbadger.host_tree('', {}, time.monotonic)
    return ['/' + one.place for one in statbadger.hierarchies(tree)]


def make(ids):
    """A cgroup for each id in each hierarchy, with a process in it that does a little twice a second."""
    for top in places():
        for folder in ['/docker'] + ['/docker/' + one for one in ids]:
            os.mkdir(top + folder)
            for name in ('cpuset.cpus', 'cpuset.mems'):
                if os.path.exists(top + folder + '/' + name) and 'cpuset' in top:
                    copy(top + '/' + name, top + folder + '/' + name)
    processes = []
    for one in ids:
        processes.append(subprocess.Popen(['sh', '-c', 'while sleep 0.5; do :; done'], stdin=subprocess.DEVNULL))
        for top in places():
            with open('%s/docker/%s/cgroup.procs' % (top, one), 'w') as file:
                file.write('%d' % processes[-1].pid)
    return processes


def copy(source, target):
    with open(source) as file, open(target, 'w') as out:
        out.write(file.read())


def unmake(ids, processes):
    for process in processes:
        process.kill()
        process.wait()
    time.sleep(1)                               # the sleeps of the shells end
    for top in places():
        for folder in ['/docker/' + one for one in ids] + ['/docker']:
            try:
                os.rmdir(top + folder)
            except OSError as error:
                print('%s%s: %s' % (top, folder, error), file=sys.stderr)


def measure(readings, label, files):
    """Prints a line: the cost of a reading, once the containers are no news any more."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))
    tree = statbadger.host_tree('', {}, time.monotonic)
    kind = statbadger.MODULES['containers']
    options = statbadger.Options(dict({o.name: o.default for o in kind.options}, socket=''))
    parts = statbadger.Parts('containers', kind.parts, options, tree, lambda level, text: None, alone=True)
    costs = []
    for i in range(readings + 5):
        began = time.process_time()
        found = parts.read(time.monotonic())
        costs.append(time.process_time() - began)
        time.sleep(0.5)
    count = len(set(one.instance for series, values in found for one in series))
    rest = sorted(costs[5:])
    print('%-16s %10d %10d %12.2f %12.2f %12.2f' % (label, count, len(tree.held), costs[0] * 1e3,
                                                   rest[len(rest) // 2] * 1e3, rest[-1] * 1e3))
    tree.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--containers', type=int, default=100)
    parser.add_argument('--readings', type=int, default=20)
    chosen = parser.parse_args()
    if os.geteuid() or any(os.path.exists(top + '/docker') for top in places()):
        sys.exit('containers.py: needs root, and a host without containers of Docker')
    ids, processes = ['%012x%052x' % (0xabc000000000 + i, i) for i in range(chosen.containers)], []
    try:
        processes = make(ids)
        print('ms of processor time a reading')
        print('%-16s %10s %10s %12s %12s %12s' % ('open files', 'containers', 'kept open', 'first', 'median', 'most'))
        for label, files in FILES.items():
            measure(chosen.readings, label, files)
    finally:
        unmake(ids, processes)


if __name__ == '__main__':
    main()
