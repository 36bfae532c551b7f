"""Whose figures are shown: the host's, or the container's own, from its cgroup; numbers worked out by hand."""
import json
import os
import subprocess
import sys

import pytest
import statbadger
from conftest import PROGRAM, clean_environment, options
from statbadger import Absent, ConfigError, Own, Parts, view_of

INITIAL = {'pid': 'pid:[4026531836]', 'cgroup': 'cgroup:[4026531835]'}
APART = {'pid': 'pid:[4026532180]', 'cgroup': 'cgroup:[4026531835]'}
PRIVATE = {'pid': 'pid:[4026532180]', 'cgroup': 'cgroup:[4026532250]'}
DISKS = options(devices=['*', '!loop*', '!ram*', '!zram*'], partitions=False)
MEMINFO = 'MemTotal:  8000 kB\nMemFree:  1000 kB\nMemAvailable:  5000 kB\nSwapTotal:  600 kB\nSwapFree:  600 kB\n'
PLENTY = '9223372036854771712\n'                # what v1 says for no limit
V1 = ('cpu,cpuacct', 'cpuset', 'memory', 'blkio', 'pids')


def mountinfo(*entries):
    """Lines of mountinfo for (root, point, type, options)."""
    return ''.join('%d 23 0:%d %s %s ro,nosuid - %s %s rw%s\n' % (30 + i, 28 + i, root, point, kind, kind, ',' + more if more else '')
                   for i, (root, point, kind, more) in enumerate(entries))


def v1_mounts(root='/'):
    return mountinfo(('/', '/sys/fs/cgroup', 'tmpfs', 'mode=755'),
                     *[(root, '/sys/fs/cgroup/' + names, 'cgroup', names) for names in V1])


def v1_cgroup(path):
    return ''.join('%d:%s:%s\n' % (9 - i, names, path) for i, names in enumerate(V1)) + '1:name=systemd:%s\n' % path


def v2_mounts(root='/'):
    return mountinfo((root, '/sys/fs/cgroup', 'cgroup2', 'nsdelegate'))


@pytest.fixture
def box(host):
    """box(namespaces, cgroup, mounts, {file of /sys/fs/cgroup: text}, more={}) -> a Tree of a container."""
    def make(namespaces, cgroup, mounts, files=None, more=None, folder='host'):
        whole = {'proc/self/cgroup': cgroup, 'proc/1/cgroup': cgroup, 'proc/self/mountinfo': mounts,
                 'proc/meminfo': MEMINFO, 'proc/stat': 'cpu  1 1 1 1\ncpu0 1 1 1 1\ncpu1 1 1 1 1\nbtime 1700000000\n'}
        whole.update({'sys/fs/cgroup/' + name: text for name, text in (files or {}).items()})
        whole.update(more or {})
        tree = host({name: text for name, text in whole.items() if text is not None}, folder)
        (tree.folder / 'proc' / 'self' / 'ns').mkdir(exist_ok=True)
        for name, target in namespaces.items():
            (tree.folder / 'proc' / 'self' / 'ns' / name).symlink_to(target)
        return tree
    return make


def own_rows(module, tree, opts=DISKS, memory=None):
    """[(labels, {column: value})] of the parts of a module that are the container's only."""
    memory, out, kind = {} if memory is None else memory, [], statbadger.MODULES[module]
    tree.begin()
    for part in [part for part in kind.own_parts if part not in kind.parts]:
        for found in part(tree, opts, memory):
            table, labels, row = found[:3]
            out.append((labels, {m.name: v for m, v in zip(table.raw, row) if v == v}))
    return out


def only(module, tree, opts=DISKS, memory=None):
    (labels, row), = own_rows(module, tree, opts, memory)
    return row


# -- which view ------------------------------------------------------------------------------------

@pytest.mark.parametrize('namespaces, cgroup, mounts, wanted, name, words', [
    (INITIAL, '0::/user.slice\n', v2_mounts(), 'auto', 'host', 'this is the first PID namespace of the system'),
    (INITIAL, '0::/user.slice\n', v2_mounts(), 'container', 'container', 'the configuration says so, and its cgroup (v2) has its figures'),
    (PRIVATE, '0::/\n', v2_mounts(), 'auto', 'container',
     'this is a container (its PID namespace is its own), and its cgroup (v2) has its figures'),
    (PRIVATE, '0::/\n', v2_mounts(), 'host', 'host', 'the configuration says so'),
    (APART, '0::/system.slice/docker-1.scope\n', v2_mounts(), 'auto', 'container', 'its cgroup (v2)'),
    (APART, v1_cgroup('/docker/1'), v1_mounts('/docker/1'), 'auto', 'container', 'its cgroup (v1)'),
    (PRIVATE, v1_cgroup('/') + '0::/\n', v1_mounts() + mountinfo(('/', '/sys/fs/cgroup/unified', 'cgroup2', '')), 'auto', 'container',
     'its cgroup (v1 and v2)'),
    (PRIVATE, '0::/\n', mountinfo(('/', '/', 'overlay', '')), 'auto', 'host',
     'this is a container, but it has no cgroup file system mounted'),
    (PRIVATE, '0::/\n', None, 'auto', 'host', 'it has no cgroup file system mounted'),
    (PRIVATE, '0::/\n', mountinfo(('/', '/', 'overlay', '')), 'container', 'container', 'it has no cgroup file system mounted'),
    # the host's hierarchy, bound into a container with a cgroup namespace of its own: we do not know our place in it
    (PRIVATE, '0::/\n', v2_mounts('/../..'), 'auto', 'host', 'what it has mounted of cgroups does not show its own'),
    # unshare --pid --fork
    (APART, '0::/\n', v2_mounts(), 'auto', 'host', 'it has no cgroup of its own'),
    ({}, '0::/\n', v2_mounts(), 'auto', 'host', 'proc/self/ns/pid cannot be read'),
    ({'pid': 'pid:[4026532180]'}, '0::/x\n', v2_mounts(), 'auto', 'container', 'its cgroup (v2)'),     # before 4.6
    (PRIVATE, '0::/\n', mountinfo(('/', '/proc/meminfo', 'fuse.lxcfs', '')), 'auto', 'container',
     'no cgroup file system mounted; LXCFS gives proc/meminfo'),
])
def test_which_view_and_why(box, namespaces, cgroup, mounts, wanted, name, words):
    view = view_of(wanted, box(namespaces, cgroup, mounts))
    assert view.name == name and words in view.why


