"""The whole program where things go wrong around it: descriptors, signals, rude peers, user code that raises."""
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import statbadger
from conftest import PROGRAM, clean_environment, role
from sinks import TcpSink, free_port, until
from standins import KafkaStandin

QUICK = ('-m', 'load', '-i', '0.05')


def conf(tmp_path, name='a.conf', **values):
    path = tmp_path / name
    part = tmp_path / 'part'
    part.write_text(json.dumps(values))
    part.rename(path)
    return str(path)


def payloads(out):
    return [json.loads(line) for line in out.split('\n')[:-1]]


def points(payload):
    return {name: point['value'] for one in payload['points'] for name, point in one.items()}


class Rude:
    """Accepts on 127.0.0.1 and does with each connection what it is told to, in a thread; .count counts them."""

    def __init__(self, treat):
        self.treat, self.count, self.over = treat, 0, threading.Event()
        self.server = socket.socket()
        self.server.bind(('127.0.0.1', 0))
        self.server.listen(50)
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.over.is_set():
            if select.select([self.server], [], [], 0.05)[0]:
                sock = self.server.accept()[0]
                self.count += 1
                try:
                    self.treat(sock, self.over)
                except OSError:
                    pass
                sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        self.server.close()


def reset(sock, over):
    sock.recv(10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def chatter(sock, over):
    sock.settimeout(0.2)
    while not over.is_set():
        try:
            sock.send(b'word\n' * 10000)
        except socket.timeout:
            pass


# -- the same kind of module in a thread of its own ------------------------------------------------

def test_stock_modules_in_a_thread_of_their_own_go_on_reading(run):
    done = run('-e', 'stdout', '-m', 'system,async', '-m', 'cpu,async', '-m', 'load', '-n', '12', '-i', '0.1')
    found = [points(p) for p in payloads(done.out)]
    uptimes = [p['system.uptime'] for p in found if 'system.uptime' in p]
    assert len(uptimes) >= 5 and len(set(uptimes)) == len(uptimes) and uptimes == sorted(uptimes)
    assert sum('cpu.user' in p for p in found) >= 3


def test_reloads_of_a_module_in_a_thread_of_its_own_leak_no_descriptor(agent, tmp_path):
    def configure(n):
        return conf(tmp_path, modules={'load': {'async': True, 'blacklist': ['x%d' % n]}}, emitters={'stdout': {}}, interval=0.05)
    err = open(str(tmp_path / 'err'), 'wb')
    process = agent('-f', configure(0), stdout=subprocess.DEVNULL, stderr=err)
    err.close()

    def said():
        return (tmp_path / 'err').read_text().count('reloaded')

    def reload(n):
        configure(n)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: said() == n)
    assert until(lambda: os.path.exists('/proc/%d/task' % process.pid) and len(os.listdir('/proc/%d/task' % process.pid)) > 2)
    for n in range(1, 6):
        reload(n)
    before = len(os.listdir('/proc/%d/fd' % process.pid))
    for n in range(6, 30):
        reload(n)
    assert until(lambda: len(os.listdir('/proc/%d/fd' % process.pid)) <= before + 4)


# -- a module that is slow, or raises what nobody expects ------------------------------------------

def test_a_slow_module_with_a_long_interval_of_its_own_holds_no_tick_up(run, tmp_path):
    (tmp_path / 'slow.py').write_text('import time\nclass slow:\n    def __init__(self, c, l): pass\n'
                                      '    def get_stats(self, n):\n        time.sleep(0.5)\n')
    done = run('-f', conf(tmp_path, interval=0.1, modules={'load': {}, 'self': {}, 'slow': {'file': 'slow.py', 'interval': 1}},
                          emitters={'stdout': {}}), '-n', '15')
    found = payloads(done.out)
    assert points(found[-1])['self.ticks_skipped'] == 0
    stamps = [round(p['timestamp'] * 10) for p in found]
    assert stamps == list(range(stamps[0], stamps[0] + 15))


