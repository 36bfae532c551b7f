"""The emitter for Druid: its tasks, its dialogue with an overlord and with Tranquility, and the supervisor it prints.

What is expected of a task was seen to be right with a real Druid 33 (tests/peers/test_druid_peer.py).
"""
import json
import re

import pytest
import statbadger
from conftest import options
from rig import LAYOUT, WHO, Rig, configured, role_of
from standins import ALWAYS
from standins_druid import GONE, LOCKS, PARSE, TASKS, DruidStandin, TranquilityStandin
from test_faults import frame, layout

WORDS = 'a"b\\c\nd,e\x00f\x1b\u2028 \ufffd\U0001f4be %s %d {hostname} </script>'
COLUMNS = ['datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6', 'metric', 'units', 'device',
           'interface', 'cpu', 'mount', 'group', 'pid', 'thread', 'container', 'name', 'id', 'image', 'runtime',
           'fstype', 'module', 'emitter']


@pytest.fixture
def server():
    with DruidStandin() as overlord:
        yield overlord
        assert overlord.complaints == []


def rig(server, **values):
    return Rig('druid', **dict({'url': 'http://127.0.0.1:%d' % server.port, 'flush': 0}, **values))


def numbers(server, datasource='statbadger'):
    """The ticks that are stored, in order, as often as they are."""
    return [int(row['value']) for row in server.rows(datasource) if row['metric'] == 'cpu.user']


def posts(server):
    return [json.loads(request.body.decode()) for request in server.requests if request.method == 'POST']


# -- rows and tasks ------------------------------------------------------------------------------

def test_a_task_appends_its_rows_or_fails_as_a_whole(server):
    with rig(server, tags={'env': 'prod'}, flush=3600) as agent:
        agent.tick(1700000000, 1700000001)
        agent.spool.hurry()
        agent.settled()
    row = dict(WHO, timestamp=1700000001000, env='prod')
    assert server.rows()[3:] == [
        dict(row, metric='cpu.user', value=1700000001.0, units='percent'),
        dict(row, metric='disk.reads', device='sda', value=1700000001.0, units=''),
        dict(row, metric='mem.memtotal', value=1700000001, units='B')]
    task, = posts(server)
    name, data = task.pop('id'), task['spec']['ioConfig']['inputSource'].pop('data')
    assert [json.loads(line) for line in data.split('\n')] == server.rows()
    assert task == {'type': 'index_parallel', 'context': {'useConcurrentLocks': True}, 'spec': {
        'dataSchema': {
            'dataSource': 'statbadger', 'timestampSpec': {'column': 'timestamp', 'format': 'millis'},
            'dimensionsSpec': {'dimensions': COLUMNS + ['env', {'type': 'double', 'name': 'value'}],
                               'useSchemaDiscovery': True},
            'granularitySpec': {'segmentGranularity': 'HOUR', 'queryGranularity': 'NONE', 'rollup': False}},
        'ioConfig': {'type': 'index_parallel', 'appendToExisting': True, 'inputFormat': {'type': 'json'},
                     'inputSource': {'type': 'inline'}},
        'tuningConfig': {'type': 'index_parallel', 'partitionsSpec': {'type': 'dynamic'}, 'maxParseExceptions': 0}}}
    assert re.match(r'statbadger_statbadger_n1_[0-9a-f]{12}_1-2_[0-9a-f]{8}_0\Z', name)


@pytest.mark.parametrize('ms', [1700000000000, 1700000000250, 1700000000001, 0, 999])
def test_rows_carry_the_time_in_ms(server, ms):
    with rig(server) as agent:
        agent.tick(7, time_ms=ms)
        agent.settled()
    assert {row['timestamp'] for row in server.rows()} == {ms}


def test_whatever_a_host_calls_things_its_rows_stay_rows(server):
    series = statbadger.Series('own', WORDS, WORDS, statbadger.GAUGE, ('device',), (WORDS,))
    who = {key: WORDS for key in WHO}
    with rig(server, tags={WORDS.replace(',', '').replace('\n', '').replace('\0', '').replace('\x1b', ''): WORDS},
             datasource='da"ta\\ ,\u00fc') as agent:
        agent.tick(7, who=who, layout=statbadger.Layout((series,)))
        agent.settled()
    row, = server.rows('da"ta\\ ,\u00fc')
    tag, = set(row) - set(COLUMNS) - {'timestamp', 'value'}
    assert row.pop(tag) == WORDS and '\u2028 \ufffd\U0001f4be' in tag
    assert row == dict(who, timestamp=7000, metric='own.' + WORDS, device=WORDS, value=7, units=WORDS)
    name, = server.tasks
    assert re.match(r'[A-Za-z0-9._-]{50,200}\Z', name)


