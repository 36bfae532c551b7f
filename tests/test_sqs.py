"""The sqs emitter: signatures, credentials and where they come from, and every kind of answer of a queue."""
import calendar
import hashlib
import json
import os
import random
import time
from array import array

import pytest
import statbadger
from rig import LAYOUT, WHO, Rig, configured
from sinks import free_port
from standins import ALWAYS, HttpStandin
from standins_sqs import Key, MetadataStandin, SqsStandin, handed

KEY = {'access_key': 'AKIA1', 'secret_key': 's3cret'}
OFF = {'AWS_EC2_METADATA_DISABLED': 'true', 'HOME': '/nonexistent'}
AWS_HOST = 'https://sqs.us-east-1.amazonaws.com/123456789012/stats'


def rig(server, queue='stats', environ=OFF, **more):
    options = dict(KEY, region='us-east-1', queue_url=server.url(queue))
    return Rig('sqs', environ=environ, **dict(options, **more))


def ticks(bodies):
    """The time stamps of payloads, in order."""
    return [json.loads(body)['timestamp'] for body in bodies]


def mistake(**options):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('sqs', **dict({'queue_url': AWS_HOST}, **options))
    return str(caught.value)


# -- signatures ---------------------------------------------------------------------------------

BODY = (b'{"QueueUrl":"https://sqs.us-east-1.amazonaws.com/123456789012/stats",'
        b'"Entries":[{"Id":"0","MessageBody":"{\\"cpu\\":1.5}"}]}')
SQS_HEADERS = {'Host': 'sqs.us-east-1.amazonaws.com', 'Content-Type': 'application/x-amz-json-1.0',
               'X-Amz-Date': '20231114T221320Z', 'X-Amz-Target': 'AmazonSQS.SendMessageBatch'}
EXAMPLE = 'AKIDEXAMPLE', 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY'


def signature(service, headers, body, secret=EXAMPLE[1]):
    stamp = headers['X-Amz-Date']
    return statbadger.aws_authorization(EXAMPLE[0], secret, 'us-east-1', service, stamp, headers, body)


@pytest.mark.parametrize('more, body, names, expected', [     # of the test suite that AWS published with the signature
    ({}, b'', 'host;x-amz-date', '5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b'),
    ({'Content-Type': 'application/x-www-form-urlencoded'}, b'Param1=value1', 'content-type;host;x-amz-date',
     'ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a'),
    ({'My-Header1': 'VALUE1'}, b'', 'host;my-header1;x-amz-date',
     'cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d'),
])
def test_signatures_are_those_of_the_published_vectors(more, body, names, expected):
    headers = dict({'Host': 'example.amazonaws.com', 'X-Amz-Date': '20150830T123600Z'}, **more)
    assert signature('service', headers, body) == (
        'AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=%s, '
        'Signature=%s' % (names, expected))


@pytest.mark.parametrize('token, expected', [                 # what botocore 1.44.5 gives for them
    ('', '3f7c62e3a9b1e7ced0720f354e6e3c33d47d67154bb0af040f93ef868a4460ea'),
    ('TOKEN/EXAMPLE==', '4281aa12d69beb5e50db28183255c7d3748110dc8b2c8658c61ed6012680322c')])
def test_a_request_to_sqs_is_signed_as_botocore_signs_it(token, expected):
    headers = dict(SQS_HEADERS, **({'X-Amz-Security-Token': token} if token else {}))
    assert signature('sqs', headers, BODY).endswith('Signature=' + expected)


def test_the_canonical_request_has_trimmed_values_and_names_in_order():
    text, names = statbadger.aws_canonical({'Host': 'h', 'A': ' a  b\t c ', 'b-C': ''}, b'')
    empty = hashlib.sha256(b'').hexdigest()
    assert (text, names) == ('POST\n/\n\na:a b c\nb-c:\nhost:h\n\na;b-c;host\n' + empty, 'a;b-c;host')


def test_stamps_and_times_are_those_of_the_c_library():
    dice = random.Random(7)
    for now in [0, 951782400, 1709164800, 4102444799] + [dice.randrange(1 << 32) for _ in range(300)]:
        stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))
        assert statbadger.aws_stamp(now + 0.75) == stamp
        text = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now))
        assert statbadger.aws_time(text) == now == calendar.timegm(time.strptime(text, '%Y-%m-%dT%H:%M:%SZ'))


@pytest.mark.parametrize('text', ['', 'None', '2023-11-14', '2023-13-14T22:13:20Z', '2023-11-14T25:13:20Z', 'x' * 20,
                                  '----::',
                                  '9999999-11-14T22:13:20Z', '-023-11-14T22:13:20Z'])
def test_a_time_that_is_none_is_zero(text):
    assert statbadger.aws_time(text) == 0


# -- options ------------------------------------------------------------------------------------

@pytest.mark.parametrize('place, region', [
    ('sqs.eu-west-1.amazonaws.com', 'eu-west-1'), ('sqs.cn-north-1.amazonaws.com.cn', 'cn-north-1'),
    ('sqs-fips.us-gov-west-1.amazonaws.com', 'us-gov-west-1'), ('eu-west-2.queue.amazonaws.com', 'eu-west-2'),
    ('vpce-0a1-b2.sqs.us-east-1.vpce.amazonaws.com', 'us-east-1'), ('sqs.ap-south-2.api.aws', 'ap-south-2'),
    ('sqs.us-east-1.localhost.localstack.cloud:4566', 'us-east-1'),
    ('localhost:9324', 'af-south-1'), ('127.0.0.1', 'af-south-1'), ('sqs.example.com', 'af-south-1'),
    ('[::1]:4566', 'af-south-1')])
def test_the_region_is_that_of_the_host_or_else_of_the_environment(place, region):
    environ = {'AWS_REGION': 'af-south-1', 'AWS_DEFAULT_REGION': 'sa-east-1'}
    options = configured('sqs', environ, queue_url='http://%s/1/q' % place).options
    assert statbadger.sqs_region(options) == region
    options = configured('sqs', environ, queue_url='http://%s/1/q' % place, region='eu-north-1').options
    assert statbadger.sqs_region(options) == 'eu-north-1'


def test_the_default_region_of_the_environment_is_the_last_to_be_asked():
    options = configured('sqs', {'AWS_REGION': '', 'AWS_DEFAULT_REGION': 'sa-east-1'}, queue_url='http://h/1/q').options
    assert statbadger.sqs_region(options) == 'sa-east-1'


