"""Containers: which cgroups are containers, what their files say, what they are called; numbers worked out by hand."""
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import statbadger
from conftest import PROGRAM, options
from statbadger import ConfigError, Parts, container_at, http_answer, interface_sums, socket_get

IDS = ['%012x%052x' % (0xabc000 + i, i) for i in range(600)]
ONE, TWO = 'a1' * 32, 'b2' * 32
V2 = '30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n'
V1_MOUNTS = ('cpu,cpuacct', 'memory', 'blkio', 'pids', 'cpuset')
HEAD = 'Inter-|   Receive                  |  Transmit\n face |bytes    packets errs drop|bytes\n'
STAT = '%d (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 %d 1000 1 18446744073709551615 1 1\n'


def v1_mounts(more=''):
    lines = ['%d 25 0:%d / /sys/fs/cgroup/%s rw - cgroup cgroup rw,%s\n' % (40 + i, 40 + i, name, name)
             for i, name in enumerate(V1_MOUNTS)]
    return ''.join(lines) + '50 25 0:50 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n' + more


def dev(*rows):
    return HEAD + ''.join('  %s: %s\n' % (name, ' '.join(map(str, numbers))) for name, numbers in rows)


def process(pid, started=0, cgroup='0::/\n', net=None):
    files = {'proc/%d/stat' % pid: STAT % (pid, started), 'proc/%d/cgroup' % pid: cgroup}
    if net:
        files['proc/%d/net/dev' % pid] = net
    return files


