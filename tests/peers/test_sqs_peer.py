"""moto, which checks signatures as botocore makes them, and ElasticMQ, which checks messages, are written to by the
program and read back by boto3.

What is expected comes from the `stdout` emitter of the same run: same lines, each once, in the same order where the
queue keeps one. No SQS of Amazon's is spoken to.
"""
import collections
import itertools
import json
import os
import random
import re
import signal
import string

import pytest
import statbadger
from conftest import TESTS
from peer import Peer, accepts, command, ended, finished_well, free_port, live, payloads, require, until_ticks
from rig import Rig
from sqs_server import ElasticMQ, Moto, boto3
from standins import Proxy, certificates
from standins_sqs import MetadataStandin, handed

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st',
            'hostname': 'n1.example.net', 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
LOAD = {'load': {}}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
NUMBERS = itertools.count()
NO_KEYS = {'AWS_EC2_METADATA_DISABLED': 'true', 'HOME': '/nonexistent', 'AWS_ACCESS_KEY_ID': '', 'AWS_PROFILE': ''}


@pytest.fixture(scope='module')
def moto(tmp_path_factory):
    with Moto(tmp_path_factory.mktemp('moto'), strict=True) as peer:
        yield peer


@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certs'))


@pytest.fixture(scope='module')
def secure(tmp_path_factory, certs):
    with Moto(tmp_path_factory.mktemp('secure'), tls=(certs.good.cert, certs.good.key, certs.ca)) as peer:
        yield peer


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    with ElasticMQ(tmp_path_factory.mktemp('elasticmq')) as peer:
        yield peer


@pytest.fixture
def elasticmq(kept):
    """The server, running whatever the test before did to it."""
    if kept.process.poll() is not None:
        kept.start()
    return kept


def name(fifo=False):
    return 'queue%d%s' % (next(NUMBERS), '.fifo' if fifo else '')


def options(peer, url, **more):
    """Options of an emitter that writes to that queue."""
    access, secret = peer.key
    out = dict(type='sqs', queue_url=url, region=peer.region, access_key=access, secret_key=secret)
    if getattr(peer, 'tls', None):
        out['tls_ca'] = peer.tls[2]
    return dict(out, **more)


def config(folder, modules=None, identity=None, **emitters):
    """A configuration file with these emitters, and stdout."""
    path = folder / ('statbadger%d.conf' % next(NUMBERS))
    path.write_text(json.dumps(dict(IDENTITY if identity is None else identity, modules=modules or ALL,
                                    emitters=dict(emitters, stdout={}))))
    return str(path)


def bodies(messages):
    return [message['Body'] for message in messages]


def holds(peer, url, lines):
    """The messages of a queue, which must be these payloads, each once, in order in a FIFO queue."""
    messages = peer.read(url, len(lines))
    found = bodies(messages)
    assert (found if url.endswith('.fifo') else sorted(found)) == (lines if url.endswith('.fifo') else sorted(lines))
    return messages


def lines_of(done):
    return done.out.split('\n')[:-1]


# -- signatures ----------------------------------------------------------------------------------