def test_the_link_is_the_host_of_the_queue():
    chosen = configured('sqs', queue_url='https://sqs.eu-west-1.amazonaws.com/1/q/', proxy='http://p:3128')
    assert chosen.options.queue_url == 'https://sqs.eu-west-1.amazonaws.com/1/q'
    assert statbadger.EMITTERS['sqs'].link(chosen.options) == (
        'http', 'https://sqs.eu-west-1.amazonaws.com', ('', '', '', True), 'http://p:3128')


@pytest.mark.parametrize('url', ['', 'x', 'https://sqs.eu-west-1.amazonaws.com', 'https://sqs.eu-west-1.amazonaws.com/',
                                 'ftp://h/1/q', 'https://u:p@h/1/q', 'https://h/1/q?x=1', 'https://h/1/\n', 7])
def test_a_url_of_no_queue_is_a_mistake(url):
    words = mistake(queue_url=url)
    assert 'emitters.sqs.queue_url: found ' in words and 'need the URL of a queue' in words


@pytest.mark.parametrize('options, words', [
    ({'access_key': 'a'}, 'found one of access_key and secret_key, need both'),
    ({'secret_key': 'a'}, 'found one of access_key and secret_key, need both'),
    ({'session_token': 'a'}, 'found session_token without access_key'),
    ({'access_key': 'a b', 'secret_key': 'x'}, 'odd characters in access_key'),
    ({'access_key': 'a', 'secret_key': 'x', 'session_token': 'a\nb'}, 'odd characters in session_token'),
    ({'queue_url': 'http://localhost/1/q'}, 'found no region in the host of queue_url, need "region" or AWS_REGION'),
    ({'region': 'eu west'}, 'found region "eu west", need'), ({'region': 'a/b'}, 'found region "a/b", need'),
    ({'environ': {'AWS_REGION': 'a\nb'}, 'queue_url': 'http://h/1/q'}, 'found region "a\\nb", need'),
    ({'max_bytes': 1000}, 'max_bytes: found 1000, need'), ({'max_bytes': 1048577}, 'max_bytes: found 1048577, need'),
    ({'format': 'flat', 'tags': {'metric': 'x'}}, 'found a tag "metric"'),
    ({'queue_url': 'http://h/1/q', 'region': 'r', 'tls_verify': False}, 'need https in the URL'),
    ({'gzip': True}, 'unknown key'), ({'username': 'x'}, 'unknown key')])
def test_options_that_do_not_go_together_are_mistakes(options, words):
    assert words in mistake(**options)


def test_a_queue_must_be_named(run):
    done = run('-e', 'sqs', '--check')
    assert done.code == 2 and 'found no queue_url, need one such as "https://sqs.' in done.err


def test_check_shows_the_queue_and_no_secret(run):
    done = run('-e', 'sqs,queue_url=%s,access_key=AKIA1,secret_key=s3cret,session_token=t0ken' % AWS_HOST, '--check')
    assert AWS_HOST in done.out and 'AKIA1' in done.out and 's3cret' not in done.out and 't0ken' not in done.out


# -- what is sent -------------------------------------------------------------------------------

def test_ticks_of_a_batch_go_ten_in_a_request():
    with SqsStandin() as server, rig(server, flush=25) as one:
        one.tick(*range(1, 26))
        assert one.settled()['acknowledged'] == 25
        assert [len(entries) for entries in server.entries] == [10, 10, 5]
        assert ticks(server.bodies()) == list(range(1, 26)) and server.complaints == []
        assert [[entry['Id'] for entry in entries] for entries in server.entries][2] == list('01234')
        assert set(server.entries[0][0]) == {'Id', 'MessageBody'}
        request = server.requests[0]
        assert request.headers['host'] == '127.0.0.1:%d' % server.port and server.connections == 1
        assert request.headers['user-agent'] == 'statbadger/' + statbadger.VERSION


def test_a_request_holds_no_more_bytes_than_max_bytes():
    with SqsStandin() as server:
        with rig(server, flush=25, max_bytes=1024) as one:
            one.tick(*range(1, 26))
            assert one.settled()['acknowledged'] == 25
        sizes = [sum(len(entry['MessageBody']) for entry in entries) for entries in server.entries]
        assert max(sizes) <= 1024 and max(sizes) + len(server.bodies()[0]) > 1024 and len(sizes) > 3


@pytest.mark.parametrize('format', ['payload', 'flat', 'graphite', 'influx'])
def test_a_message_is_a_tick_or_a_point(format):
    with SqsStandin() as server, rig(server, format=format, tags={'rack': '7'} if format != 'payload' else {}) as one:
        one.tick(1)
        one.settled()
        bodies = server.bodies()
    if format == 'payload':
        assert [list(point) for point in json.loads(bodies[0])['points']] == [['cpu.user'], ['disk.reads.sda'],
                                                                              ['mem.memtotal']]
    elif format == 'flat':
        assert [json.loads(body)['metric'] for body in bodies] == ['cpu.user', 'disk.reads', 'mem.memtotal']
        assert json.loads(bodies[1])['device'] == 'sda' and json.loads(bodies[1])['rack'] == '7'
    else:
        assert len(bodies) == 1 and len(bodies[0].strip().split('\n')) == 3 and '1' in bodies[0]


HOSTILE = ['a"b', 'a\\', 'a\nb\x01c', '%s %d', '\0', u'\ufffe\uffff', u'\ufffd', u'\U0001f600', u'\x7f\x85\u2028',
           '\t\r', '<&>', u'\xe4' * 300]


@pytest.mark.parametrize('format', ['payload', 'flat', 'graphite', 'influx'])
@pytest.mark.parametrize('tagged', [False, True])
def test_hostile_names_are_stored_and_no_character_that_sqs_refuses_is_sent(format, tagged):
    layout = statbadger.Layout(tuple(
        statbadger.Series('t', name, name, statbadger.GAUGE, ('device',), (name,)) for name in HOSTILE))
    who = dict(WHO, hostname=u'h"\x01\n\ufffe\U0001f600')
    with SqsStandin() as server, rig(server, 'stats.fifo', format=format, tagged=tagged,
                                     tags={} if format == 'payload' else {'x': u'\ufffey'}) as one:
        one.tick(1, layout=layout, who=who)
        assert one.settled()['acknowledged'] == 1 and one.log == []
        assert server.complaints == []
        messages = server.queues['stats.fifo']
        assert messages[0].group == 'h"____' and len(messages) == (len(HOSTILE) if format == 'flat' else 1)
        if format == 'flat':
            assert [json.loads(message.body)['device'] for message in messages] == HOSTILE


