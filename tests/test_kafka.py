"""The kafka emitter: golden requests, and its dialogue with a scripted cluster that does what real brokers do."""
import errno
import json
import struct

import pytest
import statbadger
from rig import LAYOUT, Rig, WHO, configured, role_of
from standins import KafkaStandin, certificates
from statbadger import Close, Dial, Done, Next, Now, Random, Read, Reject, Say, Send, Wait

TS = 1700000000000


def bytes_of(text):
    return bytes(bytearray.fromhex(text.replace(' ', '').replace('\n', '')))


# -- golden requests: Apache Kafka takes them, and kafka-python writes the same -----------------

class Script:
    """Performs the steps of a dialogue: answers are the bodies of replies, in order; sent keeps what went out."""

    def __init__(self, dialogue, batches, answers):
        self.batches, self.answers, self.sent, self.steps, self.input = list(batches), list(answers), [], [], b''
        answer = None
        try:
            while True:
                step = dialogue.send(answer)
                self.steps.append(step)
                answer = self.perform(step)
        except StopIteration:
            pass
        dialogue.close()

    def perform(self, step):
        if isinstance(step, Next):
            if not self.batches:
                raise StopIteration
            return self.batches.pop(0)
        if isinstance(step, Dial):
            return 'link to %s:%d' % (step.host, step.port)
        if isinstance(step, Send):
            self.sent.append(step.data)
            if self.answers:
                body = self.answers.pop(0)
                if body is not None:
                    self.input += struct.pack('>i', len(body) + 4) + step.data[8:12] + body
        elif isinstance(step, Read):
            data, self.input = self.input[:step.n], self.input[step.n:]
            assert len(data) == step.n
            return data
        elif isinstance(step, Now):
            return 1700000000.0
        elif isinstance(step, Random):
            return b'\0' * step.n
        else:
            assert isinstance(step, (Done, Wait, Close, Reject, Say))


VERSIONS = b'\0\0' + struct.pack('>i', 3) + struct.pack('>9h', 0, 0, 9, 3, 0, 12, 22, 0, 4)
METADATA = (b'\0\0\0\0' + struct.pack('>i', 1) + struct.pack('>ih2sih', 1, 2, b'k1', 9092, -1) + b'\xff\xff' + b'\0\0\0\1'
            + struct.pack('>i', 1) + struct.pack('>hh5sb', 0, 5, b'stats', 0)
            + struct.pack('>i', 1) + struct.pack('>hiiiiii', 0, 0, 1, 1, 1, 1, 1))
PRODUCER = struct.pack('>ihqh', 0, 0, -1, -1)


def stored(offset=0):
    return (struct.pack('>ih5si', 1, 5, b'stats', 1) + struct.pack('>ihqqqih', 0, 0, offset, -1, 0, 0, -1)
            + struct.pack('>i', 0))


def frame(number=1, time_ms=TS, layout=LAYOUT, who=WHO):
    one = statbadger.Frame(time_ms, number, who, layout, statbadger.array('d', [number] * len(layout.series)))
    one.run, one.seq = 'run', number
    return one


def golden(answers, **options):
    chosen = configured('kafka', **dict({'brokers': 'k1:9092', 'topic': 'stats'}, **options))
    return Script(statbadger.kafka(chosen.options, {}), [[frame()]], answers)


def test_the_requests_of_an_idempotent_producer_are_the_golden_ones():
    script = golden([VERSIONS, METADATA, struct.pack('>ihqh', 0, 0, 7, 0), stored()])
    assert script.sent[:3] == [
        bytes_of('00000014 0012 0000 00000001 000a73746174626164676572'),
        bytes_of('00000020 0003 0004 00000002 000a73746174626164676572 00000001 00057374617473 01'),
        bytes_of('0000001a 0016 0000 00000003 000a73746174626164676572 ffff 7fffffff')]
    value = statbadger.messages(configured('kafka').options)(frame())[0]
    batch = statbadger.record_batch([(TS, b'n1', value)], False, 7, 0, 0)
    assert script.sent[3] == bytes_of('%08x 0000 0008 00000004 000a73746174626164676572 ffff ffff 00001f40 00000001 '
                                      '00057374617473 00000001 00000000 %08x' % (51 + len(batch), len(batch))) + batch
    assert {s.n for s in script.steps if isinstance(s, Done)} == {1}