@pytest.mark.parametrize('namespaces, aloud', [(INITIAL, False), (PRIVATE, True), ({}, False)])
def test_in_a_container_the_log_says_it_even_without_a_terminal(box, namespaces, aloud):
    assert view_of('auto', box(namespaces, '0::/\n', v2_mounts())).aloud == aloud


def test_another_root_is_a_host_and_no_container(box, tmp_path):
    tree = statbadger.host_tree(None, {'HOST_SYS': str(tmp_path)}, lambda: 0.0)
    view = view_of('auto', tree)
    assert (view.name, view.why) == ('host', 'the files are those of %s' % tmp_path)
    with pytest.raises(ConfigError) as caught:
        view_of('container', tree)
    assert str(tmp_path) in str(caught.value)


def test_the_files_of_a_running_kernel_at_another_place_are_a_host(tmp_path):
    (tmp_path / 'proc').symlink_to('/proc')
    (tmp_path / 'sys').symlink_to('/sys')
    tree = statbadger.host_tree(str(tmp_path), {}, lambda: 0.0)
    assert tree.borrowed() == os.path.exists('/proc/self/ns/pid')
    assert view_of('auto', tree).name == 'host'


def test_what_is_ours_is_not_taken_for_the_hosts(tmp_path):
    """proc/1 of the host cannot be read, and proc/net and proc/self of its /proc are our own."""
    (tmp_path / 'proc' / 'self' / 'ns').mkdir(parents=True)
    (tmp_path / 'proc' / 'self' / 'ns' / 'pid').symlink_to(str(tmp_path))       # it leads somewhere: no recording
    for name in ('proc/net/dev', 'proc/self/mountinfo'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('ours\n')
    tree = statbadger.host_tree(str(tmp_path), {}, lambda: 0.0)
    for asked in (lambda: tree.read('proc/net/dev'), lambda: statbadger.mounts(tree)):
        with pytest.raises(Absent):
            asked()
    (tmp_path / 'proc' / 'self' / 'ns' / 'pid').unlink()
    assert tree.read('proc/net/dev') == b'ours\n'


def test_host_etc_is_where_the_name_stands(tmp_path):
    (tmp_path / 'etc').mkdir()
    (tmp_path / 'etc' / 'hostname').write_text('the-host\n')
    (tmp_path / 'proc').mkdir()
    tree = statbadger.host_tree(None, {'HOST_PROC': str(tmp_path / 'proc'), 'HOST_ETC': str(tmp_path / 'etc')}, lambda: 0.0)
    assert statbadger.host_name(tree) == 'the-host'


# -- where the container's cgroup is ----------------------------------------------------------------

@pytest.mark.parametrize('namespaces, mine, first, mounts, folders', [
    (PRIVATE, '0::/\n', '0::/\n', v2_mounts(), ['sys/fs/cgroup']),
    # a service in a container with an init: the container is what is above both
    (PRIVATE, '0::/system.slice/sb.service\n', '0::/init.scope\n', v2_mounts(), ['sys/fs/cgroup']),
    (PRIVATE, '0::/init\n', '0::/init\n', v2_mounts(), ['sys/fs/cgroup']),        # of a container with containers
    (APART, '0::/lxc/a/system.slice/sb.service\n', '0::/lxc/a/init.scope\n', v2_mounts(),
     ['sys/fs/cgroup/lxc/a', 'sys/fs/cgroup/lxc', 'sys/fs/cgroup']),
    (APART, '0::/lxc/ab\n', '0::/lxc/a\n', v2_mounts(), ['sys/fs/cgroup/lxc', 'sys/fs/cgroup']),
    # in the host's PID namespace the first process says nothing about us
    (INITIAL, '0::/system.slice/sb.service\n', '0::/init.scope\n', v2_mounts(),
     ['sys/fs/cgroup/system.slice/sb.service', 'sys/fs/cgroup/system.slice', 'sys/fs/cgroup']),
    # only our part of the hierarchy is mounted
    (APART, '0::/docker/1\n', '0::/docker/1\n', v2_mounts('/docker/1'), ['sys/fs/cgroup']),
    (APART, '0::/docker/1/a\n', '0::/docker/1\n', v2_mounts('/docker/1'), ['sys/fs/cgroup']),
    (APART, '0::/docker/1/a\n', '0::/docker\n', v2_mounts('/docker/1'), ['sys/fs/cgroup']),
    (APART, '0::/docker/1\n', None, v2_mounts('/docker/1'), ['sys/fs/cgroup']),
    # we came into the container from outside, or its first process did
    (PRIVATE, '0::/../../user.slice\n', '0::/\n', v2_mounts(), ['sys/fs/cgroup']),
    ({'pid': APART['pid']}, '0::/../x\n', '0::/\n', v2_mounts(), ['sys/fs/cgroup']),
    # what cannot be found is not looked for elsewhere
    (PRIVATE, '0::/\n', '0::/\n', v2_mounts('/../..'), None),
    (APART, '0::/docker/1\n', '0::/docker/1\n', v2_mounts('/docker/2'), None),
    (APART, '0::/docker/1/../../../..\n', None, v2_mounts(), None),
])
def test_where_the_cgroup_of_the_container_is(box, namespaces, mine, first, mounts, folders):
    own = Own(box(namespaces, mine, mounts, more={'proc/1/cgroup': first}))
    assert own.levels.get('') == folders


def test_each_controller_of_v1_has_a_path_of_its_own(box):
    tree = box(APART, '4:memory:/process/2d/b\n3:cpuacct,cpu:/b\n0::/b\n', mountinfo(
        ('/b', '/sys/fs/cgroup/cpu,cpuacct', 'cgroup', 'cpu,cpuacct'), ('/process', '/sys/fs/cgroup/memory', 'cgroup', 'memory')))
    assert Own(tree).levels == {'cpu': ['sys/fs/cgroup/cpu,cpuacct'], 'cpuacct': ['sys/fs/cgroup/cpu,cpuacct'],
                                'memory': ['sys/fs/cgroup/memory/2d/b', 'sys/fs/cgroup/memory/2d', 'sys/fs/cgroup/memory']}


# -- processor time ----------------------------------------------------------------------------------

def seconds_of_cpu(parts, tree, files, when):
    for name, text in files.items():
        (tree.folder / 'sys/fs/cgroup' / name).write_text(text)
    tree.clock[0] = when
    return {s.flat: round(v, 6) for series, values in parts.read(when) for s, v in zip(series, values) if v == v}


def cpu_parts(tree):
    return Parts('cpu', statbadger.MODULES['cpu'].own_parts, options(per_core=False), tree, lambda level, text: None, alone=True)


def cpu_stat(usage, user, system):
    return 'usage_usec %d\nuser_usec %d\nsystem_usec %d\nnr_periods 5\n' % (usage, user, system)


def test_shares_are_of_what_the_container_may_use(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'cpu.stat': cpu_stat(1000, 500, 500), 'cpu.max': '50000 100000\n',
                                                'cpuset.cpus.effective': '0-3\n'})
    parts = cpu_parts(tree)
    assert seconds_of_cpu(parts, tree, {}, 10.0) == {}
    # half a core for two seconds is 1,000,000 us: 300,000 and 200,000 of them were used
    assert seconds_of_cpu(parts, tree, {'cpu.stat': cpu_stat(501000, 300500, 200500)}, 12.0) == {
        'cpu.user': 30, 'cpu.system': 20, 'cpu.idle': 50}
    # more than there was: it may gather what it did not use (cpu.max.burst), and clocks are not exact
    assert seconds_of_cpu(parts, tree, {'cpu.stat': cpu_stat(1201000, 825500, 375500)}, 13.0) == {
        'cpu.user': 75, 'cpu.system': 25, 'cpu.idle': 0}
    # nothing at all
    assert seconds_of_cpu(parts, tree, {}, 14.0) == {'cpu.user': 0, 'cpu.system': 0, 'cpu.idle': 100}
    # the quota is taken away: four cores for one second
    assert seconds_of_cpu(parts, tree, {'cpu.stat': cpu_stat(3201000, 2825500, 375500), 'cpu.max': 'max 100000\n'}, 15.0) == {
        'cpu.user': 50, 'cpu.system': 0, 'cpu.idle': 50}
    # another cgroup stands in its place
    assert seconds_of_cpu(parts, tree, {'cpu.stat': cpu_stat(500, 300, 200)}, 16.0)['cpu.idle'] == 100