def parts(texts, most):
    frames = [frame(n) for n in range(1, len(texts) + 1)]
    found = list(statbadger.text_parts(lambda f: texts[f.iteration - 1], frames, most))
    assert sum((part for part, text in found), []) == frames
    return [text for part, text in found]


def test_a_batch_is_cut_between_ticks_where_it_has_so_many_characters():
    assert parts(['aa', 'bb', 'cc', 'dd', 'ee'], 4) == ['aabb', 'ccdd', 'ee']
    assert parts(['aa', 'bb'], 3) == ['aa', 'bb']
    assert parts(['aa', 'bbbbbb', 'c', '', 'd'], 3) == ['aa', 'bbbbbb', 'cd']
    assert parts(['', '', 'a'], 1) == ['a']
    assert parts(['', ''], 1) == [''] and parts(['a'], 1) == ['a']


def test_a_batch_that_is_cut_is_acknowledged_part_by_part(server):
    state = statbadger.DruidState()
    state.most = 2000
    with rig(server, flush=3600) as agent:
        agent.sender.role.memory['druid'] = state
        server.fates = [None, None, LOCKS, LOCKS, None]
        agent.tick(*range(1, 9))
        agent.spool.hurry()
        assert agent.settled()['acknowledged'] == 8
    assert numbers(server) == list(range(1, 9)) and len(server.tasks) >= 5
    assert [name[-2:] for name in server.tasks][:5] == ['_0', '_0', '_0', '_1', '_2']


def test_ticks_that_have_no_point_need_no_task(server):
    with rig(server, blacklist=['*']) as agent:
        agent.tick(1, 2, 3)
        assert agent.settled()['acknowledged'] == 3
    assert server.requests == []


def name_of(run='aa', first=1, last=1, rows='x', failed=0, host='n1', datasource='d'):
    ticks = []
    for seq in (first, last):
        tick = frame(seq)
        tick.run, tick.seq, tick.identity = run, seq, dict(WHO, hostname=host)
        ticks.append(tick)
    return statbadger.druid_name(datasource, ticks, rows, failed)


def test_a_task_is_called_the_same_when_it_is_the_same_and_else_not():
    assert name_of() == name_of() == 'statbadger_d_n1_aa_1-1_8cdc1683_0'
    others = [name_of(run='ab'), name_of(first=0), name_of(last=2), name_of(rows='y'), name_of(failed=1),
              name_of(host='n2'), name_of(datasource='e')]
    assert len(set(others + [name_of()])) == 8
    assert re.match(r'[A-Za-z0-9._-]{,200}\Z', name_of(host='h/\n' * 99, datasource='\u00fc,' * 50, last=10 ** 15))


def test_two_emitters_of_one_agent_do_not_take_each_others_tasks_for_their_own(server):
    """Both of them know the same ticks of the same run."""
    url = 'http://127.0.0.1:%d' % server.port
    with rig(server) as first, rig(server, blacklist=['cpu.*']) as second:
        second.spool.run = first.spool.run
        assert url in str(first.sender.role.target)
        first.tick(1)
        second.tick(1)
        first.settled(), second.settled()
    assert sorted(row['metric'] for row in server.rows()) == ['cpu.user', 'disk.reads', 'disk.reads', 'mem.memtotal',
                                                              'mem.memtotal']


# -- what an overlord answers --------------------------------------------------------------------

def test_a_tick_is_acknowledged_when_its_task_has_ended_and_not_before(server):
    server.asks = ALWAYS
    with rig(server, timeout=60) as agent:
        agent.tick(1)
        agent.until(lambda: len(server.requests) > 8)
        assert agent.adds_up()['acknowledged'] == 0 and agent.sender.failure is None
        list(server.tasks.values())[0].asks = 0
        assert agent.settled()['acknowledged'] == 1
    assert len(posts(server)) == 1
    pauses = [round(seconds, 2) for seconds in agent.clock.skipped]
    assert pauses[:6] == [0.25, 0.5, 1, 2, 4, 4] and max(pauses) == 4


