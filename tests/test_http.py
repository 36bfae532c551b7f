"""HTTP links and the influxdb08 emitter: one kept-alive connection, and servers that do what they should not."""
import email.utils
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from array import array

import pytest
import statbadger
from conftest import ROOT
from rig import LAYOUT, Rig, WHO, configured, role_of
from sinks import free_port
from standins import HttpStandin, InfluxStandin, Listener, certificates

LOGIN = {'database': 't', 'username': 'root', 'password': 'root'}


def frame(number, *points, **more):
    """A tick of (family, name, unit, kind, label keys, label values, value)."""
    layout = statbadger.Layout(tuple(statbadger.Series(*p[:6]) for p in points))
    return statbadger.Frame(number * 1000, number, more.get('who', WHO), layout, array('d', [p[6] for p in points]))


def influx(server, **more):
    scheme = 'https' if server.tls else 'http'
    return Rig('influxdb08', **dict(LOGIN, url='%s://127.0.0.1:%d' % (scheme, server.port), **more))


def times(server, series='cpu.user'):
    return sorted(point['time'] for point in server.points(series))


# -- what is sent -------------------------------------------------------------------------------

def body_of(*frames, **tags):
    template = statbadger.Template(statbadger.influx08_lines(tags), statbadger.VALUE + 'nan')
    (done, body), = statbadger.influx08_bodies(template, frames)
    assert done == len(frames)
    return json.loads(body)


READS = ('disk', 'reads', '', statbadger.COUNTER, ('device',))


def test_a_series_is_a_metric_with_the_identity_and_the_labels_as_columns():
    entry, = body_of(frame(7, READS + (('sda',), 3.5)), env='prod')
    number = entry['points'][0][1]
    assert entry == {'name': 'disk.reads', 'columns': ['time', 'sequence_number', 'value', 'units', 'datacenter', 'region',
                                                       'zone', 'cluster', 'hostname', 'ipv4', 'ipv6', 'env', 'device'],
                     'points': [[7000, number, 3.5, '', 'EC2', '', '', 'test', 'n1', '10.10.10.2', '', 'prod', 'sda']]}


def test_ticks_of_a_batch_share_the_entry_of_a_series():
    entry, = body_of(frame(1, READS + (('sda',), 1), READS + (('sdb',), 2)), frame(2, READS + (('sda',), 3)))
    assert [(row[0], row[2], row[-1]) for row in entry['points']] == [(1000, 1, 'sda'), (1000, 2, 'sdb'), (2000, 3, 'sda')]


def test_instances_and_hosts_have_numbers_of_their_own_that_stay_the_same():
    names = ['sd%s' % letter for letter in 'abcdefghij'] + ['', ' ', u'\xe4', 'sda1']
    rows = [row for who in (WHO, dict(WHO, hostname='n2'), dict(WHO, ipv4=''))
            for n in (1, 2) for entry in body_of(frame(n, *[READS + ((name,), 1) for name in names], who=who))
            for row in entry['points']]
    numbers = {(row[1]) for row in rows}
    assert len(numbers) == 3 * len(names) and all(0 < n <= 1 << 52 for n in numbers)


def test_metrics_with_and_without_a_label_share_columns_with_null_for_none():
    user = ('cpu', 'user', 'percent', statbadger.SHARE)
    entry, = body_of(frame(1, user + ((), (), 5), user + (('cpu',), ('cpu0',), 6)))
    assert entry['columns'][-1] == 'cpu' and [row[-1] for row in entry['points']] == [None, 'cpu0']


def test_holes_are_left_out_and_large_numbers_are_exact():
    gauge = ('mem', 'a', 'B', statbadger.GAUGE, (), ())
    one = frame(1, gauge + (float('nan'),), READS + (('sda',), float('nan')), ('mem', 'b', 'B', statbadger.GAUGE, (), (), 5))
    one.exact = {2: (1 << 62) + 1}
    entry, = body_of(one)
    assert entry['name'] == 'mem.b' and entry['points'][0][2] == (1 << 62) + 1


@pytest.mark.parametrize('name', ['a"b', 'a\\', 'a\nb\x01c', '%s %d %', u'\udcff', ', nan, ', 'nan', '\0', u'\U0001f600', '] ['])
def test_hostile_names_stay_inside_their_strings(name):
    entries = body_of(frame(1, READS + ((name,), 1), ('t' + name, name, name, statbadger.GAUGE, (), (), 2),
                            who=dict(WHO, hostname=name)))
    assert len(entries) == 2 and [len(e['points']) for e in entries] == [1, 1]
    assert entries[0]['points'][0][-1] == entries[0]['points'][0][8] == name