def test_no_name_comes_twice_when_a_late_answer_and_a_fresh_one_meet(run, tmp_path):
    (tmp_path / 'm.py').write_text('import time\nclass m:\n    def __init__(self, c, l): pass\n    def get_stats(self, n):\n'
                                   '        time.sleep(0.15 if n % 2 else 0)\n'
                                   '        return [{"m.n": {"value": n, "units": None}}, {"m.odd%d" % (n % 2): {"value": 1e305, "units": ""}}]\n')
    done = run('-f', conf(tmp_path, interval=0.1, modules={'load': {}, 'm': {'file': 'm.py'}}, emitters={'stdout': {}}), '-n', '16')
    seen = []
    for payload in payloads(done.out):
        names = [name for point in payload['points'] for name in point]
        assert len(names) == len(set(names))
        seen += [point['m.n'] for point in payload['points'] if 'm.n' in point]
    assert len(seen) > 3 and all(point['units'] == '' for point in seen)
    assert any(points(p).get('m.odd1') == 1e305 for p in payloads(done.out))


RAISERS = '''
class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")
class raiser:
    def __init__(self, config, logger):
        self.n, self.out = 0, open(config.get("out", "/dev/null"), "w")
    def call(self):
        self.n += 1
        if self.n < 5:
            raise [KeyboardInterrupt(), StopIteration(), Mute(), GeneratorExit()][self.n - 1]
    def get_stats(self, n):
        self.call()
        return [{"raiser.calls": {"value": self.n, "units": ""}}]
    def emit_stats(self, payload, n):
        self.call()
        self.out.write("%d\\n" % n)
'''


def test_user_code_may_raise_anything_and_is_called_again_with_the_same_tick(run, tmp_path):
    (tmp_path / 'raiser.py').write_text(RAISERS)
    file = {'file': 'raiser.py', 'type': 'raiser'}
    done = run('-f', conf(tmp_path, interval=0.1, modules={'load': {}, 'one': dict(file)},
                          emitters={'stdout': {}, 'two': dict(file, out=str(tmp_path / 'out'))}), '-n', '7', timeout=60)
    assert done.code == 0, done.err
    calls = [points(p)['raiser.calls'] for p in payloads(done.out) if 'raiser.calls' in points(p)]
    assert calls and calls == sorted(set(calls)) and set(calls) <= {5, 6, 7}      # a late answer joins the next tick
    # what it had in a buffer when the end came is there too
    assert (tmp_path / 'out').read_text() == ''.join('%d\n' % i for i in range(1, 8))


# -- descriptors and threads that are not to be had -------------------------------------------------

def limited(what, number):
    return lambda: resource.setrlimit(what, (number, number))


def test_twenty_descriptors_are_enough_also_for_a_sink(tmp_path):
    with TcpSink() as sink:
        argv = [sys.executable, PROGRAM, '-e', 'stdout', '-e', 'graphite,port=%d' % sink.port, '-i', '0.1', '-n', '7', '-m', 'self']
        for name in ('cpu', 'load', 'disk', 'network', 'memory', 'system'):
            argv += ['-m', name]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
                                   preexec_fn=limited(resource.RLIMIT_NOFILE, 20))
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, b'')
        assert len([line for line in sink.lines() if '.load.one ' in line]) == 7


def test_hardly_any_descriptor_is_an_error_in_one_line(tmp_path):
    process = subprocess.Popen([sys.executable, PROGRAM, '-e', 'stdout', '-e', 'graphite', '-n', '2', '-i', '0.1'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
                               preexec_fn=limited(resource.RLIMIT_NOFILE, 7))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out == b'' and err.count(b'\n') == 1 and b'Too many open files' in err


def test_a_reload_for_which_there_are_no_descriptors_changes_nothing(agent, tmp_path):
    path = conf(tmp_path, interval=0.05, modules={'load': {}}, emitters={'stdout': {}})
    process = agent('-f', path)
    assert process.stdout.readline()
    n = len(os.listdir('/proc/%d/fd' % process.pid))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (n + 3, n + 3))
    conf(tmp_path, interval=0.05, modules={'load': {}}, emitters=dict({'stdout': {}}, **{
        'g%d' % i: {'type': 'graphite', 'port': 9} for i in range(6)}))
    process.send_signal(signal.SIGHUP)
    assert b'not reloaded' in process.stderr.readline()
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


# -- signals, and a standard error that takes nothing -------------------------------------------------