def test_a_producer_without_idempotence_asks_for_no_id_and_an_older_broker_gets_an_older_produce():
    versions = VERSIONS.replace(struct.pack('>hhh', 0, 0, 9), struct.pack('>hhh', 0, 0, 3))
    answer = struct.pack('>ih5si', 1, 5, b'stats', 1) + struct.pack('>ihqq', 0, 0, 0, -1) + struct.pack('>i', 0)
    script = golden([versions, METADATA, answer], acks='1')
    assert len(script.sent) == 3
    assert script.sent[2][4:8] == bytes_of('0000 0003') and script.sent[2][24:34] == bytes_of('ffff 0001 00001f40 0000')
    assert script.sent[2][98:112] == b'\xff' * 14              # producer id, epoch, sequence


def test_without_acknowledgement_no_answer_is_waited_for():
    script = golden([VERSIONS, METADATA, None], acks='0')
    assert len(script.sent) == 3 and script.sent[2][24:28] == bytes_of('ffff 0000')
    assert role_of(configured('kafka', acks='0')).delivery == 'sent'
    assert role_of(configured('kafka', acks='1')).delivery == 'acknowledged'


# -- with a cluster -----------------------------------------------------------------------------

def ticks(cluster, topic='statbadger'):
    """The number in each payload that is stored, in the order of the partition."""
    return [json.loads(value.decode())['timestamp'] for value in cluster.values(topic)]


def test_ticks_arrive_in_order_in_the_partition_of_their_key_with_their_own_time():
    with KafkaStandin(brokers=2) as cluster:
        cluster.partitions = 12
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(*range(1, 21))
            assert rig.settled()['acknowledged'] == 20
        records = cluster.records('statbadger')
        assert [r[1:4] for r in records] == [(i, (i + 1) * 1000, b'n1') for i in range(20)]
        assert {r[0] for r in records} == {(statbadger.murmur2(b'n1') & 0x7fffffff) % 12}
        assert ticks(cluster) == list(range(1, 21)) and cluster.complaints == [] and rig.log == []


@pytest.mark.parametrize('piece', [1, 2, 3, 5, 7, 11, 13, 50])
def test_replies_may_come_in_pieces_of_any_size(piece):
    with KafkaStandin(sasl=['SCRAM-SHA-256'], users={'u': 'secret'}) as cluster:
        cluster.piece, cluster.pause = piece, 0.0001
        with Rig('kafka', brokers=cluster.address, sasl='scram-sha-256', username='u', password='secret') as rig:
            rig.tick(1, 2, 3)
            assert rig.settled()['acknowledged'] == 3
        assert ticks(cluster) == [1, 2, 3] and cluster.complaints == [] and rig.log == []


CODES = sorted(set(statbadger.KAFKA_ERRORS) | {1, 4, 11, 12, 22, 30, 36, 60, 88, 99, 119, 5000}) + [-7]


@pytest.mark.parametrize('code', [c for c in CODES if c not in (0, 46)])
def test_every_error_code_once_loses_and_doubles_nothing(code):
    name, what = statbadger.KAFKA_ERRORS.get(code, ('', statbadger.AGAIN))
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            cluster.fail('produce', code)
            rig.tick(2)
            count = rig.settled()
            rig.tick(3)
            count = rig.settled()
        refused = what in (statbadger.REFUSE, statbadger.SPLIT)
        assert ticks(cluster) == ([1, 3] if refused else [1, 2, 3])
        assert (count['acknowledged'], count['quarantined']) == ((2, 1) if refused else (3, 0))
        assert cluster.complaints == []
        if what is statbadger.FATAL:
            assert 300 in [round(s) for s in rig.clock.skipped] and name in rig.said()