def test_v1_counts_nanoseconds_and_says_by_ticks_how_they_divide(box):
    files = {'cpu,cpuacct/cpuacct.usage': '7000000000\n', 'cpu,cpuacct/cpuacct.stat': 'user 100\nsystem 50\n',
             'cpu,cpuacct/cpu.cfs_quota_us': '-1\n', 'cpu,cpuacct/cpu.cfs_period_us': '100000\n', 'cpuset/cpuset.effective_cpus': '1,3\n'}
    tree = box(PRIVATE, v1_cgroup('/'), v1_mounts(), files)
    parts = cpu_parts(tree)
    assert seconds_of_cpu(parts, tree, {}, 10.0) == {}
    # two cores for one second; 800 ms were used, 60 ticks of 80 in user mode
    assert seconds_of_cpu(parts, tree, {'cpu,cpuacct/cpuacct.usage': '7800000000\n',
                                        'cpu,cpuacct/cpuacct.stat': 'user 160\nsystem 70\n'}, 11.0) == {
        'cpu.user': 30, 'cpu.system': 10, 'cpu.idle': 60}
    # too short for a tick
    assert seconds_of_cpu(parts, tree, {'cpu,cpuacct/cpuacct.usage': '7820000000\n'}, 12.0) == {
        'cpu.user': 1, 'cpu.system': 0, 'cpu.idle': 99}


@pytest.mark.parametrize('files, cores', [
    ({'cpu.max': 'max 100000\n'}, 2), ({'cpu.max': '150000 100000\n'}, 1.5), ({'cpu.max': '800000 100000\n'}, 2),
    ({'cpu.max': 'max 100000\n', 'cpuset.cpus.effective': '0\n'}, 1), ({'cpuset.cpus.effective': '\n'}, 2), ({}, 2),
    ({'cpuset.cpus.effective': '0-1,4,6-7\n'}, 5), ({'cpuset.cpus.effective': '3-1\n'}, 2), ({'cpuset.cpus.effective': '0-x\n'}, 2),
    ({'cpu.max': 'max\n'}, 2), ({'cpu.max': '0 0\n'}, 2), ({'cpu.max': '5 ' + '9' * 30 + '\n'}, 2), ({'cpu.max': '\xff\n'}, 2),
])
def test_cores_that_may_be_used(box, files, cores):
    tree = box(INITIAL, '0::/x\n', v2_mounts('/x'), files, {'sys/devices/system/cpu/online': '0-1\n'})
    assert own_rows('system', tree) == [((), {'cores': cores})]