def v2_account(folder, pids='', usage=0, **more):
    """The files of a cgroup of v2."""
    files = {'cgroup.procs': pids, 'cpu.stat': 'usage_usec %d\nuser_usec %d\nsystem_usec %d\nnr_periods 0\n'
             'nr_throttled %d\nthrottled_usec %d\n' % (usage, usage * 3 // 4, usage // 4, usage // 100000, usage // 10),
             'memory.current': '5000000\n', 'memory.max': 'max\n', 'memory.swap.current': '4096\n',
             'memory.stat': 'anon 1000000\nfile 3000000\nkernel 9\ninactive_anon 7\ninactive_file 2000000\n',
             'memory.events': 'low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n', 'io.stat': '', 'pids.current': '3\n',
             'pids.max': 'max\n', 'cpu.max': 'max 100000\n'}
    files.update(more)
    return {'sys/fs/cgroup%s/%s' % (folder, name.replace('__', '.')): text for name, text in files.items()
            if text is not None}


def v2_host(*accounts, **more):
    files = dict({'proc/1/mountinfo': V2, 'proc/uptime': '1000.00 5.0\n', 'sys/fs/cgroup/cgroup.procs': ''}, **more)
    for account in accounts:
        files.update(account)
    return files


def chosen(**values):
    found = dict((o.name, o.default) for o in statbadger.MODULES['containers'].options)
    return options(**dict(found, **values))


class Watch:
    """A containers module over a tree; read() gives {flat name: value} without the holes."""

    def __init__(self, tree, **values):
        self.tree, self.said, self.labels = tree, [], {}
        values.setdefault('socket', '')
        self.memory = {}
        self.parts = Parts('containers', statbadger.MODULES['containers'].parts, chosen(**values), tree,
                           lambda level, text: self.said.append(text), self.memory, alone=True)

    def read(self, when):
        self.tree.clock[0] = when
        out = {}
        for series, values in self.parts.read(when):
            for one, value in zip(series, values):
                if value == value:
                    out[one.flat] = value
                    self.labels[one.instance[0]] = dict(zip(one.keys, one.values))
        return out

    def names(self, when=1.0):
        return [name.split('.', 2)[2] for name in self.read(when) if name.startswith('container.memory_usage.')]


def write(tree, files):
    for name, text in files.items():
        path = tree.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def of(found, name):
    """{metric: value} of one container."""
    return {flat.split('.')[1]: value for flat, value in found.items() if flat.split('.', 2)[2] == name}


# -- which cgroups are containers ---------------------------------------------------------------------------

@pytest.mark.parametrize('path, found', [
    ('docker/ID', ('docker', 'ID', '')),
    ('system.slice/docker-ID.scope', ('docker', 'ID', '')),
    ('my.slice/docker-ID.scope', ('docker', 'ID', '')),
    ('docker/ID/docker/ID', ('docker', 'ID', '')),
    ('actions_job/ID', ('oci', 'ID', '')),
    ('libpod_parent/libpod-ID', ('podman', 'ID', '')),
    ('machine.slice/libpod-ID.scope', ('podman', 'ID', '')),
    ('user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope', ('podman', 'ID', '')),
    ('system.slice/web.service/libpod-payload-ID', ('podman', 'ID', '')),
    ('machine.slice/libpod-ID.scope/container', None),
    ('machine.slice/libpod-conmon-ID.scope', None),
    ('libpod_parent/conmon', None),
    ('machine.slice/machine-libpod_pod_ID.slice', None),
    ('kubepods/burstable/pod0f1e/ID', ('kubepods', 'ID', '')),
    ('kubepods/burstable/pod0f1e', None),
    ('kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f_1e.slice/cri-containerd-ID.scope',
     ('containerd', 'ID', '')),
    ('kubepods.slice/kubepods-pod0f_1e.slice/crio-ID.scope', ('crio', 'ID', '')),
    ('kubepods.slice/kubepods-pod0f_1e.slice/crio-ID.scope/container', None),
    ('kubepods.slice/kubepods-pod0f_1e.slice/crio-conmon-ID.scope', None),
    ('kubepods.slice/kubepods-pod0f_1e.slice/docker-ID.scope', ('docker', 'ID', '')),
    ('system.slice/containerd.service/kubepods-burstable-pod0f.slice:cri-containerd:ID', ('containerd', 'ID', '')),
    ('system.slice/nerdctl-ID.scope', ('containerd', 'ID', '')),
    ('system.slice/other-ID.scope', ('other', 'ID', '')),
    ('something-ID', None),
    ('ecs/0f1e2d3c/ID', ('ecs', 'ID', '')),
    ('ecs/cluster/task/ID', ('ecs', 'ID', '')),
    ('ecs/cd189a933e5849daa93386466019ab50/cd189a933e5849daa93386466019ab50-2495160603',
     ('ecs', 'cd189a933e5849daa93386466019ab50-2495160603', '')),
    ('docker/buildkit/xk2tq9a8s7d6f5g4h3j2k1l0m', ('buildkit', 'xk2tq9a8s7d6f5g4h3j2k1l0m', '')),
    ('system.slice/docker-xk2tq9a8s7d6f5g4h3j2k1l0m.scope', ('buildkit', 'xk2tq9a8s7d6f5g4h3j2k1l0m', '')),
    ('machine.slice/machine-web.scope', ('nspawn', '', 'web')),
    ('machine.slice/machine-my\\x2dweb\\x5f1.scope', ('nspawn', '', 'my-web_1')),
    ('machine.slice/systemd-nspawn@my\\x2dweb.service', ('nspawn', '', 'my-web')),
    ('machine.slice/systemd-nspawn@web.service/payload', None),
    ('machine.slice/machine-qemu\\x2d3\\x2dvm.scope', None),
    ('machine.slice/machine-lxc\\x2d412\\x2dbox\\x2d1.scope', ('lxc', '', 'box-1')),
    ('lxc/box', ('lxc', '', 'box')),
    ('lxc/box/ns', None),
    ('lxc.payload.box', ('lxc', '', 'box')),
    ('lxc.payload/box', ('lxc', '', 'box')),
    ('lxc.monitor.box', None),
    ('lxc.monitor/box', None),
    ('lxc', None),
    ('system.slice/cron.service', None),
    ('system.slice', None),
    ('', None),
    ('docker/%s' % ('g' * 64), None),
    ('docker/%s' % ('a' * 63), None),
])
def test_a_cgroup_is_a_container_or_not_by_its_path(path, found):
    parts = path.replace('ID', ONE).split('/')
    assert container_at(parts) == (found and (found[0], found[1].replace('ID', ONE), found[2]))


@pytest.mark.parametrize('path, name, runtime', [
    ('/docker/' + ONE, ONE[:12], 'docker'), ('/system.slice/docker-%s.scope' % ONE, ONE[:12], 'docker'),
    ('/machine.slice/libpod-%s.scope' % ONE, ONE[:12], 'podman'),
    ('/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-%s.scope' % ONE,
     ONE[:12], 'containerd'),
    ('/kubepods/besteffort/pod1/' + ONE, ONE[:12], 'kubepods'),
    ('/machine.slice/machine-web.scope', 'web', 'nspawn'), ('/lxc.payload.web', 'web', 'lxc')])
@pytest.mark.parametrize('version', [1, 2])
def test_containers_are_found_below_every_hierarchy(host, path, name, runtime, version):
    if version == 2:
        files = v2_host(v2_account(path))
    else:
        files = {'proc/1/mountinfo': v1_mounts(), 'sys/fs/cgroup/systemd%s/cgroup.procs' % path: ''}
        files.update(v1_account(path))
    tree = host(files)
    for odd in ('system.slice/cron.service', 'lxc.monitor.web', 'user.slice/user-1.slice/session-1.scope'):
        (tree.folder / 'sys/fs/cgroup' / ('systemd' if version == 1 else '') / odd).mkdir(parents=True)
    watch = Watch(tree)
    assert watch.names() == [name]
    assert watch.labels[name]['runtime'] == runtime and watch.labels[name].get('id', '') in (ONE, '')


def v1_account(path, memory_path=None, usage=0, pids=''):
    place = 'sys/fs/cgroup/%s%s/%s'
    memory = path if memory_path is None else memory_path
    files = {
        ('cpu,cpuacct', path, 'cpuacct.usage'): '%d\n' % (usage * 1000),
        ('cpu,cpuacct', path, 'cpuacct.stat'): 'user %d\nsystem %d\n' % (usage // 20000, usage // 40000),
        ('cpu,cpuacct', path, 'cpu.stat'): 'nr_periods 90\nnr_throttled %d\nthrottled_time %d\n' % (usage // 100000,
                                                                                                 usage * 500),
        ('cpu,cpuacct', path, 'cpu.cfs_quota_us'): '150000\n', ('cpu,cpuacct', path, 'cpu.cfs_period_us'): '100000\n',
        ('cpu,cpuacct', path, 'cgroup.procs'): pids,
        ('memory', memory, 'memory.usage_in_bytes'): '9000000\n', ('memory', memory, 'memory.failcnt'): '%d\n' % (usage // 1000),
        ('memory', memory, 'memory.stat'): 'cache 1\nrss 2\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit '
                                           '134217728\ntotal_cache 4000000\ntotal_rss 3000000\ntotal_swap 8192\n'
                                           'total_inactive_file 2500000\n',
        ('memory', memory, 'memory.oom_control'): 'oom_kill_disable 0\nunder_oom 0\noom_kill %d\n' % (usage // 500000),
        ('memory', memory, 'cgroup.procs'): pids,
        ('blkio', path, 'blkio.throttle.io_service_bytes'): '8:0 Read %d\n8:0 Write %d\n8:0 Sync 3\n8:0 Async 0\n8:0 Discard '
                                                            '0\n8:0 Total 9\nTotal 9\n' % (usage, 2 * usage),
        ('blkio', path, 'blkio.throttle.io_serviced'): '8:0 Read %d\n8:0 Write %d\n8:0 Total 9\nTotal 9\n' % (
            usage // 1000, usage // 500), ('blkio', path, 'cgroup.procs'): pids,
        ('pids', path, 'pids.current'): '5\n', ('pids', path, 'pids.max'): '100\n', ('pids', path, 'cgroup.procs'): pids,
        ('cpuset', path, 'cpuset.effective_cpus'): '0-1\n', ('cpuset', path, 'cgroup.procs'): pids,
        ('cpuset', '', 'cpuset.effective_cpus'): '0-3\n', ('systemd', path, 'cgroup.procs'): pids,
        ('blkio', '', 'blkio.throttle.io_service_bytes'): '8:0 Read 7\n8:0 Write 7\nTotal 14\n'}
    return {place % key: text for key, text in files.items()}


def test_services_are_shown_when_they_are_asked_for(host):
    accounts = [v2_account('/system.slice/' + name) for name in (
        'cron.service', 'system-getty.slice/getty@tty1.service', 'odd\\x2done.service', 'cron.service/inner.service',
        'dev-hugepages.mount', 'docker-%s.scope' % ONE, 'docker-%s.scope/system.slice/inside.service' % ONE)]
    files = v2_host(*accounts)
    assert Watch(host(files)).names() == [ONE[:12]]
    watch = Watch(host(files), units=True)
    assert watch.names() == ['cron.service', ONE[:12], 'odd\\x2done.service', 'getty@tty1.service']
    assert watch.labels['cron.service'] == {'container': 'cron.service', 'runtime': 'systemd'}


def test_further_cgroups_are_containers_when_a_pattern_says_so(host):
    tree = host(v2_host(v2_account('/box1'), v2_account('/other'), v2_account('/a/box2')))
    assert Watch(tree).names() == []
    assert Watch(tree, paths=['/box*', '*/box2']).names() == ['box2', 'box1']
    assert Watch(tree, paths=['*', '!/other', '!/a']).names() == ['box2', 'box1']


def test_containers_are_chosen_by_name_or_id(host):
    tree = host(v2_host(v2_account('/docker/' + ONE), v2_account('/docker/' + TWO), v2_account('/lxc/web1'),
                        v2_account('/lxc/db')))
    assert Watch(tree, containers=['web*', TWO]).names() == [TWO[:12], 'web1']
    assert Watch(tree, containers=['!web*', '!' + ONE[:12]]).names() == [TWO[:12], 'db']
    assert Watch(tree, containers=['a1*', 'db', '!d?']).names() == [ONE[:12]]


def test_two_containers_with_one_name_are_two(host):
    tree = host(v2_host(v2_account('/lxc/web'), v2_account('/machine.slice/machine-web.scope')))
    watch = Watch(tree)
    assert watch.names(1) == ['web', 'web-nspawn']
    remove(tree, '/lxc/web')
    assert watch.names(2) == ['web'] and of(watch.read(3), 'web')['cpu'] == 0


def test_ids_that_begin_alike_are_told_apart(host):
    ids = [ONE[:12] + 52 * digit for digit in '123']
    tree = host(v2_host(*[v2_account('/docker/' + one) for one in ids]))
    assert len(set(Watch(tree).names())) == 3


def test_the_transfers_of_hundreds_of_devices_are_all_counted(host):
    lines = ['259:%d rbytes=%d wbytes=1000000000 rios=100000 wios=1\n' % (i, 10 ** 9 + i) for i in range(400)]
    tree = host(v2_host(v2_account('/docker/' + ONE)))
    write(tree, {'sys/fs/cgroup/docker/%s/io.stat' % ONE: ''.join(lines)})
    watch = Watch(tree)
    watch.read(1)
    write(tree, {'sys/fs/cgroup/docker/%s/io.stat' % ONE: ''.join(lines).replace('wios=1', 'wios=4')})
    assert of(watch.read(2), ONE[:12])['disk_writes'] == 1200


@pytest.mark.parametrize('name, shown', [(b'a\nb', 'a\nb'), (b'\xff\xfe', '\ufffd\ufffd'), (b'x' * 250, 'x' * 250),
                                         (b'%s %d', '%s %d'), ('\u00e9'.encode(), '\u00e9')])
def test_names_may_be_anything(host, name, shown):
    tree = host(v2_host())
    folder = os.path.join(os.fsencode(str(tree.folder)), b'sys/fs/cgroup/lxc', name)
    os.makedirs(folder)
    for name in (b'cgroup.procs', b'memory.current'):
        with open(os.path.join(folder, name), 'w') as file:
            file.write('1\n')
    assert Watch(tree).names() == [shown]


def test_a_host_without_cgroups_has_none(host):
    watch = Watch(host({'proc/1/mountinfo': '1 2 8:1 / / rw - ext4 /dev/sda1 rw\n'}))
    assert watch.read(1) == {} and watch.said == ['containers: cgroups: no hierarchy is mounted']


def test_cgroups_that_only_the_first_process_has_mounted_are_said_once(host, tmp_path):
    tree = host({'proc/1/mountinfo': V2, 'proc/uptime': '1000.00 5.0\n'})
    watch = Watch(tree)
    assert [watch.read(second) for second in range(1, 40)] == [{}] * 39
    assert watch.said == ['containers: cgroups: nothing can be seen of %s' % tree.path('sys/fs/cgroup')]
    os.makedirs(str(tree.folder / 'sys/fs/cgroup'))
    tree.record_next = str(tmp_path / 'recording')
    assert watch.read(100) == {} and len(watch.said) == 2                   # it can be read again, and has none
    again = host({}, 'recording')
    again.frozen = True
    replayed = Watch(again)
    assert replayed.read(1) == {} and replayed.said == []


def test_a_hybrid_host_is_looked_through_in_v1(host):
    more = '51 25 0:51 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n'
    files = dict({'proc/1/mountinfo': v1_mounts(more)}, **v1_account('/docker/' + ONE, usage=1000000))
    unified = 'sys/fs/cgroup/unified/docker/%s/' % ONE
    files.update({unified + 'cgroup.procs': '', unified + 'cpu.stat': 'usage_usec 77\n',
                  unified + 'io.pressure': 'some avg10=0.00 avg60=0.00 avg300=0.00 total=4000\n'
                                           'full avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n'})
    tree = host(files)
    watch = Watch(tree)
    watch.read(1)
    write(tree, {unified + 'cpu.stat': 'usage_usec 500000\n', unified + 'io.pressure':
                 'some avg10=0.00 avg60=0.00 avg300=0.00 total=54000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2000\n'})
    found = of(watch.read(2), ONE[:12])
    assert found['cpu'] == 0 and (found['psi_io_some_stalled'], found['psi_io_full_stalled']) == (50, 1)


# -- what their files say -------------------------------------------------------------------------------------

def test_the_figures_of_v2(host):
    folder, psi = '/system.slice/docker-%s.scope' % ONE, 'some avg10=1.50 avg60=0.00 avg300=0.00 total=%d\nfull avg10=0 total=%d\n'
    tree = host(v2_host(
        v2_account(folder, '7\n9\n', 2000000, io__stat='8:0 rbytes=1000 wbytes=2000 rios=10 wios=20 dbytes=0 dios=0\n',
                   cpu__pressure=psi % (1000, 500), memory__pressure=psi % (0, 0), io__pressure=psi % (10, 5)),
        process(7, 20000), process(9, 90000)))
    watch = Watch(tree)
    first = of(watch.read(10.0), ONE[:12])
    assert 'cpu' not in first and first['memory_usage'] == 5000000
    write(tree, v2_account(folder, '7\n9\n11\n', 3000000,
                           io__stat='8:0 rbytes=5000 wbytes=2000 rios=14 wios=20 dbytes=0 dios=0\n',
                           cpu__pressure=psi % (201000, 100500), memory__pressure=psi % (0, 0), io__pressure=psi % (10, 5),
                           memory__events='low 0\nhigh 0\nmax 11\noom 3\noom_kill 3\n'))
    found = of(watch.read(12.0), ONE[:12])
    assert found == dict(
        cpu=50, cpu_user=37.5, cpu_system=12.5,                     # a second of processor time in two, three quarters user
        cpu_throttled=50, cpu_throttled_periods=5,                  # 0.1 s and 10 periods in 2 s
        memory_usage=5000000, memory_working_set=3000000, memory_rss=1000000, memory_cache=3000000, memory_swap=4096,
        memory_oom_kills=1, memory_failures=2,
        disk_read_bytes=2000, disk_write_bytes=0, disk_reads=2, disk_writes=0,
        pids=3, threads=3, uptime=800,                              # 1000 s after the start, and the oldest began at 200 s
        psi_cpu_some_stalled=100, psi_cpu_full_stalled=50, psi_memory_some_stalled=0, psi_memory_full_stalled=0,
        psi_io_some_stalled=0, psi_io_full_stalled=0)


def test_the_figures_of_v1_where_runc_puts_memory_elsewhere(host):
    path, nested = '/docker/' + ONE, '/parent/f61a/' + ONE
    own = ('9:name=systemd:%s\n8:pids:%s\n7:blkio:%s\n4:memory:%s\n3:cpuset:%s\n2:cpu,cpuacct:%s\n0::/\n' % (
        path, path, path, nested, path, path))
    tree = host(dict({'proc/1/mountinfo': v1_mounts(), 'proc/uptime': '1000.00 5.0\n'}, **dict(
        process(7, 99000, own), **v1_account(path, nested, 1000000, '7\n'))))
    watch = Watch(tree)
    watch.read(10.0)
    write(tree, v1_account(path, nested, 3000000, '7\n'))
    found = of(watch.read(12.0), ONE[:12])
    assert found == dict(
        cpu=100, cpu_user=50, cpu_system=25,                        # 100 and 50 ticks of 10 ms in two seconds
        cpu_limit=1.5, cpu_throttled=500, cpu_throttled_periods=10,
        memory_usage=9000000, memory_working_set=6500000, memory_rss=3000000, memory_cache=4000000,
        memory_limit=67108864, memory_swap=8192, memory_oom_kills=2, memory_failures=1000,
        disk_read_bytes=1000000, disk_write_bytes=2000000, disk_reads=1000, disk_writes=2000,
        pids=1, pids_limit=100, threads=5, uptime=10)


def test_limits_are_the_lowest_on_the_way_up(host):
    tree = host(v2_host(
        v2_account('/kubepods', memory__max='200000000\n', cpu__max='250000 100000\n', pids__max='500\n'),
        v2_account('/kubepods/pod1', memory__max='100000000\n', cpu__max='max 100000\n', pids__max='max\n'),
        v2_account('/kubepods/pod1/' + ONE, memory__max='150000000\n', cpu__max='60000 20000\n', pids__max='max\n')))
    found = of(Watch(tree).read(1), ONE[:12])
    assert (found['memory_limit'], found['cpu_limit'], found['pids_limit']) == (100000000, 2.5, 500)


def test_what_is_not_limited_has_no_limit(host):
    path = '/docker/' + ONE
    files = dict({'proc/1/mountinfo': v1_mounts()}, **v1_account(path))
    place = 'sys/fs/cgroup/%s/docker/' + ONE + '/%s'
    files.update({place % ('cpu,cpuacct', 'cpu.cfs_quota_us'): '-1\n', place % ('pids', 'pids.max'): 'max\n',
                  place % ('cpuset', 'cpuset.effective_cpus'): '0-3\n',
                  place % ('memory', 'memory.stat'): 'hierarchical_memory_limit 9223372036854771712\n'})
    for files, folder in ((files, 'v1'), (v2_host(v2_account(path)), 'v2')):
        found = of(Watch(host(files, folder)).read(1), ONE[:12])
        assert not {'memory_limit', 'cpu_limit', 'pids_limit'} & set(found) and 'memory_usage' in found


@pytest.mark.parametrize('whole, part, cores', [('0-7', '0-1,6', 3), ('0-7', '5', 1), ('0-7', '0-7', None), ('0-7', '', None),
                                                ('0-7', 'x', None), ('', '0-1', None)])
def test_a_cpuset_is_a_limit_when_it_is_smaller_than_the_host(host, whole, part, cores):
    tree = host(v2_host({'sys/fs/cgroup/cpuset.cpus.effective': whole + '\n'},
                        v2_account('/docker/' + ONE, cpuset__cpus__effective=part + '\n')))
    assert of(Watch(tree).read(1), ONE[:12]).get('cpu_limit') == cores


def test_a_working_set_is_not_below_zero(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, memory__current='1000\n')))
    assert of(Watch(tree).read(1), ONE[:12])['memory_working_set'] == 0


def test_what_goes_through_a_stacked_device_counts_once(host):
    folder = '/docker/' + ONE
    two = '8:0 rbytes=%d wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n253:0 rbytes=%d wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n'
    tree = host(v2_host(v2_account(folder, io__stat=two % (1000, 600)), {
        'sys/dev/block/253:0/slaves/sda/dev': '8:0\n', 'sys/dev/block/8:0/size': '1\n'}))
    watch = Watch(tree)
    watch.read(1)
    write(tree, v2_account(folder, io__stat=two % (6000, 4600)))
    assert of(watch.read(2), ONE[:12])['disk_read_bytes'] == 5000
    write(tree, v2_account(folder, io__stat=(two % (6000, 6600)).split('\n', 1)[1]))      # what the disk below says is unknown
    assert of(Watch(tree).read(1), ONE[:12])['pids'] == 0
    assert statbadger.over_disks([(b'253:0', [7, 1, 1, 1])], lambda number: True) == [7, 1, 1, 1]


@pytest.mark.parametrize('root, value', [('8:0 Read 7\n8:0 Write 7\nTotal 14\n', 0), ('Total 0\n', None), ('', None)])
def test_v1_counts_nothing_before_there_is_a_limit_and_that_is_not_zero(host, root, value):
    tree = host(dict({'proc/1/mountinfo': v1_mounts()}, **v1_account('/docker/' + ONE)))
    for folder, text in (('', root), ('/docker/' + ONE, 'Total 0\n')):
        for name in ('io_service_bytes', 'io_serviced'):
            write(tree, {'sys/fs/cgroup/blkio%s/blkio.throttle.%s' % (folder, name): text})
    watch = Watch(tree)
    watch.read(1)
    found = of(watch.read(2), ONE[:12])
    assert [found.get(name) for name in statbadger.DISK_NAMES] == [value] * 4


def test_lines_of_io_stat_that_are_odd(host):
    out = {}
    statbadger.io_stat(b'7:0 8:0 rbytes=5 wbytes=6 rios=1 wios=2\n8:16 \nx\n8:32 rbytes=1 wbytes=x rios=1 wios=1\n8:48 rbytes=1\n',
                       out, lambda number: False)
    assert out == dict(disk_read_bytes=5, disk_write_bytes=6, disk_reads=1, disk_writes=2)
    statbadger.io_stat(b'', out, lambda number: False)
    assert out == dict(disk_read_bytes=0, disk_write_bytes=0, disk_reads=0, disk_writes=0)


GARBAGE = ['', 'x\n', '-1\n', '1e5\n', '9' * 50 + '\n', 'usage_usec\n', 'usage_usec x\n', 'anon 12', '\xff\xfe\n', '8:0 Read x\n',
           'some total=x\n', '0::\n', '\n\n', ' ']


@pytest.mark.parametrize('text', GARBAGE)
def test_files_that_are_garbage_give_nothing(host, text):
    names = [name for controller, figure, names, parse in statbadger.CONTAINER_FILES for name in names]
    names += ['cgroup.procs', 'memory.max', 'cpu.max', 'pids.max', 'cpuset.cpus.effective']
    tree = host(v2_host({'sys/fs/cgroup/docker/%s/%s' % (ONE, name): text for name in names}))
    found = of(Watch(tree).read(1), ONE[:12])
    assert set(found) <= {'pids'} and not Watch(tree).said


def test_processes_in_cgroups_inside_count_too(host):
    folder = '/machine.slice/libpod-%s.scope' % ONE
    tree = host(v2_host(v2_account(folder), {'sys/fs/cgroup%s/container/cgroup.procs' % folder: '7\n8\n',
                                             'sys/fs/cgroup%s/container/init/cgroup.procs' % folder: '9\n'},
                        process(7, 50000), process(8, 40000), process(9, 60000)))
    found = of(Watch(tree).read(1), ONE[:12])
    assert (found['pids'], found['uptime']) == (3, 600)


def test_a_container_in_a_container_is_one_of_its_own(host):
    inner = '/docker/%s/docker/%s' % (ONE, TWO)
    tree = host(v2_host(v2_account('/docker/' + ONE, '7\n'), v2_account(inner, '8\n'), process(7), process(8)))
    watch = Watch(tree)
    found = watch.read(1)
    assert (of(found, ONE[:12])['pids'], of(found, TWO[:12])['pids']) == (2, 1)


def test_more_processes_than_a_page_holds(host):
    pids = list(range(10000, 13000))
    tree = host(v2_host(v2_account('/docker/' + ONE, ''.join('%d\n' % pid for pid in pids)), process(10000, 5000)))
    found = of(Watch(tree).read(1), ONE[:12])
    assert (found['pids'], found['uptime']) == (3000, 950)


def test_processes_of_another_pid_namespace_are_counted_and_said(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, '0\n0\n')))
    watch = Watch(tree)
    for second in range(1, 8):
        found = of(watch.read(second), ONE[:12])
    assert found['pids'] == 2 and 'uptime' not in found
    assert len(watch.said) == 1 and 'PID namespace' in watch.said[0]


def test_processes_that_v1_leaves_out_for_they_are_of_another_pid_namespace_are_not_known_and_that_is_said(host):
    tree = host(v2_host(v1_account('/docker/' + ONE), {'proc/1/mountinfo': v1_mounts()}))
    watch = Watch(tree)
    assert of(watch.read(1), ONE[:12])['pids'] == 0                          # its last one ended: 5 threads are not gone yet
    os.makedirs(str(tree.folder / 'proc/self/ns'))
    os.symlink('pid:[4026532007]', str(tree.folder / 'proc/self/ns/pid'))
    for second in range(2, 9):
        found = of(watch.read(second), ONE[:12])
    assert 'pids' not in found and found['threads'] == 5
    assert len(watch.said) == 1 and 'PID namespace' in watch.said[0]


# -- their network ------------------------------------------------------------------------------------------------

def ethernet(rx, tx):
    return rx, rx // 100, 1, 2, 0, 0, 0, 0, tx, tx // 100, 3, 4, 0, 0, 0, 0


def inodes(**numbers):
    return {'answers/inodes/proc/%s/net/dev/.inode' % pid[1:]: str(number) for pid, number in numbers.items()}


def test_traffic_is_that_of_the_interfaces_in_its_own_namespace(host):
    folder = '/docker/' + ONE
    tree = host(v2_host(v2_account(folder, '7\n'), process(7, net=dev(('lo', ethernet(9, 9)), ('eth0', ethernet(1000, 2000)),
                                                                     ('eth1', ethernet(100, 200)))),
                        {'proc/1/net/dev': dev()}, inodes(p1=1, p7=2)))
    watch = Watch(tree)
    watch.read(1)
    write(tree, process(7, net=dev(('lo', ethernet(99, 99)), ('eth0', ethernet(3000, 6000)), ('eth1', ethernet(100, 300)))))
    found = of(watch.read(3), ONE[:12])
    assert {name: value for name, value in found.items() if name.startswith('net_')} == dict(
        net_rx_bytes=1000, net_tx_bytes=2050, net_rx_packets=10, net_tx_packets=20.5, net_rx_errs=0, net_tx_errs=0,
        net_rx_drop=0, net_tx_drop=0)


def test_no_interface_is_left_out_when_a_reading_gives_whole_lines_of_a_page(host):
    net = dev(*[('an-interface-%02d' % i, ethernet(1000, 2000)) for i in range(90)])
    tree = host(v2_host(v2_account('/docker/' + ONE, '7\n'), {'proc/1/net/dev': dev()}, process(7, net=net), inodes(p1=1, p7=2)))
    glance = tree.glance

    def page(name, *more):                      # as seq_file(9) gives them, however much is asked for
        data = glance(name, *more)
        return data if len(data) <= 4096 else data[:data.rindex(b'\n', 0, 3800) + 1]
    tree.glance = page
    watch = Watch(tree)
    watch.read(1)
    write(tree, process(7, net=net.replace(' 1000 ', ' 1010 ')))
    assert of(watch.read(2), ONE[:12])['net_rx_bytes'] == 900


def test_interfaces_of_containers_inside_do_not_count_twice():
    inner = [(name, ethernet(1000, 1000)) for name in ('docker0', 'br-0123', 'veth01', 'cni0')]
    assert interface_sums(dev(('lo', ethernet(5, 5)), ('eth0', ethernet(700, 800)), *inner).encode())[:2] == [700, 800]
    assert interface_sums(dev(('veth7', ethernet(70, 80))).encode())[:2] == [70, 80]
    assert interface_sums(dev(('lo', ethernet(70, 80))).encode()) == []
    assert interface_sums(b'') == interface_sums(b'x\ny\neth0: 1 2 3\neth1: 1 2 x 4 5 6 7 8 9 10 11 12\n') == []


def test_a_container_on_the_network_of_the_host_has_no_traffic_and_that_is_said_once(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, '7\n'), v2_account('/docker/' + TWO, '8\n'),
                        process(7, net=dev(('eth0', ethernet(1, 1)))), process(8, net=dev(('eth0', ethernet(1, 1)))),
                        {'proc/1/net/dev': dev(('eth0', ethernet(1, 1)))}, inodes(p1=1, p7=1, p8=1)))
    watch = Watch(tree)
    for second in range(1, 9):
        found = of(watch.read(second), ONE[:12])
    assert 'net_rx_bytes' not in found and 'cpu' in found
    assert watch.said == ['containers: %s, %s: no network figures, for the network is that of the host' % (ONE[:12], TWO[:12])]


