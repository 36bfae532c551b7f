"""The stand-ins themselves: against documented bytes, and against clients that are not ours."""
import base64
import gzip
import hashlib
import hmac
import json
import socket
import ssl
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest

import standins
from sinks import until
from standins import (ALWAYS, HttpStandin, InfluxStandin, KafkaStandin, Listener, Malformed, Proxy, Refused,
                      Scram, certificates, crc32c, read_batch)

HELLO = '000000140012000000000001000a73746174626164676572'
METADATA_1 = '0000001f0003000100000002000a737461746261646765720000000100057374617473'
METADATA_4 = '000000200003000400000002000a73746174626164676572000000010005737461747301'
HANDSHAKE = '0000001b0011000100000001000a737461746261646765720005504c41494e'
LOGIN = '000000250024000000000002000a737461746261646765720000000d00616c69636500736563726574'
PRODUCER = '0000001a0016000000000004000a73746174626164676572ffff7fffffff'
PRODUCE = ('000000900000000300000003000a73746174626164676572ffffffff0000271000000001000573746174730000'
           '0001000000000000005d000000000000000000000051ffffffff02ac3aaa510000000000000000018bcfe568000000'
           '018bcfe56800ffffffffffffffffffffffffffff00000001'
           '3e0000000468312e7b22686f7374223a226831222c22637075223a312e357d00')
ONE = bytes.fromhex(PRODUCE)[-93:]
TWO = bytes.fromhex('000000000000000000000061ffffffff02cfd92d940000000000010000018bcfe568000000018bcfe56be800'
                    '00000000000007000000000005000000023e0000000468312e7b22686f7374223a226831222c22637075223a'
                    '312e357d001e00d00f020102780206737263047362')
VALUE = b'{"host":"h1","cpu":1.5}'
TS = 1700000000000


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certificates'))


class Client:
    """A bare connection; frame(bytes) -> the answer without its size, None when it ended instead."""

    def __init__(self, port, seconds=3.0):
        self.sock = socket.create_connection(('127.0.0.1', port), seconds)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.sock.close()

    def read(self, n):
        """n bytes, or fewer when the connection ends in order."""
        out = b''
        while len(out) < n:
            piece = self.sock.recv(n - len(out))
            if not piece:
                break
            out += piece
        return out

    def answer(self):
        size = self.read(4)
        return self.read(struct.unpack('>i', size)[0]) if size else None

    def frame(self, data):
        self.sock.sendall(bytes.fromhex(data) if isinstance(data, str) else data)
        return self.answer()

    def request(self, api, version, body, correlation=9):
        """The body of the answer to a request of client 'c'."""
        head = struct.pack('>hhi', api, version, correlation) + b'\0\1c'
        answer = self.frame(struct.pack('>i', len(head + body)) + head + body)
        if answer is not None:
            assert answer[:4] == struct.pack('>i', correlation)
            return answer[4:]
        return None

    def produce(self, batch, acks=-1, version=3, topic='stats', partition=0):
        """(error, offset) that Produce gives for a batch."""
        body = self.request(0, version, produce_body([(topic, [(partition, batch)])], acks))
        return None if body is None else struct.unpack('>hq', body[10 + len(topic) + 4:][:10])

    def login(self, *tokens):
        """The answers (error, text, token, lifetime) to SaslAuthenticate v1 with the tokens."""
        out = []
        for token in tokens:
            r = standins.Reader(self.request(36, 1, struct.pack('>i', len(token)) + token))
            out.append((r.int16(), r.nullable_string(), r.blob(), r.int64()))
            r.end()
        return out


def produce_body(topics, acks=-1):
    out = b'\xff\xff' + struct.pack('>hii', acks, 1000, len(topics))
    for topic, parts in topics:
        out += struct.pack('>h', len(topic)) + topic.encode() + struct.pack('>i', len(parts))
        for partition, batch in parts:
            out += struct.pack('>ii', partition, len(batch)) + batch
    return out


def varint(n):
    n, out = (n << 1) ^ (n >> 63), b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def record(value, number=0, delta=0, attributes=0):
    body = bytes([attributes]) + varint(delta) + varint(number) + varint(-1)
    body += varint(len(value)) + value + varint(0)
    return varint(len(body)) + body


def batch(values=(b'x',), sequence=-1, producer=None, epoch=0, records=None, **other):
    """A record batch; other: fields that are to be other than right."""
    count = other.get('count', len(values))
    producer, epoch = (-1, -1) if producer is None else (producer, epoch)
    body = b''.join(record(value, i) for i, value in enumerate(values)) if records is None else records
    tail = struct.pack('>hiqqqhii', other.get('attributes', 0), other.get('last', count - 1),
                       other.get('first', TS), other.get('newest', TS), producer, epoch, sequence, count)
    tail += body
    return (struct.pack('>qiib', other.get('base', 0), len(tail) + 9 + other.get('longer', 0), -1,
                        other.get('magic', 2)) + struct.pack('>I', crc32c(tail)) + tail)