def test_a_task_that_does_not_end_in_time_is_said_and_waited_for_and_nothing_else_is_posted(server):
    server.asks = ALWAYS
    with rig(server, timeout=0.2) as agent:
        agent.tick(1)
        agent.until(lambda: 'has not ended within 0.2 s: it is PENDING' in agent.said())
        agent.tick(2)
        agent.until(lambda: agent.sender.failures > 3)
        assert len(server.tasks) == len(posts(server)) == 1
        server.asks = 0
        list(server.tasks.values())[0].asks = 0
        assert agent.settled()['acknowledged'] == 2
    assert numbers(server) == [1, 2]


def once(server, agent, said='', failed=()):
    """The ticks 1 and 2 end up stored once; what was said, and the fates of all tasks."""
    agent.tick(1)
    agent.settled()
    agent.tick(2)
    assert agent.settled() == dict(agent.settled(), acknowledged=2, dropped=0, quarantined=0)
    assert numbers(server) == [1, 2]
    assert said in agent.said() and bool(said) == bool(agent.said())
    assert [task.failure for task in server.tasks.values()] == list(failed) + [None, None]


@pytest.mark.parametrize('fate', [LOCKS, GONE, 'Shutdown request from user', 'Canceled', 'a reason of its own'])
def test_a_task_that_failed_for_reasons_of_the_server_goes_again_under_another_name(server, fate):
    server.fates = [fate]
    with rig(server) as agent:
        once(server, agent, fate, [fate])
    assert [name[-2:] for name in server.tasks] == ['_0', '_1', '_0']


def test_what_one_task_cannot_store_ten_times_goes_in_halves_and_is_quarantined_alone(server):
    """A reason that nobody knows may be the data's fault after all."""
    server.dislike = lambda rows: 'Wrong number of splits[5]' if any(
        row['metric'] == 't.marker' for row in rows) else None
    with rig(server, flush=3600) as agent:
        for number in range(1, 5):
            one = frame(number, layout('a', 'marker') if number == 3 else layout('a'))
            agent.spool.accept(one)
        agent.spool.hurry()
        count = agent.settled(30)
    assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (3, 1, 2)
    assert [int(row['value']) for row in server.rows()] == [1, 2, 4]


@pytest.mark.parametrize('fate', [LOCKS, GONE, 'Shutdown request from user'])
def test_locks_and_workers_are_never_the_fault_of_a_tick(server, fate):
    server.fates = [fate] * 10 + [None] + [fate] * 45
    with rig(server, flush=3600) as agent:
        agent.tick(1, 2, 3, 4)
        agent.spool.hurry()
        count = agent.settled(60)
    assert count['acknowledged'] == 4 and numbers(server) == [1, 2, 3, 4]


@pytest.mark.parametrize('host, datasource', [('worker-1', 'd'), ('worker', 'd'), ('n1', 'blockstore'), ('n1', 'lock')])
def test_names_that_sound_like_locks_and_workers_do_not_let_a_bad_tick_stay_for_ever(server, host, datasource):
    def status(name):
        code, text = DruidStandin.status(server, name)
        return code, text.replace('TASKID', name)
    server.status = status
    server.dislike = lambda rows: 'Task[TASKID] of %s failed on %s: splits[5]' % (datasource, host) if any(
        row['value'] == 2 for row in rows) else None
    with rig(server, flush=3600, datasource=datasource) as agent:
        agent.tick(1, 2, 3, who=dict(WHO, hostname=host))
        agent.spool.hurry()
        count = agent.settled(30)
    assert (count['acknowledged'], count['quarantined']) == (2, 1)


@pytest.mark.parametrize('failure, busy', [
    (LOCKS, True), (GONE, True), ('java.lang.InterruptedException', True), ('No task slots.', True), ('Canceled', True),
    ('java.util.concurrent.CancellationException: Task was cancelled.', True), ('Failed to assign this task', True),
    ('Cannot read redis.lock of worker-1', False), ('a blocked clock', False), ('', False)])
def test_what_speaks_of_locks_and_workers(failure, busy):
    assert statbadger.druid_busy(failure, ('d', 'n1')) == busy
    assert statbadger.druid_busy(failure, ('lock', 'worker')) == busy


@pytest.mark.parametrize('already', [
    {'errorCode': 'entryAlreadyExists', 'errorMessage': 'Task[%s] already exists'},
    {'error': 'Task[%s] already exists!'}], ids=['now', 'once'])