def test_jobs_on_the_network_of_the_host_do_not_fill_the_log(host):
    memory, said = {}, []
    for i in range(200):
        one = statbadger.Container('docker', '%064d' % i, '', ())
        one.shown, one.shares = 'job%d' % i, statbadger.YOUNG
        said += list(statbadger.without_network(memory, {one.id: one}))
    assert len(said) == 20


def test_the_containers_of_a_pod_share_its_traffic(host):
    one = dev(('eth0', ethernet(1000, 2000)))
    tree = host(v2_host(v2_account('/kubepods/pod1/' + ONE, '7\n'), v2_account('/kubepods/pod1/' + TWO, '8\n'),
                        process(7, net=one), process(8, net=one), {'proc/1/net/dev': dev()}, inodes(p1=1, p7=2, p8=2)))
    watch = Watch(tree)
    watch.read(1)
    write(tree, dict(process(7, net=dev(('eth0', ethernet(5000, 2000)))), **process(8, net=dev(('eth0', ethernet(5000, 2000))))))
    found = watch.read(2)
    assert [found['container.net_rx_bytes.' + id[:12]] for id in (ONE, TWO)] == [4000, 4000]


# -- those that come and go ---------------------------------------------------------------------------------------

def remove(tree, folder):
    path = tree.folder / ('sys/fs/cgroup' + folder)
    for child in sorted(path.rglob('*'), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def test_one_that_began_since_the_last_reading_counts_from_zero(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=8000000)))
    watch = Watch(tree)
    assert 'cpu' not in of(watch.read(1), ONE[:12])
    write(tree, dict(v2_account('/docker/' + TWO, '8\n', usage=500000), **process(8, net=dev(('eth0', ethernet(9, 9))))))
    write(tree, dict({'proc/1/net/dev': dev()}, **inodes(p1=1, p8=2)))
    found = of(watch.read(2), TWO[:12])
    assert found['cpu'] == 50 and 'net_rx_bytes' not in found      # its interface may have been in use elsewhere
    assert of(watch.read(3), TWO[:12])['net_rx_bytes'] == 0