@pytest.mark.parametrize('text', HOSTILE + ['', 'a' * 1000, '\\"\n\r\t' * 3])
def test_long_json_texts_say_what_was_meant(text):
    fit = text.translate(statbadger.SQS_UNFIT)
    assert json.loads(statbadger.long_json_text(fit)) == fit
    assert len(fit) == len(text) and not any(c < ' ' and c not in '\t\n\r' for c in fit)


def test_a_message_that_is_too_large_alone_is_rejected_with_its_size_and_the_limit():
    large = statbadger.Layout(tuple(
        statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(40)))
    with SqsStandin() as server, rig(server, max_bytes=1024, flush=5) as one:
        one.tick(1, 2)
        one.tick(3, layout=large)
        one.tick(4, 5)
        count = one.settled()
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (4, 1, 40)
        assert ticks(server.bodies()) == [1, 2, 4, 5]
        size = len('{"t.n10": {"value": 3, "units": ""}}, ') * 40
        (level, words), = one.log
        assert 'and "max_bytes" is 1024' in words and abs(int(words.split(' bytes')[0].split()[-1]) - size) < 250


def test_sizes_are_those_of_utf8():
    entry = statbadger.SqsEntry(configured('sqs', queue_url=AWS_HOST).options, statbadger.Frame(0, 0, WHO, LAYOUT, []),
                                0,
                                u'\xe4\U0001f600'.encode(), 0, True)
    assert (entry.size, entry.md5) == (6, hashlib.md5(u'\xe4\U0001f600'.encode()).hexdigest())


# -- the entries of an answer -------------------------------------------------------------------

def test_an_entry_that_is_the_senders_fault_is_rejected_and_the_others_are_stored():
    with SqsStandin() as server, rig(server, flush=5) as one:
        server.fail('SomethingNew', sender=True, match='"timestamp": 3,', message='I do not like it')
        one.tick(1, 2, 3, 4, 5)
        count = one.settled()
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (4, 1, 3)
        assert ticks(server.bodies()) == [1, 2, 4, 5] and len(server.requests) == 1
        assert [text for level, text in one.log] == ['sqs: refused: SomethingNew: I do not like it']


def test_a_point_that_is_refused_is_one_point():
    with SqsStandin() as server, rig(server, format='flat') as one:
        server.fail('InvalidMessageContents', sender=True, match='mem.memtotal')
        one.tick(1)
        count = one.settled()
        assert (count['quarantined'], count['refused_points']) == (1, 1) and len(server.bodies()) == 2


@pytest.mark.parametrize('code, sender, wait', [
    ('InternalError', False, 0), ('KMS.ThrottlingException', True, 0), ('ServiceUnavailable', False, 0),
    ('SomethingNew', False, 0),
    ('KMS.DisabledException', True, 300), ('AccessDenied', True, 300), ('KmsAccessDenied', True, 300),
    ('AWS.SimpleQueueService.NonExistentQueue', True, 60)])
def test_an_entry_that_failed_goes_again_alone_and_never_the_others(code, sender, wait):
    with SqsStandin() as server, rig(server, flush=5) as one:
        server.fail(code, sender, times=2, match='"timestamp": 3,')
        one.tick(1, 2, 3, 4, 5)
        assert one.settled()['acknowledged'] == 5
        assert [len(entries) for entries in server.entries] == [5, 1, 1]
        assert sorted(ticks(server.bodies())) == [1, 2, 3, 4, 5]
        assert code in one.log[0][1] and max(one.clock.skipped) <= max(wait, 2)
        assert not wait or max(one.clock.skipped) > wait - 1


def test_of_a_tick_in_several_requests_only_what_failed_goes_again():
    layout = statbadger.Layout(tuple(
        statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(25)))
    with SqsStandin() as server, rig(server, format='flat', flush=2) as one:
        server.fail('InternalError', times=3, match='"t.n17"')
        one.tick(1, 2, layout=layout)
        assert one.settled()['acknowledged'] == 2
        bodies = [json.loads(body) for body in server.bodies()]
        found = [(body['timestamp'], body['metric']) for body in bodies]
        assert len(found) == len(set(found)) == 50 and server.complaints == []


def test_what_is_dealt_with_is_remembered_for_the_tick_under_way_only():
    layout = statbadger.Layout(tuple(
        statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(25)))
    seen = []

    class Watched(SqsStandin):
        def send_batch(self, asked):
            seen.append(len(one.sender.role.memory[statbadger.shape_of(one.sender.role.options)]))
            return SqsStandin.send_batch(self, asked)
    with Watched() as server, rig(server, format='flat', flush=20) as one:
        one.tick(*range(1, 21), layout=layout)
        assert one.settled(20)['acknowledged'] == 20 and len(server.bodies()) == 500
        assert max(seen) <= 30 and len(one.sender.role.memory[statbadger.shape_of(one.sender.role.options)]) <= 25


def test_an_answer_that_leaves_an_entry_out_makes_only_that_go_again():
    class Forgetful(SqsStandin):
        left = 1

        def send_batch(self, asked):
            answer = SqsStandin.send_batch(self, asked)
            if self.left:
                self.left = 0
                gone = answer['Successful'].pop(2)
                self.queues['stats'] = [m for m in self.queues['stats'] if '"timestamp": 3,' not in m.body]
                assert gone['Id'] == '2'
            return answer
    with Forgetful() as server, rig(server, flush=5) as one:
        one.tick(1, 2, 3, 4, 5)
        assert one.settled()['acknowledged'] == 5
        assert ticks(server.bodies()) == [1, 2, 4, 5, 3] and 'does not say what became of a message' in one.said()


def test_an_md5_that_differs_is_said_and_the_message_goes_again():
    with SqsStandin() as server, rig(server) as one:
        server.lie = True
        one.tick(1)
        one.until(lambda: one.sender.failure)
        assert 'MD5 differs' in one.said() and one.adds_up()['acknowledged'] == 0
        server.lie = False
        assert one.settled()['acknowledged'] == 1