def test_a_task_that_the_overlord_has_already_is_ours(server, already):
    with rig(server) as agent:
        def lost(request):
            answer = DruidStandin.reply(server, request)
            if request.method == 'POST' and len(posts(server)) == 1:
                return 503, {}, 'no answer'
            return (400, {}, json.dumps(already)) if answer[0] == 400 else answer
        server.reply = lost
        once(server, agent, 'HTTP 503')
    assert [task['id'][-2:] for task in posts(server)] == ['_0', '_0', '_0']


@pytest.mark.parametrize('taken', [True, False])
def test_an_overlord_that_stumbles_is_asked_whether_it_has_taken_the_task(server, taken):
    def stumble(request):
        first = request.method == 'POST' and len(posts(server)) == 1
        answer = (500, {}, 'oops') if first and not taken else DruidStandin.reply(server, request)
        return (500, {}, 'oops') if first else answer
    server.reply = stumble
    with rig(server) as agent:
        once(server, agent, '' if taken else 'HTTP 500: oops')
    assert len(posts(server)) == (2 if taken else 3)


def test_a_task_that_the_overlord_has_forgotten_is_posted_again(server):
    with rig(server) as agent:
        def forgetful(request):
            if request.method == 'GET' and len(server.requests) == 2:
                server.tasks.clear()
            return DruidStandin.reply(server, request)
        server.reply = forgetful
        once(server, agent, 'does not know the task')


def test_an_overlord_that_does_not_like_the_task_as_a_whole_is_not_told_the_ticks_are_bad(server):
    server.answer(400, body='{"error":"Cannot construct instance of `DataSchema`,\\n problem: x"}', times=3)
    with rig(server) as agent:
        once(server, agent, 'HTTP 400: {"error":"Cannot construct instance of `DataSchema`')
        assert [round(seconds) for seconds in agent.clock.skipped if seconds > 59] == [60] * 3


@pytest.mark.parametrize('status', [400, 500])
def test_a_task_that_was_not_taken_is_forgotten_and_goes_as_a_reload_has_it(server, status):
    def choosy(request):
        bad = request.method == 'POST' and b'"bad"' in request.body
        return (status, {}, 'not that') if bad else DruidStandin.reply(server, request)
    server.reply = choosy
    with rig(server, datasource='bad') as agent:
        agent.tick(1)
        agent.until(lambda: 'HTTP %d: not that' % status in agent.said())
        agent.renew(url='http://127.0.0.1:%d' % server.port, flush=0, datasource='good')
        assert agent.settled()['acknowledged'] == 1
    assert numbers(server, 'good') == [1]


@pytest.mark.parametrize('status, pause', [(401, 300), (403, 300), (307, 300), (404, 60), (405, 60), (400, 60),
                                           (409, 60), (415, 60), (422, 60)])
def test_what_an_overlord_does_not_allow_is_tried_again_after_minutes(server, status, pause):
    server.answer(status, path=TASKS)
    with rig(server) as agent:
        once(server, agent, 'HTTP %d' % status)
        assert [round(seconds) for seconds in agent.clock.skipped if seconds > 59] == [pause]


@pytest.mark.parametrize('status, pauses', [(400, [60]), (401, [300]), (409, [60]), (413, [60]), (500, []), (503, [])])
def test_a_question_for_a_task_that_is_not_answered_costs_nothing(server, status, pauses):
    def shy(request):
        asked = [one for one in server.requests if one.method == 'GET']
        return (status, {}, 'no') if request.method == 'GET' and len(asked) == 1 else DruidStandin.reply(server, request)
    server.reply = shy
    with rig(server) as agent:
        once(server, agent, 'HTTP %d' % status)
        assert [round(seconds) for seconds in agent.clock.skipped if seconds > 59] == pauses
    assert len(posts(server)) == 2


def test_a_task_that_is_too_large_goes_in_halves_and_the_next_ones_are_smaller(server):
    server.largest = 20000
    with rig(server, flush=3600) as agent:
        agent.tick(*range(1, 140))
        agent.spool.hurry()
        assert agent.settled()['acknowledged'] == 139
        refused = len(posts(server)) - len(server.tasks)
        agent.tick(*range(140, 280))
        agent.spool.hurry()
        assert agent.settled()['acknowledged'] == 279
    assert numbers(server) == list(range(1, 280))
    assert 0 < refused and len(posts(server)) - len(server.tasks) - refused < 6


