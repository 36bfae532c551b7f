"""Section 12: whole runs of the program: user code, signals, reload, the end, record and replay."""
import json
import os
import select
import signal
import threading
import time

import pytest

import statbadger
from conftest import options
from sinks import BlackHole, TcpSink, free_port, until

LOADAVG = '0.01 0.04 0.05 2/321 4242\n'
KEEP = '''
import json
class keep:
    def __init__(self, config, logger):
        self.out = open(config['out'], 'a')
    def emit_stats(self, payload, global_iteration):
        self.out.write(json.dumps([global_iteration, payload]) + '\\n')
        self.out.flush()
'''


@pytest.fixture
def place(tmp_path):
    """A folder with a frozen host, a configuration and files of user code; see Place."""
    return Place(tmp_path)


class Place:
    def __init__(self, folder):
        self.folder = folder
        self.root = folder / 'root'
        (self.root / 'proc').mkdir(parents=True)
        (self.root / 'proc' / 'loadavg').write_text(LOADAVG)
        self.conf = folder / 'statbadger.conf'

    def code(self, name, text):
        (self.folder / (name + '.py')).write_text(text)
        return name + '.py'

    def configure(self, emitters, modules=None, interval=0.1, **more):
        """Writes the configuration; gives the arguments that use it."""
        given = dict({'hostname': 'n1', 'interval': interval, 'modules': modules or {'load': {}}, 'emitters': emitters}, **more)
        part = self.folder / 'part'
        part.write_text(json.dumps(given, indent=1))
        part.rename(self.conf)
        return '-f', str(self.conf), '--root', str(self.root)

    def keeper(self, out='kept'):
        """Options of an emitter of ours that keeps what it gets in a file."""
        return {'file': self.code('keep', KEEP), 'out': str(self.folder / out)}

    def kept(self, out='kept'):
        """[(iteration, payload)] that it kept."""
        path = self.folder / out
        text = path.read_text() if path.exists() else ''
        return [tuple(json.loads(line)) for line in text.split('\n')[:-1]]


def points(payload):
    """{name: value}"""
    return {name: point['value'] for one in payload['points'] for name, point in one.items()}


def payloads(out):
    return [json.loads(line) for line in out.split('\n')[:-1]]


def end(process, number=signal.SIGTERM, within=8.0):
    """Signals a run and waits; gives (code, seconds)."""
    began = time.monotonic()
    process.send_signal(number)
    code = process.wait(within)
    return code, time.monotonic() - began


def started(place, agent, *args, **more):
    """A running agent whose streams go to the files `out` and `err`."""
    streams = {name: open(str(place.folder / name), 'ab') for name in ('out', 'err')}
    more.setdefault('stdout', streams['out'])
    process = agent(*args, stderr=streams['err'], **more)
    for stream in streams.values():
        stream.close()
    return process


def said(place):
    path = place.folder / 'err'
    return path.read_text() if path.exists() else ''


def stamps(lines):
    """Time stamps of load.one in carbon's lines."""
    return [float(line.split(' ')[2]) for line in lines if '.load.one ' in line]


def consecutive(times, interval):
    """Whether one tick follows the other; a machine that is busy elsewhere may skip one in five, never two together."""
    steps = [round((b - a) / interval) for a, b in zip(times, times[1:])]
    return set(steps) <= {1, 2} and steps.count(2) <= 0.2 * len(steps) + 1


# -- user-written modules ---------------------------------------------------------------------

def test_a_user_module_gets_its_options_and_a_logger_with_all_of_its_forms(run, place):
    place.code('mine', '''
class mine:
    def __init__(self, config, logger):
        assert type(config) is dict, type(config)
        logger("err", msg="called", colour="red", n=7)
        logger.info("config %s", sorted(config.items()))
        logger.debug("not shown")
        logger.warning("warned", why="because")
        logger.error("erred")
        try:
            {}["missing"]
        except KeyError:
            logger.exception("excepted")
    def get_stats(self, global_iteration):
        return [{"mine.iteration": {"value": global_iteration, "units": "n"}}, {"mine.half": {"value": 0.5, "units": ""}}]
''')
    done = run(*place.configure({'stdout': {}}, {'mine': {'file': 'mine.py', 'answer': 42, 'who': ['a', 'b']}}) + ('-n', '2'))
    assert done.code == 0
    one, two = payloads(done.out)
    assert one['points'] == [{'mine.iteration': {'value': 1, 'units': 'n'}}, {'mine.half': {'value': 0.5, 'units': ''}}]
    assert points(two)['mine.iteration'] == 2
    lines = done.err.split('\n')
    assert [line for line in lines if 'error' in line and 'called' in line and 'colour=red' in line and 'n=7' in line]
    assert [line for line in lines if ' info' in line and "('answer', 42)" in line and "('who', ['a', 'b'])" in line]
    assert [line for line in lines if ' warning' in line and 'warned' in line and 'why=because' in line]
    assert [line for line in lines if ' error' in line and 'excepted' in line and 'missing' in line]
    assert 'not shown' not in done.err