def test_one_that_only_the_hierarchy_of_systemd_has_is_found_within_four_readings_and_primed(host):
    more = '51 25 0:51 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n'
    tree = host({'proc/1/mountinfo': v1_mounts(more), 'sys/fs/cgroup/cpu,cpuacct/cgroup.procs': ''})
    watch, scope = Watch(tree), '/machine.slice/machine-web.scope'
    for second in range(1, 6):
        assert watch.read(second) == {}
    files = {'sys/fs/cgroup/systemd%s/cgroup.procs' % scope: '7\n', 'sys/fs/cgroup/unified%s/cgroup.procs' % scope: '7\n',
             'sys/fs/cgroup/unified%s/cpu.stat' % scope: 'usage_usec 9000000\n'}
    write(tree, dict(files, **process(7, 0)))
    found = [of(watch.read(second), 'web') for second in range(6, 12)]
    assert [tick.get('pids') for tick in found].index(1) <= 4
    assert {tick['cpu'] for tick in found if 'cpu' in tick} == {0}


def test_one_that_went_does_not_keep_its_name_in_the_hierarchy_that_is_looked_at_less_often(host, daemon):
    tree = host(dict({'proc/1/mountinfo': v1_mounts()}, **v1_account('/docker/' + ONE)))
    daemon.known = {ONE: entry(ONE, 'web'), TWO: entry(TWO, 'web')}
    watch = Watch(tree, socket=daemon.path)
    assert watch.names(1) == watch.names(2) == ['web'] and watch.labels['web']['id'] == ONE
    for top in V1_MOUNTS + ('systemd',):
        remove(tree, '/%s/docker/%s' % (top, ONE))
    write(tree, v1_account('/docker/' + TWO))
    assert [watch.names(second) for second in (3, 4)][1] == ['web'] and watch.labels['web']['id'] == TWO