def test_authorization_is_that_of_botocore_for_requests_of_all_kinds():
    require(boto3, 'botocore', 'not installed (tests/peers/requirements.txt)')
    from botocore import auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    seed = int(os.environ.get('SIGN_SEED', random.randrange(1 << 30)))
    print('SIGN_SEED', seed)
    dice = random.Random(seed)

    def word(letters, most, least=1):
        return ''.join(dice.choice(letters) for _ in range(dice.randrange(least, most)))
    for _ in range(500):
        access, secret = word(string.ascii_uppercase, 20), word(string.printable[:94] + u'\xe4\u20ac', 100)
        token = word(string.ascii_letters + '/+=', 400) if dice.random() < 0.5 else None
        region, service = word(string.ascii_lowercase + '-1', 20), dice.choice(['sqs', 'sts', 'x'])
        stamp = statbadger.aws_stamp(dice.randrange(1 << 31))
        body = bytes(dice.getrandbits(8) for _ in range(dice.randrange(300)))
        headers = {'Host': word(string.ascii_lowercase + '.', 30) + dice.choice(['', ':4566']), 'X-Amz-Date': stamp,
                   'Content-Type': 'application/x-amz-json-1.0'}
        for _ in range(dice.randrange(4)):
            headers['X-' + word(string.ascii_letters + '-', 12)] = word(string.ascii_letters + '  \t,;:="', 30, 0)
        if token:
            headers['X-Amz-Security-Token'] = token
        request = AWSRequest('POST', 'https://%s/' % headers['Host'], headers=headers, data=body)
        request.context['timestamp'] = stamp
        signer = auth.SigV4Auth(Credentials(access, secret, token), service, region)
        canonical = signer.canonical_request(request)
        assert statbadger.aws_canonical(headers, body)[0] == canonical
        signature = signer.signature(signer.string_to_sign(request, canonical), request)
        ours = statbadger.aws_authorization(access, secret, region, service, stamp, headers, body)
        assert ours == 'AWS4-HMAC-SHA256 Credential=%s, SignedHeaders=%s, Signature=%s' % (
            signer.scope(request), signer.signed_headers(signer.headers_to_sign(request)), signature)


def test_who_may_not_write_is_told_and_stores_nothing(run, moto, tmp_path):
    url, (access, secret) = moto.create(name()), moto.key
    weak = moto.user('weak')
    cases = [('SignatureDoesNotMatch', dict(secret_key=secret[:-1] + '!')), ('SignatureDoesNotMatch', dict(secret_key=secret + '/')),
             ('InvalidClientTokenId', dict(access_key='AKIA' + 'X' * 16)), ('InvalidClientTokenId', dict(session_token='abc')),
             ('AccessDenied', dict(access_key=weak[0], secret_key=weak[1]))]
    for code, more in cases:
        done = run('-f', config(tmp_path, LOAD, sqs=options(moto, url, **more)), '-n', 1, '-i', 0.2)
        assert done.code == 1 and 'sqs: HTTP 403: %s: ' % code in done.err
        assert more.get('secret_key', secret) not in done.err
    assert moto.read(url) == []


def test_a_region_that_is_another_is_signed_for_and_checked(run, moto, tmp_path):
    """moto has a queue of that name in each region that somebody made it in."""
    there = moto.client(region='eu-central-1').create_queue(QueueName=name())['QueueUrl']
    done = run('-f', config(tmp_path, LOAD, sqs=options(moto, there, region='eu-central-1')), '-n', 2, '-i', 0.2)
    finished_well(done, 2)
    messages = moto.client(region='eu-central-1').receive_message(QueueUrl=there, MaxNumberOfMessages=10)['Messages']
    assert sorted(bodies(messages)) == sorted(lines_of(done))


def test_keys_of_the_environment_the_file_the_instance_and_the_container(run, moto, tmp_path):
    session = moto.session('badger')
    (tmp_path / 'keys').write_text('[x]\naws_access_key_id = %s\naws_secret_access_key = %s\naws_session_token = %s\n' % session)
    (tmp_path / 'token').write_text('t0ken')
    with MetadataStandin(handed(*session), token='t0ken') as metadata:
        place = 'http://127.0.0.1:%d' % metadata.port
        environs = [
            dict(zip(('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'), session), AWS_REGION='us-east-1'),
            dict(AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / 'keys'), AWS_PROFILE='x', AWS_DEFAULT_REGION='us-east-1'),
            dict(AWS_EC2_METADATA_SERVICE_ENDPOINT=place + '/', AWS_EC2_METADATA_DISABLED='false', AWS_REGION='us-east-1'),
            dict(AWS_CONTAINER_CREDENTIALS_FULL_URI=place + '/creds', AWS_REGION='us-east-1',
                 AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(tmp_path / 'token'))]
        for environ in environs:
            url = moto.create(name())
            path = config(tmp_path, LOAD, sqs={'queue_url': url})
            done = run('-f', path, '-n', 2, '-i', 0.2, env=dict(NO_KEYS, **environ))
            finished_well(done, 2)
            holds(moto, url, lines_of(done))
            assert session[2] not in run('-f', path, '--check', env=dict(NO_KEYS, **environ)).out
        assert len(metadata.requests) == 4
        url = moto.create(name())
        metadata.given = dict(handed(*session), Token=session[2] + 'x')
        done = run('-f', config(tmp_path, LOAD, sqs={'queue_url': url}), '-n', 1, '-i', 0.2, env=dict(NO_KEYS, **environs[3]))
        assert done.code == 1 and 'InvalidClientTokenId' in done.err and moto.read(url) == []