def test_a_slow_module_delays_no_tick_and_its_answer_comes_once_with_a_later_one(run, place):
    place.code('slow', '''
import time
class slow:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        time.sleep(0.25)
        return [{"slow.asked": {"value": global_iteration, "units": ""}}]
''')
    done = run(*place.configure({'stdout': {}}, {'load': {}, 'slow': {'file': 'slow.py'}}) + ('-n', '10'))
    got = payloads(done.out)
    assert done.code == 0 and len(got) == 10
    assert consecutive([p['timestamp'] for p in got], 0.1)
    asked = [(i, points(p)['slow.asked']) for i, p in enumerate(got, 1) if 'slow.asked' in points(p)]
    assert 2 <= len(asked) <= 4 and asked[0][1] == 1
    assert len(set(a for i, a in asked)) == len(asked)
    assert all(2 <= i - a <= 5 for i, a in asked)


def test_a_quick_module_answers_within_its_tick_and_an_async_one_with_the_next(run, place):
    for name in ('quick', 'lazy'):
        place.code(name, '''
class %s:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        return [{"%s.asked": {"value": global_iteration, "units": ""}}]
''' % (name, name))
    modules = {'quick': {'file': 'quick.py'}, 'lazy': {'file': 'lazy.py', 'async': True}}
    done = run(*place.configure({'stdout': {}}, modules, 0.2) + ('-n', '4'))
    assert [points(p) for p in payloads(done.out)] == [
        {'quick.asked': 1}, {'quick.asked': 2, 'lazy.asked': 1}, {'quick.asked': 3, 'lazy.asked': 2},
        {'quick.asked': 4, 'lazy.asked': 3}]


def test_several_slow_modules_together_hold_a_tick_no_longer_than_one(run, place):
    modules = {'self': {}}
    for i in range(12):
        place.code('m%d' % i, '''
import time
class m%d:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        time.sleep(0.06)
        return [{"m%d.asked": {"value": global_iteration, "units": ""}}]
''' % (i, i))
        modules['m%d' % i] = {'file': 'm%d.py' % i}
    done = run(*place.configure({'stdout': {}}, modules) + ('-n', '8'))
    got = payloads(done.out)
    assert consecutive([p['timestamp'] for p in got], 0.1)


def test_the_last_tick_of_a_run_waits_longer_for_who_answers_late(run, place):
    place.code('slow', '''
import time
class slow:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        time.sleep(0.6)
        return [{"slow.asked": {"value": global_iteration, "units": ""}}]
''')
    done = run(*place.configure({'stdout': {}}, {'load': {}, 'slow': {'file': 'slow.py'}}, interval=2) + ('-n', '1'))
    only, = payloads(done.out)
    assert points(only)['slow.asked'] == 1


@pytest.mark.parametrize('what', ['raise ValueError("boom")', 'raise SystemExit(3)'])
def test_a_module_that_raises_is_logged_counted_and_called_again(run, place, what):
    place.code('moody', '''
class moody:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        if global_iteration in (1, 2):
            %s
        return [{"moody.asked": {"value": global_iteration, "units": ""}}]
''' % what)
    done = run(*place.configure({'stdout': {}}, {'moody': {'file': 'moody.py'}, 'self': {}}) + ('-n', '5'))
    got = [points(p) for p in payloads(done.out)]
    assert done.code == 0 and len(got) == 5
    assert [p.get('moody.asked') for p in got] == [None, None, 3, 4, 5]
    assert got[-1]['self.module_errors.moody'] == 2
    assert done.err.count('moody') >= 1 and what.split()[1].split('(')[0] in done.err