@pytest.mark.parametrize('body', [b'', b'[]', b'{', b'"x"', b'{"Successful": 7}', b'{"Successful": [7]}',
                                  b'{"Successful": {"Id": "0"}}',
                                  b'{"Failed": [null]}', b'{"Successful": [{"Id": 0}]}',
                                  b'{"Successful": [{"Id": "9"}]}',
                                  b'{"Successful": [{"Id": ["0"]}]}', b'{"Successful": [{}]}', b'\xff\xfe', b'<html/>',
                                  b'[' * 100, b'{"a": 1e999}',
                                  b'{"Failed": [{"Id": "7", "SenderFault": true}]}', b'null'])
def test_answers_that_make_no_sense_acknowledge_nothing(body):
    with SqsStandin() as server, rig(server) as one:
        server.answer(200, {}, body)
        one.tick(1)
        assert one.settled()['acknowledged'] == 1
        assert len(server.requests) == 2 and 'Traceback' not in one.said() and 'statbadger.py' not in one.said()
        assert one.log[0][0] == 'warning'


@pytest.mark.parametrize('failed', [{}, {'Code': 7}, {'Code': None, 'Message': ['x']}, {'SenderFault': 'true'}])
def test_a_failure_without_words_is_one_all_the_same(failed):
    with SqsStandin() as server, rig(server) as one:
        server.answer(200, {}, json.dumps({'Failed': [dict({'Id': '0'}, **failed)]}))
        one.tick(1)
        assert one.settled()['acknowledged'] == 1 and len(server.requests) == 2


# -- answers that are no success ----------------------------------------------------------------

def answer_of(status, code, message='so it is'):
    return status, {}, json.dumps({'__type': 'com.amazonaws.sqs#' + code, 'message': message})


@pytest.mark.parametrize('status, code, pause', [
    (400, 'RequestThrottled', 0), (400, 'ThrottlingException', 0), (400, 'OverLimit', 0),
    (503, 'ServiceUnavailable', 0),
    (500, 'InternalFailure', 0), (400, 'KmsThrottled', 0), (403, 'AccessDeniedException', 300),
    (403, 'InvalidClientTokenId', 300),
    (403, 'UnrecognizedClientException', 300), (403, 'SignatureDoesNotMatch', 300),
    (403, 'InvalidSignatureException', 300),
    (400, 'MissingAuthenticationToken', 300), (400, 'IncompleteSignature', 300), (400, 'KmsDisabled', 300),
    (403, 'OptInRequired', 300),
    (400, 'ExpiredToken', 60), (400, 'QueueDoesNotExist', 60), (400, 'AWS.SimpleQueueService.NonExistentQueue', 60),
    (400, 'InvalidAddress', 60), (404, 'UnknownOperationException', 60), (400, 'InvalidAction', 60),
    (401, 'SomethingNew', 300), (403, 'SomethingNew', 300), (404, 'SomethingNew', 60), (429, 'SomethingNew', 0)])
def test_trouble_that_is_no_fault_of_the_data_is_waited_for(status, code, pause):
    with SqsStandin() as server, rig(server) as one:
        server.answer(*answer_of(status, code), times=2)
        one.tick(1)
        assert one.settled()['acknowledged'] == 1
        assert 'sqs: HTTP %d: %s: so it is' % (status, code) in one.log[0][1]
        longest = max(one.clock.skipped)
        assert (pause - 1 < longest <= pause) if pause else longest < 3


def test_an_unknown_code_may_be_no_fault_of_the_data():
    with SqsStandin() as server, rig(server) as one:
        server.answer(*answer_of(400, 'SomethingNew'), times=30)
        one.tick(1)
        assert one.settled(20)['acknowledged'] == 1


def test_a_tick_that_alone_meets_an_unknown_code_is_refused_at_last():
    class Choosy(SqsStandin):
        def reply(self, request):
            if b'\\"timestamp\\": 3,' in request.body:
                return answer_of(400, 'SomethingNew')
            return SqsStandin.reply(self, request)
    with Choosy() as server, rig(server, flush=5) as one:
        one.tick(1, 2, 3, 4, 5)
        count = one.settled(20)
        assert (count['acknowledged'], count['quarantined']) == (4, 1)
        assert sorted(ticks(server.bodies())) == [1, 2, 4, 5]


@pytest.mark.parametrize('code', ['InvalidMessageContents', 'InvalidParameterValue', 'MissingParameter',
                                  'InvalidAttributeValue'])
def test_a_request_that_is_refused_goes_in_halves_until_the_message_to_blame_is_alone(code):
    class Choosy(SqsStandin):
        def reply(self, request):
            if b'\\"timestamp\\": 3,' in request.body:
                return answer_of(400, code, 'not three')
            return SqsStandin.reply(self, request)
    with Choosy() as server, rig(server, flush=9) as one:
        one.tick(*range(1, 10))
        count = one.settled()
        assert (count['acknowledged'], count['quarantined']) == (8, 1) and one.clock.skipped == []
        assert ticks(server.bodies()) == [1, 2, 4, 5, 6, 7, 8, 9]
        assert [text for level, text in one.log] == ['sqs: refused: HTTP 400: %s: not three' % code]


def test_a_request_that_is_too_long_for_the_queue_goes_in_halves_and_others_are_made_shorter():
    with SqsStandin() as server, rig(server, flush=20) as one:
        one.tick(0)
        one.settled()
        server.limit = 2 * len(server.bodies()[0]) + 50
        one.tick(*range(1, 21))
        assert one.settled()['acknowledged'] == 21 and ticks(server.bodies()) == list(range(21))
        refused = len(server.requests) - len(server.entries)
        assert refused == 3                     # of ten, of five, of three
        one.tick(*range(21, 41))
        assert one.settled()['acknowledged'] == 41 and len(server.requests) - len(server.entries) == refused


@pytest.mark.parametrize('status', [400, 413])
def test_a_message_that_is_too_long_for_the_queue_is_rejected(status):
    large = statbadger.Layout(tuple(
        statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(40)))
    with SqsStandin() as server, rig(server, flush=5) as one:
        server.limit = 1000
        if status == 413:
            server.answer(413, {}, '')
        one.tick(1, 2)
        one.tick(3, layout=large)
        one.tick(4, 5)
        count = one.settled()
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (4, 1, 40)
        assert ticks(server.bodies()) == [1, 2, 4, 5] and 'cannot be longer than 1000 bytes' in one.said()


def test_errors_in_xml_and_in_a_header_are_understood():
    xml = ('<?xml version="1.0"?>\n<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>'
           '<Message>No %s</Message></Error></ErrorResponse>')
    with SqsStandin() as server, rig(server) as one:
        server.answer(400, {}, xml % 'way')
        server.answer(400, {'x-amzn-query-error': 'AWS.SimpleQueueService.NonExistentQueue;Sender'}, '')
        one.tick(1)
        one.settled()
        assert one.log[0][1] == 'sqs: HTTP 400: AccessDenied: No way'
        assert [round(s) for s in one.clock.skipped if s > 50] == [300, 60]