# -- every tick, and nothing else ----------------------------------------------------------------

@pytest.mark.parametrize('host', HOSTS)
def test_a_frozen_host_arrives_as_it_is(run, moto, elasticmq, tmp_path, host):
    queues = [(peer, peer.create(name(fifo))) for peer in (moto, elasticmq) for fifo in (False, True)]
    if host == 'big':                           # more than ElasticMQ takes
        del queues[2:]
    emitters = {'sqs-%d' % i: options(peer, url, max_bytes=1048576) for i, (peer, url) in enumerate(queues)}
    done = run('-f', config(tmp_path, identity={}, **emitters), '--replay', os.path.join(FROZEN, host))
    assert done.code == 0 and 'warning: sqs' not in done.err
    assert len(payloads(done.out)) >= 2
    for peer, url in queues:
        messages = holds(peer, url, lines_of(done))
        if url.endswith('.fifo'):
            hostname = payloads(done.out)[0]['hostname']
            groups = set(message['Attributes']['MessageGroupId'] for message in messages)
            assert groups == {re.sub('[^!-~]', '_', hostname) or '_'}


def points(ticks):
    """(tick, flat name, entry) of every point."""
    return [(tick, flat, entry) for tick in ticks for point in tick['points'] for flat, entry in point.items()]


def labelled(flat):
    """disk.reads.sda -> ('disk.reads', {'device': 'sda'})"""
    words = flat.split('.', 2)
    if len(words) < 3 or words[0] not in LABELS:
        return flat, {}
    return '.'.join(words[:2]), {LABELS[words[0]]: words[2]}


def place_of(message):
    """What tells a flat message from others."""
    return message['timestamp'], message['metric'], [message.get(key, '') for key in sorted(LABELS.values())]


def flat_message(tick, flat, entry, tags):
    metric, labels = labelled(flat)
    who = {key: tick[key] for key in IDENTITY}
    return dict(dict(who, timestamp=tick['timestamp'], metric=metric, **tags), **dict(labels, **entry))


@pytest.mark.parametrize('fifo', [False, True])
def test_messages_of_every_format(run, elasticmq, tmp_path, fifo):
    url = {key: elasticmq.create(name(fifo)) for key in ('flat', 'graphite', 'tagged', 'influx')}
    tags = {'env': 'pr od', 'x': u'\xe4"'}
    done = run('-f', config(
        tmp_path, flat=options(elasticmq, url['flat'], format='flat', tags=tags, group='{cluster}-{hostname}'),
        graphite=options(elasticmq, url['graphite'], format='graphite', prefix='a.{cluster}'),
        tagged=options(elasticmq, url['tagged'], format='graphite', tagged=True, tags={'env': 'prod'}),
        influx=options(elasticmq, url['influx'], format='influx', tags={'env': 'prod'})), '-n', 3, '-i', 0.2)
    ticks = finished_well(done, 3)
    messages = elasticmq.read(url['flat'], len(points(ticks)))
    wanted = [flat_message(*point + (tags,)) for point in points(ticks)]
    found = [json.loads(body) for body in bodies(messages)]
    assert sorted(found, key=place_of) == sorted(wanted, key=place_of)
    if fifo:
        assert [one['timestamp'] for one in found] == sorted(one['timestamp'] for one in found)
        assert set(m['Attributes']['MessageGroupId'] for m in messages) == {'te.st-n1.example.net'}
    graphite = sorted(line for body in bodies(elasticmq.read(url['graphite'], 3)) for line in body.split('\n')[:-1])
    assert len(graphite) == len(points(ticks)) and all(line.startswith('a.te_st.') for line in graphite)
    assert {line.split(' ')[0] for line in graphite if line.startswith('a.te_st.load.')} == {
        'a.te_st.load.' + word for word in ('one', 'five', 'fifteen', 'runnable_entities', 'total_entities')}
    tagged = [line for body in bodies(elasticmq.read(url['tagged'], 3)) for line in body.split('\n')[:-1]]
    assert len(tagged) == len(points(ticks)) and all(';host=n1.example.net;' in line and ';env=prod' in line for line in tagged)
    influx = [line for body in bodies(elasticmq.read(url['influx'], 3)) for line in body.split('\n')[:-1]]
    assert sum(line.split(' ')[1].count('=') for line in influx) == len(points(ticks))
    assert {line.split(' ')[2] for line in influx} == {'%d' % round(tick['timestamp'] * 1000) for tick in ticks}