def test_values_that_are_no_finite_numbers_are_dropped_and_counted(run, place):
    place.code('odd', '''
class odd:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        if global_iteration == 3:
            return None
        if global_iteration == 4:
            return {"not": "a list"}
        return [{"odd.nan": {"value": float("nan"), "units": ""}}, {"odd.inf": {"value": float("inf"), "units": ""}},
                {"odd.text": {"value": "7", "units": ""}}, {"odd.none": {"value": None, "units": ""}},
                {"odd.bool": {"value": True, "units": ""}}, {"odd.huge": {"value": 10 ** 400, "units": ""}},
                {"odd.bare": 5}, {"odd.empty": {}}, "nonsense", None,
                {"odd.good": {"value": 2 ** 63, "units": "B"}, "odd.too": {"value": -0.5}}]
''')
    done = run(*place.configure({'stdout': {}}, {'load': {}, 'odd': {'file': 'odd.py'}, 'self': {}}) + ('-n', '5'))
    got = [points(p) for p in payloads(done.out)]
    assert done.code == 0 and len(got) == 5
    for i in (0, 1, 4):
        assert {k: v for k, v in got[i].items() if k.startswith('odd')} == {'odd.good': 2 ** 63, 'odd.too': -0.5}
        assert got[i]['load.one'] == 0.01
    for i in (2, 3):
        assert not [k for k in got[i] if k.startswith('odd')]
    assert got[0]['self.module_errors.odd'] == 10 and got[2]['self.module_errors.odd'] == 20


def test_a_user_module_is_found_in_modules_dir_and_its_blacklist_holds(run, place):
    (place.folder / 'mods').mkdir()
    (place.folder / 'mods' / 'fan.py').write_text('''
class fan:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        return [{"fan.speed": {"value": 5, "units": ""}}, {"fan.noise": {"value": 6, "units": ""}}]
''')
    done = run(*place.configure({'stdout': {}}, {'fan': {'blacklist': ['*.noise']}}, modules_dir='mods') + ('-n', '1'))
    assert points(payloads(done.out)[0]) == {'fan.speed': 5}


@pytest.mark.parametrize('code, what', [
    ('class other: pass', 'class'), ('raise ValueError("boom")', 'boom'), ('import', 'SyntaxError'),
    ('class bad:\n def __init__(self, c, l): raise SystemExit(9)\n def get_stats(self, i): pass', 'SystemExit'),
    ('class bad:\n def __init__(self, c, l): pass', 'get_stats')])
def test_user_code_that_does_not_load_is_one_line_and_exit_code_2(run, place, code, what):
    place.code('bad', code)
    done = run(*place.configure({'stdout': {}}, {'bad': {'file': 'bad.py'}}) + ('-n', '1'))
    assert done.code == 2 and done.out == ''
    assert done.err.count('\n') == 1 and what in done.err and 'bad.py' in done.err


# -- user-written emitters --------------------------------------------------------------------

def test_a_user_emitter_gets_the_payload_that_stdout_prints_once_per_tick(run, place):
    done = run(*place.configure({'stdout': {}, 'keep': place.keeper()}, {'load': {}}, cluster='test') + ('-n', '4'))
    assert done.code == 0
    kept = place.kept()
    assert [i for i, p in kept] == [1, 2, 3, 4]
    assert [p for i, p in kept] == payloads(done.out)
    assert list(kept[0][1]) == ['datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6', 'timestamp', 'points']


@pytest.mark.parametrize('what', ['raise ValueError("boom")', 'raise SystemExit(3)'])
def test_an_emitter_that_raises_is_called_again_with_the_same_tick(run, place, what):
    place.code('touchy', '''
class touchy:
    def __init__(self, config, logger):
        self.out, self.calls = open(config['out'], 'a'), 0
    def emit_stats(self, payload, global_iteration):
        self.calls += 1
        self.out.write('%%d %%s\\n' %% (global_iteration, payload['timestamp']))
        self.out.flush()
        if self.calls == 2:
            %s
''' % what)
    emitters = {'touchy': {'file': 'touchy.py', 'out': str(place.folder / 'calls')}}
    done = run(*place.configure(emitters) + ('-n', '4'))
    calls = (place.folder / 'calls').read_text().split('\n')[:-1]
    assert [c.split()[0] for c in calls] == ['1', '2', '2', '3', '4']
    assert calls[1] == calls[2]
    assert done.code == 0 and done.err.count('touchy') >= 1


# -- the end ----------------------------------------------------------------------------------

