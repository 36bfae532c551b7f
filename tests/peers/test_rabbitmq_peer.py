"""A real RabbitMQ is published to by the program, and read back with pika.

What is expected comes from the `stdout` emitter of the same run: same lines, same times, in order, each once.
"""
import collections
import contextlib
import json
import os
import signal
import time
from array import array

import pytest
import statbadger
from conftest import TESTS
from peer import ended, finished_well, live, payloads, require, until_ticks
from rabbitmq_server import PASSWORD, USERS, RabbitMQ
from rig import LAYOUT, WHO, Rig
from standins import certificates

try:
    import pika
except ImportError:
    pika = None

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st',
            'hostname': 'n1.example.net', 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
Got = collections.namedtuple('Got', 'method properties body')


@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certs'))


@pytest.fixture(scope='module')
def shared(tmp_path_factory, certs):
    """One for all tests: a start takes seven seconds."""
    require(pika, 'rabbitmq', 'no pika to read it back with (tests/peers/requirements.txt)')
    with RabbitMQ(tmp_path_factory.mktemp('rabbitmq'), certs) as peer:
        yield peer


@pytest.fixture
def broker(shared):
    """The broker, running whatever the test before did to it."""
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture
def queue(request):
    """A name of the test's own."""
    return request.node.name[:200]


# -- pika's side ---------------------------------------------------------------------------------

@contextlib.contextmanager
def channel(broker, vhost='/'):
    parameters = pika.ConnectionParameters('127.0.0.1', broker.port, vhost)
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def make(broker, queue, vhost='/', **arguments):
    """A durable queue with such arguments: max_length=3 is x-max-length."""
    with channel(broker, vhost) as ch:
        ch.queue_declare(queue, durable=True, arguments={
            'x-' + name.replace('_', '-'): value for name, value in arguments.items()})


def taken(broker, queue, vhost='/', most=1 << 30):
    """What is in the queue, oldest first, which is then no longer there."""
    out = []
    with channel(broker, vhost) as ch:
        while len(out) < most:
            got = Got(*ch.basic_get(queue, auto_ack=True))
            if got.method is None:
                break
            out.append(got)
    return out


def bodies(found):
    return [got.body.decode() for got in found]


def exists(broker, queue, vhost='/'):
    with channel(broker, vhost) as ch:
        try:
            ch.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            assert error.reply_code == 404
            return False
        return True


# -- the program's -------------------------------------------------------------------------------

def config(folder, broker, modules=None, identity=None, stdout=True, **options):
    path = folder / 'statbadger.conf'
    emitters = {'rabbitmq': dict(dict(port=broker.port), **options)}
    if stdout:
        emitters['stdout'] = {}
    path.write_text(json.dumps(dict(IDENTITY if identity is None else identity, emitters=emitters,
                                    modules=modules or {'load': {}, 'memory': {}})))
    return str(path)


def one_line(text, *words):
    """The only warning in it, which must hold these words."""
    lines = [line for line in text.split('\n') if ' warning: ' in line]
    assert len(lines) == 1 and all(word in lines[0] for word in words), text


def tick_of(n, layout=LAYOUT):
    return statbadger.Frame(n * 1000, n, WHO, layout, array('d', [n] * len(layout.series)))


def numbers(found):
    return [int(json.loads(body)['points'][0]['cpu.user']['value']) for body in bodies(found)]


# -- every tick, and nothing else ----------------------------------------------------------------

@pytest.mark.parametrize('name', HOSTS)
def test_a_frozen_host_arrives_as_it_is(run, broker, queue, tmp_path, name):
    modules = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
               'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
    path = config(tmp_path, broker, modules, {}, queue=queue)
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'rabbitmq: ' not in done.err
    found, ticks = taken(broker, queue), payloads(done.out)
    assert len(ticks) >= 2 and bodies(found) == done.out.split('\n')[:-1]
    run_id = found[0].properties.message_id.rsplit('-', 2)[1]
    assert [(got.properties.content_type, got.properties.delivery_mode, got.properties.timestamp,
             got.properties.message_id) for got in found] == [
        ('application/json', 2, int(tick['timestamp']), '%s-%s-%d' % (tick['hostname'], run_id, n))
        for n, tick in enumerate(ticks, 1)]