def test_the_first_container_of_a_host_counts_from_its_start_too(host):
    tree = host(v2_host())
    watch = Watch(tree)
    assert watch.read(1) == watch.read(2) == {}
    write(tree, v2_account('/docker/' + ONE, usage=300000))
    assert of(watch.read(4), ONE[:12])['cpu'] == 15


def test_one_that_went_is_gone_at_once_and_its_place_is_found_again(host):
    tree = host(v2_host(*[v2_account('/docker/' + id) for id in IDS[:3]]))
    watch = Watch(tree)
    assert len(watch.names(1)) == 3
    remove(tree, '/docker/' + IDS[1])
    assert watch.names(2) == [IDS[0][:12], IDS[2][:12]] and watch.said == []
    write(tree, v2_account('/docker/' + ONE))
    assert len(watch.names(3)) == 3


def test_one_that_takes_the_place_of_another_between_two_readings_is_seen(host):
    tree = host(v2_host(v2_account('/docker/' + ONE), v2_account('/lxc/web')))
    watch = Watch(tree)
    assert watch.names(1) == [ONE[:12], 'web']
    remove(tree, '/docker/' + ONE)
    write(tree, v2_account('/docker/' + TWO))                      # the folder has as many links as before
    seen = [watch.names(second) for second in (2, 3)]
    assert seen[-1] == [TWO[:12], 'web'] and seen[0] in ([TWO[:12], 'web'], ['web'])