HANG = '''
import time
class hang:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        while True:
            time.sleep(1)
    emit_stats = lambda self, payload, global_iteration: self.get_stats(1)
'''


def test_dead_sinks_and_hanging_user_code_hold_neither_a_tick_nor_the_end(agent, place):
    place.code('hang', HANG)
    port = free_port()
    with BlackHole() as hole, TcpSink() as sink:
        emitters = {'hole': {'type': 'graphite', 'port': hole.port, 'timeout': 60}, 'hang': {'file': 'hang.py'},
                    'nobody': {'type': 'graphite', 'port': port}, 'graphite': {'port': sink.port}}
        modules = {'load': {}, 'stuck': {'file': 'hang.py'}}
        args = place.configure(emitters, modules)
        by_term, by_int, by_two = agent(*args), agent(*args), agent(*args)
        by_n = agent(*args + ('-n', '7'))
        place.conf = place.folder / 'few.conf'
        few = place.configure({'a': {'type': 'graphite', 'port': port, 'timeout': 1}, 'b': {'type': 'graphite', 'port': port, 'timeout': 1},
                               'keep': place.keeper()})
        few = agent(*few + ('-n', '2'))
        assert until(lambda: len(sink.received) >= 4 and all(data.count(b'.load.one ') >= 5 for data in sink.received), 15)
        began = time.monotonic()
        by_term.send_signal(signal.SIGTERM)
        by_int.send_signal(signal.SIGINT)
        by_two.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        again = time.monotonic()
        by_two.send_signal(signal.SIGINT)
        assert by_two.wait(3) != 0
        assert time.monotonic() - again < 4.0
        for process in (by_term, by_int):
            assert process.wait(12) == 1
            assert time.monotonic() - began < 8.0
            err = process.stderr.read().decode()
            assert 'Traceback' not in err
            last = [line for line in err.split('\n') if 'not delivered' in line]
            assert len(last) == 3
            for name in ('hole', 'hang', 'nobody'):
                assert len([line for line in last if line.startswith('statbadger: %s: ' % name)]) == 1
        for received in sink.received:
            times = stamps(received.decode().split('\n')[:-1])
            assert len(times) >= 5 and consecutive(times, 0.1)
        assert few.wait(10) == 1
        last = [line for line in few.stderr.read().decode().split('\n') if 'not delivered' in line]
        assert [line.split(': ')[1] for line in last] == ['a', 'b']
        assert all('2 of 2 ticks' in line for line in last)
        assert [i for i, p in place.kept()] == [1, 2]
        assert by_n.poll() is None              # its black hole has 60 s: the timeout counts here


def test_a_run_whose_sinks_are_well_ends_at_once_with_exit_code_0(agent, place):
    with TcpSink() as sink:
        args = place.configure({'graphite': {'port': sink.port}, 'keep': place.keeper()})
        runs = [(agent(*args), number) for number in (signal.SIGTERM, signal.SIGINT)]
        assert until(lambda: len(stamps(sink.lines())) >= 6)
        for process, number in runs:
            code, took = end(process, number)
            assert code == 0 and took < 4.0
            assert process.stderr.read() == b''
        assert len(stamps(sink.lines())) == len(place.kept())


def test_a_reader_that_goes_away_ends_the_run_without_a_word(agent, place):
    process = agent(*place.configure({'stdout': {}}))
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.wait(5) == 0
    assert process.stderr.read() == b''


# -- reload -----------------------------------------------------------------------------------

def test_a_reload_changes_emitters_and_modules_and_leaves_the_others_connected(agent, place):
    place.code('extra', '''
class extra:
    def __init__(self, config, logger):
        self.value = config['value']
    def get_stats(self, global_iteration):
        return [{"extra.value": {"value": self.value, "units": ""}}]
''')
    with TcpSink() as one, TcpSink() as two, TcpSink() as three:
        stays = {'port': one.port}
        place.configure({'stays': dict(stays, type='graphite'), 'goes': {'type': 'graphite', 'port': two.port}})
        process = started(place, agent, '-f', place.conf, '--root', place.root)
        assert until(lambda: len(stamps(one.lines())) > 2 and len(stamps(two.lines())) > 2)
        place.configure({'stays': dict(stays, type='graphite'), 'comes': {'type': 'graphite', 'port': three.port}},
                        {'load': {}, 'extra': {'file': 'extra.py', 'value': 5}})
        process.send_signal(signal.SIGHUP)
        assert until(lambda: len(stamps(three.lines())) > 2)
        assert until(lambda: two.ended == [True])
        assert until(lambda: [line for line in one.lines() if '.extra.value 5 ' in line])
        place.configure({'stays': dict(stays, type='graphite')}, {'load': {}, 'extra': {'file': 'extra.py', 'value': 6}})
        process.send_signal(signal.SIGHUP)
        assert until(lambda: [line for line in one.lines() if '.extra.value 6 ' in line])
        code, took = end(process)
        assert code == 0
        assert len(one.received) == 1, 'was dialled again'
        assert consecutive(stamps(one.lines()), 0.1)
        assert said(place).count('reloaded') == 2