@pytest.mark.parametrize('name', ['linux-6.18', 'odd-names'])
def test_a_frozen_host_arrives_point_by_point(run, broker, queue, tmp_path, name):
    path = config(tmp_path, broker, {'disk': {'devices': ['*']}, 'network': {'interfaces': ['*']}, 'load': {}},
                  format='flat', queue=queue, tags={'env': 'prod'})
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0
    wanted = []
    for tick in payloads(done.out):
        points = tick.pop('points')
        for flat, entry in ((flat, entry) for point in points for flat, entry in point.items()):
            words = flat.split('.', 2)
            labels = {LABELS[words[0]]: words[2]} if len(words) > 2 else {}
            wanted.append(dict(dict(tick, metric='.'.join(words[:2]), env='prod', **entry), **labels))
    found = taken(broker, queue)
    assert [json.loads(body) for body in bodies(found)] == wanted and len(wanted) > 50
    ids = [got.properties.message_id for got in found]
    assert len(set(ids)) == len(ids) and set(got.properties.content_type for got in found) == {'application/json'}


@pytest.mark.parametrize('format', ['graphite', 'influx'])
def test_lines_are_text(run, broker, queue, tmp_path, format):
    path = config(tmp_path, broker, {'load': {}}, format=format, queue=queue, persistent=False)
    ticks = finished_well(run('-f', path, '-n', 3, '-i', 0.2), 3)
    found = taken(broker, queue)
    assert [(got.properties.content_type, got.properties.delivery_mode) for got in found] == [('text/plain', 1)] * 3
    points = [{flat: entry['value'] for point in tick['points'] for flat, entry in point.items()} for tick in ticks]
    if format == 'graphite':
        read = [{line.split(' ')[0][len('EC2.us-west-1.te_st.n1_example_net.'):]: float(line.split(' ')[1])
                 for line in body.splitlines()} for body in bodies(found)]
    else:
        read = [{'load.' + name: float(value.rstrip('i')) for name, value in (
            field.split('=') for field in body.split(' ')[1].split(','))} for body in bodies(found)]
    assert read == points


@pytest.mark.parametrize('hostname', ['n 1,"x\' ', 'a\nb\tc', '\x1b[31m\x7f', '*.#.{0}', 'gr\xfc\xdf\U0001f980', '%s%d' * 20,
                                      'x' * 600])
def test_hostile_names_go_through_keys_and_ids(run, broker, queue, tmp_path, hostname):
    with channel(broker) as ch:
        ch.exchange_declare('direct-x', 'direct', durable=True)
    path = config(tmp_path, broker, {'load': {}}, dict(IDENTITY, hostname=hostname), exchange='direct-x',
                  queue=queue, routing_key='stats.{hostname}')
    done = run('-f', path, '-n', 2, '-i', 0.2)
    ticks = finished_well(done, 2)
    found = taken(broker, queue)
    assert bodies(found) == done.out.split('\n')[:-1] and ticks[0]['hostname'] == hostname
    assert [got.method.routing_key for got in found] == [('stats.' + hostname)[:255]] * 2
    assert all(got.properties.message_id.startswith(hostname[:40]) for got in found)


def test_a_body_may_need_many_frames(run, broker, queue, tmp_path):
    broker.ctl('eval', 'application:set_env(rabbit, frame_max, 4096).')
    try:
        done = run('-f', config(tmp_path, broker, {'memory': {}}, queue=queue, tags={}), '-n', 2, '-i', 0.2)
    finally:
        broker.ctl('eval', 'application:set_env(rabbit, frame_max, 131072).')
    finished_well(done, 2)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[:-1] and len(done.out) > 2 * 2000


# -- exchanges, queues, keys ---------------------------------------------------------------------