def test_without_sys_the_cores_are_those_of_proc_stat(box):
    assert statbadger.own_cores(box(PRIVATE, '0::/\n', v2_mounts()), Own(box(PRIVATE, '0::/\n', v2_mounts(), folder='b'))) == 2
    tree = box(PRIVATE, '0::/\n', v2_mounts(), more={'proc/stat': 'x\n'}, folder='c')
    with pytest.raises(Absent):
        statbadger.own_cores(tree, Own(tree))


@pytest.mark.parametrize('pod, container, cores', [('max 100000', '50000 100000', .5), ('30000 100000', 'max 100000', .3),
                                                   ('30000 100000', '50000 100000', .3), ('max 100000', 'max 100000', 2)])
def test_the_tightest_quota_counts_also_one_above(box, pod, container, cores):
    tree = box(APART, '0::/kubepods/pod1/c1\n', v2_mounts(), {
        'kubepods/pod1/cpu.max': pod + '\n', 'kubepods/pod1/c1/cpu.max': container + '\n', 'kubepods/cpu.max': 'max 100000\n'})
    assert statbadger.own_cores(tree, Own(tree)) == cores


def test_the_tightest_quota_of_v1(box):
    tree = box(APART, v1_cgroup('/kubepods/pod1/c1'), v1_mounts(), {
        'cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us': '120000\n', 'cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us': '100000\n',
        'cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_quota_us': '-1\n', 'cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_period_us': '100000\n'})
    assert statbadger.own_cores(tree, Own(tree)) == 1.2


@pytest.mark.parametrize('text', ['', 'usage_usec x\n', 'usage_usec 5\n', 'usage_usec 5\nuser_usec -1\nsystem_usec 1\n'])
def test_no_processor_time_is_no_figure(box, text):
    with pytest.raises(Absent):
        own_rows('cpu', box(PRIVATE, '0::/\n', v2_mounts(), {'cpu.stat': text}))


# -- memory --------------------------------------------------------------------------------------------

V2_STAT = ('anon 204800\nfile 512000\nkernel 70000\nkernel_stack 16384\npagetables 8192\npercpu 320\nsock 0\nshmem 4096\n'
           'file_mapped 12288\nfile_dirty 20480\nfile_writeback 0\nswapcached 1\nanon_thp 2097152\ninactive_anon 1000\n'
           'active_anon 203800\ninactive_file 300000\nactive_file 207904\nunevictable 7\nslab_reclaimable 30000\n'
           'slab_unreclaimable 10000\nslab 40000\nworkingset_refault_anon 0\n')


def test_memory_of_v2(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {
        'memory.current': '1000000\n', 'memory.max': '4000000\n', 'memory.stat': V2_STAT,
        'memory.swap.current': '5000\n', 'memory.swap.max': '20000\n'})
    assert only('memory', tree) == dict(
        memtotal=4000000, memfree=3000000, memavailable=3300000, used=700000, used_percent=17.5,     # 300,000 of it is idle cache
        swaptotal=20000, swapfree=15000, cached=512000, swapcached=1, active_anon=203800, inactive_anon=1000, active_file=207904,
        inactive_file=300000, unevictable=7, dirty=20480, writeback=0, anonpages=204800, mapped=12288, shmem=4096, slab=40000,
        sreclaimable=30000, sunreclaim=10000, kernelstack=16384, pagetables=8192, percpu=320, anonhugepages=2097152)


V1_STAT = ('cache 9\nrss 9\ninactive_file 9\nhierarchical_memory_limit %s\nhierarchical_memsw_limit %s\ntotal_cache 500000\n'
           'total_rss 200000\ntotal_rss_huge 0\ntotal_shmem 4096\ntotal_mapped_file 8192\ntotal_dirty 100\ntotal_writeback 0\n'
           'total_swap 6000\ntotal_inactive_anon 1\ntotal_active_anon 2\ntotal_inactive_file 250000\ntotal_active_file 4\n'
           'total_unevictable 5\n')


def v1_memory(limit, hierarchical, both, usage='1000000\n'):
    return {'memory/memory.limit_in_bytes': limit, 'memory/memory.usage_in_bytes': usage,
            'memory/memory.stat': V1_STAT % (hierarchical, both)}


def test_memory_of_v1_with_the_cgroups_below_it(box):
    tree = box(PRIVATE, v1_cgroup('/'), v1_mounts(), v1_memory('4000000\n', '4000000', '4500000'))
    assert only('memory', tree) == dict(
        memtotal=4000000, memfree=3000000, memavailable=3250000, used=750000, used_percent=18.75, swaptotal=500000, swapfree=494000,
        cached=500000, active_anon=2, inactive_anon=1, active_file=4, inactive_file=250000, unevictable=5, dirty=100, writeback=0,
        anonpages=200000, mapped=8192, shmem=4096, anonhugepages=0)


@pytest.mark.parametrize('limit, hierarchical, both, total, swap', [
    (PLENTY, PLENTY.strip(), PLENTY.strip(), 8000 << 10, 600 << 10),            # of the host
    (PLENTY, '3000000', PLENTY.strip(), 3000000, 600 << 10),                    # a limit above that cannot be seen
    ('99999999999\n', '99999999999', PLENTY.strip(), 8000 << 10, 600 << 10),    # more than there is
    ('2000000\n', '2000000', '2000000', 2000000, 0)])
