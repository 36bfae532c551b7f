"""Statbadger's Flows in a process of its own, so that it can run in a network namespace or as another user: a line with
a reading as JSON for each line of standard input. Owners are process numbers, found by a scan of /proc/PID/fd.

    flows_meter.py [UID]
"""
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import statbadger  # noqa: E402


def owners(inodes):
    """{inode: number of the process} for those sockets that a process we may look at holds."""
    found, links = {}, {'socket:[%d]' % inode: inode for inode in inodes}
    for pid in sorted(filter(str.isdigit, os.listdir('/proc')), key=int):
        try:
            descriptors = os.listdir('/proc/%s/fd' % pid)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                link = os.readlink('/proc/%s/fd/%s' % (pid, descriptor))
            except OSError:
                continue
            if link in links:
                found.setdefault(links[link], int(pid))
    return found


def main():
    if sys.argv[1:]:
        os.setgroups([])
        os.setgid(int(sys.argv[1]))
        os.setuid(int(sys.argv[1]))
    tree, flows = statbadger.host_tree(None, {}, time.monotonic), statbadger.Flows()
    for line in sys.stdin:
        tree.begin()
        began = time.process_time()
        found = flows.read(tree, owners)
        took = time.process_time() - began
        print(json.dumps({'owners': {str(who): row for who, row in found.items()}, 'lost': flows.lost,
                          'news': flows.news(), 'remembered': len(flows.flows), 'cpu': took}), flush=True)
    tree.close()


if __name__ == '__main__':
    main()