def test_one_that_is_made_again_under_its_id_has_no_rates_at_first(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=1000)))
    watch = Watch(tree)
    watch.read(1)
    (tree.folder / 'sys/fs/cgroup/docker').rename(tree.folder / 'old')      # keeps its inode taken
    write(tree, v2_account('/docker/' + ONE, usage=900000))
    assert 'cpu' not in of(watch.read(2), ONE[:12])
    write(tree, v2_account('/docker/' + ONE, usage=1000000))
    assert of(watch.read(3), ONE[:12])['cpu'] == 10


def test_one_that_goes_while_it_is_read_gives_no_row(host):
    tree = host(v2_host(v2_account('/docker/' + ONE), v2_account('/docker/' + TWO)))
    watch = Watch(tree)
    watch.read(1)
    for name in os.listdir(str(tree.folder / 'sys/fs/cgroup/docker' / ONE)):
        (tree.folder / 'sys/fs/cgroup/docker' / ONE / name).unlink()
    assert watch.names(2) == [TWO[:12]] and watch.said == []


def test_a_paused_one_goes_on(host):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=1000, cgroup__freeze='1\n')))
    watch = Watch(tree)
    watch.read(1)
    found = of(watch.read(2), ONE[:12])
    assert found['cpu'] == 0 and found['memory_usage'] == 5000000


def test_five_hundred_of_them(host):
    tree = host(v2_host(*[v2_account('/docker/' + id, usage=1000) for id in IDS[:500]]))
    watch = Watch(tree)
    watch.read(1)
    for id in IDS[:500]:
        (tree.folder / 'sys/fs/cgroup/docker' / id / 'cpu.stat').write_text('usage_usec 11000\n')
    found = watch.read(2)
    assert [value for name, value in found.items() if name.startswith('container.cpu.')] == [1] * 500


def test_no_more_cgroups_are_looked_at_than_there_is_room_for(host, monkeypatch):
    tree = host(v2_host())
    monkeypatch.setattr(statbadger.Cgroups, 'MOST', 50)
    for i in range(100):
        (tree.folder / 'sys/fs/cgroup/lxc' / str(i)).mkdir(parents=True)
    watch = Watch(tree)
    watch.read(1)
    assert len(watch.memory['watch'][0].seen) <= 50


# -- what the tree does for them --------------------------------------------------------------------------------------

def test_folders_are_listed_again_only_when_they_changed(host):
    tree = host({'sys/a/b/x': '', 'sys/a/c/x': '', 'sys/a/file': ''})
    first = tree.folders('sys/a')
    assert first[2] == ['b', 'c'] and tree.folders('sys/a', first) is first
    (tree.folder / 'sys/a/d').mkdir()
    second = tree.folders('sys/a', first)
    assert second[2] == ['b', 'c', 'd'] and second[0] == first[0]
    with pytest.raises(OSError):
        tree.folders('sys/none')
    tree.record_to = str(tree.folder / 'copy')
    assert tree.folders('sys/a', second) is not second
    assert sorted(os.listdir(tree.record_to + '/sys/a')) == ['b', 'c', 'd']


def test_a_small_file_of_the_kernel_stays_open_where_there_is_room():
    tree = statbadger.Tree({'': '/', 'proc': '/proc', 'sys': '/sys'}, time.monotonic)
    tree.room = 1
    for name in ('proc/uptime', 'proc/loadavg', 'proc/uptime'):
        with open('/' + name, 'rb') as file:
            assert tree.glance(name, 99, True).split()[-1].count(b'.') == file.read().split()[-1].count(b'.')
    assert list(tree.held) == ['proc/uptime']
    reading, writing = os.pipe()                # as a cgroup that was removed: what is open can be read no more
    os.dup2(reading, tree.held['proc/uptime'])
    assert len(tree.glance('proc/uptime', 99, True).split()) == 2
    assert os.fstat(tree.held['proc/uptime']).st_size == 0
    tree.forget(['proc/uptime', 'proc/loadavg'])
    assert tree.held == {}
    os.close(reading)
    os.close(writing)


def test_a_file_of_a_frozen_host_does_not_stay_open(host):
    tree = host({'sys/a': '1\n', 'sys/empty': ''})
    assert (tree.glance('sys/a', 9, True), tree.glance('sys/empty', 9, True), tree.held) == (b'1\n', b'', {})


# -- what they are called ----------------------------------------------------------------------------------------------

def entry(id, name, image='nginx:1', **labels):
    return {'Id': id, 'Names': ['/other/alias', '/' + name], 'Image': image, 'Labels': labels, 'Env': ['PASSWORD=hunter2'],
            'Command': 'run --password hunter2'}


class Daemon:
    """A stand-in for Docker at a unix socket. known: {id: entry}; reply: what it does with a question instead."""

    def __init__(self, path):
        self.known, self.asked, self.reply, self.path = {}, [], None, str(path)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen(50)
        self.thread = threading.Thread(target=self.serve)
        self.thread.daemon = True
        self.thread.start()

    def serve(self):
        while True:
            try:
                link, address = self.sock.accept()
            except OSError:
                return
            with link:
                try:
                    self.answer(link)
                except OSError:
                    pass

    def answer(self, link):
        data = b''
        while b'\r\n\r\n' not in data:
            more = link.recv(4096)
            if not more:
                return
            data += more
        target = data.split()[1].decode()
        assert target.startswith('/containers/json?all=1&filters=%7B%22id%22%3A%5B%22')
        id = target[len('/containers/json?all=1&filters=%7B%22id%22%3A%5B%22'):][:64]
        self.asked.append(id)
        body = json.dumps([self.known[id]] if id in self.known else []).encode()
        if self.reply:
            self.reply(link, body)
        else:
            link.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(10)