def get(port, context, host='localhost'):
    """What urllib gets over TLS: the status, or the error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                         urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open('https://%s:%d/' % (host, port), timeout=3) as reply:
            return reply.status
    except (OSError, ssl.CertificateError) as error:
        return error


def test_the_good_certificate_stands_a_strict_check(certs):
    context = ssl.create_default_context(cafile=certs.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with HttpStandin(certs.server()) as server:
        assert get(server.port, context) == get(server.port, context, '127.0.0.1') == 200
        assert server.tls_errors == []


def test_the_good_certificate_is_good_for_ipv6(certs):
    context = ssl.create_default_context(cafile=certs.ca)
    try:
        server = HttpStandin(certs.server(), host='::1')
    except OSError:
        pytest.skip('needs IPv6 on the loopback')
    with server:
        assert get(server.port, context, '[::1]') == 200


@pytest.mark.parametrize('name, texts', [
    ('expired', ['certificate has expired', 'verify failed']),
    ('other_host', ["doesn't match", 'mismatch']),
    ('unknown_ca', ['unable to get local issuer', 'verify failed']),
    ('self_signed', ['self signed', 'self-signed', 'verify failed'])])
def test_a_wrong_certificate_is_refused(certs, name, texts):
    with HttpStandin(certs.server(name)) as server:
        said = str(get(server.port, ssl.create_default_context(cafile=certs.ca)))
        assert any(text in said for text in texts), said
        assert server.requests == []


@pytest.mark.parametrize('tls13', [True, False])
def test_a_client_certificate_can_be_required(certs, tls13):
    with HttpStandin(certs.server(client=True, tls13=tls13)) as server:
        context = ssl.create_default_context(cafile=certs.ca)
        assert isinstance(get(server.port, context), OSError)
        context.load_cert_chain(*certs.stranger)
        assert isinstance(get(server.port, context), OSError)
        context = ssl.create_default_context(cafile=certs.ca)
        context.load_cert_chain(*certs.client)
        assert get(server.port, context) == 200
        assert until(lambda: len(server.tls_errors) == 2)


class Fives(Listener):
    """Answers 0123456789 to every five bytes; .got is all it has read."""

    def __init__(self):
        self.got = b''
        Listener.__init__(self)

    def talk(self, wire):
        while True:
            wire.more()
            self.got += bytes(wire.buffer)
            whole = len(self.got) // 5 - (len(self.got) - len(wire.buffer)) // 5
            del wire.buffer[:]
            wire.send(b'0123456789' * whole)


@pytest.fixture
def fives():
    with Fives() as server, Proxy(server.port) as proxy:
        server.proxy = proxy
        yield server


def test_the_proxy_passes_everything_and_the_end(fives):
    with Client(fives.proxy.port) as client:
        client.sock.sendall(b'abcdeabcde')
        assert client.read(20) == b'0123456789' * 2
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read(1) == b''
    assert (fives.proxy.connections, fives.proxy.to_server, fives.proxy.to_client) == (1, 10, 20)


@pytest.mark.parametrize('reset', [False, True])
def test_the_proxy_cuts_answers_where_it_is_told(fives, reset):
    for n in range(11):
        fives.proxy.cut_answers(n, reset)
        with Client(fives.proxy.port) as client:
            client.sock.sendall(b'abcde')
            assert client.read(n) == b'0123456789'[:n]
            if reset:
                with pytest.raises(ConnectionResetError):
                    client.read(1)
            else:
                assert client.read(1) == b''
    assert fives.got == b'abcde' * 11
    assert (fives.proxy.cuts, fives.proxy.to_client) == (11, 55)


@pytest.mark.parametrize('reset', [False, True])
def test_the_proxy_cuts_requests_where_it_is_told(fives, reset):
    for n in range(5):
        fives.got = b''
        fives.proxy.cut_requests(n, reset)
        with Client(fives.proxy.port) as client:
            client.sock.sendall(b'abcde')
            try:
                assert client.read(1) == b'' and not reset
            except ConnectionResetError:
                assert reset
        assert until(lambda: fives.got == b'abcde'[:n])
    assert fives.proxy.to_client == 0


def test_the_proxy_cuts_once_and_in_mid_flight(fives):
    with Client(fives.proxy.port) as old, Client(fives.proxy.port) as other:
        old.sock.sendall(b'abcde')
        assert old.read(10) == b'0123456789'
        fives.proxy.cut_answers(3, times=1)
        old.sock.sendall(b'abcde')
        assert old.read(10) == b'012'
        other.sock.sendall(b'abcde')
        assert other.read(10) == b'0123456789'


def test_the_proxy_swallows_answers(fives):
    fives.proxy.swallow()
    with Client(fives.proxy.port, 0.1) as client:
        client.sock.sendall(b'abcde')
        with pytest.raises(socket.timeout):
            client.read(1)
        assert fives.got == b'abcde'
        fives.proxy.pass_all()
        client.sock.sendall(b'abcde')
        assert client.read(10) == b'0123456789'
        assert fives.proxy.to_client == 10


def test_the_proxy_drips(fives):
    fives.proxy.drip(0.01)
    began = time.monotonic()
    with Client(fives.proxy.port) as client:
        client.sock.sendall(b'abcde')
        assert [client.sock.recv(100) for _ in range(10)] == [b'%d' % i for i in range(10)]
    assert time.monotonic() - began >= 0.09


def test_the_proxy_answers_garbage_that_a_seed_gives(fives):
    seen = []
    for seed in (1, 2):
        fives.proxy.garbage(seed)
        with Client(fives.proxy.port) as client:
            client.sock.sendall(b'abcde')
            seen.append(client.read(10))
    assert len(seen[0]) == len(seen[1]) == 10
    assert len(set(seen + [b'0123456789'])) == 3
    with Proxy(fives.port) as again:
        again.garbage(1)
        with Client(again.port) as client:
            client.sock.sendall(b'abcde')
            assert client.read(10) == seen[0]


def test_the_proxy_refuses_and_comes_back_on_its_port(fives):
    port = fives.proxy.port
    for _ in range(3):
        with Client(port) as client:
            fives.proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                Client(port)
            client.sock.sendall(b'abcde')
            assert client.read(10) == b'0123456789'
            fives.proxy.up()


def test_the_proxy_hands_a_reset_on(fives):
    with Client(fives.proxy.port) as client:
        client.sock.sendall(b'abcde')
        client.read(10)
        fives.hang_up(reset=True)
        with pytest.raises(ConnectionResetError):
            client.read(1)


def test_crc32c_has_the_published_values():
    known = [(b'', 0), (b'a', 0xc1d04330), (b'123456789', 0xe3069283), (bytes(32), 0x8a9136aa),
             (b'\xff' * 32, 0x62a8ab43), (bytes(range(32)), 0x46dd794e)]
    assert [crc32c(data) for data, _ in known] == [crc for _, crc in known]
    assert crc32c(bytes(i * 7 & 255 for i in range(10000))) == 0xc9b259b4


def test_the_documented_requests_are_answered_as_documented():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        assert client.frame(HELLO).hex() == (
            '00000001' '0000' '00000008' '00000000000d' '000100040012' '00020001000b' '00030000000d'
            '001100000001' '001200000004' '001600000005' '002400000002')
        host, port = '0009' + b'127.0.0.1'.hex(), '%08x' % kafka.port
        brokers = '00000001' '00000001' + host + port + 'ffff'
        topics = ('00000001' '0000' '0005' '7374617473' '00' '00000001'
                  '0000' '00000000' '00000001' '0000000100000001' '0000000100000001')
        assert client.frame(METADATA_1).hex() == '00000002' + brokers + '00000001' + topics
        cluster = '0008' + b'stand-in'.hex()
        assert client.frame(METADATA_4).hex() == ('00000002' '00000000' + brokers + cluster + '00000001'
                                                  + topics)
        assert client.frame(PRODUCER).hex() == '00000004' '00000000' '0000' '00000000000003e8' '0000'
        ok = '00000003' '00000001' '0005' '7374617473' '00000001' '00000000' '0000' '%016x' 'ffffffffffffffff'
        v5, v8 = '0000000000000000', '00000000' 'ffff'
        for version, more in ((3, ''), (4, ''), (5, v5), (6, v5), (7, v5), (8, v5 + v8)):
            answer = client.frame(PRODUCE[:12] + '%04x' % version + PRODUCE[16:])
            assert answer.hex() == ok % (version - 3) + more + '00000000'
        assert kafka.records('stats') == [(0, i, TS, b'h1', VALUE, []) for i in range(6)]
        assert [r[:5] for r in kafka.requests[:3]] == [
            (1, 18, 0, 1, 'statbadger'), (1, 3, 1, 2, 'statbadger'), (1, 3, 4, 2, 'statbadger')]
        assert kafka.requests[0].raw.hex() == HELLO
        assert kafka.connections == 1 and kafka.complaints == []


def test_a_documented_login_with_plain_is_accepted():
    with KafkaStandin(topics={'stats': 1}, sasl=['PLAIN'], users={'alice': 'secret'}) as kafka:
        with Client(kafka.port) as client:
            assert client.frame(HANDSHAKE).hex() == '00000001' '0000' '00000001' '0005' '504c41494e'
            assert client.frame(LOGIN).hex() == '00000002' '0000' 'ffff' '00000000'
            assert client.frame(PRODUCE)[21:23] == b'\0\0'
        assert kafka.logins == [(1, 'PLAIN', 'alice')]
        assert kafka.complaints == []


def test_two_records_with_a_header_and_a_producer_are_read():
    got = read_batch(TWO)
    assert (got.producer, got.epoch, got.sequence, got.count, got.newest) == (7, 0, 5, 2, TS + 1000)
    assert got.records == [(TS, b'h1', VALUE, []), (TS + 1000, None, b'x', [('src', b'sb')])]


def test_no_byte_of_a_batch_may_be_other():
    for golden in (ONE, TWO):
        for i in set(range(len(golden))) - set(range(12, 16)):
            for bit in (1, 128):
                with pytest.raises(Malformed):
                    read_batch(golden[:i] + bytes([golden[i] ^ bit]) + golden[i + 1:])
        for end in range(len(golden)):
            with pytest.raises(Malformed):
                read_batch(golden[:end])


def zipped(data):
    return gzip.compress(data)


@pytest.mark.parametrize('wrong', [
    dict(base=1), dict(magic=1), dict(longer=1), dict(count=2), dict(count=0), dict(last=1),
    dict(first=TS - 1), dict(newest=TS + 1), dict(attributes=8), dict(attributes=16), dict(attributes=5),
    dict(sequence=0), dict(producer=1), dict(records=record(b'x') + b'\0'), dict(records=record(b'x', 1)),
    dict(records=record(b'x', attributes=1)), dict(records=b'\x8e\x00' + record(b'x')[1:]),
    dict(records=record(b'x')[:-1]), dict(attributes=1),
    dict(attributes=1, records=zipped(record(b'x'))[:-1]),
    dict(attributes=1, records=zipped(record(b'x')) + b'\0')])
def test_a_wrong_batch_is_malformed(wrong):
    read_batch(batch())
    with pytest.raises(Malformed):
        read_batch(batch(**wrong))


def test_gzip_is_read():
    assert [r.value for r in read_batch(batch(attributes=1, records=zipped(record(b'x')))).records] == [b'x']


@pytest.mark.parametrize('data', [
    PRODUCE[:8] + '00000000' + PRODUCE[16:], '00000007' + HELLO[8:], PRODUCE[:-2] + '01', 'ffffffff',
    '47455420' + HELLO, HELLO[:8] + '0013' + HELLO[12:], '00000015' + HELLO[8:] + '00',
    METADATA_4[:-2] + '02', METADATA_1[:-20] + '0000000200057374617473',
    PRODUCER[:-12] + '00007fffffff', '0000001b' + PRODUCER[8:] + '00'])
def test_a_malformed_request_ends_the_connection_and_is_told(data):
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        client.sock.sendall(bytes.fromhex(data))
        client.sock.shutdown(socket.SHUT_WR)
        assert client.answer() is None
        assert until(lambda: len(kafka.complaints) == 1)
        assert kafka.records('stats') == []
        assert not any('Traceback' in text for text in kafka.complaints)


def test_half_a_frame_is_torn_and_no_complaint():
    with KafkaStandin() as kafka:
        with Client(kafka.port) as client:
            client.sock.sendall(bytes.fromhex(PRODUCE)[:50])
        assert until(lambda: kafka.torn == [bytes.fromhex(PRODUCE)[4:50]])
        assert kafka.complaints == []


def test_the_versions_are_those_of_real_brokers():
    seen = {}
    for name in standins.VERSIONS:
        with KafkaStandin(versions=name) as kafka, Client(kafka.port) as client:
            body = client.request(18, 0, b'')
            ranges = [struct.unpack_from('>hhh', body, 6 + 6 * i)
                      for i in range(struct.unpack_from('>i', body, 2)[0])]
            seen[name] = {api: (low, high) for api, low, high in ranges}
            assert client.request(18, 9, b'\1\2\3')[:2] == b'\0\x23'
    assert seen == standins.VERSIONS
    assert [seen[name][0] for name in ('0.10.2', '0.11', '1.1', '2.8', '3.9', '4.3')] == [
        (0, 2), (0, 3), (0, 5), (0, 9), (0, 11), (0, 13)]


def test_produce_below_3_closes_the_connection():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        assert client.frame(PRODUCE[:12] + '0002' + PRODUCE[16:]) is None
        assert until(lambda: kafka.complaints == ['broker 1: produce v2 is not there, or not known here'])


def test_acks_0_has_no_answer_and_5_is_an_error():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        client.sock.sendall(bytes.fromhex(PRODUCE.replace('ffffffff00002710', 'ffff000000002710')))
        assert client.frame(HELLO)[:4] == b'\0\0\0\1'
        assert len(kafka.records('stats')) == 1
        assert client.produce(batch(), acks=5) == (21, -1)
        assert client.produce(batch(), acks=1) == (0, 1)
        assert client.request(0, 3, produce_body([('stats', [(0, batch()), (7, batch())])], 0)) is None
        assert kafka.complaints == []


def test_a_partition_stands_once_in_a_request():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        assert client.request(0, 3, produce_body([('stats', [(0, batch()), (0, batch())])])) is None
        assert until(lambda: kafka.complaints) and kafka.records('stats') == []


def test_idempotence_is_that_of_apache_kafka():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        def send(sequence, epoch=0, values=(b'x',), producer=7):
            return client.produce(batch(values, sequence, producer, epoch))
        assert [send(i) for i in range(6)] == [(0, i) for i in range(6)]
        assert [send(i) for i in (1, 5)] == [(0, 1), (0, 5)]
        assert send(0) == (45, -1), 'older than the last five'
        assert send(7) == (45, -1), 'a gap'
        assert send(5, values=(b'x', b'y')) == (45, -1), 'the same sequence with another length'
        assert send(1, epoch=1) == (45, -1), 'a new epoch begins with 0'
        assert send(0, epoch=1) == (0, 6)
        assert send(6) == (47, -1), 'an older epoch'
        assert send(7, producer=8) == (0, 7), 'an unknown producer may begin anywhere'
        assert send(2 ** 31 - 2, producer=9, values=(b'x', b'y', b'z')) == (0, 8)
        assert send(1, producer=9) == (0, 11), 'after 2**31 - 1 comes 0'
        assert len(kafka.records('stats')) == 12
        assert kafka.complaints == []


def test_errors_of_topics_partitions_leaders_sizes_and_times():
    topics = {'stats': 2, 'no': 1, 'keyed': 1}
    with KafkaStandin(brokers=2, topics=topics) as kafka, Client(kafka.port) as client:
        kafka.denied.add('no')
        kafka.compacted.add('keyed')
        assert client.produce(batch(), topic='absent') == (3, -1)
        assert client.produce(batch(), partition=2) == (3, -1)
        assert client.produce(batch(), partition=1) == (6, -1)
        assert client.produce(batch(), topic='no') == (29, -1)
        assert client.produce(batch(), topic='keyed') == (87, -1)
        assert client.produce(batch(attributes=4)) == (76, -1)
        kafka.move_leader('stats', 1, 1)
        assert client.produce(batch(), partition=1) == (0, 0)
        kafka.max_message_bytes = len(batch())
        assert client.produce(batch()) == (0, 0)
        assert client.produce(batch([b'xy'])) == (10, -1)
        kafka.timestamps = (60000, 60000)
        assert client.produce(batch()) == (32, -1)
        body = client.request(0, 8, produce_body([('stats', [(0, batch())])]))
        assert body[45:57] == b'\0\0\0\1' b'\0\0\0\0' b'\0\x16Ti'
        kafka.timestamps = (None, 60000)
        assert client.produce(batch()) == (0, 1)
        assert kafka.complaints == []


def metadata(client, topics, version=4, create=True):
    """(addresses {node: (host, port)}, topics {name: (error, {partition: (error, leader)})}, controller)"""
    names = b''.join(struct.pack('>h', len(name)) + name.encode() for name in topics or ())
    body = struct.pack('>i', -1 if topics is None else len(topics)) + names + (b'\0\1'[create:create + 1]
                                                                               if version >= 4 else b'')
    body += b'\0\0' if version >= 8 else b''
    r = standins.Reader(client.request(3, version, body))
    if version >= 3:
        r.int32()
    nodes = {node: (host, port) for node, host, port, rack in r.array(
        lambda: (r.int32(), r.string(), r.int32(), r.nullable_string()))}
    cluster, controller = r.nullable_string() if version >= 2 else '', r.int32()
    assert cluster is not None

    def partition():
        error, number, leader = r.int16(), r.int32(), r.int32()
        if version >= 7:
            r.int32()
        for _ in range(3 if version >= 5 else 2):
            r.array(r.int32)
        return number, (error, leader)

    def topic():
        error, name, internal, partitions = r.int16(), r.string(), r.boolean(), dict(r.array(partition))
        if version >= 8:
            r.int32()
        assert internal is False
        return name, (error, partitions)
    found = dict(r.array(topic))
    if version >= 8:
        r.int32()
    r.end()
    return nodes, found, controller


@pytest.mark.parametrize('version', range(1, 9))
def test_metadata(version):
    with KafkaStandin(brokers=3, topics={'stats': 4}) as kafka, Client(kafka.port) as client:
        nodes, topics, controller = metadata(client, ['stats'], version)
        assert nodes == {n: ('127.0.0.1', kafka.brokers[n].port) for n in (1, 2, 3)} and controller == 1
        assert topics == {'stats': (0, {0: (0, 1), 1: (0, 2), 2: (0, 3), 3: (0, 1)})}
        kafka.advertise(2, 'elsewhere', 1)
        kafka.move_leader('stats', 0, 2)
        kafka.down(3, forget=True)
        nodes, topics, controller = metadata(client, None, version)
        assert sorted(nodes) == [1, 2] and nodes[2] == ('elsewhere', 1)
        assert topics == {'stats': (0, {0: (0, 2), 1: (0, 2), 2: (5, -1), 3: (0, 1)})}
        assert metadata(client, [], version)[1] == {}
        assert metadata(client, ['a b', '..'], version)[1] == {'a b': (17, {}), '..': (17, {})}
        assert kafka.complaints == []


def test_a_topic_is_made_when_that_is_wanted():
    with KafkaStandin(versions='1.1') as kafka, Client(kafka.port) as client:
        kafka.partitions = 2
        assert metadata(client, ['new'], create=False)[1] == {'new': (3, {})}
        assert metadata(client, ['new'])[1] == {'new': (5, {})}
        assert metadata(client, ['new'])[1] == {'new': (0, {0: (0, 1), 1: (0, 1)})}
        kafka.auto_create = False
        kafka.denied.add('no')
        assert metadata(client, ['newer', 'no'])[1] == {'newer': (3, {}), 'no': (29, {})}


def test_failures_come_as_often_as_told():
    with KafkaStandin(topics={'stats': 1, 'other': 1}) as kafka, Client(kafka.port) as client:
        kafka.fail('produce', 6, times=2, topic='stats')
        assert [client.produce(batch(), topic=t) for t in ('other', 'stats', 'stats', 'stats')] == [
            (0, 0), (6, -1), (6, -1), (0, 0)]
        kafka.append_then_fail('produce', 7)
        assert client.produce(batch()) == (7, -1)
        assert len(kafka.records('stats')) == 2
        kafka.fail('init_producer_id', 14)
        assert client.request(22, 0, b'\xff\xff\0\0\0\1').hex() == '00000000' '000e' 'ffffffffffffffff' 'ffff'
        kafka.fail('metadata', 5)
        assert metadata(client, ['stats'])[1] == {'stats': (5, {})}
        kafka.fail('api_versions', 35)
        assert client.request(18, 0, b'').hex() == '0023' '00000000'
        kafka.fail('produce', 87, message='no', record_errors=[(0, 'bad')])
        body = client.request(0, 8, produce_body([('stats', [(0, batch())])]))
        assert body[19:].hex() == ('0057' + 'ff' * 24 + '00000001' '00000000' '0003626164' '00026e6f'
                                   '00000000')
        kafka.fail('produce', 6, ALWAYS)
        assert [client.produce(batch()) for _ in range(3)] == [(6, -1)] * 3
        kafka.heal()
        assert client.produce(batch()) == (0, 2)


def test_an_answer_may_be_lost_after_the_records_are_stored_or_before():
    with KafkaStandin(topics={'stats': 1}) as kafka:
        kafka.append_then_fail('produce', 'close')
        kafka.append_then_fail('produce', 'reset')
        kafka.fail('produce', 'close')
        with Client(kafka.port) as client:
            assert client.produce(batch([b'a'])) is None
        with Client(kafka.port) as client, pytest.raises(ConnectionResetError):
            client.produce(batch([b'b']))
        with Client(kafka.port) as client:
            assert client.produce(batch([b'c'])) is None
        kafka.append_then_fail('produce', 'silence')
        with Client(kafka.port, 0.05) as client, pytest.raises(socket.timeout):
            client.produce(batch([b'd']))
        assert kafka.values('stats') == [b'a', b'b', b'd']


def test_a_proxy_before_a_broker_loses_an_answer_at_every_byte():
    with KafkaStandin(topics={'stats': 1}) as kafka, Proxy(kafka.port) as proxy:
        kafka.advertise(1, '127.0.0.1', proxy.port)
        for n in range(0, 47, 5):
            proxy.cut_answers(n)
            with Client(proxy.port) as client:
                assert metadata_port(kafka) == proxy.port
                client.sock.sendall(bytes.fromhex(PRODUCE))
                assert len(client.read(1000)) == n
        assert len(kafka.records('stats')) == 10 and kafka.complaints == []


def metadata_port(kafka):
    with Client(kafka.port) as client:
        return metadata(client, [])[0][1][1]


def test_some_partitions_of_a_request_may_fail():
    with KafkaStandin(topics={'stats': 2}) as kafka, Client(kafka.port) as client:
        kafka.fail('produce', 19, partition=1)
        body = client.request(0, 3, produce_body([('stats', [(0, batch([b'a'])), (1, batch([b'b']))])]))
        assert body.hex() == ('00000001' '0005' '7374617473' '00000002'
                              '00000000' '0000' + '00' * 8 + 'ff' * 8
                              + '00000001' '0013' + 'ff' * 16 + '00000000')
        assert kafka.values('stats') == [b'a']


def test_a_broker_goes_down_and_comes_up_on_its_port():
    with KafkaStandin(brokers=2, topics={'stats': 1}) as kafka:
        port = kafka.brokers[2].port
        for reset in (False, True):
            with Client(kafka.port) as other, Client(port) as client:
                client.frame(HELLO)
                kafka.down(2, reset)
                try:
                    assert client.read(1) == b'' and not reset
                except ConnectionResetError:
                    assert reset
                with pytest.raises(ConnectionRefusedError):
                    Client(port)
                assert other.produce(batch())[0] == 0
            kafka.up(2)
            with Client(port) as client:
                assert client.frame(HELLO)


def test_a_frozen_broker_reads_and_is_silent_until_it_thaws():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port, 0.1) as client:
        assert client.frame(HELLO)
        kafka.freeze(1)
        with pytest.raises(socket.timeout):
            client.produce(batch())
        with Client(kafka.port, 0.05) as late, pytest.raises(socket.timeout):
            late.frame(HELLO)
        assert kafka.values('stats') == []
        kafka.thaw(1)
        assert client.answer()[:4] == b'\0\0\0\x09'
        assert kafka.values('stats') == [b'x']
        kafka.freeze(1)
        Client(kafka.port).sock.close()


def test_throttling_delays_and_pieces():
    with KafkaStandin(topics={'stats': 1}) as kafka, Client(kafka.port) as client:
        kafka.piece = 1
        client.sock.sendall(bytes.fromhex(HELLO))
        reads = [client.sock.recv(100)]
        while len(b''.join(reads)) < 62:
            reads.append(client.sock.recv(100))
        assert len(reads) > 10
        kafka.piece, kafka.delay = None, 0.05
        began = time.monotonic()
        client.frame(HELLO)
        assert 0.05 <= time.monotonic() - began < 1
        kafka.delay, kafka.throttle_ms, kafka.mute = 0, 60, True
        assert client.request(0, 3, produce_body([('stats', [(0, batch())])]))[-4:] == b'\0\0\0\x3c'
        began = time.monotonic()
        client.frame(HELLO)
        assert 0.03 <= time.monotonic() - began < 1


def test_scram_gives_what_rfc_7677_says():
    first = b'n,,n=user,r=rOprNGfwEbeRWgbNEkqO'
    final = b'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p='
    vectors = {
        'sha256': (b'dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
                   b'6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4='),
        'sha512': (b'gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOM'
                   b'w+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==',
                   b'ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0'
                   b'vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==')}
    for digest, (proof, signature) in vectors.items():
        scram = Scram(digest, {'user': 'pencil'}, salt=base64.b64decode('W22ZaJ0SNY7soEsUEjb6gQ=='),
                      nonce='%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0')
        assert scram.step(first) == (b'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,'
                                     b's=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096', False)
        assert scram.step(final + proof) == (b'v=' + signature, True)
        assert scram.user == 'user'
        scram = Scram(digest, {'user': 'pen'}, salt=scram.salt, nonce=scram.nonce)
        scram.step(first)
        with pytest.raises(Refused):
            scram.step(final + proof)


def scram_tokens(client, user, password, digest='sha256'):
    """Logs in by SaslAuthenticate v1 -> (last answer, the signature it should have)"""
    bare = b'n=%s,r=abc' % user.replace('=', '=3D').replace(',', '=2C').encode()
    challenge = client.login(b'n,,' + bare)[0]
    if challenge[0]:
        return challenge, None
    parts = dict(part.split(b'=', 1) for part in challenge[2].split(b','))
    salted = hashlib.pbkdf2_hmac(digest, password.encode(), base64.b64decode(parts[b's']), int(parts[b'i']))
    final = b'c=biws,r=' + parts[b'r']
    message = b','.join((bare, challenge[2], final))

    def mac(key, text):
        return hmac.new(key, text, digest).digest()
    key = mac(salted, b'Client Key')
    proof = bytes(a ^ b for a, b in zip(key, mac(hashlib.new(digest, key).digest(), message)))
    signature = b'v=' + base64.b64encode(mac(mac(salted, b'Server Key'), message))
    return client.login(final + b',p=' + base64.b64encode(proof))[0], signature


def shake(client, mechanism, version=1):
    return client.request(17, version, struct.pack('>h', len(mechanism)) + mechanism.encode())


@pytest.fixture
def guarded():
    with KafkaStandin(topics={'stats': 1}, sasl=['PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'],
                      users={'alice': 'alice-secret', 'a=b,c': 'p'}) as kafka:
        yield kafka


@pytest.mark.parametrize('digest', ['sha256', 'sha512'])
def test_a_login_with_scram(guarded, digest):
    for user, password in (('alice', 'alice-secret'), ('a=b,c', 'p')):
        with Client(guarded.port) as client:
            assert shake(client, 'SCRAM-SHA-' + digest[3:])[:2] == b'\0\0'
            answer, signature = scram_tokens(client, user, password, digest)
            assert answer == (0, None, signature, 0)
            assert client.produce(batch())[0] == 0
    assert [login[2] for login in guarded.logins] == ['alice', 'a=b,c']
    with Client(guarded.port) as client:
        shake(client, 'SCRAM-SHA-' + digest[3:])
        answer, _ = scram_tokens(client, 'alice', 'other', digest)
        assert answer[0] == 58 and 'invalid credentials' in answer[1]
        assert client.answer() is None
    assert guarded.complaints == []


def test_false_answers_of_scram(guarded):
    seen = {}
    for fault in ('nonce', 'iterations', 'signature', 'error'):
        guarded.scram_fault = fault
        with Client(guarded.port) as client:
            shake(client, 'SCRAM-SHA-256')
            challenge = client.login(b'n,,n=alice,r=abc')[0][2]
            seen[fault] = challenge.startswith(b'r=abc'), challenge.endswith(b',i=4096')
            if fault in ('signature', 'error'):
                with Client(guarded.port) as other:
                    shake(other, 'SCRAM-SHA-256')
                    user = 'alice' if fault == 'signature' else 'bob'
                    answer, signature = scram_tokens(other, user, 'alice-secret')
                    assert answer[0] == 0 and answer[2] != signature
                    assert (answer[2] == b'e=unknown-user') == (fault == 'error')
    assert seen == {'nonce': (False, True), 'iterations': (True, False), 'signature': (True, True),
                    'error': (True, True)}


def test_refusals_of_logins(guarded):
    with Client(guarded.port) as client:
        assert shake(client, 'GSSAPI').hex().startswith('0021' '00000003' '0005504c41494e')
        assert client.answer() is None
    with Client(guarded.port) as client:
        shake(client, 'PLAIN')
        guarded.refusal_delay = 0.05
        began = time.monotonic()
        assert client.login(b'\0alice\0wrong') == [
            (58, 'Authentication failed: Invalid username or password', b'', 0)]
        assert time.monotonic() - began >= 0.05
        assert client.answer() is None
    assert guarded.complaints == []
    with Client(guarded.port) as client:
        assert client.frame(PRODUCE) is None
    with Client(guarded.port) as client:
        assert client.frame(LOGIN) is None
    assert until(lambda: len(guarded.complaints) == 2)
    with KafkaStandin() as open_, Client(open_.port) as client:
        assert shake(client, 'PLAIN').hex() == '0022' '00000000'


def test_a_handshake_v0_is_followed_by_bare_tokens(guarded):
    guarded.versions = standins.VERSIONS['0.11']
    for token, answer in ((b'\0alice\0alice-secret', b''), (b'\0alice\0wrong', None)):
        with Client(guarded.port) as client:
            assert shake(client, 'PLAIN', 0)[:2] == b'\0\0'
            assert client.frame(struct.pack('>i', len(token)) + token) == answer
            if answer is not None:
                assert client.produce(batch()) == (0, 0)
    with Client(guarded.port) as client:
        assert shake(client, 'PLAIN', 1) is None


def test_a_session_ends_unless_it_is_renewed(guarded):
    guarded.session_lifetime_ms = 100
    with Client(guarded.port) as client:
        for _ in range(2):
            shake(client, 'PLAIN')
            assert client.login(b'\0alice\0alice-secret') == [(0, None, b'', 100)]
            assert client.produce(batch())[0] == 0
            time.sleep(0.06)
        shake(client, 'PLAIN')
        client.login(b'\0alice\0alice-secret')
        time.sleep(0.12)
        assert client.produce(batch()) is None
    assert guarded.expired == ['produce'] and len(guarded.logins) == 3
    with Client(guarded.port) as client:
        shake(client, 'PLAIN')
        client.login(b'\0alice\0alice-secret')
        shake(client, 'PLAIN')
        assert client.login(b'\0a=b,c\0p')[0][0] == 58
    assert guarded.complaints == []
    with Client(guarded.port) as client:
        shake(client, 'PLAIN')
        client.login(b'\0alice\0alice-secret')
        assert shake(client, 'SCRAM-SHA-256') is None


PLACES = [('PLAINTEXT', None), ('SSL', None), ('MTLS', None), ('SASL_PLAINTEXT', 'PLAIN'),
          ('SASL_PLAINTEXT', 'SCRAM-SHA-256'), ('SASL_SSL', 'SCRAM-SHA-512')]


def cluster(certs, protocol, mechanism, versions='2.3'):
    tls = certs.server(client=protocol == 'MTLS') if protocol in ('SSL', 'SASL_SSL', 'MTLS') else None
    return KafkaStandin(brokers=2, tls=tls, sasl=[mechanism] if mechanism else (), versions=versions,
                        users={'alice': 'alice-secret'}, topics={'stats': 2})


@pytest.mark.parametrize('protocol, mechanism, codec, versions', [
    place + (('none', 'gzip')[i % 2], '2.3') for i, place in enumerate(PLACES)] + [
    ('PLAINTEXT', None, 'none', '1.1'), ('SASL_PLAINTEXT', 'SCRAM-SHA-512', 'gzip', '0.11')])
def test_librdkafka_produces(certs, protocol, mechanism, codec, versions):
    confluent = pytest.importorskip('confluent_kafka', reason='needs confluent-kafka')
    settings = {'security.protocol': 'SSL' if protocol == 'MTLS' else protocol, 'ssl.ca.location': certs.ca,
                'compression.type': codec, 'enable.idempotence': True, 'linger.ms': 1, 'retry.backoff.ms': 10,
                'broker.address.family': 'v4'}
    if mechanism:
        settings.update({'sasl.mechanism': mechanism, 'sasl.username': 'alice',
                         'sasl.password': 'alice-secret'})
    if protocol == 'MTLS':
        settings.update({'ssl.certificate.location': certs.client.cert, 'ssl.key.location': certs.client.key})
    with cluster(certs, protocol, mechanism, versions) as kafka:
        kafka.append_then_fail('produce', 7)
        settings['bootstrap.servers'] = kafka.address
        producer, errors = confluent.Producer(settings), []
        for i in range(20):
            producer.produce('stats', value=b'v%d' % i * 20, key='k', headers={'h': b'x'}, partition=i % 2,
                             timestamp=TS + i, on_delivery=lambda error, message: errors.append(error))
        assert producer.flush(5) == 0
        del producer
        assert errors == [None] * 20
        assert kafka.records('stats') == [(i % 2, i // 2, TS + i, b'k', b'v%d' % i * 20, [('h', b'x')])
                                          for i in list(range(0, 20, 2)) + list(range(1, 20, 2))]
        assert kafka.complaints == []       # a connection that it gives up in the handshake is its own affair
        assert len(kafka.logins) >= bool(mechanism)


@pytest.mark.parametrize('protocol, mechanism', PLACES)
def test_kafka_python_produces(certs, protocol, mechanism):
    kafka_python = pytest.importorskip('kafka', reason='needs kafka-python')
    settings = {'security_protocol': 'SSL' if protocol == 'MTLS' else protocol, 'ssl_cafile': certs.ca,
                'ssl_check_hostname': True, 'sasl_mechanism': mechanism, 'sasl_plain_username': 'alice',
                'sasl_plain_password': 'alice-secret', 'compression_type': 'gzip'}
    if not mechanism:
        settings = {name: value for name, value in settings.items() if not name.startswith('sasl')}
    if protocol == 'MTLS':
        settings.update(ssl_certfile=certs.client.cert, ssl_keyfile=certs.client.key)
    with cluster(certs, protocol, mechanism) as kafka:
        producer = kafka_python.KafkaProducer(bootstrap_servers=kafka.address.split(','), **settings)
        sent = [producer.send('stats', b'v%d' % i, partition=i % 2, timestamp_ms=TS + i) for i in range(10)]
        assert [future.get(5).offset for future in sent] == [i // 2 for i in range(10)]
        producer.close()
        assert kafka.records('stats') == [(i % 2, i // 2, TS + i, None, b'v%d' % i, [])
                                          for i in list(range(0, 10, 2)) + list(range(1, 10, 2))]
        assert kafka.complaints == [] and kafka.tls_errors == []


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def fetch(url, body=None, headers=(), seconds=3.0):
    """(status, headers, body) by urllib"""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirects())
    request = urllib.request.Request(url, body, dict(headers))
    try:
        with opener.open(request, timeout=seconds) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.fixture
def web():
    with HttpStandin() as server:
        server.url = 'http://127.0.0.1:%d' % server.port
        yield server


def test_http_answers_as_told_and_keeps_what_came(web):
    web.answer(307, {'Location': '/there'})
    web.answer(429, {'Retry-After': '7'}, 'slow down', times=2)
    web.answer(200, body=b'hello', chunked=2)
    web.answer(201, path='/made', times=ALWAYS)
    assert fetch(web.url + '/made?x=1', b'', {'X-Y': 'z'})[0] == 201
    assert fetch(web.url + '/here', b'abc')[1]['Location'] == '/there'
    for _ in range(2):
        status, headers, body = fetch(web.url + '/here', gzip.compress(b'abc'), {'Content-Encoding': 'gzip'})
        assert (status, headers['Retry-After'], body) == (429, '7', b'slow down')
    assert fetch(web.url)[2] == b'hello'
    assert web.requests[0][:2] == ('POST', '/made?x=1') and web.requests[0].headers['x-y'] == 'z'
    assert web.requests[2].body == b'abc' and web.requests[2].raw[:2] == b'\x1f\x8b'
    assert web.complaints == []


GET = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'
POST = b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n'
DONE = b'HTTP/1.1 200 Scripted\r\nContent-Length: 0\r\n\r\n'


def test_http_keeps_a_connection_and_ends_it_without_a_word(web):
    web.close_after = 2
    with Client(web.port) as client:
        for _ in range(2):
            client.sock.sendall(GET)
            assert client.read(len(DONE)) == DONE
        assert client.read(1) == b''
    assert [request.connection for request in web.requests] == [0, 0]
    web.close_after = None
    web.answer(close=True)
    web.answer(close=True, announce=False)
    for length in (len(DONE) + len(b'Connection: close\r\n'), len(DONE)):
        with Client(web.port) as client:
            client.sock.sendall(GET)
            assert len(client.read(200)) == length


def test_http_says_something_in_between(web):
    web.answer(interim=(100, 103))
    with Client(web.port) as client:
        client.sock.sendall(GET)
        between = b'HTTP/1.1 100 Interim\r\n\r\nHTTP/1.1 103 Interim\r\n\r\n'
        assert client.read(len(between + DONE)) == between + DONE
        client.sock.sendall(POST[:-2] + b'Expect: 100-continue\r\n\r\n')
        assert client.read(25) == b'HTTP/1.1 100 Continue\r\n\r\n'
        client.sock.sendall(b'abcde')
        assert client.read(len(DONE)) == DONE


def test_http_answers_before_the_body_is_read(web):
    web.answer(413, early=True)
    with Client(web.port) as client:
        client.sock.sendall(POST)
        assert client.read(12) == b'HTTP/1.1 413'
        client.sock.sendall(b'abcde' + GET)
        assert until(lambda: len(web.requests) == 2) and web.requests[0].body == b'abcde'
    web.answer(413, early=True, close=True)
    with Client(web.port) as client:
        client.sock.sendall(POST)
        assert client.read(12) == b'HTTP/1.1 413'
        try:
            client.read(1000)
        except ConnectionResetError:
            pass


def test_http_cuts_drips_is_silent_and_has_no_end(web):
    for n in range(0, len(DONE), 9):
        web.answer(cut=n)
        with Client(web.port) as client:
            client.sock.sendall(GET)
            assert client.read(1000) == DONE[:n]
    web.answer(drip=0.001)
    with Client(web.port) as client:
        client.sock.sendall(GET)
        assert len(client.sock.recv(1000)) < len(DONE)
    web.answer(silent=True)
    with Client(web.port, 0.05) as client, pytest.raises(socket.timeout):
        client.sock.sendall(GET)
        client.read(1)
    web.answer(raw=b'SSH-2.0-no\r\n')
    with Client(web.port) as client:
        client.sock.sendall(GET)
        assert client.read(1000) == b'SSH-2.0-no\r\n'
    for more in (dict(endless='body'), dict(endless='body', chunked=1), dict(endless='headers')):
        web.answer(**more)
        with Client(web.port) as client:
            client.sock.sendall(GET)
            assert len(client.read(1000000)) == 1000000


@pytest.mark.parametrize('data', [
    b'GET / HTTP/1.1\r\n\r\n', b'get / HTTP/1.1\r\nHost: x\r\n\r\n', b'GET  / HTTP/1.1\r\nHost: x\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nA: c\r\n\r\n', b'GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nabcde',
    b'GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nabcde',
    b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdef\r\n0\r\n\r\n'])
def test_what_is_no_right_http_is_told(web, data):
    with Client(web.port) as client:
        client.sock.sendall(data)
        assert client.read(12) == b'HTTP/1.1 400'
        assert until(lambda: len(web.complaints) == 1)
    assert web.requests == []


def test_a_chunked_request_is_read(web):
    with Client(web.port) as client:
        client.sock.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
                            b'3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n')
        assert client.read(len(DONE)) == DONE
    assert web.requests[0].body == b'abcde'


@pytest.fixture
def influx():
    with InfluxStandin() as server:
        server.url = 'http://127.0.0.1:%d/db/' % server.port
        yield server


def write(influx, data, query='u=root&p=root', database='t', headers=()):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    status, _, text = fetch(influx.url + database + '/series?' + query, body, headers)
    return status, text.decode()


def series(name, *points, **more):
    return {'name': name, 'columns': more.get('columns', ['time', 'value', 'host']), 'points': list(points)}


def test_influx_stores_points(influx):
    cpu = series('cpu', [TS, 1.5, 'a'], [TS, None, True])
    assert write(influx, [cpu, series('mem', [1, 2, 3])]) == (200, '')
    assert influx.points('cpu') == [{'time': TS, 'value': 1.5, 'host': 'a'},
                                    {'time': TS, 'value': None, 'host': True}]
    for precision, time_ in (('s', 2000), ('m', 2), ('ms', 2), ('u', 0.002)):
        query = 'u=root&p=root&time_precision=' + precision
        assert write(influx, [series(precision, [2, 1, 'a'])], query) == (200, '')
        assert influx.points(precision)[0]['time'] == time_
    zipped_ = gzip.compress(json.dumps([series('zip', [1.5], columns=['value'])]).encode())
    assert write(influx, zipped_, headers={'Content-Encoding': 'gzip'}) == (200, '')
    assert influx.points('zip') == [{'value': 1.5}]
    login = {'Authorization': 'Basic ' + base64.b64encode(b'root:root').decode()}
    assert write(influx, [series('cpu', [1, 2, 3])], '', headers=login) == (200, '')
    assert write(influx, [series('', columns=[])]) == (200, '')
    assert influx.complaints == []


@pytest.mark.parametrize('data, text', [
    (series('cpu', [1, 2, 3]), 'json: cannot unmarshal object'), (b'', 'EOF'), (b'[', 'invalid character'),
    (b'[{"name": "a", "columns": ["v"], "points": [[NaN]]}]', 'invalid character'),
    ([series('', [1, 2, 3])], 'Series name cannot be empty'), ([series('cpu', [1, 2])], 'invalid payload'),
    ([series('cpu', [1, {}, 3])], 'Unknown type map[string]interface {}'),
    ([series('cpu', ['abc', 2, 3])], 'time field must be float but is string (abc)'),
    (b'[{"name": "a", "columns": ["v"], "points": [[1e400]]}]', 'out of range')])
def test_influx_refuses_a_bad_series_and_all_that_came_with_it(influx, data, text):
    bodies = [data]
    if isinstance(data, list):
        bodies += [[series('good', [1, 2, 3])] + data, data + [series('good', [1, 2, 3])]]
    for body in bodies:
        status, said = write(influx, body)
        assert status == 400 and text in said
    assert influx.databases == {'t': []}


def test_influx_has_users_databases_and_precisions(influx):
    good = [series('cpu', [1, 2, 3])]
    assert write(influx, good, 'u=root&p=wrong')[0] == 401
    assert write(influx, good, '')[0] == 401
    assert write(influx, good, database='nodb') == (400, "Database nodb doesn't exist")
    assert write(influx, good, 'u=root&p=root&time_precision=x') == (400, 'Unknown time precision x')
    make = influx.url[:-1] + '?u=root&p=root'
    assert [fetch(make, b'{"name": "nodb"}')[0] for _ in range(2)] == [201, 409]
    assert write(influx, good, database='nodb') == (200, '')
    assert influx.points('cpu', 'nodb') == [{'time': 1, 'value': 2, 'host': 3}]
    influx.answer(503, {'Retry-After': '1'}, 'busy')
    assert [write(influx, good)[0] for _ in range(2)] == [503, 200]


def test_influx_over_tls(certs):
    with InfluxStandin(tls=certs.server()) as server:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=certs.ca)))
        url = 'https://localhost:%d/db/t/series?u=root&p=root' % server.port
        with opener.open(url, json.dumps([series('cpu', [1, 2, 3])]).encode(), timeout=3) as reply:
            assert reply.status == 200
        assert len(server.points('cpu')) == 1
