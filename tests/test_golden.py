"""Exact bytes of what leaves the program. GOLDEN=rewrite (make golden) writes them anew: git diff reviews."""
import os
import re

import pytest
import sinks
import standins
import standins_druid
from conftest import TESTS

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
def test_what_influxdb08_is_sent(run, host):
    with standins.InfluxStandin() as server:
        replay(run, host, '-e', 'influxdb08,database=t,username=root,password=root,batch=1,blacklist=mem.*,cpu.*,disk.*_time.*,net.tx_*,url=http://127.0.0.1:%d' % server.port)
        compare('%s.influxdb08' % host, b''.join(
            request.body.replace(b']}, {', b']},\n{') + b'\n' for request in server.requests))


def test_what_druid_is_sent(run):
    few = 'druid,tags.env=prod,gzip=false,blacklist=mem.*,cpu.*,disk.*_*,disk.[a-q]*,net.tx_*,net.rx_[c-z]*'
    with standins_druid.DruidStandin() as server:
        replay(run, 'odd-names', '-e', '%s,url=http://127.0.0.1:%d' % (few, server.port))
        task, = [request.body for request in server.requests if request.method == 'POST']
    task = re.sub(br'_[0-9a-f]{12}(_1-2_[0-9a-f]{8}_0")', br'_RUN\1', task)
    compare('odd-names.druid', task.replace(b'\\n', b'\\n\n') + b'\n')