def test_after_a_proxy_that_took_nothing_the_tasks_grow_again(server):
    server.answer(413, body='client_max_body_size', times=30)
    with rig(server, flush=3600) as agent:
        agent.tick(*range(1, 61))
        agent.spool.hurry()
        agent.settled(30)
        state, least = agent.sender.role.memory['druid'], min(map(len, [json.dumps(post) for post in posts(server)]))
        assert least // 3 < state.most < statbadger.DRUID_MOST
        for first in range(100, 900, 100):
            before = len(server.tasks)
            agent.tick(*range(first, first + 60))
            agent.spool.hurry()
            agent.settled(60)
    assert len(server.tasks) - before < 3


@pytest.mark.parametrize('method', ['POST', 'GET'])
@pytest.mark.parametrize('body', ['', 'null', '[]', '{}', '"x"', '{"task": 1}', '{"task": "other"}', '{', '\xff\xfe',
                                  '{"status": null}', '{"status": {}}', '{"status": {"statusCode": ["x"]}}',
                                  '{"status": {"statusCode": "DONE"}}', '[' * 9000, '1e999', '<html>', 'x' * 200000])
def test_an_answer_that_makes_no_sense_is_trouble_and_no_end_of_anything(server, method, body):
    def strange(request):
        answer = DruidStandin.reply(server, request)
        strange.left -= request.method == method
        return (200, {}, body.encode('latin-1')) if request.method == method and strange.left >= 0 else answer
    strange.left = 2
    server.reply = strange
    with rig(server) as agent:
        agent.tick(1)
        agent.until(lambda: agent.sender.failures or agent.cursor.count['acknowledged'])
        agent.settled()
        assert 'statbadger.py' not in agent.said() and re.search('no JSON|is it an overlord|none', agent.said())
    assert numbers(server) == [1] and len(server.tasks) == 1


def test_a_failure_without_a_reason_is_said_too(server):
    server.fates = ['x']
    with rig(server) as agent:
        def mute(request):
            status, headers, body = DruidStandin.reply(server, request)
            return status, headers, body.replace('"errorMsg": "x"', '"errorMsg": null')
        server.reply = mute
        once(server, agent, 'failed: it does not say why', ['x'])


# -- what must not be doubled --------------------------------------------------------------------

def stuck(server, agent):
    """Tick 1 is in a task that has no end yet."""
    server.asks = ALWAYS
    agent.tick(1)
    agent.until(lambda: server.tasks and agent.sender.failures)


def unstick(server):
    server.asks = 0
    for task in list(server.tasks.values()):
        task.asks = 0


@pytest.mark.parametrize('change', [{'tags': {'env': 'x'}}, {'blacklist': ['mem.*']}, {'datasource': 'other'},
                                    {'gzip': False}, {'timeout': 1}])
def test_a_reload_does_not_double_what_is_in_a_task_already(server, change):
    with rig(server, timeout=0.1) as agent:
        stuck(server, agent)
        agent.renew(**dict({'url': 'http://127.0.0.1:%d' % server.port, 'flush': 0, 'timeout': 0.1}, **change))
        agent.tick(2)
        agent.until(lambda: agent.sender.renewal is None)
        unstick(server)
        assert agent.settled()['acknowledged'] == 2
    assert numbers(server) == ([1] if 'datasource' in change else [1, 2])
    assert numbers(server, 'other') == ([2] if 'datasource' in change else [])


def test_a_spool_that_is_full_does_not_double_what_is_in_a_task_already(server):
    with rig(server, timeout=0.1, most=4000) as agent:
        stuck(server, agent)
        number = 10
        while not agent.cursor.count['dropped']:
            agent.tick(number)
            number += 1
        unstick(server)
        agent.settled()
    assert len(numbers(server)) == len(set(numbers(server))) and numbers(server)[-1] == number - 1


def test_a_task_whose_end_nobody_knows_is_waited_for_before_its_ticks_go_in_others(server):
    """Its answer is lost; then it fails: the ticks go again, as others now, since a reload changed the options."""
    with rig(server, timeout=0.1, flush=3600) as agent:
        server.asks, server.fates = ALWAYS, [PARSE]
        agent.tick(1, 2)
        agent.spool.hurry()
        agent.until(lambda: server.tasks and agent.sender.failures)
        unstick(server)
        assert agent.settled()['acknowledged'] == 2
    assert numbers(server) == [1, 2] and len(server.tasks) == 2