def test_a_reload_changes_the_interval(agent, place):
    place.configure({'keep': place.keeper()}, interval=0.1)
    process = started(place, agent, '-f', place.conf, '--root', place.root)
    assert until(lambda: len(place.kept()) > 2)
    place.configure({'keep': place.keeper()}, interval=0.25)
    process.send_signal(signal.SIGHUP)
    n = len(place.kept())
    assert until(lambda: len(place.kept()) > n + 4)
    assert end(process)[0] == 0
    assert consecutive([p['timestamp'] for i, p in place.kept()][-4:], 0.25)


def test_a_bad_new_configuration_changes_nothing_and_is_reported(agent, place):
    process = started(place, agent, *place.configure({'keep': place.keeper()}))
    assert until(lambda: len(place.kept()) > 2)
    for bad in ('{"emitters": {', '{"emitters": {"grafite": {}}, "interval": "x"}', ''.join(['\xff']), None):
        said_before = said(place).count('not reloaded')
        if bad is None:
            place.conf.unlink()
        else:
            place.conf.write_bytes(bad.encode('latin-1'))
        process.send_signal(signal.SIGHUP)
        assert until(lambda: said(place).count('not reloaded') > said_before)
    assert ':1: emitters.grafite: ' in said(place) and ':1: interval: ' in said(place)
    n = len(place.kept())
    assert until(lambda: len(place.kept()) > n + 3)
    assert end(process)[0] == 0
    assert said(place).count('not reloaded') == 5 == said(place).count(str(place.conf))
    assert len(place.kept()) >= place.kept()[-1][0] >= n + 4


def test_an_emitter_that_stays_keeps_what_is_pending_over_a_reload(agent, place):
    port = free_port()
    place.configure({'keep': place.keeper(), 'late': {'type': 'graphite', 'port': port}})
    process = started(place, agent, '-f', place.conf, '--root', place.root)
    assert until(lambda: len(place.kept()) > 3)
    place.configure({'keep': place.keeper(), 'late': {'type': 'graphite', 'port': port},
                     'new': dict(place.keeper('other'), type='keep')}, {'load': {}, 'self': {}})
    process.send_signal(signal.SIGHUP)
    assert until(lambda: len(place.kept('other')) > 2)
    with TcpSink(port=port) as sink:
        assert until(lambda: len(stamps(sink.lines())) > len(place.kept('other')), 8)
        code, took = end(process)
        assert code == 0
        assert stamps(sink.lines()) == [p['timestamp'] for i, p in place.kept()]


BROKEN = 'class broken:\n    def __init__(self, config, logger):\n        raise ValueError("broken")\n'


def numbers(process):
    """(open descriptors, threads) of a process."""
    return len(os.listdir('/proc/%d/fd' % process.pid)), len(os.listdir('/proc/%d/task' % process.pid))


def hang_up(process, place, word, times):
    """So many reloads, one after the other."""
    for _ in range(times):
        before = said(place).count(word)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: said(place).count(word) > before), 'no reload'
        assert process.poll() is None


def test_hundreds_of_broken_reloads_end_nothing_miss_nothing_and_leave_nothing_behind(agent, place):
    place.code('broken', BROKEN)
    place.code('fine', 'class fine:\n    def __init__(self, c, l): pass\n    def get_stats(self, i): pass\n')
    process = started(place, agent, *place.configure({'keep': place.keeper()}))
    assert until(lambda: len(place.kept()) > 2)
    # all is well but the last emitter: what was made before it must be taken back
    place.configure({'keep': place.keeper(), 'new': {'type': 'graphite', 'port': 1}, 'broken': {'file': 'broken.py'}},
                    {'load': {}, 'fine': {'file': 'fine.py'}})
    hang_up(process, place, 'not reloaded', 5)
    before = numbers(process)
    hang_up(process, place, 'not reloaded', 120)
    after = numbers(process)
    assert end(process)[0] == 0
    assert consecutive([p['timestamp'] for i, p in place.kept()], 0.1)
    assert after[0] <= before[0] + 5 and after[1] <= before[1] + 2, (before, after)