def test_blacklist_interval_flush_and_batch(run, moto, tmp_path):
    url = [moto.create(name()) for _ in range(4)]
    done = run('-f', config(tmp_path, {'load': {}, 'cpu': {}}, black=options(moto, url[0], blacklist=['cpu.*']),
                            interval=options(moto, url[1], interval=1), flush=options(moto, url[2], flush=1),
                            batch=options(moto, url[3], batch=2, max_bytes=4096, timeout=5)), '-n', 10, '-i', 0.2)
    ticks = finished_well(done, 10)
    for tick, body in zip(ticks, sorted(bodies(moto.read(url[0], 10)), key=lambda body: json.loads(body)['timestamp'])):
        found = json.loads(body)
        assert found == dict(tick, points=[p for p in tick['points'] if not list(p)[0].startswith('cpu.')])
    assert sorted(bodies(moto.read(url[1]))) == sorted(
        line for line in lines_of(done) if json.loads(line)['timestamp'] % 1 == 0)
    holds(moto, url[2], lines_of(done))
    holds(moto, url[3], lines_of(done))


# -- names that mean harm ------------------------------------------------------------------------

INTERFACES = [b'eth0.100', b'q"uo\'te', b'back\\slash', b'semi;colon=1', b'per%d%s%', b'x{y="z"}', b'<&>', b'nan', b'"]]}],',
              b'ctl\x01\x1c\x7f', u'gr\xfc\xdf'.encode(), u'ls\u2028\x85x'.encode(), b'by\xff\xfe\x80', u'\ufffe\uffff'.encode(),
              b'\xf0\x9f\x92\xbe']
HEADING = b'Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n'


def hostile_recording(folder):
    for tick in range(4):
        top = folder / 'recording' / ('%d.000' % (1700000000 + tick))
        (top / 'proc/sys/kernel').mkdir(parents=True)
        (top / 'proc/net').mkdir()
        rows = [b'%6s: %s\n' % (one, b' '.join(b'%d' % ((c + 1) * (i + 3) * (tick * tick + 1)) for c in range(16)))
                for i, one in enumerate(INTERFACES)]
        (top / 'proc/net/dev').write_bytes(HEADING + b''.join(rows))
        (top / 'proc/sys/kernel/hostname').write_bytes(b'h;"o\\\x01\n')
    return str(folder / 'recording')


@pytest.mark.parametrize('fifo', [False, True])
def test_hostile_names_arrive_as_they_are(run, elasticmq, tmp_path, fifo):
    url = [elasticmq.create(name(fifo)) for _ in range(4)]
    identity = {'cluster': u'a\nb"c\\\ufffe', 'region': u'%s \x01\x7f\u2028'}
    done = run('-f', config(tmp_path, {'network': {'interfaces': ['*']}}, identity, payload=options(elasticmq, url[0], group='{cluster}'),
                            flat=options(elasticmq, url[1], format='flat'), influx=options(elasticmq, url[2], format='influx'),
                            graphite=options(elasticmq, url[3], format='graphite', tagged=True)), '--replay', hostile_recording(tmp_path))
    ticks = finished_well(done, 3)
    holds(elasticmq, url[0], lines_of(done))
    found = collections.Counter((one['timestamp'], one['metric'], one['interface'], one['value'])
                                for one in map(json.loads, bodies(elasticmq.read(url[1], len(points(ticks))))))
    assert found == collections.Counter((tick['timestamp'],) + (labelled(flat)[0], labelled(flat)[1]['interface'], entry['value'])
                                        for tick, flat, entry in points(ticks))
    assert {key[2] for key in found} == {one.decode('utf-8', 'replace') for one in INTERFACES}
    assert len(elasticmq.read(url[2], 3)) == len(elasticmq.read(url[3], 3)) == 3