def test_a_batch_that_is_very_large_goes_in_several_requests():
    template = statbadger.Template(statbadger.influx08_lines({}), statbadger.VALUE + 'nan')
    frames = [frame(n, *[READS + (('sd%d' % i,), n) for i in range(10)]) for n in range(1, 8)]
    one = len(list(statbadger.influx08_bodies(template, frames[:1]))[0][1])
    bodies = list(statbadger.influx08_bodies(template, frames, most=7 * one))
    assert 1 < len(bodies) <= 7 and bodies[-1][0] == 7
    assert sum(len(entry['points']) for done, body in bodies for entry in json.loads(body)) == 70
    single = list(statbadger.influx08_bodies(template, frames, most=1))
    assert [done for done, body in single] == list(range(1, 8))


def test_a_request_holds_a_batch_gzipped_with_the_login_in_the_query():
    with InfluxStandin(databases=('d b',), users={'u&r': 'p=w %'}) as server:
        with influx(server, database='d b', username='u&r', password='p=w %', headers={'X-A': 'b'}, flush=10) as rig:
            rig.tick(*range(1, 11))
            assert rig.settled()['acknowledged'] == 10
        request, = server.requests
        assert request.path == '/db/d%20b/series?u=u%26r&p=p%3Dw%20%25&time_precision=ms'
        assert request.headers['content-encoding'] == 'gzip' and request.headers['x-a'] == 'b'
        assert request.headers['host'] == '127.0.0.1:%d' % server.port
        assert times(server) == [n * 1000 for n in range(1, 11)] and server.complaints == []


def test_the_base_path_of_a_url_is_kept_and_plain_bodies_can_be_had():
    with HttpStandin() as server:
        with Rig('influxdb08', url='http://localhost:%d/proxy/tsdb/' % server.port, gzip=False) as rig:
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
        request, = server.requests
        assert request.path.startswith('/proxy/tsdb/db/statbadger/series?u=&p=&')
        assert 'content-encoding' not in request.headers and json.loads(request.body.decode())


# -- the connection -----------------------------------------------------------------------------

def test_all_requests_go_over_one_connection():
    with InfluxStandin() as server:
        with influx(server) as rig:
            for n in range(1, 31):
                rig.tick(n)
                rig.settled()
        assert server.connections == 1 and len(server.requests) == 30


def test_a_kept_alive_connection_that_the_server_closed_costs_nothing():
    with InfluxStandin() as server:
        server.close_after = 3
        with influx(server) as rig:
            for n in range(1, 31):
                rig.tick(n)
                rig.settled()
        assert rig.log == [] and times(server) == [n * 1000 for n in range(1, 31)] and not rig.clock.skipped


def test_a_server_that_says_that_it_closes_is_dialled_anew():
    with InfluxStandin() as server:
        with influx(server) as rig:
            for n in range(1, 6):
                server.answer(200, {'Connection': 'close'}, b'x')
                rig.tick(n)
                rig.settled()
        assert server.connections == 5 and rig.log == []


@pytest.mark.parametrize('how', [
    {'status': 204}, {'body': b'x' * 60000}, {'body': b'x' * 70000}, {'body': b'x' * 30000, 'chunked': 777},
    {'interim': (100,)}, {'interim': (103, 100, 102, 103)}, {'body': b'', 'chunked': 5}])
def test_odd_answers_that_say_yes_mean_yes(how):
    with InfluxStandin() as server:
        with influx(server) as rig:
            for n in range(1, 4):
                server.answer(**how)
                rig.tick(n)
                assert rig.settled()['acknowledged'] == n
        assert rig.log == []