def test_hundreds_of_good_reloads_miss_nothing_and_leave_nothing_behind(agent, place):
    place.code('fine', 'class fine:\n    def __init__(self, c, l): pass\n    def get_stats(self, i): pass\n')
    with TcpSink() as sink:
        def configure(i):
            place.configure({'keep': place.keeper(), 'graphite': {'port': sink.port, 'tags': {'n': str(i)}}},
                            {'load': {}, 'fine': {'file': 'fine.py', 'n': i}})
        configure(0)
        process = started(place, agent, '-f', place.conf, '--root', place.root)
        assert until(lambda: len(place.kept()) > 2)
        for i in range(1, 6):
            configure(i)
            hang_up(process, place, ' reloaded: ', 1)
        before = numbers(process)
        for i in range(6, 66):
            configure(i)
            hang_up(process, place, ' reloaded: ', 1)
        until(lambda: numbers(process)[0] <= before[0] + 5, 1)
        after = numbers(process)
        assert end(process)[0] == 0
        times = [p['timestamp'] for i, p in place.kept()]
        assert consecutive(times, 0.1)
        assert sorted(set(stamps(sink.lines()))) == times
        assert after[0] <= before[0] + 5 and after[1] <= before[1] + 2, (before, after)


def test_a_reload_takes_user_code_that_was_changed(agent, place):
    def code(value):
        place.code('mine', 'class mine:\n    def __init__(self, c, l): pass\n    def get_stats(self, i):\n'
                           '        return [{"mine.n": {"value": %d, "units": ""}}]\n' % value)
    code(1)
    process = started(place, agent, *place.configure({'keep': place.keeper()}, {'mine': {'file': 'mine.py'}}))

    def values():
        return [point['mine.n']['value'] for i, p in place.kept() for point in p['points']]
    assert until(lambda: 1 in values())
    code(22)
    process.send_signal(signal.SIGHUP)
    assert until(lambda: 22 in values())
    assert end(process)[0] == 0
    assert sorted(values()) == values()


def test_a_reload_whose_user_code_calls_exit_changes_nothing(agent, place):
    place.code('leaver', 'import sys\nsys.exit("gone")\n')
    process = started(place, agent, *place.configure({'keep': place.keeper()}))
    assert until(lambda: len(place.kept()) > 2)
    place.configure({'keep': place.keeper(), 'leaver': {'file': 'leaver.py'}})
    process.send_signal(signal.SIGHUP)
    assert until(lambda: 'not reloaded' in said(place), 2)
    n = len(place.kept())
    assert until(lambda: len(place.kept()) > n + 2)


# -- sinks that come and go -------------------------------------------------------------------

def test_a_server_that_is_absent_at_the_start_and_restarted_later_misses_nothing(agent, place):
    port = free_port()
    process = started(place, agent, *place.configure({'keep': place.keeper(), 'graphite': {'port': port}}))
    assert until(lambda: len(place.kept()) > 5)
    first = TcpSink(port=port)
    assert until(lambda: len(stamps(first.lines())) > 8, 8)
    first.stop()
    n = len(place.kept())
    assert until(lambda: len(place.kept()) > n + 5)
    with TcpSink(port=port) as second:
        assert until(lambda: len(stamps(second.lines())) > 8, 8)
        assert end(process)[0] == 0
        times = [p['timestamp'] for i, p in place.kept()]
        assert stamps(first.lines()) == times[:len(stamps(first.lines()))]
        assert stamps(second.lines()) == times          # what the first had in its last ten seconds goes again
        assert consecutive(times, 0.1)


def test_a_standard_output_that_nobody_reads_delays_no_other_emitter(agent, place):
    place.code('wide', '''
class wide:
    def __init__(self, config, logger):
        pass
    def get_stats(self, global_iteration):
        return [{"wide.n%d" % i: {"value": i, "units": ""}} for i in range(1000)]
''')
    with TcpSink() as sink:
        process = agent(*place.configure({'stdout': {}, 'graphite': {'port': sink.port}},
                                         {'load': {}, 'wide': {'file': 'wide.py', 'async': True}}, 0.05))
        assert until(lambda: len(stamps(sink.lines())) > 30, 8)      # a pipe of 64 kB is full after two ticks
        assert consecutive(stamps(sink.lines()), 0.05)
        assert select.select([process.stdout], [], [], 0)[0]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=8)[0]        # now somebody does
        assert process.returncode == 0 and time.monotonic() - began < 3
        got = payloads(rest.decode())
        assert [p['timestamp'] for p in got] == stamps(sink.lines())