def test_limits_of_v1(box, limit, hierarchical, both, total, swap):
    row = only('memory', box(PRIVATE, v1_cgroup('/'), v1_mounts(), v1_memory(limit, hierarchical, both)))
    assert (row['memtotal'], row['memfree'], row['swaptotal']) == (total, total - 1000000, swap)


def test_swap_that_is_not_counted_is_unknown(box):
    old = {'memory/memory.limit_in_bytes': PLENTY, 'memory/memory.usage_in_bytes': '5\n', 'memory/memory.stat': 'total_swap 0\n'}
    new = {'memory.current': '5\n', 'memory.max': 'max\n', 'memory.stat': V2_STAT}
    for i, tree in enumerate((box(PRIVATE, v1_cgroup('/'), v1_mounts(), old), box(PRIVATE, '0::/\n', v2_mounts(), new, folder='b'))):
        row = only('memory', tree)
        assert 'swaptotal' not in row and 'swapfree' not in row and row['memtotal'] == 8000 << 10, i


def test_without_any_limit_and_without_meminfo_no_total_is_known(box):
    row = only('memory', box(PRIVATE, '0::/\n', v2_mounts(), {
        'memory.current': '9\n', 'memory.max': 'max\n', 'memory.swap.current': '0\n', 'memory.swap.max': 'max\n',
        'memory.stat': 'anon 3\n'}, {'proc/meminfo': None}))
    assert row == {'anonpages': 3, 'used': 9}


def test_of_a_pods_limit_no_more_is_left_than_the_pod_has(box):
    files = {'pod/memory.max': '2000000\n', 'pod/memory.current': '1900000\n', 'pod/memory.stat': 'inactive_file 400000\n',
             'pod/c/memory.max': 'max\n', 'pod/c/memory.current': '300000\n', 'pod/c/memory.stat': 'inactive_file 100000\n',
             'pod/memory.swap.max': '0\n', 'pod/c/memory.swap.max': 'max\n', 'pod/c/memory.swap.current': '0\n'}
    tree = box(APART, '0::/pod/c\n', v2_mounts(), files)
    # of 2,000,000 the pod uses 1,900,000, of which 400,000 can be had back; the container uses 300,000 less 100,000
    row = only('memory', tree)
    assert {name: row[name] for name in ('memtotal', 'memfree', 'memavailable', 'used', 'used_percent', 'swaptotal', 'swapfree')} == dict(
        memtotal=2000000, memfree=100000, memavailable=500000, used=200000, used_percent=10, swaptotal=0, swapfree=0)


@pytest.mark.parametrize('pod, container, total', [('max', '3000000', 3000000), ('2000000', '3000000', 2000000),
                                                   ('max', 'max', 8000 << 10), ('3000000', '2000000', 2000000)])
def test_the_tightest_limit_counts(box, pod, container, total):
    files = {'pod/memory.max': pod + '\n', 'pod/memory.current': '900000\n', 'pod/c/memory.max': container + '\n',
             'pod/c/memory.current': '300000\n', 'pod/c/memory.stat': 'anon 1\n'}
    assert only('memory', box(APART, '0::/pod/c\n', v2_mounts(), files))['memtotal'] == total


def test_memory_of_a_hybrid_host_is_v1(box):
    tree = box(PRIVATE, v1_cgroup('/') + '0::/\n', v1_mounts() + mountinfo(('/', '/sys/fs/cgroup/unified', 'cgroup2', '')),
               dict(v1_memory('4000000\n', '4000000', '4500000'), **{'unified/memory.current': '7\n', 'unified/cpu.stat': cpu_stat(1, 1, 0)}))
    assert only('memory', tree)['memfree'] == 3000000


@pytest.mark.parametrize('files', [{}, {'memory.current': 'x\n'}, {'memory.current': ''}, {'memory.max': '5\n'}])
def test_no_use_of_memory_is_no_figure(box, files):
    with pytest.raises(Absent):
        own_rows('memory', box(PRIVATE, '0::/\n', v2_mounts(), files))


# -- disks, load, system -----------------------------------------------------------------------------------

DISKSTATS = '   8  16 sdb 1 2 3\n   8   0 sda 1 2 3 4 5 6 7 8 9 10 11\n   7 0 loop0 1 2 3 4 5 6 7 8 9 10 11\n 253 1 dm-1 1 2 3\n'


def disk_parts(tree, said=None):
    return Parts('disk', statbadger.MODULES['disk'].own_parts, DISKS, tree,
                 lambda level, text: said.append(text) if said is not None else None, alone=True)


def test_transfers_of_v2(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'io.stat': '8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n'},
               {'proc/diskstats': DISKSTATS})
    parts = disk_parts(tree)
    assert seconds_of_cpu(parts, tree, {}, 10.0) == {}
    found = seconds_of_cpu(parts, tree, {'io.stat': '8:16 \n7:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n'
                                         '8:0 rbytes=8192 wbytes=1024000 rios=3 wios=10 dbytes=4096 dios=2 cost.usage=5\n'
                                         '253:1 rbytes=2048 wbytes=0 rios=2 wios=0 dbytes=0 dios=0\n'
                                         '259:7 rbytes=0 wbytes=512 rios=0 wios=1 dbytes=0 dios=0\n'}, 12.0)
    assert {name: value for name, value in found.items() if name.endswith('.sda')} == {
        'disk.reads.sda': 1, 'disk.read_sectors.sda': 4, 'disk.writes.sda': 5, 'disk.write_sectors.sda': 1000, 'disk.discards.sda': 1,
        'disk.discard_sectors.sda': 4, 'disk.read_thruput.sda': 2048, 'disk.write_thruput.sda': 512000,
        'disk.request_size.sda': round((4096 + 1024000 + 4096) / 1024 / 14, 6)}
    # what it uses for the first time began at zero; loop devices are left out here too; a name that nobody knows is a number
    assert found['disk.reads.dm-1'] == 1 and found['disk.writes.259:7'] == .5
    assert {name.rpartition('.')[2] for name in found} == {'sda', 'dm-1', '259:7'}