@pytest.mark.parametrize('code', [7, 20, 'close', 'reset', -1, 5])
@pytest.mark.parametrize('acks', ['all', '1'])
def test_what_was_stored_and_yet_failed_is_doubled_without_idempotence_only(code, acks):
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, acks=acks) as rig:
            rig.tick(1)
            rig.settled()
            cluster.append_then_fail('produce', code)
            rig.tick(2)
            rig.settled()
            rig.tick(3)
            assert rig.settled()['acknowledged'] == 3
        assert ticks(cluster) == ([1, 2, 3] if acks == 'all' else [1, 2, 2, 3]) and cluster.complaints == []


def test_a_dialogue_that_ends_remembers_what_is_on_its_way():
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            cluster.append_then_fail('produce', 7, times=12)        # more than one dialogue bears
            rig.tick(2, 3)
            assert rig.settled()['acknowledged'] == 3
            assert [text for level, text in rig.log if 'REQUEST_TIMED_OUT' in text]
        assert ticks(cluster) == [1, 2, 3] and cluster.complaints == []


@pytest.mark.parametrize('api', ['init_producer_id', 'metadata', 'api_versions'])
@pytest.mark.parametrize('code', [14, 15, 51, 3, 5, -1, 'close', 'reset'])
def test_an_error_on_the_way_to_the_first_batch_only_delays_it(api, code):
    with KafkaStandin(topics={'statbadger': 1}) as cluster:
        cluster.fail(api, code, times=2)
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1, 2)
            assert rig.settled()['acknowledged'] == 2
        assert ticks(cluster) == [1, 2] and cluster.complaints == []


def test_a_producer_that_may_not_be_idempotent_goes_on_without_and_says_so_once():
    with KafkaStandin() as cluster:
        cluster.fail('init_producer_id', 31, times=100)
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            rig.tick(2)
            assert rig.settled()['acknowledged'] == 2
        assert ticks(cluster) == [1, 2] and len([t for level, t in rig.log if 'idempotent' in t]) == 1


def test_a_batch_that_is_too_large_goes_in_parts_and_a_tick_that_is_too_large_alone_is_counted():
    wide = statbadger.Layout(tuple(statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(200)))
    with KafkaStandin() as cluster:
        cluster.max_message_bytes = 3000
        with Rig('kafka', brokers=cluster.address, flush=10) as rig:
            rig.tick(*range(1, 9))
            rig.tick(9, layout=wide)
            rig.tick(*range(10, 21))
            count = rig.settled()
        assert ticks(cluster) == list(range(1, 9)) + list(range(10, 21)) and cluster.complaints == []
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (19, 1, 200)
        assert 'bytes is more than the broker takes' in rig.said()


def test_messages_of_points_that_are_too_large_are_refused_one_by_one():
    mixed = statbadger.Layout((LAYOUT.series[0], statbadger.Series('t', 'x' * 3000, '', statbadger.GAUGE, (), ()),
                               LAYOUT.series[2], statbadger.Series('t', 'y' * 3000, '', statbadger.GAUGE, (), ())))
    with KafkaStandin() as cluster:
        cluster.max_message_bytes = 1500
        with Rig('kafka', brokers=cluster.address, format='flat') as rig:
            rig.tick(1, 2, layout=mixed)
            count = rig.settled()
        values = [json.loads(v.decode()) for v in cluster.values('statbadger')]
        assert [(v['timestamp'], v['metric']) for v in values] == [
            (1, 'cpu.user'), (1, 'mem.memtotal'), (2, 'cpu.user'), (2, 'mem.memtotal')]
        assert (count['quarantined'], count['refused_points'], count['acknowledged']) == (2, 4, 0)