def test_a_storm_of_hangups_delays_neither_ticks_nor_the_end(agent, tmp_path):
    emitters = dict({'stdout': {}}, **{'g%d' % i: {'type': 'graphite', 'port': free_port(), 'timeout': 0.5} for i in range(5)})
    process = agent('-f', conf(tmp_path, interval=0.1, modules={'load': {}}, emitters=emitters), stderr=subprocess.DEVNULL)
    assert process.stdout.readline()
    until_ = time.monotonic() + 1.5
    while time.monotonic() < until_:
        process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=9)[0]                   # 5 seconds for the dead sinks, and not one per hangup
    stamps = [round(p['timestamp'] * 10) for p in payloads(out.decode())]
    assert len(stamps) >= 8 and process.returncode == 1


def test_the_end_comes_also_when_nobody_reads_standard_error(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b'x' * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(writing, True)
    process = subprocess.Popen([sys.executable, PROGRAM, '-e', 'graphite,timeout=0.2,port=%d' % free_port(), '-n', '1'] + list(QUICK),
                               stdout=subprocess.DEVNULL, stderr=writing, env=clean_environment())
    try:
        assert process.wait(12) == 1
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


# -- reloads ------------------------------------------------------------------------------------------

def test_an_emitter_that_was_taken_out_is_named_when_it_could_not_deliver(agent, tmp_path):
    path = conf(tmp_path, interval=0.05, modules={'load': {}}, emitters={'stdout': {}, 'dead': {'type': 'graphite', 'port': free_port()}})
    process = agent('-f', path)
    for _ in range(5):
        assert process.stdout.readline()
    conf(tmp_path, interval=0.05, modules={'load': {}}, emitters={'stdout': {}})
    process.send_signal(signal.SIGHUP)
    assert b'wait' in process.stderr.readline() and b'reloaded' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=15)[1].decode()
    assert process.returncode == 1 and err.startswith('statbadger: dead: ') and 'ticks were not delivered' in err


def test_an_emitter_whose_options_change_keeps_what_is_pending(agent, tmp_path):
    port = free_port()

    def configure(**options):
        return conf(tmp_path, interval=0.05, modules={'load': {}}, emitters={'stdout': {}, 'g': dict({'type': 'graphite'}, **options)})
    process = agent('-f', configure(port=free_port()))
    stamps = [json.loads(process.stdout.readline().decode())['timestamp'] for _ in range(6)]
    with TcpSink(port=port) as sink:
        configure(port=port, prefix='new', timeout=3)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: len(sink.lines()) > 50)
        process.send_signal(signal.SIGTERM)
        stamps += [p['timestamp'] for p in payloads(process.communicate(timeout=15)[0].decode())]
        assert process.returncode == 0
        lines = [line.split(' ') for line in sink.lines() if '.load.one ' in line]
        assert [float(line[2]) for line in lines] == stamps and all(line[0] == 'new.load.one' for line in lines)


def test_an_empty_file_is_no_new_configuration_and_a_pipe_is_read_once(agent, tmp_path):
    path = conf(tmp_path, interval=0.05, modules={'load': {}}, emitters={'stdout': {}})
    process = agent('-f', path)
    assert process.stdout.readline()
    open(path, 'w').close()
    process.send_signal(signal.SIGHUP)
    assert b'not reloaded' in process.stderr.readline()
    assert list(points(json.loads(process.stdout.readline().decode())))[0] == 'load.one'
    reading, writing = os.pipe()
    os.write(writing, b'{"interval": 0.05, "modules": {"load": {}}, "emitters": {"stdout": {}}, "cluster": "piped"}')
    os.close(writing)
    process = agent('-f', '/dev/fd/%d' % reading, pass_fds=(reading,))
    os.close(reading)
    assert json.loads(process.stdout.readline().decode())['cluster'] == 'piped'
    process.send_signal(signal.SIGHUP)
    assert b' reloaded' in process.stderr.readline()
    assert json.loads(process.stdout.readline().decode())['cluster'] == 'piped'


# -- rude peers ---------------------------------------------------------------------------------------

def test_a_sink_that_resets_every_connection_has_got_nothing(run):
    with Rude(reset) as rude:
        done = run('-e', 'graphite,timeout=1,port=%d' % rude.port, '-n', '4', *QUICK)
    assert done.code == 1 and 'not delivered: Connection reset' in done.err and rude.count >= 2