# -- the host changes -------------------------------------------------------------------------

NET = ('Inter-|   Receive                                                |  Transmit\n'
       ' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n'
       '  eth0: %d 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n')


def test_a_file_that_vanishes_and_returns_takes_only_its_own_metrics_away(agent, place):
    (place.root / 'proc' / 'net').mkdir()
    (place.root / 'proc' / 'net' / 'dev').write_text(NET % 1000)
    (place.root / 'proc' / 'uptime').write_text('100.00 200.00\n')
    process = started(place, agent, *place.configure({'keep': place.keeper()}, {'load': {}, 'network': {}, 'system': {}}))
    assert until(lambda: len(place.kept()) > 2)
    for name in ('proc/net/dev', 'proc/uptime'):
        (place.root / name).rename(place.folder / 'away')
        assert until(lambda: not [k for k in points(place.kept()[-1][1]) if k.startswith(
            'net.' if 'net' in name else 'system.uptime')])
        (place.folder / 'away').rename(place.root / name)
    n = len(place.kept())
    assert until(lambda: len(place.kept()) > n + 3)
    assert end(process)[0] == 0
    kept = place.kept()
    assert all(points(p)['load.one'] == 0.01 for i, p in kept)
    assert all(0 <= v < 1e9 for i, p in kept for v in points(p).values())
    assert consecutive([p['timestamp'] for i, p in kept], 0.1)


# -- record and replay ------------------------------------------------------------------------

def test_a_record_replayed_gives_the_same_points(run, place):
    modules = {'cpu': {'per_core': True}, 'load': {}, 'memory': {}, 'network': {'interfaces': ['*']}, 'disk': {}, 'system': {}}
    args = place.configure({'stdout': {}}, modules, 0.5)[:2]
    lived = run(*args + ('-n', '4', '--record', str(place.folder / 'record')))
    replayed = run(*args + ('--replay', str(place.folder / 'record')))
    assert lived.code == 0 and replayed.code == 0
    assert len(os.listdir(str(place.folder / 'record'))) == 5
    live, again = payloads(lived.out), payloads(replayed.out)
    assert len(live) == len(again) == 4
    for one, other in zip(live, again):
        assert one['timestamp'] == other['timestamp'] and one['hostname'] == other['hostname']
        assert [list(p) for p in one['points']] == [list(p) for p in other['points']]
        for name, value in points(one).items():
            # the recording knows milliseconds, and when a reading began: on a busy host some hundredths of a rate
            assert points(other)[name] == pytest.approx(value, rel=0.05, abs=1e-9), name


def recording(folder, n, interval=1.0, start=1700000000.0):
    """A made-up recording of n snapshots with a load and an interface; every third lacks the interface."""
    for i in range(n):
        at = folder / ('%.3f' % (start + i * interval)) / 'proc'
        at.mkdir(parents=True)
        (at / 'loadavg').write_text('%.2f 0.04 0.05 2/321 4242\n' % (i / 100.0))
        if i % 3 != 2:
            (at / 'net').mkdir()
            (at / 'net' / 'dev').write_text(NET % (i * 1000))
    return str(folder)


def test_a_replay_is_the_same_byte_for_byte_wherever_it_runs(run, place):
    record = recording(place.folder / 'record', 12)
    args = place.configure({'stdout': {}}, {'load': {}, 'network': {}, 'self': {}}, 1)[:2] + ('--replay', record)
    one = run(*args)
    two = run(*args, env={'TZ': 'Asia/Tokyo', 'PYTHONHASHSEED': '7', 'LC_ALL': 'C'}, cwd='/')
    assert one.code == two.code == 0 and one.out == two.out
    got = payloads(one.out)
    assert [p['timestamp'] for p in got] == [1700000000 + i for i in range(1, 12)]
    assert [points(p)['load.one'] for p in got] == [i / 100.0 for i in range(1, 12)]
    # 1,000 bytes a second; where the file is missing there is nothing, and the base stays
    assert [points(p).get('net.rx_bytes.eth0') for p in got] == [1000, None, 1000, 1000, None, 1000, 1000, None, 1000, 1000, None]
    assert not [k for p in got for k in points(p) if k.startswith('self.')]