def test_who_is_moved_to_another_cgroup_does_not_show_what_that_did_before(box):
    def files(place, n, device):
        return {place + '/cpu.stat': cpu_stat(1000000 * n, 1000000 * n, 0), place + '/cpuset.cpus.effective': '0\n',
                place + '/io.stat': '%s rbytes=%d wbytes=0 rios=%d wios=0 dbytes=0 dios=0\n' % (device, 4096 * n, n)}
    whole = dict(files('a', 1, '8:0'), **files('b', 500, '8:0'))
    whole['b/io.stat'] += '253:1 rbytes=4096000 wbytes=0 rios=900 wios=0 dbytes=0 dios=0\n'
    tree = box(INITIAL, '0::/a\n', v2_mounts(), whole, {'proc/diskstats': DISKSTATS})
    both, found = [cpu_parts(tree), disk_parts(tree)], []
    for second in range(5):
        if second == 2:
            (tree.folder / 'proc/self/cgroup').write_text('0::/b\n')
        found.append([seconds_of_cpu(parts, tree, files('b', 500 + second, '8:0') if second > 2 else {}, 10.0 + second)
                      for parts in both])
    assert found[1][0]['cpu.user'] == 0 and found[1][1]['disk.reads.sda'] == 0
    assert found[2] == [{}, {}]
    assert found[3][0]['cpu.user'] == 100 and found[3][1]['disk.reads.sda'] == 3
    assert found[4][0]['cpu.user'] == 100 and found[4][1]['disk.reads.sda'] == 1


def test_transfers_of_v1(box):
    def files(reads, read_bytes, writes, write_bytes):
        return {'blkio/blkio.throttle.io_serviced_recursive': '8:16 Read %d\n8:16 Write %d\n8:16 Sync 9\n8:16 Async 9\n8:16 Discard 0\n'
                                                              '8:16 Total 9\nTotal 9\n' % (reads, writes),
                'blkio/blkio.throttle.io_service_bytes_recursive': '8:16 Read %d\n8:16 Write %d\n8:16 Total 9\nTotal 9\n' % (
                    read_bytes, write_bytes)}
    tree = box(PRIVATE, v1_cgroup('/'), v1_mounts(), files(10, 40960, 0, 0), {'proc/diskstats': DISKSTATS})
    parts = disk_parts(tree)
    assert seconds_of_cpu(parts, tree, {}, 10.0) == {}
    found = seconds_of_cpu(parts, tree, files(12, 49152, 4, 2048), 11.0)
    assert found == {'disk.reads.sdb': 2, 'disk.read_sectors.sdb': 16, 'disk.writes.sdb': 4, 'disk.write_sectors.sdb': 4,
                     'disk.discards.sdb': 0, 'disk.discard_sectors.sdb': 0, 'disk.read_thruput.sdb': 8192,
                     'disk.write_thruput.sdb': 2048, 'disk.request_size.sdb': round(10240 / 1024 / 6, 6)}


def test_old_kernels_of_v1_do_not_add_what_is_below(box):
    tree = box(PRIVATE, v1_cgroup('/'), v1_mounts(), {'blkio/blkio.throttle.io_serviced': '8:0 Read 3\nTotal 3\n',
                                                      'blkio/blkio.throttle.io_service_bytes': '8:0 Read 1536\nTotal 1536\n'},
               {'proc/diskstats': DISKSTATS})
    (labels, row), = own_rows('disk', tree)
    assert labels == ('sda',) and (row['reads'], row['read_sectors']) == (3, 3)


def test_nothing_was_moved_yet(box):
    said, tree = [], box(PRIVATE, '0::/\n', v2_mounts(), {'io.stat': ''})
    parts = disk_parts(tree, said)
    assert seconds_of_cpu(parts, tree, {}, 10.0) == {} and parts.errors == 0
    found = seconds_of_cpu(parts, tree, {'io.stat': '8:0 rios=0 wios=3 rbytes=0 wbytes=2048\n'}, 12.0)
    assert (found['disk.writes.8:0'], found['disk.write_thruput.8:0']) == (1.5, 1024)
    parts = disk_parts(box(PRIVATE, '0::/\n', v2_mounts(), folder='b'), said)
    assert parts.read(1.0) == [] and len(said) == 1 and 'io.stat' in said[0]


@pytest.mark.parametrize('line', ['8:x rios=1', 'x', '8:0 rios=', '8:0 rios=-1', '8:0 rios=1 rbytes=1e5', '8 rios=1', '1:2:3 rios=1',
                                  '8:0 rios=' + '9' * 30, '9' * 12 + ':0 rios=1', '8:0 rios=\xff'])
def test_a_line_that_is_garbage_takes_only_itself_away(box, line):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'io.stat': line + '\n8:16 rios=7 rbytes=512\n8:0 rios=1 rbyt'}, {'proc/diskstats': DISKSTATS})
    (labels, row), = own_rows('disk', tree)
    assert labels == ('sdb',) and row['reads'] == 7
    assert tree.bad_lines == 1 + (line != 'x')


@pytest.mark.parametrize('link, name', [('../../devices/virtual/block/sdq', 'sdq'), ('../../x/cciss!c0d0', 'cciss/c0d0'),
                                        ('../../x/a\nb', 'a\nb'), (b'../../x/\xff', '\ufffd')])