# -- what a server refuses -----------------------------------------------------------------------

def own_module(folder, code):
    file = folder / 'own.py'
    file.write_text('class own:\n    def __init__(self, config, logger):\n        pass\n\n'
                    '    def get_stats(self, iteration):\n        return %s\n' % code)
    return {'own': {'file': str(file)}}


def test_a_message_that_is_too_large_for_the_server_is_set_aside_and_all_others_arrive(run, elasticmq, tmp_path):
    """ElasticMQ takes 262144 bytes, in a message and in a request: of a tick and of ten."""
    url = elasticmq.create(name())
    modules = own_module(tmp_path, "[{'m%d' % i: {'value': i, 'units': 'x' * 30}} for i in range(6000 if iteration == 3 else 900)]")
    path = config(tmp_path, modules, sqs=options(elasticmq, url, max_bytes=1048576, flush=5))
    done = run('-f', path, '-n', 8, '-i', 0.3)
    lines = lines_of(done)
    large = [line for line in lines if len(line) > 262144]
    assert done.code == 1 and len(large) == 1 and len(lines) == 8
    assert 'sqs: refused: HTTP 400: InvalidAttributeValue: MessageTooLong' in done.err
    assert 'sqs: 1 of 8 ticks were not delivered: they were refused' in done.err
    holds(elasticmq, url, [line for line in lines if line not in large])


def test_a_message_that_is_too_large_for_max_bytes_is_set_aside(run, moto, tmp_path):
    url = moto.create(name(True))
    modules = own_module(tmp_path, "[{'m%d' % i: {'value': i, 'units': ''}} for i in range(300 if iteration == 3 else 3)]")
    done = run('-f', config(tmp_path, modules, sqs=options(moto, url, max_bytes=2048, flush=5)), '-n', 8, '-i', 0.3)
    lines = lines_of(done)
    large, = [line for line in lines if len(line) > 2048]
    assert done.code == 1 and 'it has %d bytes, and "max_bytes" is 2048' % len(large) in done.err
    holds(moto, url, [line for line in lines if line != large])


@pytest.mark.parametrize('kind', ['moto', 'elasticmq'])
def test_a_queue_that_is_missing_is_waited_for(request, kind):
    peer, queue = request.getfixturevalue(kind), name()
    url = peer.create(queue)
    peer.admin().delete_queue(QueueUrl=url)
    values = options(peer, url)
    del values['type']
    with Rig('sqs', **values) as one:
        one.tick(1, 2)
        one.until(lambda: any(seconds > 59 for seconds in one.clock.skipped))
        assert 'HTTP 400: QueueDoesNotExist: ' in one.said() and one.adds_up()['acknowledged'] == 0
        peer.create(queue)
        assert one.settled(20)['acknowledged'] == 2
    assert sorted(json.loads(body)['timestamp'] for body in bodies(peer.read(url, 2))) == [1, 2]


# -- a server that goes --------------------------------------------------------------------------

@pytest.mark.parametrize('fifo', [False, True])
def test_nothing_is_lost_when_the_server_is_killed_and_started_again(agent, elasticmq, tmp_path, fifo):
    url = elasticmq.create(name(fifo))
    path = config(tmp_path, LOAD, sqs=options(elasticmq, url, timeout=60))     # so long it tries at the end
    process = live(agent, tmp_path, '-f', path, '-n', 50, '-i', 0.1)
    until_ticks(tmp_path, 8)
    elasticmq.stop(signal.SIGKILL)
    until_ticks(tmp_path, 14)
    elasticmq.start()
    code, ticks, errors = ended(process, tmp_path)
    assert code == 0 and 'delivers again' in errors, errors
    lines = (tmp_path / 'out').read_text().split('\n')[:-1]
    assert len(lines) == 50
    found = bodies(elasticmq.read(url, 50))
    twice = len(found) - len(set(found))
    assert sorted(set(found)) == sorted(lines) and twice <= 1   # what was stored as it went down, and not answered
    if fifo:
        assert [line for i, line in enumerate(found) if line not in found[:i]] == lines