def test_points_of_a_tick_that_are_stored_already_do_not_go_again():
    wide = statbadger.Layout(tuple(statbadger.Series('t', 'n%04d' % i + 'x' * 400, '', statbadger.GAUGE, (), ())
                                   for i in range(2000)))
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, format='flat') as rig:
            rig.tick(1)
            rig.settled()
            cluster.delay = 0.1
            rig.tick(2, layout=wide)            # more than one batch holds: the first is stored, the next is not
            rig.until(lambda: len(cluster.records('statbadger')) > 3)
            cluster.fail('produce', 19, times=9)
            cluster.delay = 0
            rig.until(lambda: rig.sender.failures)
            rig.tick(3)
            assert rig.settled()['acknowledged'] == 3
        names = [(v['timestamp'], v['metric']) for v in (json.loads(v.decode()) for v in cluster.values('statbadger'))]
        assert len(names) == 2006 == len(set(names)) and names == sorted(names, key=lambda item: item[0])
        assert cluster.complaints == []


@pytest.mark.parametrize('form', ['payload', 'flat'])
def test_a_part_that_was_stored_does_not_go_again_when_the_next_part_fails(form):
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, flush=10, format=form) as rig:
            rig.tick(1, 2, 3, 10)
            rig.settled()
            before = len(cluster.values('statbadger'))
            cluster.max_message_bytes, cluster.delay = 1100, 0.1
            rig.tick(*range(11, 21))            # in parts: the first is stored, the next fails for longer than a dialogue
            rig.until(lambda: len(cluster.values('statbadger')) > before)
            cluster.fail('produce', 19, times=9)
            cluster.delay = 0
            rig.until(lambda: [text for level, text in rig.log if 'NOT_ENOUGH_REPLICAS' in text])
            assert rig.settled()['acknowledged'] == 14
        got = [json.loads(v.decode()) for v in cluster.values('statbadger')]
        whole = [(p['timestamp'], p.get('metric')) for p in got]
        assert len(whole) == len(set(whole)) == 14 * (3 if form == 'flat' else 1) and cluster.complaints == []


@pytest.mark.parametrize('code, times', [(32, 1), (10, 1), (-1, 10)])
def test_a_number_that_may_be_taken_is_not_used_for_other_records(code, times):
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            cluster.append_then_fail('produce', 'close')
            cluster.fail('produce', code, times=times)
            for n in (2, 3, 4):
                rig.tick(n)
                count = rig.settled()
        assert sorted(set(ticks(cluster))) == [1, 2, 3, 4] and cluster.complaints == []
        if code > 0:                            # after ten times -1 nobody knows, and it goes once more
            assert len(ticks(cluster)) == 4 and (count['acknowledged'], count['quarantined']) == (3, 1)


@pytest.mark.parametrize('code', [-1, 2])
def test_a_broker_that_is_sick_for_hours_is_no_reason_to_drop(code):
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            cluster.fail('produce', code, times=120)
            rig.tick(*range(1, 11))
            rig.until(lambda: len(cluster.asked('produce')) > 110, 20)
            assert rig.adds_up()['quarantined'] == 0
            assert rig.settled(20)['acknowledged'] == 10
        assert ticks(cluster) == list(range(1, 11)) and cluster.complaints == []


def test_batches_do_not_stay_small_after_one_that_was_too_large():
    with KafkaStandin() as cluster:
        cluster.max_message_bytes = 2000
        with Rig('kafka', brokers=cluster.address, flush=100) as rig:
            rig.tick(*range(1, 101))
            rig.settled()
            before = len(cluster.asked('produce'))
            rig.tick(*range(101, 201))
            assert rig.settled()['acknowledged'] == 200
        assert ticks(cluster) == list(range(1, 201)) and len(cluster.asked('produce')) - before < 60


def test_a_topic_that_is_made_anew_with_fewer_partitions_is_written_to():
    with KafkaStandin(topics={'statbadger': 12}) as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            cluster.fail('produce', 3, times=20)
            rig.tick(2)
            rig.until(lambda: rig.sender.failures)
            with cluster.lock:
                del cluster.topics['statbadger']
                cluster.create('statbadger', 1)
            cluster.heal()
            rig.tick(3)
            assert rig.settled()['acknowledged'] == 3
        assert [r[0] for r in cluster.records('statbadger')][-2:] == [0, 0]