def test_a_login_that_is_put_right_by_a_reload_counts_for_the_task_that_waits(server):
    server.users = {'mia': 'right'}
    values = {'url': 'http://127.0.0.1:%d' % server.port, 'flush': 0, 'username': 'mia'}
    with Rig('druid', password='wr0ng-w0rd', **values) as agent:
        agent.tick(1)
        agent.until(lambda: agent.sender.failures)
        assert 'HTTP 401' in agent.said() and 'wr0ng-w0rd' not in agent.said()
        agent.renew(password='right', **values)
        assert agent.settled()['acknowledged'] == 1
    assert numbers(server) == [1]


def test_the_end_of_the_program_does_not_wait_for_pauses(server):
    server.asks = 12
    with rig(server, flush=60, timeout=30) as agent:
        agent.tick(1)
        agent.sender.close(agent.sender.now() + 30)
        assert agent.over.wait(20) and agent.adds_up()['acknowledged'] == 1
    assert max(agent.clock.skipped or [0]) <= 0.25 or not agent.clock.skipped


# -- Tranquility ---------------------------------------------------------------------------------

@pytest.fixture
def tranquil():
    with TranquilityStandin() as stand:
        yield stand
        assert stand.complaints == []


def calm(server, **values):
    return rig(server, protocol='tranquility', **values)


def test_tranquility_gets_an_array_of_events_for_each_tick(tranquil):
    with calm(tranquil, tags={'env': 'prod'}) as agent:
        agent.tick(1700000000, 1700000001)
        assert agent.settled()['acknowledged'] == 2
    first, second = tranquil.requests
    assert (first.method, first.path) == ('POST', '/v1/post/statbadger')
    assert first.headers['content-type'] == 'application/json' and 'content-encoding' not in first.headers
    row = dict(WHO, timestamp=1700000000000, env='prod')
    assert json.loads(first.body.decode()) == [
        dict(row, metric='cpu.user', value=1700000000, units='percent'),
        dict(row, metric='disk.reads', device='sda', value=1700000000, units=''),
        dict(row, metric='mem.memtotal', value=1700000000, units='B')]


def test_what_tranquility_drops_is_counted_and_said_and_does_not_go_again(tranquil):
    tranquil.window = lambda events: [e for e in events if e['timestamp'] != 2000 or e['metric'] == 'cpu.user']
    with calm(tranquil, flush=3600) as agent:
        agent.tick(1, 2, 3)
        agent.spool.hurry()
        count = agent.settled()
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (2, 1, 2)
        assert 'Tranquility drops 2 of 3 points: are they outside its window?' in agent.said()
    assert numbers(tranquil) == [1, 2, 3] and len(tranquil.requests) == 3


@pytest.mark.parametrize('answer, said', [
    (dict(status=400, body="No beam defined for dataSource 'x'\n"), "HTTP 400: No beam defined for dataSource 'x'"),
    (dict(status=503, body="Buffer full for dataSource 'x'\n"), 'HTTP 503: Buffer full'),
    (dict(status=500, body='Server error\n'), 'HTTP 500: Server error'),
    (dict(status=404, body='Not found\n'), 'HTTP 404: Not found'),
    (dict(body='ok'), 'no JSON'), (dict(body='{"result": {"received": 3}}'), 'is it a Tranquility'),
    (dict(body='{"result": {"received": 3, "sent": 4}}'), 'is it a Tranquility'),
    (dict(body='{"result": {"received": 3, "sent": -1}}'), 'is it a Tranquility'),
    (dict(body='{"result": {"received": 3, "sent": true}}'), 'is it a Tranquility'),
    (dict(body='{"result": {"received": 3, "sent": "3"}}'), 'is it a Tranquility')], ids=str)
def test_when_tranquility_is_not_willing_the_ticks_wait(tranquil, answer, said):
    tranquil.answer(**dict({'times': 3}, **answer))
    with calm(tranquil) as agent:
        agent.tick(1, 2)
        agent.until(lambda: agent.log)
        assert said in agent.said()
        assert agent.settled()['acknowledged'] == 2
    assert sorted(numbers(tranquil)) == [1, 2]


def test_a_tick_that_is_too_large_for_what_stands_before_tranquility_is_quarantined(tranquil):
    tranquil.answer(413)
    with calm(tranquil) as agent:
        agent.tick(1)
        assert agent.settled()['quarantined'] == 1
        agent.tick(2)
        assert agent.settled()['acknowledged'] == 1


def test_a_datasource_with_odd_letters_is_the_one_meant(tranquil):
    tranquil.datasources = ['a b%2F\u00fc?']
    with calm(tranquil, datasource='a b%2F\u00fc?') as agent:
        agent.tick(1)
        agent.settled()
    assert numbers(tranquil, 'a b%2F\u00fc?') == [1]