def test_without_diskstats_names_are_those_of_sysfs(box, link, name):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'io.stat': '65:0 rios=1 rbytes=512\n'})
    os.makedirs(str(tree.folder / 'sys/dev/block'))
    os.symlink(os.fsencode(link), os.fsencode(str(tree.folder / 'sys/dev/block/65:0')))
    assert [labels for labels, row in own_rows('disk', tree)] == [(name,)]


def test_load_is_the_number_of_threads(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'pids.current': '12\n'}, {'proc/loadavg': '0.5 0.6 0.7 2/900 5\n'})
    assert only('load', tree) == {'total_entities': 12}


@pytest.mark.parametrize('entities, count, found', [
    ('3/12', '12\n', dict(one=.5, five=.6, fifteen=.7, runnable_entities=3, total_entities=12)),
    ('3/12', None, dict(one=.5, five=.6, fifteen=.7, runnable_entities=3, total_entities=12)),
    ('3/900', '12\n', dict(total_entities=12))])              # LXCFS without -l: the host's
def test_load_averages_are_those_of_lxcfs_if_they_can_be_ours(box, entities, count, found):
    tree = box(PRIVATE, '0::/\n', v2_mounts() + mountinfo(('/proc/loadavg', '/proc/loadavg', 'fuse.lxcfs', '')),
               {'pids.current': count} if count else {}, {'proc/loadavg': '0.5 0.6 0.7 %s 5\n' % entities})
    assert only('load', tree) == found


def test_uptime_is_that_of_the_first_process(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {'cpu.max': 'max 100000\n'}, {
        'proc/uptime': '5000.25 1.00\n', 'proc/1/stat': '1 (a) b) R) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 450025 7 8\n'})
    assert own_rows('system', tree) == [((), {'cores': 2}), ((), {'uptime': 500.0}), ((), {'boot_time': 1700004500})]


def test_on_a_host_the_first_process_is_not_the_containers(box):
    tree = box(INITIAL, '0::/x\n', v2_mounts(), {}, {'proc/uptime': '5000.25 1.00\n', 'proc/1/stat': '1 (init) S 0 1 1 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 5 7 8\n'})
    assert own_rows('system', tree) == [((), {'cores': 2})]


@pytest.mark.parametrize('text', ['', '1 (x) S 0\n', '1 (x)', '1 (x) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 -5 7 8\n'])
def test_a_first_process_that_says_nothing_of_use(box, text):
    tree = box(PRIVATE, '0::/\n', v2_mounts(), {}, {'proc/uptime': '5000.25 1.00\n', 'proc/1/stat': text})
    with pytest.raises(ValueError):
        own_rows('system', tree)


# -- LXCFS ------------------------------------------------------------------------------------------------------

LXCFS = mountinfo(*[('/proc/' + name, '/proc/' + name, 'fuse.lxcfs', 'user_id=0') for name in ('cpuinfo', 'diskstats', 'meminfo', 'stat', 'uptime')])


def test_the_cgroup_comes_first_and_lxcfs_knows_of_limits_above(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts() + LXCFS, {'memory.current': '1000\n', 'memory.max': 'max\n', 'memory.stat': 'anon 600\n'})
    row = only('memory', tree)
    assert (row['memtotal'], row['used'], row['anonpages']) == (8000 << 10, 1000, 600)


def test_without_a_cgroup_that_can_be_seen_memory_is_as_lxcfs_has_it(box):
    tree = box(PRIVATE, '0::/\n', LXCFS)
    rows = own_rows('memory', tree)
    assert rows[0][1]['memfree'] == 1000 << 10 and rows[1][1] == dict(used=3000 << 10, used_percent=37.5)


def test_processor_time_of_lxcfs_is_that_of_the_container_for_v1_only(box):
    tree = box(PRIVATE, v1_cgroup('/'), LXCFS)
    assert [row for labels, row in own_rows('cpu', tree, options(per_core=False))] == [dict(user=1, nice=1, system=1, idle=1)]
    with pytest.raises(Absent):
        own_rows('cpu', box(PRIVATE, '0::/\n', LXCFS, folder='b'), options(per_core=False))


def test_uptime_of_lxcfs_stands_as_it_is(box):
    tree = box(PRIVATE, '0::/\n', v2_mounts() + LXCFS, {}, {
        'proc/uptime': '77.5 1.00\n', 'proc/1/stat': '1 (a) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 450025 7 8\n'})
    assert own_rows('system', tree)[1:] == [((), {'uptime': 77.5}), ((), {'boot_time': 1700004500})]


def test_what_reads_a_fuse_file_is_told(box):
    view = view_of('auto', box(PRIVATE, '0::/\n', v2_mounts() + LXCFS + mountinfo(
        ('/', '/home/x', 'fuse.sshfs', ''), ('/c', '/sys/devices/system/cpu', 'fuse.lxcfs', ''), ('/', '/sys/fs/fuse/connections', 'fusectl', ''))))
    assert [name for name, kind in statbadger.MODULES.items() if view.hangs(kind)][:5] == ['cpu', 'disk', 'memory', 'system']
    view = view_of('auto', box(PRIVATE, '0::/\n', v2_mounts() + mountinfo(('/c', '/sys/devices/system/cpu', 'fuse.lxcfs', '')), folder='b'))
    assert [name for name in ('cpu', 'load', 'disk', 'network', 'memory', 'system') if view.hangs(statbadger.MODULES[name])] == ['cpu', 'system']


# -- the whole program ---------------------------------------------------------------------------------------------

def payloads(done):
    assert done.code == 0, done.err
    return [{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()} for line in done.out.splitlines()]