@pytest.mark.parametrize('changed', [{'flush': 0, 'batch': 1}, {'format': 'flat'}, {'topic': 'other'}, {'key': 'x'}])
def test_a_reload_does_not_forget_what_is_on_its_way(changed):
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, flush=2) as rig:
            rig.tick(2)
            rig.settled()
            cluster.append_then_fail('produce', 7, times=20)
            rig.tick(3, 4)
            rig.until(lambda: rig.sender.failures)
            rig.renew(**dict({'brokers': cluster.address, 'flush': 2}, **changed))
            rig.until(lambda: rig.sender.renewal is None)
            cluster.heal()
            rig.tick(5, 6)
            assert rig.settled()['acknowledged'] == 5
        stored = [json.loads(v.decode()) for topic in ('statbadger', 'other') for v in cluster.values(topic)]
        assert [p['timestamp'] for p in stored if p.get('metric') in (None, 'cpu.user')] == [2, 3, 4, 5, 6]
        assert cluster.complaints == []


def test_a_reload_to_another_topic_does_not_wait_for_the_one_that_is_gone():
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            cluster.fail('produce', 7, times=20)
            rig.tick(2)
            rig.until(lambda: rig.sender.failures)
            with cluster.lock:
                del cluster.topics['statbadger']
                cluster.denied.add('statbadger')
            rig.renew(brokers=cluster.address, topic='other')
            assert rig.settled()['acknowledged'] == 2
        assert ticks(cluster, 'other') == [2]


def test_what_the_spool_drops_while_a_batch_is_on_its_way_doubles_nothing():
    with KafkaStandin() as cluster:
        with Rig('kafka', most=6000, brokers=cluster.address, flush=5) as rig:
            rig.tick(5)
            rig.settled()
            cluster.append_then_fail('produce', 7, times=20)
            rig.tick(6, 7, 8, 9, 10)
            rig.until(lambda: rig.sender.failures)
            rig.tick(*range(11, 31))            # there is no room for all of them
            assert rig.adds_up()['dropped']
            cluster.heal()
            rig.settled()
        got = ticks(cluster)
        assert got == sorted(set(got)) and got[:6] == [5, 6, 7, 8, 9, 10] and got[-1] == 30


def test_without_acknowledgement_an_idle_connection_that_closes_repeats_nothing():
    with KafkaStandin(brokers=2, topics={'statbadger': 1}) as cluster:
        cluster.move_leader('statbadger', 0, 2)
        with Rig('kafka', brokers='127.0.0.1:%d' % cluster.port, acks='0') as rig:
            rig.tick(1, 2)
            rig.settled()
            cluster.brokers[1].hang_up()        # which only showed the way
            rig.over.wait(0.05)
            rig.tick(3)
            assert rig.settled()['sent'] == 3
            rig.until(lambda: len(cluster.values('statbadger')) >= 3)
        assert ticks(cluster) == [1, 2, 3]


def test_without_acknowledgement_what_a_break_may_have_lost_goes_again():
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, acks='0') as rig:
            rig.tick(1, 2)
            rig.settled()
            rig.until(lambda: len(cluster.values('statbadger')) == 2)
            cluster.brokers[1].hang_up(reset=True)
            rig.over.wait(0.05)
            rig.tick(3)
            assert rig.settled()['sent'] == 3
            rig.until(lambda: len(cluster.values('statbadger')) >= 5)
        assert ticks(cluster) == [1, 2, 1, 2, 3]


def test_without_acknowledgement_a_break_that_is_seen_by_sending_repeats_too():
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, acks='0') as rig:
            rig.cursor.bell.listen = lambda fds=(): None    # nobody looks at idle connections
            rig.tick(1, 2)
            rig.settled()
            rig.until(lambda: len(cluster.values('statbadger')) == 2)
            cluster.brokers[1].hang_up(reset=True)
            rig.over.wait(0.05)
            rig.tick(3)
            assert rig.settled()['sent'] == 3
            rig.until(lambda: len(cluster.values('statbadger')) >= 5)
        assert ticks(cluster) == [1, 2, 1, 2, 3]