# -- options -------------------------------------------------------------------------------------

def problems(**values):
    with pytest.raises(statbadger.ConfigError) as info:
        configured('druid', **values)
    return '\n'.join(info.value.problems)


@pytest.mark.parametrize('value', ['', '.a', 'a/b', '..', 'a\nb', 'a\tb', 'x' * 101, '\u00fc' * 51, '\x01'])
def test_a_datasource_that_druid_would_not_take_is_a_mistake(value):
    assert 'emitters.druid.datasource: found' in problems(datasource=value)


@pytest.mark.parametrize('value', ['a', 'a.b', 'a b', '\u00fc', 'x' * 100, 'a,b:c%', 'A-1_'])
def test_other_datasources_are_none(value):
    assert configured('druid', datasource=value).options.datasource == value


@pytest.mark.parametrize('tag', COLUMNS + ['timestamp', 'value', '__time', 'a,b', 'a\nb', 'a\rb', 'x' * 101, 'a\0'])
def test_a_tag_that_can_be_no_column_is_a_mistake(tag):
    assert 'found a tag' in problems(tags={tag: 'x'})


@pytest.mark.parametrize('protocol', ['task', 'tranquility'])
def test_a_name_that_basic_security_would_cut_is_a_mistake(protocol):
    assert 'found a "username" with ":"' in problems(username='a:b', protocol=protocol)


def test_its_own_defaults_are_shown_once_and_may_be_changed(run):
    chosen = configured('druid').options
    assert (chosen.timeout, chosen.flush, chosen.batch) == (120, 60, 600)
    changed = configured('druid', timeout=7, flush=0, batch=3).options
    assert (changed.timeout, changed.flush, changed.batch) == (7, 0, 3)
    words = run('-h', 'druid').out
    for name in ('timeout', 'flush', 'batch', 'tags', 'interval'):
        assert words.count('"%s":' % name) == 1
    assert '-> http http://127.0.0.1:8081' in run('-e', 'druid', '--check').out
    assert 'flush 0, batch 9 -> http' in run('-e', 'druid,flush=0,batch=9', '--check').out
    assert 'found "soon"' in problems(timeout='soon')
    assert problems(flussh=1).count('flush') == 2, 'named once, and meant'


def test_each_protocol_has_its_own_place():
    assert role_of(configured('druid')).target[1] == 'http://127.0.0.1:8081'
    assert role_of(configured('druid', protocol='tranquility')).target[1] == 'http://127.0.0.1:8200'
    chosen = configured('druid', protocol='tranquility', url='http://10.0.0.9:8081')
    assert role_of(chosen).target[1] == 'http://10.0.0.9:8081'


# -- the supervisor ------------------------------------------------------------------------------

FLAT = 'kafka,format=flat'


def printed(run, *arguments):
    done = run('--print-druid-supervisor', *arguments)
    assert (done.code, done.err) == (0, '')
    return json.loads(done.out)


def test_the_supervisor_of_the_kafka_emitter(run):
    spec = printed(run, '-e', FLAT + ',brokers=k1:9092,k2:9093,tags.env=prod')
    assert spec == {'type': 'kafka', 'context': {'useConcurrentLocks': True}, 'spec': {
        'dataSchema': {
            'dataSource': 'statbadger', 'timestampSpec': {'column': 'timestamp', 'format': 'posix'},
            'dimensionsSpec': {'dimensions': COLUMNS + ['env', {'type': 'double', 'name': 'value'}],
                               'useSchemaDiscovery': True},
            'granularitySpec': {'segmentGranularity': 'HOUR', 'queryGranularity': 'NONE', 'rollup': False},
            'transformSpec': {'transforms': [{'type': 'expression', 'name': '__time',
                                              'expression': 'cast(round("timestamp" * 1000), \'LONG\')'}]}},
        'ioConfig': {'type': 'kafka', 'topic': 'statbadger', 'inputFormat': {'type': 'json'},
                     'consumerProperties': {'bootstrap.servers': 'k1:9092,k2:9093'}, 'useEarliestOffset': True,
                     'taskCount': 1, 'replicas': 1, 'taskDuration': 'PT1H'},
        'tuningConfig': {'type': 'kafka', 'logParseExceptions': True}}}


def consumer(run, *arguments):
    return printed(run, *arguments)['spec']['ioConfig']['consumerProperties']