def test_a_sink_that_talks_on_and_on_costs_no_memory_and_is_said(agent):
    with Rude(chatter) as rude:
        process = agent('-e', 'graphite,timeout=1,port=%d' % rude.port, '-e', 'stdout', '-m', 'self', '-i', '0.1')
        found = [points(json.loads(process.stdout.readline().decode()))['self.rss'] for _ in range(20)]
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=15)[1]
    assert b'talks on and on' in err
    assert max(found) < found[3] + (8 << 20)


def test_a_name_with_two_addresses_reaches_the_datagram_sink_that_lives():
    addresses = [(socket.AF_INET, socket.SOCK_DGRAM, 0, '', ('255.255.255.255', 9)),      # no way: not permitted
                 (socket.AF_INET, socket.SOCK_DGRAM, 0, '', ('127.0.0.1', 9))]
    link = statbadger.DatagramLink(addresses)
    assert link.sock.getpeername() == ('127.0.0.1', 9)
    link.close()


# -- the rest -------------------------------------------------------------------------------------------

def test_a_replay_with_a_dead_emitter_gives_the_others_all_of_it(run, tmp_path):
    for i in range(120):
        path = tmp_path / 'r' / ('%d.000' % (1700000000 + i)) / 'proc'
        path.mkdir(parents=True)
        (path / 'loadavg').write_text('0.%02d 0.04 0.05 2/321 4242\n' % (i % 100))
    done = run('--replay', tmp_path / 'r', '-f', conf(
        tmp_path, modules={'load': {}}, spool={'memory_bytes': 65536},
        emitters={'stdout': {}, 'dead': {'type': 'graphite', 'port': free_port(), 'timeout': 0.5}}), timeout=40)
    assert done.code == 1 and [p['timestamp'] for p in payloads(done.out)] == list(range(1700000001, 1700000120))
    assert done.err.splitlines()[-1].startswith('statbadger: dead: ') and 'stdout' not in done.err


def test_a_file_beside_the_program_is_not_taken_for_a_module_of_the_library(run, tmp_path):
    for name in ('struct', 'select', 'array', 'fcntl', 'argparse', 're'):
        (tmp_path / (name + '.py')).write_text('raise SystemExit("this is not the library")\n')
    program = tmp_path / 'statbadger.py'
    with open(PROGRAM, 'rb') as file:
        program.write_bytes(file.read())
    for ticks in ('1', '8'):
        done = run('-e', 'stdout', '-n', ticks, *QUICK, program=str(program), cwd=str(tmp_path))
        assert (done.code, done.err, len(payloads(done.out))) == (0, '', int(ticks))


def test_a_light_run_loads_no_table_of_unicode(agent):
    with TcpSink() as sink:
        process = agent('-e', 'graphite,host=localhost,port=%d' % sink.port, *QUICK)
        assert until(lambda: len(sink.lines()) > 3)
        with open('/proc/%d/maps' % process.pid) as maps:
            assert 'unicodedata' not in maps.read()


def test_a_kafka_emitter_without_tls_login_and_gzip_loads_none_of_their_libraries(agent):
    with KafkaStandin() as cluster:
        one = agent('-e', 'kafka,brokers=%s' % cluster.address, '-m', 'load', '-i', '0.1')
        assert until(lambda: len(cluster.values('statbadger')) > 2, 10)
        with open('/proc/%d/maps' % one.pid) as file:
            loaded = {line.split('/')[-1].strip() for line in file if '/' in line}
    assert not [name for name in loaded if name.startswith(('_ssl', '_hashlib', 'libcrypto', 'libssl', 'zlib.'))]


def test_ticks_that_were_never_due_are_not_skipped_after_a_reload():
    from conftest import FakeClock
    clock = FakeClock(1700000040400.0)
    schedule = statbadger.Schedule(clock, [60000])
    schedule.begin(1700000100000)
    clock.advance(90000)
    schedule.change([1000])
    point, due = schedule.next()
    clock.advance(point - clock.now)
    schedule.begin(point)
    assert schedule.skipped == 0


# -- long runs, in little time ------------------------------------------------------------------------