@pytest.fixture
def daemon(tmp_path):
    one = Daemon(tmp_path / 'sock')
    yield one
    one.close()


def chunked(link, body):
    link.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
    for i in range(0, len(body), 7):
        link.sendall(b'%X;a=b\r\n%s\r\n' % (len(body[i:i + 7]), body[i:i + 7]))
    link.sendall(b'0\r\n\r\n')


def until_the_end(link, body):
    link.sendall(b'HTTP/1.0 200 OK\r\n\r\n' + body)


def drip(link, body):
    for byte in b'HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n' + b' ' * 9999:
        link.sendall(bytes([byte]))
        time.sleep(0.02)


def silent(link, body):
    time.sleep(1.6)


def says(data):
    return lambda link, body: link.sendall(data)


@pytest.mark.parametrize('reply', [None, chunked, until_the_end])
def test_names_image_and_labels_come_from_the_daemon(host, daemon, reply):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=0)))
    daemon.known[ONE], daemon.reply = entry(ONE, 'web', **{'com.docker.compose.service': 'front', 'other': 'x'}), reply
    watch = Watch(tree, socket=daemon.path, labels=['com.docker.compose.service', 'not.there'])
    assert watch.names(1) == ['web'] and watch.names(2) == ['web']
    assert watch.labels['web'] == {'container': 'web', 'id': ONE, 'image': 'nginx:1', 'runtime': 'docker',
                                   'com.docker.compose.service': 'front'}
    assert daemon.asked == [ONE]


def test_a_name_that_comes_late_leaves_no_gap_in_the_rates(host, daemon):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=0)))
    daemon.reply = says(b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}')
    watch = Watch(tree, socket=daemon.path)
    watch.read(1)
    write(tree, v2_account('/docker/' + ONE, usage=100000))
    assert of(watch.read(2), ONE[:12])['cpu'] == 10
    daemon.known[ONE], daemon.reply = entry(ONE, 'web'), None
    write(tree, v2_account('/docker/' + ONE, usage=300000))
    found = watch.read(4)
    assert of(found, 'web')['cpu'] == 10 and of(found, ONE[:12]) == {}
    assert len(watch.said) == 1 and 'status 500' in watch.said[0]


def test_a_name_that_another_id_takes_over_begins_anew(host, daemon):
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=100)))
    daemon.known = {ONE: entry(ONE, 'web'), TWO: entry(TWO, 'web')}
    watch = Watch(tree, socket=daemon.path)
    watch.read(1)
    remove(tree, '/docker/' + ONE)
    write(tree, v2_account('/docker/' + TWO, usage=700000))
    seen = [watch.read(second) for second in (2, 3)]
    assert watch.labels['web']['id'] == TWO
    assert [of(found, 'web').get('cpu') for found in seen] in ([70, 0], [None, 70])