def test_a_file_that_snapshots_lack_is_spoken_of_once_at_most(run, place):
    record = recording(place.folder / 'record', 30)
    done = run(*place.configure({'stdout': {}}, {'load': {}, 'network': {}}, 1)[:2] + ('--replay', record))
    assert done.code == 0 and done.err.count('\n') <= 2


def test_a_replay_into_a_slow_sink_waits_for_it_and_loses_nothing(run, place):
    record = recording(place.folder / 'record', 600)
    with TcpSink(slow=0.001, piece=2048, small=True) as sink:
        args = place.configure({'graphite': {'port': sink.port, 'batch': 5, 'prefix': 'p' * 150}}, {'load': {}}, 1,
                               spool={'memory_bytes': 65536})[:2]
        done = run(*args + ('--replay', record))
        assert done.code == 0 and done.err == ''
        assert until(lambda: len(stamps(sink.lines())) == 599)
        assert stamps(sink.lines()) == [1700000000.0 + i for i in range(1, 600)]


def test_a_replay_into_a_slow_user_emitter_loses_nothing_and_n_ends_it(run, place):
    place.code('slow', KEEP.replace('class keep', 'import time\nclass slow').replace('self.out.flush()', 'self.out.flush(); time.sleep(0.002)'))
    record = recording(place.folder / 'record', 300)
    args = place.configure({'slow': {'file': 'slow.py', 'out': str(place.folder / 'kept')}}, {'load': {}}, 1,
                           spool={'memory_bytes': 65536})[:2]
    done = run(*args + ('--replay', record, '-n', '250'))
    assert done.code == 0
    assert [i for i, p in place.kept()] == list(range(1, 251))


# -- without a process ------------------------------------------------------------------------

def test_a_worker_that_is_closed_gives_its_descriptors_back():
    class Source:
        closed = 0

        def read(self, *work):
            return [work]

        def close(self):
            Source.closed += 1
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(5):
        worker = statbadger.Worker(Source())
        assert worker.ask(1, 2) == [] and worker.collect(0.5) == [(1, 2)]
        worker.close()
    assert until(lambda: len(os.listdir('/proc/self/fd')) <= before, 5) and Source.closed == 5


def test_a_module_that_takes_long_three_times_running_gets_a_thread_of_its_own():
    class Source:
        tree = statbadger.Tree({'': '/', 'proc': '/proc', 'sys': '/sys'}, lambda: 0.0, hold=True)
    running = statbadger.Running(options(kind='cpu', options={'async': False}), 1000, Source(), False)
    verdicts = []
    for took in (0.2, 0.2, 0.01, 0.2, 0.2, 0.2):
        running.duration = took
        verdicts.append(running.too_slow())
    assert verdicts == [False] * 5 + [True]
    before = running.source.tree
    running.part()
    try:
        assert running.source.alone and running.source.tree is not before and running.source.tree.hold
        assert running.worker.source is running.source
    finally:
        running.source.close = lambda: None
        running.worker.close()


def test_what_a_module_has_to_say_is_no_row(host):
    said = []
    table = statbadger.Table('t', (statbadger.Metric('a', statbadger.GAUGE, '', ''),))

    def part(tree, options, memory):
        yield statbadger.Say('half of it cannot be read')
        yield table, (), [1]
    parts = statbadger.Parts('mod', [part], None, host({}), lambda level, text: said.append((level, text)))
    (series, values), = parts.read(0.0)
    assert values == [1] and said == [('warning', 'mod: half of it cannot be read')]


def test_what_a_module_said_too_late_is_heard_once():
    go = threading.Event()

    class Source:
        def read(self, n):
            if n == 1:
                go.wait(5)
            return [n]

        def close(self):
            pass
    worker = statbadger.Worker(Source())
    assert worker.ask(1) == [] and worker.collect(0.05) == []
    assert worker.ask(2) == [] and worker.collect(0.05) == []       # still at the first question
    go.set()
    assert until(lambda: not worker.busy)
    assert worker.ask(3) == [1] and worker.collect(0.5) == [3]
    assert worker.ask(4) == [] and worker.collect(0.5) == [4]
    worker.close()