@pytest.mark.parametrize('how', [
    {'endless': 'headers'}, {'silent': True}, {'drip': 0.1, 'body': b'x' * 100}, {'raw': b'\x16\x03\x01garbage\r\n\r\n' * 9},
    {'raw': b'HTTP/1.1 2xx what\r\n\r\n'}, {'raw': b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'},
    {'cut': 20}, {'cut': 20, 'reset': True}, {'raw': b''}, {'raw': b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nx'},
    {'interim': (100,) * 5000, 'delay': 0.6}])
def test_answers_that_are_none_mean_no_and_cost_no_more_than_the_timeout(how):
    with InfluxStandin() as server:
        with influx(server, timeout=0.4) as rig:
            server.answer(**how)
            began = time.monotonic()
            rig.tick(1)
            rig.until(lambda: rig.sender.failures or rig.cursor.count['acknowledged'])
            assert time.monotonic() - began < 1.5
            assert rig.settled()['acknowledged'] == 1
            assert 'statbadger.py' not in rig.said()
        assert times(server)[:1] == [1000]


def test_bytes_that_belong_to_no_answer_end_the_connection():
    with InfluxStandin() as server:
        with influx(server) as rig:
            server.answer(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 400 Bad\r\n\r\n')
            rig.tick(1)
            rig.settled()
            rig.tick(2)
            assert rig.settled()['acknowledged'] == 2
        assert server.connections == 2 and rig.log == []


@pytest.mark.parametrize('hint', [b'HTTP/1.1 103 x\r\nConnection: close\r\n\r\n', b'HTTP/1.0 103 x\r\n\r\n',
                                  b'HTTP/1.1 101 x\r\nConnection: close\r\n\r\n'])
def test_nothing_is_ever_sent_but_over_the_link(hint):
    with InfluxStandin() as server:
        with influx(server) as rig:
            server.answer(raw=hint + b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', times=2)
            for n in range(1, 5):
                rig.tick(n)
                rig.settled()
            assert rig.cursor.count['acknowledged'] == 4
        assert 'statbadger.py' not in rig.said() and len(server.requests) >= 4


def test_hints_without_end_end_at_the_deadline():
    class Hinting(HttpStandin):
        def talk(self, wire):
            while not self.stopping:
                wire.send(b'HTTP/1.1 103 Early Hints\r\n\r\n' * 500)
    for hint in (103, 100):
        with Hinting() as server:
            with Rig('influxdb08', url='http://127.0.0.1:%d' % server.port, timeout=0.3) as rig:
                began = time.monotonic()
                rig.tick(1)
                rig.until(lambda: rig.sender.failures)
                assert time.monotonic() - began < 1.5 and hint


def test_an_endless_body_is_read_to_64_kib_and_then_closed():
    with InfluxStandin() as server:
        with influx(server, timeout=2) as rig:
            server.answer(200, endless='body')
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
            rig.tick(2)
            assert rig.settled()['acknowledged'] == 2 and server.connections == 2


# -- what a status means ------------------------------------------------------------------------

@pytest.mark.parametrize('status, pause', [
    (401, 300), (403, 300), (407, 300), (404, 60), (405, 60), (301, 300), (302, 300), (307, 300), (308, 300)])
def test_what_is_not_the_fault_of_the_data_waits_long(status, pause):
    with InfluxStandin() as server, HttpStandin() as other:
        with influx(server) as rig:
            server.answer(status, {'Location': 'http://127.0.0.1:%d/' % other.port}, b'no')
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
            assert [round(s) for s in rig.clock.skipped if s > 1.1] == [pause]
            assert 'HTTP %d' % status in rig.said()
        assert other.requests == [] and other.connections == 0


@pytest.mark.parametrize('status', [408, 425, 429, 500, 502, 503, 504, 599])
@pytest.mark.parametrize('asked, pause', [
    ('7', 7), ('', None), ('soon', None), ('-5', None), ('999999999999', 300), ('date', 20), ('old date', None)])
def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_asks(status, asked, pause):
    if 'date' in asked:
        asked = email.utils.formatdate(time.time() + (20 if asked == 'date' else -90), usegmt=True)
    with InfluxStandin() as server:
        with influx(server) as rig:
            server.answer(status, {'Retry-After': asked} if asked else {}, b'busy')
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
            waited = sum(rig.clock.skipped)
            assert waited <= 1.1 if pause is None else pause - 2 <= waited <= pause + 0.1
        assert times(server) == [1000]


@pytest.mark.parametrize('status, body', [(400, '<html>plain HTTP request sent to HTTPS port</html>'), (402, ''), (406, ''),
                                          (409, ''), (411, ''), (415, ''), (421, ''), (426, ''), (431, ''), (451, '')])
def test_what_does_not_blame_the_data_costs_no_tick(status, body):
    with HttpStandin() as server:
        server.answer(status, {'Content-Type': 'text/html'}, body, times=3)
        with Rig('influxdb08', url='http://127.0.0.1:%d' % server.port) as rig:
            rig.tick(1, 2, 3)
            assert rig.settled()['acknowledged'] == 3
            assert 'HTTP %d' % status in rig.said()


def test_a_chunk_of_less_than_nothing_is_no_answer():
    endless = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n' + b'x' * 300000
    with HttpStandin() as server:
        server.answer(raw=endless)
        with Rig('influxdb08', url='http://127.0.0.1:%d' % server.port) as rig:
            rig.tick(1)
            rig.until(lambda: 'no HTTP' in rig.said() or 'cut off' in rig.said())     # before 3.10 it reads by the piece


@pytest.mark.parametrize('status', [400, 422])
def test_a_batch_that_is_refused_goes_in_halves_until_the_bad_tick_is_alone(status):
    class Choosy(InfluxStandin):
        def reply(self, request):
            if b'[13000, ' in request.body:
                return status, {}, b'bad point'
            return InfluxStandin.reply(self, request)
    with Choosy() as server:
        with influx(server, flush=20) as rig:
            rig.tick(*range(1, 21))
            count = rig.settled()
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (19, 1, 3)
        assert times(server) == [n * 1000 for n in range(1, 21) if n != 13]
        assert 'bad point' in rig.said() and len(server.requests) <= 12


def test_a_tick_that_a_server_chokes_on_does_not_block_the_others_for_ever():
    class Choking(InfluxStandin):
        def reply(self, request):
            if b'[13000, ' in request.body:
                return 500, {}, b'panic'
            return InfluxStandin.reply(self, request)
    with Choking() as server:
        with influx(server, flush=20) as rig:
            rig.tick(*range(1, 21))
            count = rig.settled()
            assert (count['acknowledged'], count['quarantined']) == (19, 1) and 'refused: HTTP 500: panic' in rig.said()
        assert times(server) == [n * 1000 for n in range(1, 21) if n != 13]


@pytest.mark.parametrize('status', [500, 503])
def test_a_server_that_is_broken_for_a_day_is_no_reason_to_drop(status):
    with InfluxStandin() as server:
        with influx(server) as rig:
            server.answer(status, {}, b'sick', times=60)
            rig.tick(*range(1, 41))
            rig.until(lambda: len(server.requests) > 50)
            assert rig.adds_up()['quarantined'] == 0
            assert rig.settled(20)['acknowledged'] == 40
        assert times(server) == [n * 1000 for n in range(1, 41)]


def test_a_body_that_is_too_large_goes_in_smaller_ones():
    class Small(InfluxStandin):
        def reply(self, request):
            return (413, {}, b'') if request.body.count(b'"n1"') > 9 else InfluxStandin.reply(self, request)
    with Small() as server:
        with influx(server, flush=20) as rig:
            rig.tick(*range(1, 21))
            assert rig.settled()['acknowledged'] == 20
        assert times(server) == [n * 1000 for n in range(1, 21)]


def test_a_no_that_comes_before_the_body_was_read_is_heard():
    wide = statbadger.Layout(tuple(statbadger.Series('t', os.urandom(20).hex(), '', statbadger.GAUGE, (), ())
                                   for i in range(20000)))
    with InfluxStandin() as server:
        server.answer(413, {}, b'', times=1, early=True)
        with influx(server, gzip=False) as rig:
            rig.tick(1, layout=wide)
            count = rig.settled()
        assert count['quarantined'] + count['acknowledged'] == 1


def test_a_missing_database_is_no_fault_of_the_data():
    with InfluxStandin(databases=('other',)) as server:
        with influx(server) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
            server.databases['t'] = []
            assert rig.settled()['acknowledged'] == 1
        assert 'there is no database "t"' in rig.said() and times(server) == []


# -- proxies and TLS ----------------------------------------------------------------------------

class Connector(Listener):
    """A proxy that takes CONNECT and whole URLs; `asked` keeps the first lines and the logins."""

    def __init__(self, port, refuse=b''):
        self.behind, self.asked, self.no = port, [], refuse
        Listener.__init__(self)

    def talk(self, wire):
        head = wire.until(b'\r\n\r\n', 65536)
        lines = head.split(b'\r\n')
        self.asked.append((lines[0], [line for line in lines if line.lower().startswith(b'proxy-auth')]))
        if self.no:
            wire.send(self.no)
            return
        with socket.create_connection(('127.0.0.1', self.behind)) as server:
            if lines[0].startswith(b'CONNECT'):
                wire.send(b'HTTP/1.1 200 ok\r\n\r\n')
            else:
                server.sendall(head)
            self.pump(wire, server)

    def pump(self, wire, server):
        import select
        while not self.stopping:
            ready = select.select([wire.sock, server], [], [], 0.05)[0]
            for one, other in ((wire.sock, server), (server, wire.sock)):
                if one in ready or one is wire.sock and getattr(wire, 'data', b''):
                    data = wire.taken(len(wire.data)) if one is wire.sock and getattr(wire, 'data', b'') else one.recv(65536)
                    if not data:
                        return
                    other.sendall(data)


def test_proxies_of_the_environment_are_not_used(run):
    with InfluxStandin() as server, HttpStandin() as proxy:
        address = 'http://127.0.0.1:%d' % proxy.port
        done = run('-e', 'influxdb08,database=t,username=root,password=root,url=http://127.0.0.1:%d' % server.port,
                   '-n', '1', '-i', '0.1', env={'http_proxy': address, 'HTTP_PROXY': address, 'ALL_PROXY': address})
        assert done.code == 0 and len(server.requests) == 1 and proxy.connections == 0


def test_a_proxy_that_is_configured_gets_the_whole_url_and_its_own_login():
    with InfluxStandin() as server, Connector(server.port, b'HTTP/1.1 204 ok\r\n\r\n') as proxy:
        with influx(server, proxy='http://me:se%%2Fcret-p@127.0.0.1:%d' % proxy.port) as rig:
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
        line, (login,) = proxy.asked[0]
        assert line.startswith(b'POST http://127.0.0.1:%d/db/t/series?' % server.port) and server.connections == 0
        assert login.partition(b': ')[2] == statbadger.basic('me:se/cret-p').encode()


@pytest.mark.parametrize('answer, pause', [(b'HTTP/1.1 407 who are you\r\n\r\n', 300), (b'HTTP/1.1 502 no\r\n\r\n', 0),
                                           (b'garbage\r\n\r\n', 0), (b'', 0)])
def test_a_proxy_that_does_not_connect_is_said(answer, pause, tmp_path):
    papers = certificates(str(tmp_path))
    with InfluxStandin(tls=papers.server()) as server, Connector(server.port, answer or b'\0') as proxy:
        with influx(server, proxy='http://me:secret-p@127.0.0.1:%d' % proxy.port, tls_ca=papers.ca, timeout=0.5) as rig:
            rig.tick(1)
            rig.until(lambda: len(rig.clock.skipped) > 0)
        assert 'secret-p' not in rig.said() and server.requests == []
        assert proxy.asked[0] == (b'CONNECT 127.0.0.1:%d HTTP/1.1' % server.port,
                                  [b'Proxy-Authorization: ' + statbadger.basic('me:secret-p').encode()])
        assert (max(rig.clock.skipped) > 200) == bool(pause)


def test_https_goes_over_one_connection_and_checks_the_certificate(tmp_path):
    papers = certificates(str(tmp_path))
    with InfluxStandin(tls=papers.server()) as server:
        with influx(server, tls_ca=papers.ca) as rig:
            for n in range(1, 6):
                rig.tick(n)
                rig.settled()
        assert times(server) == [1000, 2000, 3000, 4000, 5000] and server.connections == 1 and rig.log == []


def test_a_certificate_that_is_renewed_on_disk_is_taken_without_a_restart(tmp_path):
    papers = certificates(str(tmp_path))
    trusted = tmp_path / 'trusted.pem'
    trusted.write_bytes(open(papers.other_ca, 'rb').read())
    with InfluxStandin(tls=papers.server()) as server:
        with influx(server, tls_ca=str(trusted)) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
            trusted.write_bytes(open(papers.ca, 'rb').read())
            os.utime(str(trusted), (5, 5))
            assert rig.settled()['acknowledged'] == 1
    assert 'certificate of the peer is refused' in rig.said()


# -- secrets and mistakes -----------------------------------------------------------------------

def test_a_server_that_repeats_what_it_was_sent_makes_no_secret_known():
    words = {'username': 'root', 'password': 'p&ss w\u00f6rd', 'headers': {'X-Token': 'tok-en-1'},
             'proxy': 'http://me:prox-y@127.0.0.1:1'}
    chosen = configured('influxdb08', **words)
    secrets = role_of(chosen).secrets
    assert 'p%26ss+w%C3%B6rd' in secrets and 'p%26ss%20w%c3%b6rd' in secrets and 'p\\u00f6' not in secrets
    assert 'p&ss w\\u00f6rd' in secrets and 'p&amp;ss w\u00f6rd' in secrets
    for text in ('p&ss w\u00f6rd', 'p%26ss%20w%C3%B6rd', statbadger.basic('root:p&ss w\u00f6rd')[6:], 'tok-en-1', 'prox-y'):
        assert text in secrets
    with InfluxStandin() as server:
        server.answer(503, {}, b'GET /db/t/series?u=root&p=p%26ss%20w%C3%B6rd tok-en-1 p&ss w\xc3\xb6rd', times=100)
        with influx(server, **dict(words, proxy='')) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert '****' in rig.said() and not any(text in rig.said() for text in secrets)


@pytest.mark.parametrize('options, need', [
    ({'url': 'localhost:8086'}, 'a URL such as'), ({'url': 'http://u:pass-w@h'}, 'options of their own'), ({'url': 'http://@h'}, 'options of their own'),
    ({'url': 'http://h/a?b=c'}, 'a URL such as'), ({'proxy': 'socks5://h:1'}, '"http://10.0.0.3:3128"'),
    ({'headers': {'a b': 'x'}}, 'an object of headers'), ({'headers': {'Content-length': '5'}}, 'other than content-length'),
    ({'headers': {'A': 'pass-w\r\nB: c'}}, 'an object of headers'),
    ({'tls_ca': 'nowhere.pem', 'url': 'https://h'}, 'a file that exists'), ({'tls_verify': False}, 'https in the URL'),
    ({'tags': {'value': 'x'}}, 'another name'), ({'url': 'u:pass-w@h:1'}, 'a URL such as'), ({'proxy': ['pass-w']}, 'text'),
    ({'proxy': 'u:pass-w@h:1'}, 'such as'), ({'password': ['pass-w']}, 'text in double quotes')])
def test_mistakes_are_said_with_what_is_needed_and_without_secrets(options, need):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('influxdb08', **options)
    assert need in str(caught.value) and 'pass-w' not in str(caught.value)


def test_check_shows_no_secret(run):
    done = run('-e', 'influxdb08,username=bob,password=pass-w1,headers.X-A=pass-w2,proxy=http://u:pass-w3@h:1', '--check')
    assert done.code == 0 and 'pass-w' not in done.out + done.err and 'bob' in done.out and '****' in done.out


def test_a_refused_connection_is_an_ordinary_error():
    with Rig('influxdb08', url='http://127.0.0.1:%d' % free_port()) as rig:
        rig.tick(1)
        rig.until(lambda: rig.log)
    assert 'Connection refused' in rig.said()


def test_what_is_gzipped_is_the_body():
    options = configured('influxdb08').options
    headers, data = statbadger.http_body(options, {'Content-Type': 'a/b'}, 'text')
    assert gzip.decompress(data) == b'text' and headers['Content-Type'] == 'a/b' and len(LAYOUT.series) == 3


def test_what_http_can_do_without_is_not_there_and_user_code_has_it_all_the_same(run, tmp_path):
    (tmp_path / 'mine.py').write_text("""
class mine:
    def __init__(self, config, logger):
        import shutil, urllib.request
        logger('info', msg='https %s bz2 %s' % (hasattr(urllib.request, 'HTTPSHandler'), shutil._BZ2_SUPPORTED))
    def emit_stats(self, payload, iteration):
        pass
""")
    with HttpStandin() as server:
        http = ['-m', 'load', '-n', '1', '-i', '0.1', '-e', 'influxdb08,url=http://127.0.0.1:%d' % server.port]
        done = run(*http + ['-e', 'mine,file=%s' % (tmp_path / 'mine.py')])
        assert done.code == 0 and 'https True bz2 True' in done.err
        assert len(server.requests) == 1


def test_http_brings_no_tls_along():
    code = ('import sys; sys.path.insert(0, %r); import statbadger; statbadger.web_modules(); '
            'print(sorted(n for n in sys.modules if n in ("ssl", "bz2", "lzma", "http.client"))); import ssl, bz2, lzma' % ROOT)
    out = subprocess.check_output([sys.executable, '-S', '-c', code])
    assert out.decode().strip() == "['http.client']"