def test_a_leader_that_moves_is_followed():
    with KafkaStandin(brokers=3, topics={'statbadger': 1}) as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            for n in range(1, 31):
                cluster.move_leader('statbadger', 0, n % 3 + 1)
                rig.tick(n)
                rig.settled()
        assert ticks(cluster) == list(range(1, 31)) and cluster.complaints == [] and rig.log == []


def test_a_partition_without_a_leader_waits_for_one():
    with KafkaStandin(brokers=2, topics={'statbadger': 1}) as cluster:
        cluster.move_leader('statbadger', 0, -1)
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.until(lambda: rig.sender.failures)
            cluster.move_leader('statbadger', 0, 2)
            assert rig.settled()['acknowledged'] == 1
        assert 'no leader' in rig.said()


def test_without_a_key_the_partitions_that_have_a_leader_are_taken():
    with KafkaStandin(brokers=2, topics={'statbadger': 8}) as cluster:
        for partition in (0, 2, 5):
            cluster.move_leader('statbadger', partition, -1)
        with Rig('kafka', brokers=cluster.address, key='') as rig:
            for n in range(1, 41):
                rig.tick(n)
                rig.settled()
        records = cluster.records('statbadger')
        assert sorted(json.loads(r[4].decode())['timestamp'] for r in records) == list(range(1, 41))
        used = {r[0] for r in records}
        assert used <= {1, 3, 4, 6, 7} and len(used) > 2 and {r[3] for r in records} == {None}


def test_without_a_key_a_batch_that_was_sent_stays_with_its_partition():
    with KafkaStandin(brokers=2, topics={'statbadger': 4}) as cluster:
        with Rig('kafka', brokers=cluster.address, key='', timeout=0.4) as rig:
            rig.tick(1)
            rig.settled()
            cluster.append_then_fail('produce', 'silence')
            rig.tick(2)
            rig.until(lambda: len(cluster.values('statbadger')) == 2)
            partition = [r[0] for r in cluster.records('statbadger') if json.loads(r[4].decode())['timestamp'] == 2][0]
            cluster.move_leader('statbadger', partition, -1)
            rig.until(lambda: 'no leader' in rig.said())
            cluster.move_leader('statbadger', partition, 1)
            assert rig.settled()['acknowledged'] == 2
        assert sorted(json.loads(v.decode())['timestamp'] for v in cluster.values('statbadger')) == [1, 2]


def test_topic_and_key_are_templates_and_a_batch_of_two_hosts_is_told_apart():
    other = dict(WHO, hostname='n2', cluster='a b/c')
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, topic='stats.{cluster}', key='{datacenter}/{hostname}', flush=10) as rig:
            rig.tick(1, 2)
            rig.tick(3, 4, who=other)
            rig.tick(5, 10)
            assert rig.settled()['acknowledged'] == 6
        assert ticks(cluster, 'stats.test') == [1, 2, 5, 10] and ticks(cluster, 'stats.a_b_c') == [3, 4]
        assert {r[3] for r in cluster.records('stats.a_b_c')} == {b'EC2/n2'}


def test_a_broker_that_asks_for_less_gets_less():
    with KafkaStandin() as cluster:
        cluster.throttle_ms = 7000
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.settled()
            rig.tick(2)
            assert rig.settled()['acknowledged'] == 2
            rig.until(lambda: len([s for s in rig.clock.skipped if 6.9 < s <= 7]) == 2)
        assert ticks(cluster) == [1, 2]


def test_the_first_bootstrap_broker_that_answers_is_enough():
    with KafkaStandin(brokers=3, topics={'statbadger': 1}) as cluster:
        cluster.move_leader('statbadger', 0, 3)
        cluster.down(1)
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
        assert rig.log == []