def test_a_queue_is_declared_durable_and_bound_to_the_exchange(run, broker, queue, tmp_path):
    with channel(broker, 'stats') as ch:
        ch.exchange_declare('topics', 'topic', durable=True)
        ch.queue_declare('other')
        ch.queue_bind('other', 'topics', 'stats.te.st.#')
    path = config(tmp_path, broker, vhost='stats', exchange='topics', queue=queue,
                  routing_key='stats.{cluster}.{hostname}')
    done = run('-f', path, '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    for name in queue, 'other':
        found = taken(broker, name, 'stats')
        assert bodies(found) == done.out.split('\n')[:-1]
        assert found[0].method.routing_key == 'stats.te.st.n1.example.net' and found[0].method.exchange == 'topics'
    make(broker, queue, 'stats')                # 406 if it were not durable, or had arguments


def test_who_may_only_write_uses_the_queue_that_others_have_made(run, broker, queue, tmp_path):
    make(broker, queue, queue_type='quorum')
    path = config(tmp_path, broker, username='writer', password=USERS['writer'][0], queue=queue)
    done = run('-f', path, '-n', 3, '-i', 0.2)
    finished_well(done, 3)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[:-1]


def test_without_a_queue_the_routing_key_names_it(run, broker, queue, tmp_path):
    make(broker, 'host-n1.example.net')
    done = run('-f', config(tmp_path, broker, routing_key='host-{hostname}'), '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    assert bodies(taken(broker, 'host-n1.example.net')) == done.out.split('\n')[:-1]


def test_a_queue_that_is_not_there_is_waited_for(broker, queue):
    with Rig('rabbitmq', port=broker.port, routing_key=queue) as rig:
        rig.tick(1, 2, 3)
        rig.until(lambda: any(59 < seconds <= 60 for seconds in rig.clock.skipped), 30)
        assert rig.adds_up()['acknowledged'] == 0
        one_line(' warning: ' + rig.log[0][1], '312 NO_ROUTE', 'there is no queue "%s"' % queue)
        make(broker, queue)
        rig.settled(30)
        assert numbers(taken(broker, queue)) == [1, 2, 3]


def test_a_queue_that_is_deleted_under_way_is_declared_again(broker, queue):
    with Rig('rabbitmq', port=broker.port, queue=queue) as rig:
        rig.tick(1)
        rig.settled(30)
        with channel(broker) as ch:
            ch.queue_delete(queue)
        rig.tick(2, 3)
        rig.settled(30)
        assert numbers(taken(broker, queue)) == [2, 3] and 'NO_ROUTE' in rig.log[0][1]


def test_what_no_queue_takes_is_gone_where_that_is_wanted(run, broker, tmp_path):
    done = run('-f', config(tmp_path, broker, exchange='amq.fanout', mandatory=False), '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    done = run('-f', config(tmp_path, broker, exchange='amq.fanout'), '-n', 2, '-i', 0.2)
    assert done.code == 1
    one_line(done.err, '312 NO_ROUTE: exchange "amq.fanout" has no queue for the routing key "statbadger"')


def test_a_full_queue_that_refuses_is_waited_for(broker, queue):
    make(broker, queue, max_length=4, overflow='reject-publish')
    with Rig('rabbitmq', port=broker.port, queue=queue, flush=3600) as rig:
        rig.tick(*range(1, 11))
        rig.spool.hurry()
        rig.until(lambda: rig.log, 30)
        assert 'are not taken (basic.nack): is the queue full?' in rig.log[0][1]
        found = []

        def all_of_it():
            found.extend(taken(broker, queue))
            return not rig.cursor.frames
        rig.until(all_of_it, 30)
        assert rig.adds_up()['acknowledged'] == 10
        assert sorted(numbers(found + taken(broker, queue))) == list(range(1, 11))     # none twice


def test_a_queue_that_drops_its_oldest_takes_everything(run, broker, queue, tmp_path):
    make(broker, queue, max_length=2)
    done = run('-f', config(tmp_path, broker, queue=queue), '-n', 5, '-i', 0.2)
    finished_well(done, 5)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[3:-1]


# -- refusals ------------------------------------------------------------------------------------

REFUSALS = {
    'password': (dict(username='mia', password='not ' + PASSWORD), '403 ACCESS_REFUSED'),
    'user': (dict(username='nemo', password='x'), '403 ACCESS_REFUSED'),
    'vhost': (dict(vhost='nope'), '530 NOT_ALLOWED - vhost nope not found'),
    'no-right': (dict(username='nobody', password='nobody-word'), "530 NOT_ALLOWED - access to vhost '/' refused"),
    'limit': (dict(vhost='full'), '530 NOT_ALLOWED'),
    'declare': (dict(username='writer', password='writer-word', queue='nope'), '403 ACCESS_REFUSED'),
    'reserved': (dict(queue='amq.nope'), '403 ACCESS_REFUSED'),
    'write': (dict(username='reader', password='reader-word'), '403 ACCESS_REFUSED'),
    'exchange': (dict(exchange='nope'), "404 NOT_FOUND - no exchange 'nope' in vhost '/'"),
    'exchange-to-bind': (dict(exchange='nope', queue='bound'), "404 NOT_FOUND - no exchange 'nope' in vhost '/'"),
    'internal': (dict(exchange='amq.rabbitmq.trace', routing_key='x'), '403 ACCESS_REFUSED'),
}


@pytest.mark.parametrize('which', sorted(REFUSALS))
def test_a_refusal_is_said_once_and_the_ticks_wait(run, broker, tmp_path, which):
    options, words = REFUSALS[which]
    done = run('-f', config(tmp_path, broker, {'load': {}}, stdout=False, **options), '-n', 3, '-i', 0.2)
    assert done.code == 1 and done.seconds < 8
    one_line(done.err, 'rabbitmq: ' + words)
    assert 'rabbitmq: 3 of 3 ticks were not delivered: ' + words in done.err
    assert PASSWORD not in done.err and '-word' not in done.err


def test_a_queue_that_belongs_to_another_connection_is_waited_for(run, broker, queue, tmp_path):
    with channel(broker) as ch:
        ch.queue_declare(queue, exclusive=True)
        done = run('-f', config(tmp_path, broker, queue=queue), '-n', 2, '-i', 0.2)
    assert done.code == 1
    one_line(done.err, '405 RESOURCE_LOCKED', queue)


def test_a_name_with_a_password_that_is_hard_to_write(run, broker, queue, tmp_path):
    done = run('-f', config(tmp_path, broker, queue=queue, username='mia', password=PASSWORD), '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[:-1]


def test_one_tick_that_is_too_large_is_set_aside_and_all_others_arrive(broker, queue):
    series = [statbadger.Series('t', 'of-many-%d' % i, '', statbadger.GAUGE, (), ()) for i in range(25000)]
    large = statbadger.Layout(LAYOUT.series + tuple(series))
    with Rig('rabbitmq', port=broker.port, queue=queue, flush=3600) as rig:
        for n in range(1, 10):
            rig.spool.accept(tick_of(n, large if n == 4 else LAYOUT))
        rig.spool.hurry()
        count = rig.settled(30)
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (8, 1, 25003)
        assert 'refused: 406 PRECONDITION_FAILED - message size' in rig.log[0][1]
        assert 'larger than configured max size 1000000' in rig.log[0][1]
        found = numbers(taken(broker, queue))
        assert sorted(set(found)) == [1, 2, 3, 5, 6, 7, 8, 9]


# -- restarts, breaks ----------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['restart', 'kill'])
def test_nothing_is_lost_when_the_broker_goes_down_in_the_middle(agent, broker, queue, tmp_path, how):
    """Twice in the queue may be what was confirmed when nobody listened any more."""
    process = live(agent, tmp_path, '-f', config(tmp_path, broker, {'load': {}}, queue=queue), '-i', 0.1)
    until_ticks(tmp_path, 5)
    broker.kill() if how == 'kill' else broker.stop()
    until_ticks(tmp_path, len((tmp_path / 'out').read_text().split('\n')) + 5)
    broker.start()
    until_ticks(tmp_path, len((tmp_path / 'out').read_text().split('\n')) + 5)
    found = []
    broker.until(lambda: found.extend(bodies(taken(broker, queue))) or 'delivers again' in (
        tmp_path / 'err').read_text(), 60, 'get what waited')
    process.send_signal(signal.SIGTERM)
    code, ticks, errors = ended(process, tmp_path)
    assert code == 0, errors
    found += bodies(taken(broker, queue))
    wanted = (tmp_path / 'out').read_text().split('\n')[:-1]
    once = list(collections.OrderedDict.fromkeys(found))
    assert once == wanted and len(found) <= len(wanted) + 2
    assert 'delivers again' in errors


def test_messages_outlive_a_restart_when_they_are_persistent_and_only_then(run, broker, tmp_path):
    lines = {}
    for queue, persistent in ('lasting', True), ('fleeting', False):
        path = config(tmp_path, broker, {'load': {}}, queue=queue, persistent=persistent)
        done = run('-f', path, '-n', 2, '-i', 0.2)
        finished_well(done, 2)
        lines[queue] = done.out.split('\n')[:-1]
    broker.kill()
    broker.start()
    assert bodies(taken(broker, 'lasting')) == lines['lasting'] and taken(broker, 'fleeting') == []


def test_a_connection_that_an_operator_closes_is_opened_again_without_a_word(broker, queue):
    with Rig('rabbitmq', port=broker.port, queue=queue, heartbeat=0) as rig:
        for n in range(1, 4):
            rig.tick(n)
            rig.settled(30)
            broker.ctl('close_all_connections', 'for a test')
        assert rig.log == [] and numbers(taken(broker, queue)) == [1, 2, 3]


# -- blocked, heartbeats, goodbye ----------------------------------------------------------------

def connections(broker, host):
    """The lines of the broker's log about connections of that host, once their end stands there."""
    named = 'statbadger ' + host

    def found():
        lines = [line for line in broker.own_log().split('\n') if named in line]
        return lines if any('closing AMQP connection' in line for line in lines) else None
    return broker.until(found, 20, 'say that %s has gone' % host)


def test_a_broker_that_is_low_on_memory_is_waited_for_on_the_same_connection(broker, queue):
    who = dict(WHO, hostname='patient')
    with Rig('rabbitmq', port=broker.port, queue=queue, heartbeat=0) as rig:
        rig.tick(1, who=who)
        rig.settled(30)
        try:
            broker.ctl('set_vm_memory_high_watermark', '0.00001')
            rig.tick(2, 3, who=who)
            rig.until(lambda: rig.log, 30)
            rig.tick(4, who=who)
            rig.until(lambda: len(rig.clock.skipped) > 50, 30)
            assert rig.sender.failure is None and rig.adds_up()['acknowledged'] <= 3
        finally:
            broker.ctl('set_vm_memory_high_watermark', '0.4')
        rig.settled(30)
        assert [text for _, text in rig.log] == ['rabbitmq: takes nothing for now: low on memory; the ticks wait',
                                                 'rabbitmq: takes messages again']
        assert numbers(taken(broker, queue)) == [1, 2, 3, 4]
    lines = connections(broker, 'patient')
    assert sum('has a client-provided name' in line for line in lines) == 1
    assert any('[info]' in line and 'closing AMQP connection' in line for line in lines), lines


def test_heartbeats_keep_an_idle_session_open_and_its_end_is_said(broker, queue):
    who, rig = dict(WHO, hostname='idle'), Rig('rabbitmq', port=broker.port, queue=queue, heartbeat=1, timeout=0.9)
    rig.cursor.bell, rig.sender.clock = statbadger.Bell(), statbadger.Clock()
    with rig:
        rig.tick(1, who=who)
        rig.settled(30)
        names = broker.ctl('list_connections', 'timeout', 'name', 'client_properties')
        assert [line for line in names.split('\n') if line.startswith('1\t') and '"statbadger idle"' in line], names
        time.sleep(4.5)                         # without a heartbeat it would be over after two seconds
        rig.tick(2, who=who)
        rig.settled(30)
    lines = connections(broker, 'idle')
    assert sum('has a client-provided name' in line for line in lines) == 1
    assert any('[info]' in line and 'closing AMQP connection' in line for line in lines), lines
    assert 'missed heartbeats' not in broker.own_log() and rig.log == []
    assert numbers(taken(broker, queue)) == [1, 2]


def test_without_a_heartbeat_the_broker_hears_nothing_and_keeps_the_session(agent, broker, queue, tmp_path):
    path = config(tmp_path, broker, {'load': {}}, queue=queue, heartbeat=0)
    process = live(agent, tmp_path, '-f', path, '-i', 0.2)
    until_ticks(tmp_path, 3)
    found = [line.split('\t') for line in broker.ctl('list_connections', 'timeout', 'user').split('\n')]
    assert ['0', 'guest'] in found
    process.send_signal(signal.SIGTERM)
    assert ended(process, tmp_path)[0] == 0


# -- TLS -----------------------------------------------------------------------------------------

def test_over_tls(run, broker, queue, certs, tmp_path):
    path = config(tmp_path, broker, queue=queue, port=broker.tls_port, tls=True, tls_ca=certs.ca)
    done = run('-f', path, '-n', 3, '-i', 0.2)
    finished_well(done, 3)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[:-1]


def test_over_tls_nothing_is_lost_when_it_restarts_or_blocks(broker, queue, certs):
    with Rig('rabbitmq', port=broker.tls_port, queue=queue, tls=True, tls_ca=certs.ca, heartbeat=0) as rig:
        rig.tick(1)
        rig.settled(30)
        try:
            broker.ctl('set_vm_memory_high_watermark', '0.00001')
            rig.tick(2)
            rig.until(lambda: rig.log, 30)
        finally:
            broker.ctl('set_vm_memory_high_watermark', '0.4')
        rig.settled(30)
        broker.kill()
        broker.start()
        rig.tick(3)
        rig.settled(30)
        assert numbers(taken(broker, queue)) == [1, 2, 3]


@pytest.mark.parametrize('ca', ['other', 'system'])
def test_a_server_of_another_ca_gets_nothing(run, broker, queue, certs, tmp_path, ca):
    options = {'tls_ca': certs.other_ca} if ca == 'other' else {}
    path = config(tmp_path, broker, queue=queue, port=broker.tls_port, tls=True, **options)
    done = run('-f', path, '-n', 2, '-i', 0.2)
    assert done.code == 1
    one_line(done.err, 'the certificate of the peer is refused')
    assert not exists(broker, queue)


def test_any_certificate_will_do_where_that_is_wanted(run, broker, queue, tmp_path):
    path = config(tmp_path, broker, queue=queue, port=broker.tls_port, tls=True, tls_verify=False)
    done = run('-f', path, '-n', 1, '-i', 0.2)
    assert done.code == 0 and bodies(taken(broker, queue)) == done.out.split('\n')[:-1]


def test_a_certificate_of_ours_is_who_we_are(run, broker, queue, certs, tmp_path):
    path = config(tmp_path, broker, queue=queue, port=broker.tls_port, tls=True, tls_ca=certs.ca, sasl='external',
                  tls_cert=certs.client.cert, tls_key=certs.client.key)
    done = run('-f', path, '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    assert bodies(taken(broker, queue)) == done.out.split('\n')[:-1]
    broker.until(lambda: "user 'client' authenticated" in broker.own_log(), 20, 'say who it was')


def test_a_certificate_that_the_broker_does_not_trust_is_refused(broker, queue, certs):
    with Rig('rabbitmq', port=broker.tls_port, queue=queue, tls=True, tls_ca=certs.ca, sasl='external',
             tls_cert=certs.stranger.cert, tls_key=certs.stranger.key) as rig:
        rig.tick(1)
        rig.until(lambda: rig.log, 30)
        assert 'TLS: ' in rig.log[0][1] and 'unknown ca' in rig.log[0][1]
    assert not exists(broker, queue)


@pytest.mark.parametrize('tls', [True, False])
def test_the_wrong_port_is_said(broker, tls):
    with Rig('rabbitmq', port=broker.port if tls else broker.tls_port, tls=tls) as rig:
        rig.tick(1)
        rig.until(lambda: rig.log, 30)
        words = 'is there TLS on that port?' if tls else 'it answers in TLS: need "tls": true'
        assert words in rig.log[0][1]


# -- a long line of ticks ------------------------------------------------------------------------

@pytest.mark.parametrize('format', ['payload', 'flat'])
def test_a_backlog_arrives_once_and_in_order(broker, queue, format):
    began = time.monotonic()
    with Rig('rabbitmq', port=broker.port, queue=queue, format=format, timeout=10) as rig:
        rig.tick(*range(1, 2001))
        assert rig.settled(60)['acknowledged'] == 2000
    print('2000 ticks of', format, 'in', round(time.monotonic() - began, 2), 's')
    found = taken(broker, queue)
    run_id = rig.spool.run
    assert [got.properties.message_id for got in found] == (
        ['n1-%s-%d' % (run_id, n) for n in range(1, 2001)] if format == 'payload' else
        ['n1-%s-%d-%d' % (run_id, n, i) for n in range(1, 2001) for i in range(3)])