def test_only_the_first_line_of_what_is_said_is_passed_on():
    with SqsStandin() as server, rig(server, secret_key='wrong') as one:
        one.tick(1)
        one.until(lambda: one.sender.failure)
        assert one.log[0][1].endswith('does not match the signature you provided.')


# -- FIFO queues --------------------------------------------------------------------------------

def test_a_fifo_queue_gets_group_and_what_tells_messages_apart():
    with SqsStandin() as server, rig(server, 'stats.fifo', flush=3, group='{cluster}/{hostname} ') as one:
        one.tick(1, 2, 3)
        assert one.settled()['acknowledged'] == 3
        messages = server.queues['stats.fifo']
        assert [message.group for message in messages] == ['test/n1_'] * 3
        ids = [message.deduplication for message in messages]
        run = one.spool.run
        assert [word.rsplit('-', 1)[0] for word in ids] == ['%s-%d-0' % (run, n) for n in (1, 2, 3)]
        assert [word.rsplit('-', 1)[1] for word in ids] == [
            hashlib.sha256(m.body.encode()).hexdigest()[:16] for m in messages]


@pytest.mark.parametrize('name, group', [('', '_'), ('x' * 200, 'x' * 128), (u'\xe4 b\n', '__b_'),
                                         ("a!\"#$%&'()~", "a!\"#$%&'()~")])
def test_a_group_holds_what_sqs_takes(name, group):
    assert statbadger.sqs_group('{hostname}', dict(WHO, hostname=name)) == group


@pytest.mark.parametrize('format', ['payload', 'flat'])
@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_order_of_ticks_is_kept_when_an_entry_fails(format, number):
    with SqsStandin() as server, rig(server, 'stats.fifo', format=format, flush=10) as one:
        server.fail('InternalError', times=1, match='"timestamp": 4,')
        server.fail('InternalError', times=5, match='"timestamp": 7,', number=number if format == 'flat' else 0)
        one.tick(*range(1, 11))
        assert one.settled(20)['acknowledged'] == 10
        found = ticks(server.bodies('stats.fifo'))
        assert found == sorted(found) and len(found) == (30 if format == 'flat' else 10) and server.complaints == []


def test_what_was_stored_without_a_word_is_not_stored_twice():
    with SqsStandin() as server, rig(server, 'stats.fifo', flush=5) as one:
        class Cut:
            left = 4
        reply = server.reply

        def cut(request):
            answer = reply(request)
            Cut.left -= 1
            return answer if Cut.left < 0 or Cut.left % 2 else (200, {'Content-Length': 999}, answer[2])
        server.reply, server.close_after = cut, 1
        one.tick(1, 2, 3, 4, 5)
        assert one.settled(20)['acknowledged'] == 5
        assert ticks(server.bodies('stats.fifo')) == [1, 2, 3, 4, 5] and len(server.requests) > 5


# -- the clock ----------------------------------------------------------------------------------

@pytest.mark.parametrize('ahead', [-86400, -600, 600, 3600, 86400 * 3000])
def test_a_clock_that_is_wrong_is_said_and_that_of_aws_is_used(ahead):
    with SqsStandin() as server, rig(server) as one:
        server.ahead = ahead
        one.tick(1, 2, 3)
        assert one.settled()['acknowledged'] == 3 and one.clock.skipped == []
        (level, words), = one.log
        here, there = [calendar.timegm(time.strptime(word.strip(','), '%Y%m%dT%H%M%SZ'))
                       for word in words.split() if word[:1] in '12']
        assert words.startswith('sqs: the clock here says ') and abs(there - here - ahead) < 3
        assert abs(here - time.time()) < 30
        refused = len(server.requests) - len(server.entries)
        one.tick(4)
        assert one.settled()['acknowledged'] == 4 and len(server.requests) - len(server.entries) == refused == 1
        server.ahead = 0
        one.tick(5)
        assert one.settled()['acknowledged'] == 5 and one.log[1][1] == 'sqs: the clock here is right again'


@pytest.mark.parametrize('date', ['', 'soon', 'Fri, 31 Dec 9999 23:59:59 -2300', 'Thu, 01 Jan 1970 00:00:00 GMT',
                                  'Tue, 99 Foo 2026'])
def test_a_date_that_is_none_changes_no_clock(date):
    with SqsStandin() as server, rig(server) as one:
        server.answer(403, {'Date': date}, answer_of(403, 'SignatureDoesNotMatch')[2])
        one.tick(1)
        assert one.settled()['acknowledged'] == 1 and 'clock' not in one.said()


def test_a_key_that_is_wrong_and_a_clock_that_is_too_are_both_said():
    with SqsStandin() as server, rig(server, secret_key='wrong') as one:
        server.ahead = 7200
        one.tick(1)
        one.until(lambda: one.sender.failure)
        assert 'the clock here says' in one.log[0][1] and 'SignatureDoesNotMatch' in one.log[1][1]
        assert len(server.requests) == 2


# -- where credentials come from ----------------------------------------------------------------

def keyless(server, environ, **more):
    return rig(server, environ=environ, access_key='', secret_key='', **more)


def accounts(**keys):
    return SqsStandin({name: Key(*(key + ('', 0))[:3]) for name, key in keys.items()})


def environment(port, **more):
    return dict({'AWS_EC2_METADATA_SERVICE_ENDPOINT': 'http://127.0.0.1:%d' % port, 'HOME': '/nonexistent'}, **more)