def test_a_bootstrap_broker_that_is_too_old_does_not_hide_one_that_is_not():
    with KafkaStandin(versions='0.10.2') as old, KafkaStandin() as cluster:
        for _ in range(6):
            with Rig('kafka', brokers='%s,%s' % (old.address, cluster.address)) as rig:
                rig.tick(1)
                assert rig.settled()['acknowledged'] == 1
            assert not [s for s in rig.clock.skipped if s > 5]


def test_a_wrong_password_is_tried_at_one_broker_only():
    with KafkaStandin(brokers=3, sasl=['PLAIN'], users={'u': 'right'}) as cluster:
        with Rig('kafka', brokers=cluster.address, sasl='plain', username='u', password='wrong') as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
            assert len(cluster.asked('sasl_authenticate')) == 1


def test_a_leader_that_cannot_be_reached_is_named_with_its_address():
    with KafkaStandin(brokers=2, topics={'statbadger': 1}) as cluster:
        cluster.move_leader('statbadger', 0, 2)
        cluster.advertise(2, 'no-such-host.invalid', 9099)
        with Rig('kafka', brokers='127.0.0.1:%d' % cluster.port) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert 'no-such-host.invalid:9099' in rig.said()


@pytest.mark.parametrize('versions, handshake, login', [('0.11', 0, 'bare'), ('1.1', 1, 'wrapped'), ('4.3', 1, 'wrapped')])
@pytest.mark.parametrize('sasl', ['plain', 'scram-sha-256', 'scram-sha-512'])
def test_old_and_new_brokers_are_logged_in_to(versions, handshake, login, sasl):
    with KafkaStandin(sasl=[sasl.upper()], users={'u': 'geheim \u00e4'}, versions=versions) as cluster:
        with Rig('kafka', brokers=cluster.address, sasl=sasl, username='u', password='geheim \u00e4') as rig:
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
        assert cluster.logins == [(1, sasl.upper(), 'u')] and cluster.complaints == []
        assert [r.version for r in cluster.asked('sasl_handshake')] == [handshake]
        assert bool(cluster.asked('sasl_authenticate')) == (login == 'wrapped')


@pytest.mark.parametrize('versions', ['0.11', '4.3'])
@pytest.mark.parametrize('sasl', ['plain', 'scram-sha-256'])
def test_a_wrong_password_is_said_once_and_the_ticks_wait_for_minutes(versions, sasl):
    with KafkaStandin(sasl=[sasl.upper()], users={'u': 'right'}, versions=versions) as cluster:
        cluster.refusal_delay = 0.05
        with Rig('kafka', brokers=cluster.address, sasl=sasl, username='u', password='wrong-secret') as rig:
            rig.tick(1)
            rig.until(lambda: [s for s in rig.clock.skipped if s > 50])
            cluster.users['u'] = 'wrong-secret'
            assert rig.settled()['acknowledged'] == 1
        assert len([t for level, t in rig.log if level == 'warning']) == 1 and 'wrong-secret' not in rig.said()


@pytest.mark.parametrize('fault', ['nonce', 'iterations', 'signature', 'error'])
def test_a_server_that_does_not_know_the_password_is_found_out(fault):
    with KafkaStandin(sasl=['SCRAM-SHA-256'], users={'u': 'right'}) as cluster:
        cluster.scram_fault = fault
        with Rig('kafka', brokers=cluster.address, sasl='scram-sha-256', username='u',
                 password='wrong' if fault == 'error' else 'right') as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert cluster.asked('produce') == [] and not cluster.records('statbadger')


def test_a_mechanism_that_is_not_offered_is_said_with_those_that_are():
    with KafkaStandin(sasl=['SCRAM-SHA-512', 'PLAIN'], users={'u': 'right'}) as cluster:
        with Rig('kafka', brokers=cluster.address, sasl='scram-sha-256', username='u', password='right') as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert 'need one of' in rig.said() and 'SCRAM-SHA-512' in rig.said()