def test_a_file_that_is_missing_for_days_stops_nothing(host):
    tree, said = host({'proc/loadavg': '0.01 0.04 0.05 2/321 4242\n'}), []
    kinds = [statbadger.Parts(name, statbadger.MODULES[name].parts, None, tree, lambda *words: said.append(words))
             for name in ('load', 'cpu')]
    for minute in range(3000):
        tree.fresh.clear()
        assert len(kinds[0].read(minute * 61.0)) == 1 and kinds[1].read(minute * 61.0) == []
    assert len(said) == 1 and kinds[1].errors == 3000


def test_a_replay_of_many_snapshots_without_a_file_stops_nothing(run, tmp_path):
    for i in range(1100):
        path = tmp_path / 'r' / ('%d.000' % (1700000000 + i)) / 'proc'
        path.mkdir(parents=True)
        (path / 'loadavg').write_text('0.01 0.04 0.05 2/321 4242\n')
    done = run('--replay', tmp_path / 'r', '-m', 'load', '-m', 'cpu', '-e', 'stdout')
    assert done.code == 0 and done.out.count('\n') == 1099


def test_a_replay_keeps_who_the_host_is_when_a_snapshot_does_not_say(run, tmp_path):
    for i in range(130):
        path = tmp_path / 'r' / ('%.3f' % (1700000000 + i * 1.001)) / 'proc'
        (path / 'sys' / 'kernel').mkdir(parents=True)
        (path / 'loadavg').write_text('0.01 0.04 0.05 2/321 4242\n')
        if i == 0:
            (path / 'sys' / 'kernel' / 'hostname').write_text('n1\n')
    done = run('--replay', tmp_path / 'r', '-m', 'load', '-e', 'stdout')
    assert set(p['hostname'] for p in payloads(done.out)) == {'n1'}


def test_what_a_slow_module_says_joins_the_next_tick_also_when_its_own_turn_is_far_off(run, tmp_path):
    (tmp_path / 'slow.py').write_text('import time\nclass slow:\n    def __init__(self, c, l): pass\n    def get_stats(self, n):\n'
                                      '        time.sleep(0.25)\n        return [{"slow.at": {"value": time.time(), "units": "s"}}]\n')
    done = run('-f', conf(tmp_path, interval=0.1, modules={'load': {}, 'slow': {'file': 'slow.py', 'interval': 1}},
                          emitters={'stdout': {}}), '-n', '18')
    ages = [p['timestamp'] - points(p)['slow.at'] for p in payloads(done.out) if 'slow.at' in points(p)]
    assert ages and max(ages) < 0.5


def test_ticks_that_flush_gathers_go_early_when_there_is_no_room(run, tmp_path):
    for i in range(400):
        path = tmp_path / 'r' / ('%d.000' % (1700000000 + i)) / 'proc'
        path.mkdir(parents=True)
        (path / 'loadavg').write_text('0.01 0.04 0.05 2/321 4242\n')
    path = conf(tmp_path, spool={'memory_bytes': 65536}, modules={'load': {}}, emitters={'stdout': {'flush': 3600}})
    done = run('--replay', tmp_path / 'r', '-f', path)
    assert done.code == 0 and [p['timestamp'] for p in payloads(done.out)] == list(range(1700000001, 1700000400))


def test_what_may_go_again_is_bounded_in_bytes_too():
    spool = statbadger.Spool(1 << 20)
    cursor = statbadger.Cursor(spool, 'x', role(target=('tcp', 'h', 1, None)))
    spool.cursors.append(cursor)
    layout = statbadger.Layout(tuple(statbadger.Series('t', 'n', '', statbadger.GAUGE, (), ()) for _ in range(5000)))
    for i in range(1, 60):
        spool.accept(statbadger.Frame(i * 100, i, {}, layout, statbadger.array('d', [i] * 5000)))
        cursor.next_batch()
    assert 2 < sum(f.bytes for f in cursor.recent) // 40000 <= 6
    cursor.bell.close()


# -- user code, and where things are --------------------------------------------------------------------

def test_names_of_user_code_are_kept_as_they_are(run, tmp_path):
    names = ['.', 'a.', '.a', 'a', 'a.b', 'a..b', '..', 'a.b.']
    (tmp_path / 'dots.py').write_text(
        'class dots:\n    def __init__(self, config, logger):\n        pass\n\n    def get_stats(self, i):\n'
        '        return [{name: {"value": 1} for name in %r}]\n' % names)
    done = run('-f', conf(tmp_path, modules={'dots': {'file': 'dots.py'}}, emitters={'stdout': {}}), '-n', '2', '-i', '0.2')
    assert list(points(payloads(done.out)[-1])) == names