@pytest.fixture
def recorded(box):
    """Two snapshots of a container that used 100 ms and wrote 1 MiB in between."""
    def make(namespaces=PRIVATE):
        for n in (0, 1):
            box(namespaces, '0::/\n', v2_mounts(), {
                'cpu.stat': cpu_stat(5000 + n * 100000, 3000 + n * 100000, 2000), 'cpu.max': '50000 100000\n', 'memory.current': '1000000\n',
                'memory.max': '4000000\n', 'memory.stat': V2_STAT, 'io.stat': '8:0 rios=0 wios=%d rbytes=0 wbytes=%d\n' % (n, n << 20),
                'pids.current': '3\n'},
                {'proc/diskstats': DISKSTATS, 'proc/loadavg': '0.5 0.6 0.7 2/900 5\n', 'proc/uptime': '5000.25 1.00\n',
                 'proc/1/stat': '1 (a) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 450025 7 8\n'},
                'recording/%d.000' % (1700000000 + n))
        return box(namespaces, '', '').folder.parent / 'recording'
    return make


def test_a_recording_of_a_container_is_replayed_as_one(run, recorded):
    found, = payloads(run('--replay', recorded(), '-e', 'stdout'))
    assert (found['cpu.user'], found['cpu.idle'], found['cpu.cores']) == (20, 80, .5)
    assert (found['mem.memtotal'], found['mem.used']) == (4000000, 700000)
    assert found['disk.write_thruput.sda'] == 1 << 20 and found['load.total_entities'] == 3 and found['system.uptime'] == 500
    assert not {'cpu.ctxt_per_sec', 'cpu.nice', 'load.one', 'disk.io.sda', 'disk.count', 'system.file_handles', 'mem.swaptotal'} & set(found)


def test_the_hosts_figures_on_request(run, recorded, tmp_path):
    conf = tmp_path / 'a.conf'
    conf.write_text('{"view": "host"}')
    found, = payloads(run('--replay', recorded(), '-e', 'stdout', '-f', conf))
    assert found['mem.memtotal'] == 8000 << 10 and found['load.one'] == .5


def test_the_check_says_which_view_and_why(run, recorded):
    done = run('--check', '--root', recorded() / '1700000000.000')
    assert 'view      container: this is a container (its PID namespace is its own), and its cgroup (v2) has its figures\n' in done.out
    done = run('--check')
    assert 'view      ' in done.out and done.code == 0


def test_a_container_of_another_root_is_a_mistake(run, tmp_path):
    conf = tmp_path / 'a.conf'
    conf.write_text('{"view": "container"}')
    for more in ((), ('--check',)):
        done = run('-f', conf, '-n', '1', *more, env={'HOST_SYS': str(tmp_path)})
        assert done.code == 2 and str(tmp_path) in done.err and done.out == ''
    done = run('--check', env={'HOST_ETC': str(tmp_path / 'none')})
    assert done.code == 2 and 'HOST_ETC' in done.err


def test_what_was_recorded_of_our_own_cgroup_gives_the_same_again(run, tmp_path):
    """Whatever cgroups this machine has: what cannot be seen is absent in both."""
    conf = tmp_path / 'a.conf'
    conf.write_text('{"view": "container", "modules": {"cpu": {}, "memory": {}, "load": {}, "disk": {}, "system": {}}}')
    live = run('-f', conf, '-i', '0.2', '-n', '3', '-e', 'stdout', '--record', tmp_path / 'r')
    again = run('-f', conf, '-i', '0.2', '-e', 'stdout', '--replay', tmp_path / 'r')
    first = sorted(os.listdir(str(tmp_path / 'r')))[0]
    assert os.path.islink(str(tmp_path / 'r' / first / 'proc/self/ns/pid'))
    for one, other in zip(payloads(live), payloads(again)):
        assert set(one) == set(other)
        for name in one:
            # a snapshot is named by the ms in which its tick began; a module is read later, when others leave it time
            if name == 'cpu.cores' or not name.startswith(('cpu.', 'disk.')):
                assert other[name] == one[name], name
    assert len(payloads(live)) == len(payloads(again)) == 3


def agent_line(arguments, root, tmp_path):
    process = subprocess.Popen([sys.executable, PROGRAM, '--root', str(root), '-i', '0.1', '-e', 'stdout'] + arguments,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clean_environment())
    try:
        return process.stderr.readline().decode()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_first_line_of_the_log_says_which_view_and_why(recorded, tmp_path):
    assert 'view container: this is a container' in agent_line([], recorded() / '1700000000.000', tmp_path)


def test_a_module_that_reads_a_fuse_file_has_a_thread_of_its_own_from_the_start(box, clock):
    tree = box(PRIVATE, '0::/\n', v2_mounts() + mountinfo(('/proc/meminfo', '/proc/meminfo', 'fuse.lxcfs', '')))
    settings = statbadger.read_config('{"modules": {"memory": {}, "network": {}}, "emitters": {"stdout": {}}}', statbadger.config_place('-', '-'))
    agent = statbadger.Agent(lambda: settings, tree, clock, statbadger.Log())
    try:
        assert {r.chosen.name: r.worker is not None for r in agent.modules} == {'memory': True, 'network': False}
    finally:
        for running in agent.modules:
            if running.worker:
                running.worker.close()


def test_a_reload_that_asks_for_the_other_view_changes_only_what_differs(box, clock):
    def settings(view):
        text = '{"view": "%s", "modules": {"memory": {}, "network": {}, "self": {}}, "emitters": {"stdout": {}}}' % view
        return statbadger.read_config(text, statbadger.config_place('-', '-'))
    agent = statbadger.Agent(lambda: settings('auto'), box(PRIVATE, '0::/\n', v2_mounts()), clock, statbadger.Log())
    for view, same in (('container', [True, True, True]), ('host', [False, True, True])):
        made = []
        agent.make_modules(settings(view), made)
        assert [new is old for new, old in zip(made, agent.modules)] == same