def test_the_supervisor_of_a_kafka_emitter_with_a_login_holds_no_secret(run, tmp_path):
    for name in ('ca.pem', 'own.pem'):
        (tmp_path / name).write_text('x')
    value = (FLAT + ',brokers=k1,tls,tls_ca=%s/ca.pem,tls_cert=%s/own.pem,tls_verify=false,sasl=scram-sha-512,'
             'username=mia,password=s3cret-w0rd' % (tmp_path, tmp_path))
    found = consumer(run, '-e', value)
    assert found == {
        'bootstrap.servers': 'k1:9092', 'security.protocol': 'SASL_SSL', 'sasl.mechanism': 'SCRAM-SHA-512',
        'druid.dynamic.config.provider': {'type': 'environment',
                                          'variables': {'sasl.jaas.config': 'KAFKA_SASL_JAAS_CONFIG'}},
        'ssl.truststore.type': 'PEM', 'ssl.truststore.location': '%s/ca.pem' % tmp_path,
        'ssl.keystore.type': 'PEM', 'ssl.keystore.location': '%s/own.pem' % tmp_path,
        'ssl.endpoint.identification.algorithm': ''}
    assert 's3cret-w0rd' not in run('--print-druid-supervisor', '-e', value).out
    assert consumer(run, '-e', FLAT + ',tls')['security.protocol'] == 'SSL'
    assert consumer(run, '-e', FLAT + ',sasl=plain,username=a,password=b')['security.protocol'] == 'SASL_PLAINTEXT'


def test_the_supervisor_has_the_datasource_of_the_druid_emitter_and_the_topic_of_this_host(run, tmp_path):
    path = tmp_path / 'statbadger.conf'
    path.write_text(json.dumps({'cluster': 'te st', 'emitters': {
        'kafka': {'format': 'flat', 'topic': 'stats.{cluster}'}, 'other': {'type': 'kafka'},
        'druid': {'datasource': 'hosts'}, 'stdout': {}}}))
    spec = printed(run, '-f', path)['spec']
    assert (spec['dataSchema']['dataSource'], spec['ioConfig']['topic']) == ('hosts', 'stats.te_st')


@pytest.mark.parametrize('arguments, said', [
    ([], 'found none, need one kafka emitter with "format": "flat"'),
    (['-e', 'druid'], 'found none, need one kafka emitter'),
    (['-e', 'kafka'], 'found kafka with "format": "payload", need one kafka emitter with "format": "flat"'),
    (['-e', FLAT, '-e', FLAT], 'found kafka with "format": "flat", kafka-2 with "format": "flat", need one kafka '
                               'emitter with "format": "flat": which one says -e NAME'),
    (['-e', FLAT, '-e', 'druid,datasource=a', '-e', 'druid,datasource=b'],
     'found the datasources "a", "b", need one: which one says -e NAME'),
    (['-e', FLAT + ',tls,tls_cert=/etc/hostname,tls_key=/etc/passwd'],
     'kafka: found tls_key, need the key in the file of tls_cert'),
    (['-e', FLAT + ',tags.__time=c'], 'kafka: found a tag "__time", need another name'),
    (['-e', 'kafka,format=flat,brokers='], 'brokers'),
    (['-e', FLAT + ',tags.value=c'], 'found a tag "value"')])
def test_what_no_supervisor_can_be_printed_for_is_said_in_a_line(run, arguments, said):
    done = run('--print-druid-supervisor', *arguments)
    assert done.code == 2 and done.out == '' and said in done.err and done.err.count('\n') == 1
    if 'brokers' not in said and 'value' not in said:
        assert done.err.startswith('--print-druid-supervisor: ')


def test_a_tag_of_kafkas_that_can_be_no_column_is_said_before_a_supervisor_stumbles_over_it(run, tmp_path):
    path = tmp_path / 'statbadger.conf'
    path.write_text(json.dumps({'emitters': {'kafka': {'format': 'flat', 'tags': {'a,b': 'x'}}}}))
    done = run('--print-druid-supervisor', '-f', path)
    assert done.code == 2 and 'kafka: found a tag "a,b", need the name of a column' in done.err


def test_long_json_is_for_people_and_says_the_same():
    value = {'a': [1, 2.5, 'x' * 90, {'b': {}, 'c': [], 'd': None}], 'e"': {'f': True, 'g': 'y' * 70}, 'h': []}
    text = statbadger.json_page(value)
    assert json.loads(text) == value and text.count('\n') == 12
    assert statbadger.json_page({'a': 1}) == '{"a": 1}' and options(x=1).x == 1