@pytest.mark.parametrize('reply, what', [
    (says(b'HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}'), 'status 404'),
    (says(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}'), 'no list'),
    (says(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[{]'), 'too early'),
    (says(b'SSH-2.0-OpenSSH_9.2\r\n'), 'no answer of HTTP'),
    (says(b'HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n'), 'no answer of HTTP'),
    (says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n'), 'no chunks'),
    (says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[{'), 'too early'),
    (says(b'HTTP/1.1 200 OK\r\n\r\n' + b' ' * 1200000), 'more than'),
    (says(b'HTTP/1.1 200 OK\r\n' + b'X: y\r\n' * 20000), 'no answer of HTTP'),
    (says(b''), 'no answer of HTTP'), (silent, 'no answer in time'), (drip, 'no answer in time')])
def test_a_daemon_that_is_no_use_is_said_once_and_left_alone(host, daemon, reply, what):
    tree = host(v2_host(*[v2_account('/docker/' + id) for id in (ONE, TWO)]))
    tree.monotonic = time.monotonic
    daemon.reply = reply
    watch = Watch(tree, socket=daemon.path)
    began = time.monotonic()
    assert watch.names(1) == watch.names(2) == [ONE[:12], TWO[:12]]
    assert time.monotonic() - began < 8
    assert len(watch.said) == 1 and what in watch.said[0] and len(daemon.asked) == 1


def test_a_socket_that_nobody_listens_at_or_that_is_not_there(host, tmp_path):
    tree = host(v2_host(v2_account('/docker/' + ONE)))
    assert Watch(tree, socket='auto').names() == [ONE[:12]]
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'none'):
        watch = Watch(tree, socket=str(path))
        assert watch.names() == [ONE[:12]] and len(watch.said) == 1 and str(path) in watch.said[0]


def test_where_docker_has_its_socket_it_is_asked(host):
    tree = host(dict(v2_host(v2_account('/docker/' + ONE), v2_account('/machine.slice/libpod-%s.scope' % TWO)),
                     **{'run/podman/x': ''}))
    docker, podman = Daemon(tree.folder / 'run/docker.sock'), Daemon(tree.folder / 'run/podman/podman.sock')
    try:
        docker.known[ONE], podman.known[TWO] = entry(ONE, 'web'), entry(TWO, 'db')
        assert sorted(Watch(tree, socket='auto').names()) == ['db', 'web']
        assert (docker.asked, podman.asked) == ([ONE], [TWO])
    finally:
        docker.close()
        podman.close()


def test_a_socket_that_may_not_be_opened_says_who_may(tmp_path, daemon):
    if os.geteuid():
        os.chmod(daemon.path, 0)
        with pytest.raises(OSError) as error:
            socket_get(daemon.path, '/', 1, time.monotonic)
        text = error.value.strerror
    else:
        folder = tmp_path
        while str(folder) not in ('/', '/tmp'):
            os.chmod(str(folder), 0o755)
            folder = folder.parent
        os.chmod(daemon.path, 0o660)
        os.chown(daemon.path, 0, 987)
        code = ('import os, sys, time\nsys.path.insert(0, %r)\nimport statbadger\nos.setgroups([])\nos.setgid(65534)\n'
                'os.setuid(65534)\ntry:\n    statbadger.socket_get(%r, "/", 1, time.monotonic)\n'
                'except OSError as error:\n    print(error.strerror)\n' % (os.path.dirname(PROGRAM), daemon.path))
        text = subprocess.check_output([sys.executable, '-c', code]).decode()
        assert 'the group 987' in text
    assert daemon.path in text and 'Permission denied; it takes root or the group' in text


def test_a_container_that_the_daemon_does_not_know_is_asked_for_a_few_times(host, daemon):
    tree = host(v2_host(v2_account('/docker/' + ONE)))
    watch = Watch(tree, socket=daemon.path)
    for second in range(0, 400, 2):
        assert watch.names(second) == [ONE[:12]]
    assert len(daemon.asked) == statbadger.DAEMON_TRIES and watch.said == []


def test_many_new_ones_are_asked_for_a_few_at_a_time(host, daemon):
    tree = host(v2_host(*[v2_account('/docker/' + id) for id in IDS[:25]]))
    daemon.known = {id: entry(id, 'c%d' % i) for i, id in enumerate(IDS)}
    watch = Watch(tree, socket=daemon.path)
    counts = [len([name for name in watch.names(second) if name.startswith('c')]) for second in (1, 2, 3)]
    assert counts == [10, 20, 25] and sorted(daemon.asked) == IDS[:25]


@pytest.mark.parametrize('odd', [dict(Names=None), dict(Names=['/a/b']), dict(Names=[7]), dict(Image=['x']), dict(Labels='x')])
def test_an_entry_that_is_odd_gives_what_can_be_had_of_it(host, daemon, odd):
    tree = host(v2_host(v2_account('/docker/' + ONE)))
    daemon.known[ONE] = dict(entry(ONE, 'web', a='b'), **odd)
    watch = Watch(tree, socket=daemon.path, labels=['a'])
    assert watch.names() == [ONE[:12] if 'Names' in odd else 'web']


def test_only_who_has_such_a_daemon_is_asked_for(host, daemon):
    tree = host(v2_host(v2_account('/lxc/web'), v2_account('/kubepods.slice/crio-%s.scope' % ONE),
                        v2_account('/kubepods/pod1/' + TWO)))
    Watch(tree, socket=daemon.path).read(1)
    assert daemon.asked == [TWO]


@pytest.mark.parametrize('data, ended, found', [
    (b'', False, None), (b'HTTP/1.1 200 OK\r\nContent-Le', False, None), (b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab', False, None),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc', False, (200, b'ab')), (b'HTTP/1.1 404 No\r\n\r\nx', False, None),
    (b'HTTP/1.0 404 No\r\n\r\nx', True, (404, b'x')), (b'HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n', False, (204, b'')),
    (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n', False, None),
    (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n', False, (200, b'abc')),
    (b'HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\n0\r\n\r\n', False, None),
    (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n\r\n\r\r\n0\r\nTrailer: x\r\n\r\n', False, (200, b'\r\n\r'))])
def test_an_answer_is_whole_or_not_yet(data, ended, found):
    assert http_answer(data, ended) == found


# -- the options -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value', ['com.docker.compose.service', 'a', 'app.kubernetes.io/name', 'x_y-z'])
def test_labels_that_may_be_asked_for(value):
    assert statbadger.label_names([value]) == [value]


@pytest.mark.parametrize('value', [['hostname'], ['metric'], ['value'], ['units'], ['timestamp'], ['time'], ['host'], ['container'],
                                   ['id'], ['image'], ['runtime'], ['a', 'a'], ['a b'], ['a\n'], ['\u00e9'], ['x' * 101], ['-'], 'a b', [7]])
def test_labels_that_would_hide_others_are_refused(value):
    with pytest.raises(ValueError):
        statbadger.label_names(value)


@pytest.mark.parametrize('value, found', [('auto', 'auto'), ('', ''), (False, ''), ('/run/x.sock', '/run/x.sock')])
def test_sockets_that_may_be_given(value, found):
    assert statbadger.socket_path(value) == found


@pytest.mark.parametrize('value', ['x.sock', '/' + 'x' * 120, True, 7, 'http://x'])
def test_sockets_that_may_not(value):
    with pytest.raises(ValueError):
        statbadger.socket_path(value)


def test_a_label_that_is_refused_is_said_when_the_configuration_is_checked():
    with pytest.raises(ConfigError) as error:
        statbadger.read_config('{"modules": {"containers": {"labels": ["hostname"]}}}', statbadger.Place('a.conf', '/', {}, None, None))
    assert 'modules.containers.labels' in str(error.value)


# -- recordings ----------------------------------------------------------------------------------------------------------

def test_what_is_recorded_replays_to_the_same_and_holds_no_secret(host, daemon, tmp_path):
    def web(usage):
        two = '8:0 rbytes=%d wbytes=2 rios=3 wios=4\n253:0 rbytes=%d wbytes=2 rios=3 wios=4\n'
        return v2_account('/docker/' + ONE, '7\n', usage, io__stat=two % (usage, usage))
    tree = host(v2_host(web(1000), v2_account('/lxc/box', '8\n', 2000), process(8, 200), {
        'proc/1/net/dev': dev(), 'sys/dev/block/253:0/slaves/sda/x': ''}, process(7, 100, net=dev(('eth0', ethernet(10, 20))))))
    os.makedirs(str(tree.folder / 'proc/8/net'))
    os.link(str(tree.folder / 'proc/1/net/dev'), str(tree.folder / 'proc/8/net/dev'))     # box is on the host's network
    daemon.known[ONE], daemon.known[TWO] = entry(ONE, 'web', secret='hunter2', a='b'), entry(TWO, 'db')
    changes = [{}, process(7, 100, net=dev(('eth0', ethernet(810, 20)))), web(41000), v2_account('/docker/' + TWO, usage=5000),
               web(51000), {}]
    watch, live = Watch(tree, labels=['a'], socket=daemon.path), []
    for second, files in enumerate(changes):
        write(tree, files)
        tree.record_next = str(tmp_path / 'recording' / str(second))
        live.append(watch.read(second))
    assert daemon.asked == [ONE, TWO] and tree.unrecorded is None
    replayed = host({}, 'nothing')
    replayed.frozen = True
    again, found = Watch(replayed, labels=['a'], socket=daemon.path), []
    for second in range(len(changes)):
        top = str(tmp_path / 'recording' / str(second))
        replayed.roots.update({'': top, 'proc': top + '/proc', 'sys': top + '/sys'})
        found.append(again.read(second))
    assert found == live and again.labels == watch.labels and again.said == watch.said and daemon.asked == [ONE, TWO]
    late = Watch(replayed, labels=['a'], socket=daemon.path)                       # a recording that is cut to its end
    assert of(late.read(len(changes)), 'web')['memory_usage'] == 5000000 and late.labels['db']['id'] == TWO
    assert [of(tick, 'web').get('net_rx_bytes') for tick in live] == [None, 800, 0, 0, 0, 0]
    assert [of(tick, 'web').get('disk_read_bytes') for tick in live] == [None, 0, 40000, 0, 10000, 0]
    assert [of(tick, 'db').get('cpu') for tick in live] == [None, None, None, .5, 0, 0]
    assert 'net_rx_bytes' not in of(live[-1], 'box') and 'cpu' in of(live[-1], 'box')
    copies = b''.join(path.read_bytes() for path in (tmp_path / 'recording').rglob('*') if path.is_file())
    assert b'nginx:1' in copies and b'hunter2' not in copies


def test_a_container_in_a_container_is_recorded_too(host, tmp_path):
    inner = '/docker/%s/docker/%s' % (ONE, TWO)
    tree = host(v2_host(v2_account('/docker/' + ONE, usage=5), v2_account(inner, usage=4)))
    watch = Watch(tree)
    for second in range(2):
        tree.record_next = str(tmp_path / 'recording' / str(second))
        watch.read(second)
    assert tree.unrecorded is None
    again = host({}, 'recording/1')
    again.frozen = True
    assert Watch(again).names() == watch.names(2) == [ONE[:12], TWO[:12]]


def test_a_host_under_a_root_is_shown_by_the_program(host, run):
    tree = host(v2_host(v2_account('/lxc/box', usage=2000), **{'proc/sys/kernel/hostname': 'n1\n'}))
    done = run('--root', tree.folder, '-m', 'containers', '-n', '3', '-i', '0.5', '-e', 'stdout')
    assert done.code == 0 and '{"container.memory_usage.box": {"value": 5000000, "units": "B"}}' in done.out