def test_user_code_may_be_called_like_a_module_of_the_library_and_import_its_neighbours(run, tmp_path):
    (tmp_path / 'queue.py').write_text('import beside\nclass queue:\n    def __init__(self, c, l): pass\n'
                                       '    def get_stats(self, n):\n        return [{"queue.n": {"value": beside.N, "units": ""}}, '
                                       '{"queue.n": {"value": 8, "units": ""}}]\n')
    (tmp_path / 'beside.py').write_text('N = 7\n')
    (tmp_path / 'other.py').write_text('import queue\nclass other:\n    def __init__(self, c, l): queue.Queue()\n'
                                       '    def get_stats(self, n): pass\n')
    done = run('-f', conf(tmp_path, interval=0.1, modules={'load': {}, 'queue': {'file': 'queue.py'}, 'other': {'file': 'other.py'}},
                          emitters={'stdout': {}}), '-n', '4')
    assert done.code == 0, done.err
    assert [p['points'][-1]['queue.n']['value'] for p in payloads(done.out) if 'queue.n' in points(p)]
    assert all(points(p).get('queue.n', 7) == 7 for p in payloads(done.out))


def test_check_reads_user_code_and_bake_takes_none_with_a_relative_path(run, tmp_path):
    (tmp_path / 'bad.py').write_text('class bad(:\n')
    path = conf(tmp_path, modules={'bad': {'file': 'bad.py'}})
    for arguments in (('--check', '-f', path), ('--bake', path)):
        done = run(*arguments)
        assert (done.code, done.out, done.err.count('\n')) == (2, '', 1) and 'bad' in done.err
    done = run('--bake', path, '-e', 'stdout')
    assert done.code == 2 and '-e' in done.err


def test_files_on_the_command_line_are_seen_from_where_it_was_typed(run, tmp_path):
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'em.py').write_text('class em:\n    def __init__(self, c, l): pass\n    def emit_stats(self, p, n): pass\n')
    path = conf(tmp_path, modules={'load': {}}, interval=0.05)
    assert run('-f', path, '-e', 'em,file=em.py', '-n', '1', cwd=str(tmp_path / 'here')).code == 0


def test_what_the_environment_holds_is_in_no_message(run, tmp_path):
    path = conf(tmp_path, emitters={'graphite': {'port': '${PW}', 'tags': ['${PW}'], 'prefix': 'x${PW}'}})
    done = run('-f', path, '--check', env={'PW': 'hunter2'})
    assert done.code == 2 and 'hunter2' not in done.err and 'found "${PW}"' in done.err
    path = conf(tmp_path, emitters={'graphite': {'prefix': 'x${PW}'}})
    done = run('-f', path, '--check', env={'PW': 'hunter2'})
    assert done.code == 0 and 'hunter2' not in done.out and 'prefix "x${PW}"' in done.out
    done = run('-e', 'graphite,port=${PORT}', '--check', env={'PORT': '2999'})
    assert done.code == 0 and 'port "${PORT}"' in done.out
    for word in ('graphite,password=hunter2', '--password=hunter2'):
        assert 'hunter2' not in run(word).err


def test_a_log_that_cannot_be_written_and_a_host_that_is_not_there_are_mistakes(run, tmp_path):
    path = conf(tmp_path, log={'dest': 'none/x.log'}, modules={'load': {}}, emitters={'stdout': {}})
    done = run('-f', path, '-n', '1')
    assert (done.code, done.out) == (2, '') and 'log.dest' in done.err
    for name in ('HOST_ROOT', 'HOST_PROC', 'HOST_SYS'):
        done = run('-e', 'stdout', '-n', '1', env={name: '/none'})
        assert (done.code, done.out) == (2, '') and done.err.startswith(name)


def test_a_long_message_still_ends_with_its_line():
    process = subprocess.Popen([sys.executable, PROGRAM, '-f', '-', '--check'], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    err = process.communicate(('{"%s": 1,\n"b": 2}' % ('k' * 5000)).encode())[1]
    assert err.count(b'\n') == 2 and err.endswith(b'\n')