def container(port, **more):
    return dict({'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'http://127.0.0.1:%d/creds' % port}, **dict(OFF, **more))


def test_the_environment_gives_keys_that_last_and_keys_that_do_not():
    with accounts(AKIA2=('2nd',), ASIA3=('3rd', 'tok=')) as server:
        for access, secret, token in (('AKIA2', '2nd', ''), ('ASIA3', '3rd', 'tok=')):
            with keyless(server, {'AWS_ACCESS_KEY_ID': access, 'AWS_SECRET_ACCESS_KEY': secret,
                                  'AWS_SESSION_TOKEN': token}) as one:
                one.tick(1)
                assert one.settled()['acknowledged'] == 1
        assert server.requests[1].headers['x-amz-security-token'] == 'tok='


def test_a_token_of_the_environment_does_not_go_with_keys_of_the_options():
    environ = {'AWS_ACCESS_KEY_ID': 'ASIA3', 'AWS_SECRET_ACCESS_KEY': '3rd', 'AWS_SESSION_TOKEN': 'tok='}
    with SqsStandin() as server, rig(server, environ=environ) as one:
        one.tick(1)
        assert one.settled()['acknowledged'] == 1
        assert 'x-amz-security-token' not in server.requests[0].headers


FILE = '''# of the user
[default]
aws_access_key_id = AKIA2
aws_secret_access_key=2nd=/+
[ profile-2 ]
aws_access_key_id=ASIA3
  aws_access_key_id=folded
AWS_SECRET_ACCESS_KEY =3rd
aws_session_token = tok=
; [default]
[role]
role_arn = arn:aws:iam::1:role/x
'''


@pytest.mark.parametrize('environ, access', [
    ({}, 'AKIA2'), ({'AWS_PROFILE': 'profile-2'}, 'ASIA3'), ({'AWS_PROFILE': 'default'}, 'AKIA2'),
    ({'AWS_PROFILE': ''}, 'AKIA2')])
@pytest.mark.parametrize('named', [False, True])
def test_the_file_of_the_user_gives_the_keys_of_a_profile(tmp_path, environ, access, named):
    path = tmp_path / 'own' if named else tmp_path / '.aws' / 'credentials'
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILE)
    environ = dict(environ, **({'AWS_SHARED_CREDENTIALS_FILE': str(path)} if named else {'HOME': str(tmp_path)}))
    with accounts(AKIA2=('2nd=/+',), ASIA3=('3rd', 'tok=')) as server, keyless(server, environ) as one:
        one.tick(1)
        assert one.settled()['acknowledged'] == 1
        assert '=%s/' % access in server.requests[0].headers['authorization']


@pytest.mark.parametrize('profile, content, words', [
    ('role', FILE, 'no keys of a profile role in '), ('none', FILE, 'no keys of a profile none in '),
    ('', None, '/.aws/credentials: No such file or directory'), ('x', None, 'No such file'),
    ('', b'\0' * 70000, 'a file of more than 65536 bytes'), ('', b'\xff\xfe', 'no keys of a profile default in '),
    ('', '[default]\naws_access_key_id=a', 'the profile default in '), ('', 'folder', 'Is a directory'),
    ('', 'fifo', 'no keys of')])
def test_what_is_wrong_with_the_file_is_said(tmp_path, profile, content, words):
    path = tmp_path / '.aws' / 'credentials'
    path.parent.mkdir()
    if content == 'folder':
        path.mkdir()
    elif content == 'fifo':
        os.mkfifo(str(path))
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with accounts() as server, keyless(server, dict(OFF, HOME=str(tmp_path), AWS_PROFILE=profile)) as one:
        one.tick(1)
        one.until(lambda: one.sender.failure)
        assert 'no credentials: ' in one.said() and words in one.said() and not server.requests
        one.until(lambda: any(seconds > 59 for seconds in one.clock.skipped))


def test_a_file_that_comes_later_is_taken(tmp_path):
    path = tmp_path / 'keys'
    environ = dict(OFF, AWS_SHARED_CREDENTIALS_FILE=str(path))
    with accounts(AKIA2=('2nd=/+',)) as server, keyless(server, environ) as one:
        one.tick(1)
        one.until(lambda: one.sender.failure)
        path.write_text(FILE)
        assert one.settled()['acknowledged'] == 1


def test_a_file_that_changed_is_read_again_when_its_key_is_refused(tmp_path):
    path = tmp_path / 'keys'
    path.write_text(FILE)
    environ = dict(OFF, AWS_SHARED_CREDENTIALS_FILE=str(path))
    with accounts(AKIA2=('2nd=/+',)) as server, keyless(server, environ) as one:
        one.tick(1)
        one.settled()
        server.keys = {'AKIA4': Key('4th', '', 0)}
        path.write_text('[default]\naws_access_key_id=AKIA4\naws_secret_access_key=4th\n')
        one.tick(2)
        assert one.settled()['acknowledged'] == 2 and len(server.requests) == 3


def test_the_instance_gives_keys_for_a_session_token():
    with accounts(ASIA5=('5th', 't5=')) as server, MetadataStandin(handed('ASIA5', '5th', 't5=')) as metadata:
        with keyless(server, environment(metadata.port)) as one:
            for n in range(1, 6):
                one.tick(n)
                one.settled()
            assert one.adds_up()['acknowledged'] == 5 and one.log == []
        assert [(r.method, r.path) for r in metadata.requests] == [
            ('PUT', '/latest/api/token'), ('GET', '/latest/meta-data/iam/security-credentials/'),
            ('GET', '/latest/meta-data/iam/security-credentials/badger')]
        assert metadata.requests[0].headers.get('content-length') == '0'


def test_the_container_gives_keys_and_its_token_is_read_each_time(tmp_path):
    path = tmp_path / 'token'
    path.write_text('t0ken-1\n')
    with accounts(ASIA5=('5th', 't5='), ASIA6=('6th', 't6=')) as server:
        with MetadataStandin(handed('ASIA5', '5th', 't5=', seconds=30), token='t0ken-1') as metadata:
            environ = container(metadata.port, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(path),
                                AWS_CONTAINER_AUTHORIZATION_TOKEN='old')
            with keyless(server, environ) as one:
                one.tick(1)
                assert one.settled()['acknowledged'] == 1
                path.write_text('t0ken-2')
                metadata.token, metadata.given = 't0ken-2', handed('ASIA6', '6th', 't6=')
                server.keys['ASIA5'] = Key('5th', 't5=', 1)
                one.tick(2)
                assert one.settled()['acknowledged'] == 2 and one.log == []
            assert [r.headers['authorization'] for r in metadata.requests] == ['t0ken-1', 't0ken-2']


def test_the_container_takes_the_token_of_the_environment():
    with accounts(ASIA5=('5th', 't5=')) as server, MetadataStandin(handed('ASIA5', '5th', 't5='),
                                                                   token='Basic abc') as metadata:
        with keyless(server, container(metadata.port, AWS_CONTAINER_AUTHORIZATION_TOKEN='Basic abc')) as one:
            one.tick(1)
            assert one.settled()['acknowledged'] == 1


@pytest.mark.parametrize('url, allowed', [
    ('http://127.0.0.1/x', True), ('http://127.1.2.3:80/x', True), ('http://localhost:1338/x', True),
    ('http://[::1]/x', True),
    ('http://169.254.170.2/x', True), ('http://169.254.170.23/v1/credentials', True),
    ('http://[fd00:ec2::23]/v1', True),
    ('https://10.0.0.1/x', True), ('https://example.com/x', True), ('http://10.0.0.1/x', False),
    ('http://example.com/x', False),
    ('http://169.254.example.com/x', False), ('http://127.evil.example/x', False),
    ('http://169.254.170.2@evil.example/x', False),
    ('http://fd00:ec2::x.evil.example/x', False), ('http://[fd00:ec2::x.evil]/x', False),
    ('http://169.253.170.2/x', False),
    ('ftp://127.0.0.1/x', False), ('', False), ('http:///x', False), ('http://localhost.evil.example/', False),
    ('http://[fd01::1]/x', False)])
def test_credentials_are_asked_for_where_the_libraries_of_aws_would(url, allowed):
    assert statbadger.aws_may_ask(url) is allowed


@pytest.mark.parametrize('environ', [
    {'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'http://192.0.2.1/creds'},
    {'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI': '@192.0.2.1/creds'},
    {'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'http://127.0.0.1:%d/a b\r\nX: y'},
    {'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'http://127.0.0.1:%d/creds',
     'AWS_CONTAINER_AUTHORIZATION_TOKEN': 'a\r\nX: y'},
    {'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'http://127.0.0.1:%d/creds',
     'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE': '/nonexistent/token'}])
def test_urls_and_tokens_that_mean_harm_are_not_used(environ):
    with accounts() as server, MetadataStandin(handed('a', 'b', 'c')) as metadata:
        environ = {name: value % metadata.port if '%d' in value else value for name, value in environ.items()}
        with keyless(server, dict(OFF, **environ)) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'no credentials: ' in one.said() and metadata.requests == []
            assert ('is neither https nor at an address of' in one.said()) == ('192.0.2.1' in str(environ))


BAD = [{}, [], {'AccessKeyId': 'a'}, {'AccessKeyId': 'a', 'SecretAccessKey': ''},
       {'AccessKeyId': 7, 'SecretAccessKey': 's'},
       {'AccessKeyId': 'a\r\nb', 'SecretAccessKey': 's'}, {'Code': 'AssumeRoleUnauthorizedAccess', 'Message': 'x'},
       {'AccessKeyId': 'a', 'SecretAccessKey': 's', 'Token': u'\xe4'}]


@pytest.mark.parametrize('given', BAD)
@pytest.mark.parametrize('of', [environment, container])
def test_what_is_handed_out_and_is_none_is_said_and_asked_for_again(of, given):
    with accounts(ASIA5=('5th', 't5=')) as server, MetadataStandin(given) as metadata:
        with keyless(server, of(metadata.port)) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'no credentials: ' in one.said() and 'Traceback' not in one.said() and not server.requests
            metadata.given = handed('ASIA5', '5th', 't5=')
            assert one.settled()['acknowledged'] == 1


@pytest.mark.parametrize('answer', [
    dict(status=404), dict(status=500, body='x'), dict(status=302, headers={'Location': 'http://192.0.2.1/'}),
    dict(raw=b'garbage\r\n\r\n'),
    dict(cut=10), dict(body=b'\xff\0'), dict(body='[' * 100), dict(close=True, status=401), dict(body='a b'),
    dict(body='x/y')])
@pytest.mark.parametrize('path', ['/latest/api/token', '/latest/meta-data/iam/security-credentials/',
                                  '/latest/meta-data/iam/security-credentials/badger', '/creds'])
def test_a_service_that_does_not_hand_out_what_it_should_is_asked_again(answer, path):
    with accounts(ASIA5=('5th', 't5=')) as server, MetadataStandin(handed('ASIA5', '5th', 't5=')) as metadata:
        metadata.answer(times=1, path=path, **answer)
        with keyless(server, (container if path == '/creds' else environment)(metadata.port)) as one:
            one.tick(1)
            assert one.settled()['acknowledged'] == 1
            assert 'Traceback' not in one.said() and 'statbadger.py' not in one.said()
            assert 'no credentials: ' in one.log[0][1]


def test_an_instance_without_a_role_and_none_at_all_are_said():
    with accounts() as server, MetadataStandin({}, role='') as metadata:
        with keyless(server, environment(metadata.port)) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'http://127.0.0.1:%d: HTTP 404' % metadata.port in one.said()
        with keyless(server, environment(free_port())) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'none in the options and the environment, ' in one.said() and 'Connection refused' in one.said()


def test_a_service_that_is_silent_is_given_up_soon():
    with accounts() as server, MetadataStandin({}) as metadata:
        metadata.answer(silent=True, times=ALWAYS)
        began = time.monotonic()
        with keyless(server, environment(metadata.port), timeout=60) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure, 20)
            assert 'no end within the time allowed' in one.said() and 1.5 < time.monotonic() - began < 15


def test_keys_are_renewed_before_they_end():
    with accounts(ASIA5=('5th', 't5='), ASIA6=('6th', 't6=')) as server:
        with MetadataStandin(handed('ASIA5', '5th', 't5=', seconds=590)) as metadata:
            with keyless(server, environment(metadata.port)) as one:
                one.tick(1)
                one.settled()
                aws = one.sender.role.memory['aws']
                assert 50 < aws.asking - time.time() < 61      # as soon as another is due, and at most once a minute
                metadata.given = handed('ASIA6', '6th', 't6=', seconds=21600)
                aws.asking -= 61
                one.tick(2)
                one.settled()
                assert '=ASIA6/' in server.requests[1].headers['authorization'] and one.log == []
                assert 20990 < aws.asking - time.time() < 21001 and len(metadata.requests) == 6


def test_old_keys_stay_while_there_are_no_new_ones():
    with accounts(ASIA5=('5th', 't5=')) as server:
        with MetadataStandin(handed('ASIA5', '5th', 't5=', seconds=300)) as metadata:
            with keyless(server, environment(metadata.port)) as one:
                one.tick(1)
                one.settled()
                metadata.answer(503, times=ALWAYS)
                one.sender.role.memory['aws'].asking = 0
                one.tick(2, 3)
                assert one.settled()['acknowledged'] == 3 and one.log == []
                assert len(metadata.requests) == 4          # once a minute, no more
                one.sender.role.memory['aws'].asking = 0
                one.sender.role.memory['aws'].keys.ends = 1
                one.tick(4)
                one.until(lambda: one.sender.failure)
                assert 'no credentials: ' in one.said() and 'HTTP 503' in one.said() and len(server.entries) <= 3


def test_a_token_that_has_expired_is_replaced_at_once():
    with accounts(ASIA5=('5th', 't5='), ASIA6=('6th', 't6=')) as server:
        with MetadataStandin(handed('ASIA5', '5th', 't5=', seconds=21600)) as metadata:
            with keyless(server, environment(metadata.port)) as one:
                one.tick(1)
                one.settled()
                server.keys['ASIA5'] = Key('5th', 't5=', 1)
                metadata.given = handed('ASIA6', '6th', 't6=')
                one.tick(2)
                assert one.settled()['acknowledged'] == 2 and one.log == [] and one.clock.skipped == []


def test_a_token_that_has_expired_without_another_one_is_waited_for_a_minute():
    with accounts(ASIA5=('5th', 't5=')) as server:
        server.keys['ASIA5'] = Key('5th', 't5=', 1)
        with MetadataStandin(handed('ASIA5', '5th', 't5=')) as metadata:
            with keyless(server, environment(metadata.port)) as one:
                one.tick(1)
                one.until(lambda: any(seconds > 59 for seconds in one.clock.skipped))
                assert 'HTTP 403: ExpiredTokenException' in one.said()
                server.keys['ASIA5'] = Key('5th', 't5=', 0)
                assert one.settled()['acknowledged'] == 1


def test_a_token_of_a_web_identity_is_of_no_use_and_the_role_of_the_node_is_not_taken_instead():
    with accounts(ASIA5=('5th', 't5=')) as server, MetadataStandin(handed('ASIA5', '5th', 't5=')) as metadata:
        with keyless(server, environment(metadata.port, AWS_WEB_IDENTITY_TOKEN_FILE='/run/token')) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'AWS_WEB_IDENTITY_TOKEN_FILE is of no use here' in one.said() and metadata.requests == []


def test_keys_that_a_reload_took_away_are_not_used_any_more():
    with accounts(AKIA1=('s3cret',)) as server, rig(server) as one:
        one.tick(1)
        one.settled()
        one.renew(environ=OFF, queue_url=server.url(), region='us-east-1')
        one.tick(2)
        one.until(lambda: one.sender.failure)
        assert 'no credentials: ' in one.said() and len(server.requests) == 1


def test_a_reload_with_other_keys_takes_them():
    with accounts(AKIA1=('s3cret',), AKIA2=('2nd',)) as server, rig(server) as one:
        one.tick(1)
        one.settled()
        one.renew(environ=OFF, queue_url=server.url(), region='us-east-1', access_key='AKIA2', secret_key='2nd')
        one.tick(2)
        assert one.settled()['acknowledged'] == 2
        assert '=AKIA2/' in server.requests[-1].headers['authorization']


@pytest.mark.parametrize('form', ['%s', '{"message": "the token %s is not known"}',
                                  '<Message>%s</Message><Code>AccessDenied</Code>'])
def test_what_was_learnt_at_work_is_not_logged(tmp_path, form):
    (tmp_path / 'token').write_text('c0ntainer-token/+=')
    with accounts(ASIA5=('5th/secret+', 't5/session+tok=')) as server:
        with MetadataStandin(handed('ASIA5', '5th/secret+', 't5/session+tok='), token='c0ntainer-token/+=') as metadata:
            environ = container(metadata.port, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(tmp_path / 'token'))
            with keyless(server, environ) as one:
                words = 't5/session+tok= 5th/secret+ c0ntainer-token/+= 5th%2Fsecret%2B'
                server.answer(403, {}, form % words)
                one.tick(1)
                one.settled()
                for word in ['session', '5th/', '5th%2', 'c0ntainer', 'secret']:
                    assert word not in one.said()
                assert '****' in one.said()


def test_a_service_that_shows_what_it_was_sent_makes_no_secret_known(tmp_path):
    with accounts() as server, MetadataStandin({}, token='right') as metadata:
        with keyless(server, container(metadata.port, AWS_CONTAINER_AUTHORIZATION_TOKEN='c0ntainer-token')) as one:
            one.tick(1)
            one.until(lambda: one.sender.failure)
            assert 'HTTP 401' in one.said() and 'c0ntainer' not in one.said()


# -- the steps that it needs --------------------------------------------------------------------

def test_a_request_on_a_link_of_its_own_goes_to_another_server_and_never_twice():
    answers = []

    def dialogue(first, second):
        yield statbadger.Next()
        link = yield statbadger.Dial(url='http://127.0.0.1:%d' % second.port, within=5)
        for step in (statbadger.Request('GET', '/a', {'X-A': 'b'}, None, link), statbadger.Request('PUT', '/b', {}),
                     statbadger.Request('GET', '/c', {}, None, link),
                     statbadger.Request('GET', '/gone', {}, None, link),
                     statbadger.Request('GET', '/d', {}, None, link), statbadger.Close(link)):
            try:
                answers.append((yield step))
            except OSError as error:
                answers.append((type(error).__name__, getattr(error, 'told', None)))
        yield statbadger.Next()

    class Batches:
        left = 1

        def next(self, idle, exchange):
            self.left -= 1
            return [] if self.left >= 0 else None

        def ending(self):
            return False
    with HttpStandin() as first, HttpStandin() as second:
        second.answer(200, {}, 'x', path='/a')
        second.answer(cut=0, times=ALWAYS, path='/gone')
        opener = statbadger.Opener(statbadger.StdoutLink(), statbadger.Contexts())
        statbadger.converse(dialogue(first, second), Batches(), ('http', 'http://127.0.0.1:%d' % first.port, None, ''),
                            5, opener)
        assert [r.path for r in second.requests] == ['/a', '/c', '/gone'] and [r.path for r in first.requests] == ['/b']
        assert answers[3:] == [('Closed', False), ('Closed', True), None]       # as it broke, and gone since
        assert [answer[0] for answer in answers[:3]] == [200, 200, 200]


def test_the_dialogue_with_the_metadata_is_short_whatever_the_timeout_is():
    exchange = statbadger.Exchange(None, ('none',), 60, None)
    exchange.opener = type('Opener', (), {'open': lambda self, target, timeout, deadline: deadline})()
    began = time.monotonic()
    assert exchange.open(('none',), 2) - began < 2.5 and exchange.open(('none',)) - began > 59