@pytest.mark.parametrize('kind', ['moto', 'elasticmq'])
def test_answers_that_get_lost_double_nothing_in_a_fifo_queue(request, agent, tmp_path, kind):
    peer = request.getfixturevalue(kind)
    url = peer.create(name(True))
    with Proxy(peer.port) as proxy:
        through = url.replace(':%d/' % peer.port, ':%d/' % proxy.port)
        process = live(agent, tmp_path, '-f', config(tmp_path, LOAD, sqs=options(peer, through, timeout=2)), '-n', 30, '-i', 0.1)
        for n in (0, 1, 17, 60, 200, 0):
            until_ticks(tmp_path, (tmp_path / 'out').read_text().count('\n') + 2)
            proxy.cut_answers(n, times=1)
        until_ticks(tmp_path, 24)
        proxy.pass_all()
        code, ticks, errors = ended(process, tmp_path)
        assert code == 0 and len(ticks) == 30, errors
    holds(peer, url, (tmp_path / 'out').read_text().split('\n')[:-1])


# -- TLS, proxies --------------------------------------------------------------------------------

def test_over_tls_with_a_ca_of_ones_own(run, secure, tmp_path):
    url = secure.create(name(True))
    assert url.startswith('https://')
    done = run('-f', config(tmp_path, LOAD, sqs=options(secure, url)), '-n', 3, '-i', 0.2)
    finished_well(done, 3)
    holds(secure, url, lines_of(done))


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_told_otherwise(run, secure, tmp_path):
    url = secure.create(name())
    done = run('-f', config(tmp_path, LOAD, sqs=options(secure, url, tls_ca='')), '-n', 1, '-i', 0.2)
    assert done.code == 1 and 'the certificate of the peer is refused' in done.err and secure.read(url) == []
    done = run('-f', config(tmp_path, LOAD, sqs=options(secure, url, tls_ca='', tls_verify=False)), '-n', 2, '-i', 0.2)
    assert done.code == 0 and 'takes whatever certificate comes' in done.err
    holds(secure, url, lines_of(done))


TINYPROXY = '''Port {port}
Listen 127.0.0.1
Timeout 30
LogFile "{folder}/requests"
LogLevel Connect
BasicAuth prox_user prox_secret
'''


@pytest.mark.parametrize('kind', ['moto', 'secure'])
def test_through_a_proxy_that_wants_a_password(request, run, tmp_path, kind):
    program = require(command('tinyproxy'), 'tinyproxy', 'not installed (Debian: tinyproxy)')
    peer, port = request.getfixturevalue(kind), free_port()
    (tmp_path / 'tinyproxy.conf').write_text(TINYPROXY.format(port=port, folder=tmp_path))
    url = peer.create(name())
    with Peer('tinyproxy', [program, '-d', '-c', str(tmp_path / 'tinyproxy.conf')], tmp_path, lambda: accepts(port)):
        values = options(peer, url, proxy='http://prox_user:prox_secret@127.0.0.1:%d' % port)
        done = run('-f', config(tmp_path, LOAD, sqs=values), '-n', 2, '-i', 0.2)
        finished_well(done, 2)
        assert '127.0.0.1:%d' % peer.port in (tmp_path / 'requests').read_text()
        values['proxy'] = 'http://prox_user:wrong@127.0.0.1:%d' % port
        bad = run('-f', config(tmp_path, LOAD, sqs=values), '-n', 1, '-i', 0.2)
        assert bad.code == 1 and 'wrong@' not in bad.err and 'sqs: ' in bad.err
    holds(peer, url, lines_of(done))