def test_a_session_is_renewed_before_it_ends_on_the_same_connection():
    with KafkaStandin(sasl=['PLAIN'], users={'u': 'right'}) as cluster:
        cluster.session_lifetime_ms = 300
        with Rig('kafka', brokers=cluster.address, sasl='plain', username='u', password='right') as rig:
            for n in range(1, 41):
                rig.tick(n)
                rig.settled()
                rig.over.wait(0.03)
        assert ticks(cluster) == list(range(1, 41)) and cluster.expired == [] and rig.log == []
        assert len(cluster.logins) > 3 and cluster.connections == 1


def test_a_broker_that_is_too_old_is_told_what_is_needed():
    with KafkaStandin(versions='0.10.2') as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert 'Kafka 0.11 or newer' in rig.said() and cluster.asked('produce') == []


def test_tls_and_a_plain_port_are_told_apart(tmp_path):
    papers = certificates(str(tmp_path))
    with KafkaStandin(tls=papers.server()) as cluster:
        with Rig('kafka', brokers=cluster.address) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert 'tls' in rig.said().lower()
    with KafkaStandin() as cluster:
        with Rig('kafka', brokers=cluster.address, tls=True, timeout=0.5) as rig:
            rig.tick(1)
            rig.until(lambda: rig.log)
        assert cluster.asked('produce') == []


def test_a_certificate_of_our_own_is_shown_where_it_is_asked_for(tmp_path):
    papers = certificates(str(tmp_path))
    with KafkaStandin(tls=papers.server(client=True)) as cluster:
        with Rig('kafka', brokers=cluster.address, tls=True, tls_ca=papers.ca, tls_cert=papers.client.cert,
                 tls_key=papers.client.key) as rig:
            rig.tick(1, 2)
            assert rig.settled()['acknowledged'] == 2
        assert ticks(cluster) == [1, 2]
        with Rig('kafka', brokers=cluster.address, tls=True, tls_ca=papers.ca) as rig:
            rig.tick(3)
            rig.until(lambda: rig.log)
        assert ticks(cluster) == [1, 2] and 'TLS' in rig.said()


# -- what may be configured ---------------------------------------------------------------------

@pytest.mark.parametrize('options, need', [
    ({'brokers': 'k1:0'}, 'hosts such as'), ({'brokers': []}, 'hosts such as'), ({'acks': '2'}, 'one of'),
    ({'acks': 1}, 'one of'), ({'codec': 'snappy'}, 'one of'), ({'topic': '{host}'}, 'hold one of'),
    ({'sasl': 'plain'}, 'need both'), ({'username': 'u'}, 'without "sasl"'), ({'tls_ca': '/none'}, 'a file that exists'),
    ({'tls_verify': False}, '"tls": true'), ({'format': 'flat', 'tags': {'device': 'x'}}, 'another name')])
def test_mistakes_are_said_with_what_is_needed(options, need):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('kafka', **options)
    assert need in str(caught.value)


def test_a_password_is_in_no_message(tmp_path):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('kafka', sasl='plain', username='u', password=12345678)
    assert '12345678' not in str(caught.value) and '****' in str(caught.value)


@pytest.mark.parametrize('options', [
    {'password': 'pass-w${X'}, {'password': 'pass-w${NOBODY_HAS_THIS}pass-w'}, {'brokers': 'u:pass-w@k1'},
    {'brokers': ['k1', 'u:pass-w@k2']}, {'sasl': 'plain', 'username': 'u', 'password': {'x': 'pass-w'}}])
def test_mistakes_show_no_secret(options):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('kafka', **options)
    assert 'pass-w' not in str(caught.value)


def test_errors_name_the_broker():
    error = statbadger.at_place(OSError(errno.ECONNREFUSED, 'Connection refused'), ('::1', 9092))
    assert error.strerror == '[::1]:9092: Connection refused' and error.errno == errno.ECONNREFUSED
