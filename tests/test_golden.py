"""Exact bytes of what leaves the program. GOLDEN=rewrite (make golden) writes them anew: git diff reviews."""
import os

import pytest
import sinks
import standins
import standins_avro
import standins_rabbitmq
import standins_tsdb
from conftest import TESTS
from standins_influxdb import InfluxdbStandin

HOSTS = ('linux-2.6.9', 'linux-6.18', 'odd-names')
WHO = ['-f', os.path.join(TESTS, 'golden', 'identity.conf')]
STDOUT = {'stdout': ['-e', 'stdout'], 'stdout_pretty': ['-e', 'stdout_pretty']}
GRAPHITE = {'graphite': 'graphite', 'graphite-tagged': 'graphite,tagged,tags.env=prod',
            'graphite-blacklist': 'graphite,prefix=servers.{hostname}.{zone},blacklist=mem.*,disk.*,net.*'}


def compare(name, data):
    path = os.path.join(TESTS, 'golden', name)
    if os.environ.get('GOLDEN') == 'rewrite':
        with open(path, 'wb') as file:
            file.write(data)
    with open(path, 'rb') as file:
        assert data == file.read(), 'not the bytes of tests/golden/%s' % name


def replay(run, host, *arguments):
    done = run(*(WHO + ['--replay', os.path.join(TESTS, 'hosts', host)] + list(arguments)))
    assert done.code == 0, done.err
    return done.out.encode()


@pytest.mark.parametrize('emitter', sorted(STDOUT))
@pytest.mark.parametrize('host', HOSTS)
def test_what_stdout_prints(run, host, emitter):
    compare('%s.%s' % (host, emitter), replay(run, host, *STDOUT[emitter]))


@pytest.mark.parametrize('emitter', sorted(GRAPHITE))
@pytest.mark.parametrize('host', HOSTS)
def test_what_graphite_is_sent(run, host, emitter):
    with sinks.TcpSink() as sink:
        kind, comma, rest = GRAPHITE[emitter].partition(',')
        replay(run, host, '-e', '%s,port=%d%s%s' % (kind, sink.port, comma, rest))
        assert sinks.until(lambda: sink.ended == [True])
        compare('%s.%s' % (host, emitter), sink.bytes())


KAFKA = {'kafka-flat': 'format=flat,tags.env=prod,blacklist=mem.*,cpu.*,disk.*_time.*,net.tx_*', 'kafka-influx': 'format=influx,tags.env=prod,blacklist=mem.*'}


@pytest.mark.parametrize('emitter', sorted(KAFKA))
@pytest.mark.parametrize('host', HOSTS)
def test_what_kafka_is_sent(run, host, emitter):
    with standins.KafkaStandin() as cluster:
        replay(run, host, '-e', 'kafka,brokers=%s,%s' % (cluster.address, KAFKA[emitter]))
        compare('%s.%s' % (host, emitter), b'\n'.join(cluster.values('statbadger')) + b'\n')


@pytest.mark.parametrize('host', HOSTS)
def test_what_rabbitmq_is_sent(run, host):
    """From the second frame on: the first says the version. The run is another each time: x stands for it."""
    with standins_rabbitmq.AmqpStandin(exchanges=['stats']) as server:
        replay(run, host, '-e', 'rabbitmq,port=%d,exchange=stats,queue=q,routing_key=k.{hostname},'
                                'blacklist=mem.*,cpu.*,net.*' % server.port)
        goodbye = b'\0\x0a\0\x32'
        data = b''.join(frame for frame in server.raw[1:] if frame[7:11] != goodbye)
        run_id = server.queues['q'][0].properties['message_id'].rsplit('-', 2)[1]
        compare('%s.rabbitmq' % host, data.replace(run_id.encode(), b'x' * len(run_id)))


@pytest.mark.parametrize('host', HOSTS)
def test_what_influxdb08_is_sent(run, host):
    with standins.InfluxStandin() as server:
        replay(run, host, '-e', 'influxdb08,database=t,username=root,password=root,batch=1,blacklist=mem.*,cpu.*,disk.*_time.*,net.tx_*,url=http://127.0.0.1:%d' % server.port)
        compare('%s.influxdb08' % host, b''.join(
            request.body.replace(b']}, {', b']},\n{') + b'\n' for request in server.requests))


@pytest.mark.parametrize('host', HOSTS)
def test_what_influxdb_is_sent(run, host):
    with InfluxdbStandin(names=['statbadger']) as server:
        replay(run, host, '-e', 'influxdb,tags.env=prod,blacklist=mem.*,url=http://127.0.0.1:%d' % server.port)
        path, = {request.path for request in server.requests}
        compare('%s.influxdb' % host, path.encode() + b'\n' + b''.join(request.body for request in server.requests))


AVRO = 'tags.env=prod,blacklist=mem.*,cpu.*,disk.w*,disk.*_*,net.tx_*,net.rx_[c-z]*'


@pytest.mark.parametrize('host', HOSTS)
def test_what_avro_writes(run, host, tmp_path):
    """A line for the header, and one per point; the markers between them are random."""
    replay(run, host, '-e', 'avro,path=%s,%s' % (tmp_path / 'x', AVRO))
    data, found = (tmp_path / 'x').read_bytes(), standins_avro.read(tmp_path / 'x')
    parts = [data[:found.ends[0] - 16]] + found.raw
    compare('%s.avro' % host, b''.join(repr(part).encode() + b'\n' for part in parts))


@pytest.mark.parametrize('emitter', ['opentsdb', 'kairosdb'])
@pytest.mark.parametrize('host', HOSTS)
def test_what_opentsdb_and_kairosdb_are_sent(run, host, emitter):
    blacklist = ',tags.env=prod,blacklist=mem.*,cpu.*,disk.*_*,net.tx_*,net.rx_[c-z]*'
    telnet = {'opentsdb': standins_tsdb.OpenTsdbTelnet, 'kairosdb': standins_tsdb.KairosTelnet}[emitter]
    with telnet() as lines, standins.HttpStandin() as bodies:
        replay(run, host, '-e', '%s,port=%d,protocol=telnet%s' % (emitter, lines.port, blacklist))
        replay(run, host, '-e', '%s,port=%d,protocol=http,batch=1%s' % (emitter, bodies.port, blacklist))
        compare('%s.%s' % (host, emitter), b''.join(bytes(data) for data in lines.received) + b''.join(
            gunzipped(request).replace(b'}},{', b'}},\n{') + b'\n' for request in bodies.requests))


def gunzipped(request):
    return request.body if 'content-encoding' in request.headers else standins.gunzip(request.body)
