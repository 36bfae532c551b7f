"""Stand-ins for Amazon SQS, and for the services that hand credentials to instances and containers.

SQS checks every signature anew, with the hmac and hashlib of the standard library: nothing of the program's.
"""
import calendar
import collections
import email.utils
import hashlib
import hmac
import json
import re
import time
import uuid

from standins import HttpStandin

AUTHORIZATION = re.compile(r'AWS4-HMAC-SHA256 Credential=([^/ ,]+)/([0-9]{8})/([a-z0-9-]+)/sqs/aws4_request, '
                           r'SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})\Z')
UNFIT = re.compile('[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')
NAME = re.compile(r'[A-Za-z0-9_-]{1,80}\Z')
FIFO_NAME = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,./:;<=>?@\[\\\]^_`{|}~-]{1,128}\Z")
SKEW = 300

Key = collections.namedtuple('Key', 'secret token ends')
Message = collections.namedtuple('Message', 'body group deduplication')


class No(Exception):
    """An answer that is no success: status, code, message."""

    def __init__(self, status, code, message):
        Exception.__init__(self, message)
        self.status, self.code = status, code


def sign(secret, day, region, text):
    key = ('AWS4' + secret).encode()
    for word in (day, region, 'sqs', 'aws4_request', text):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    return key.hex()


class Fault:
    """What entries that hold `match` meet, so many times."""

    def __init__(self, code, sender, times, match, message, number):
        self.code, self.sender, self.times, self.match = code, sender, times, match
        self.message, self.number = message, number

    def fits(self, number, body):
        return self.times > 0 and self.match in body and self.number in (None, number)


class SqsStandin(HttpStandin):
    """Queues of the account 1 at /1/NAME; those that end in .fifo keep order and know what they had.

    keys: {access key: Key}. ahead: seconds that its clock is ahead of this host's. limit: bytes of a request.
    queues: {name: [Message]}. lie: whether the MD5 that it gives is a wrong one.
    """

    def __init__(self, keys=None, region='us-east-1', queues=('stats', 'stats.fifo'), tls=None, host='127.0.0.1'):
        self.keys = keys if keys is not None else {'AKIA1': Key('s3cret', '', 0)}
        self.region, self.ahead, self.limit = region, 0, 262144
        self.queues, self.known = {name: [] for name in queues}, {}
        self.faults, self.lie, self.entries = [], False, []
        HttpStandin.__init__(self, tls, host)

    def url(self, name='stats', port=None):
        return 'http%s://127.0.0.1:%d/1/%s' % ('s' * bool(self.tls), port or self.port, name)

    def bodies(self, name='stats'):
        with self.lock:
            return [message.body for message in self.queues[name]]

    def fail(self, code, sender=False, times=1, match='', message='so it is', number=None):
        """Entries meet this code; match: only those that hold the text; number: only those of that Id."""
        with self.lock:
            self.faults.append(Fault(code, sender, times, match, message, number))

    def now(self):
        return time.time() + self.ahead

    def reply(self, request):
        headers = {'Date': email.utils.formatdate(self.now(), usegmt=True),
                   'Content-Type': 'application/x-amz-json-1.0', 'x-amzn-RequestId': str(uuid.uuid4())}
        try:
            self.check_signature(request)
            return 200, headers, json.dumps(self.send_batch(self.asked(request)))
        except No as no:
            headers['x-amzn-query-error'] = 'AWS.SimpleQueueService.%s;Sender' % no.code
            return no.status, headers, json.dumps({'__type': 'com.amazonaws.sqs#' + no.code, 'message': str(no)})

    # who asks

    def check_signature(self, request):
        match = AUTHORIZATION.match(request.headers.get('authorization', ''))
        if not match:
            raise No(403, 'IncompleteSignature', 'Authorization header %r' % request.headers.get('authorization'))
        access, day, region, names, signature = match.groups()
        stamp, names = request.headers.get('x-amz-date', ''), names.split(';')
        if not {'host', 'content-type', 'x-amz-date', 'x-amz-target'} <= set(names) or names != sorted(names):
            raise No(403, 'IncompleteSignature', 'SignedHeaders %s' % names)
        key = self.check_key(access, request, names)
        if (day, region) != (stamp[:8], self.region):
            raise No(403, 'SignatureDoesNotMatch', 'Credential should be scoped to a valid region')
        path, _, query = request.path.partition('?')
        lines = ['%s:%s\n' % (name, request.headers[name]) for name in names]
        canonical = '\n'.join([request.method, path, query, ''.join(lines), ';'.join(names),
                               hashlib.sha256(request.raw).hexdigest()])
        text = 'AWS4-HMAC-SHA256\n%s\n%s/%s/sqs/aws4_request\n%s' % (
            stamp, day, region, hashlib.sha256(canonical.encode()).hexdigest())
        if not hmac.compare_digest(sign(key.secret, day, region, text), signature):
            raise No(403, 'SignatureDoesNotMatch',
                     'The request signature we calculated does not match the signature you provided.\n\n'
                     'The Canonical String for this request should have been\n' + canonical)
        self.check_time(stamp)

    def check_key(self, access, request, names):
        key, token = self.keys.get(access), request.headers.get('x-amz-security-token', '')
        if key is None or key.token != token:
            raise No(403, 'UnrecognizedClientException', 'The security token included in the request is invalid')
        if token and 'x-amz-security-token' not in names:
            raise No(403, 'IncompleteSignature', 'the token is not signed')
        if key.ends and self.now() >= key.ends:
            raise No(403, 'ExpiredTokenException', 'The security token included in the request is expired')
        return key

    def check_time(self, stamp):
        try:
            then = calendar.timegm(time.strptime(stamp, '%Y%m%dT%H%M%SZ'))
        except ValueError:
            raise No(400, 'IncompleteSignature', 'Date %r' % stamp)
        now = self.now()
        if abs(then - now) > SKEW:
            words = 'expired: %s is now earlier' if then < now else 'not yet current: %s is still later'
            raise No(403, 'SignatureDoesNotMatch', 'Signature %s than %s' % (
                words % stamp, time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))))

    # what is asked

    def asked(self, request):
        """The object that was sent, complaining of what real servers might let pass."""
        if (request.method, request.path) != ('POST', '/'):
            raise No(404, 'UnknownOperationException', request.path)
        if request.headers.get('x-amz-target') != 'AmazonSQS.SendMessageBatch':
            raise No(400, 'UnknownOperationException', request.headers.get('x-amz-target', ''))
        if request.headers.get('content-type') != 'application/x-amz-json-1.0' or request.raw != request.body:
            self.complaints.append('%s, %s' % (request.headers.get('content-type'),
                                               request.headers.get('content-encoding')))
        return json.loads(request.body.decode())

    def send_batch(self, asked):
        name, entries = asked['QueueUrl'].rpartition('/')[2], asked['Entries']
        if name not in self.queues or '/1/' not in asked['QueueUrl']:
            raise No(400, 'QueueDoesNotExist', 'The specified queue does not exist.')
        ids = [entry['Id'] for entry in entries]
        if not entries or len(ids) > 10 or len(set(ids)) != len(ids) or not all(map(NAME.match, ids)):
            self.complaints.append('%r' % ids)
        if sum(len(entry['MessageBody'].encode()) for entry in entries) > self.limit:
            raise No(400, 'BatchRequestTooLong', 'Batch requests cannot be longer than %d bytes.' % self.limit)
        with self.lock:
            self.entries.append(entries)
            results = [self.result(name, number, entry) for number, entry in enumerate(entries)]
        return {'Successful': [one for one in results if 'MessageId' in one],
                'Failed': [one for one in results if 'Code' in one]}

    def result(self, name, number, entry):
        body, fault = entry['MessageBody'], self.fault(number, entry['MessageBody'])
        if fault:
            return {'Id': entry['Id'], 'Code': fault.code, 'SenderFault': fault.sender, 'Message': fault.message}
        if UNFIT.search(body):
            return {'Id': entry['Id'], 'Code': 'InvalidMessageContents', 'SenderFault': True,
                    'Message': 'Message contains characters outside of the allowed set.'}
        fifo = (entry.get('MessageGroupId'), entry.get('MessageDeduplicationId'))
        if name.endswith('.fifo') != bool(fifo[0]) or name.endswith('.fifo') and not all(
                FIFO_NAME.match(one or '') for one in fifo):
            return {'Id': entry['Id'], 'Code': 'InvalidParameterValue', 'SenderFault': True, 'Message': str(fifo)}
        self.store(name, Message(body, *fifo))
        md5 = hashlib.md5(body.encode() + b'x' * self.lie).hexdigest()
        return {'Id': entry['Id'], 'MessageId': str(uuid.uuid4()), 'MD5OfMessageBody': md5}

    def fault(self, number, body):
        for fault in self.faults:
            if fault.fits(number, body):
                fault.times -= 1
                return fault
        return None

    def store(self, name, message):
        seen = self.known.setdefault(name, {})
        if message.deduplication in seen:
            if seen[message.deduplication] != message.body:
                self.complaints.append('%s is used for two messages' % message.deduplication)
            return
        if message.deduplication:
            seen[message.deduplication] = message.body
        self.queues[name].append(message)


class MetadataStandin(HttpStandin):
    """What hands out .given, a dict as the services have it: the instance's under /latest, with a session token first;
    the container's at /creds, for who shows .token. .role: '' for an instance without one. .puts: tokens it gave."""

    def __init__(self, given, role='badger', token='', host='127.0.0.1'):
        self.given, self.role, self.token, self.sessions = given, role, token, []
        HttpStandin.__init__(self, None, host)

    def reply(self, request):
        if request.path == '/creds':
            if request.headers.get('authorization', '') != self.token:
                return 401, {}, json.dumps({'message': 'not ' + request.headers.get('authorization', 'you')})
            return 200, {'Content-Type': 'application/json'}, json.dumps(self.given)
        if request.path == '/latest/api/token' and request.method == 'PUT':
            if request.headers.get('x-aws-ec2-metadata-token-ttl-seconds') != '21600':
                return 400, {}, ''
            self.sessions.append('AQ%d==' % len(self.sessions))
            return 200, {}, self.sessions[-1]
        if request.headers.get('x-aws-ec2-metadata-token') not in self.sessions:
            return 401, {}, ''
        folder = '/latest/meta-data/iam/security-credentials/'
        if request.path == folder and self.role:
            return 200, {}, self.role
        if request.path == folder + self.role and self.role:
            return 200, {}, json.dumps(self.given)
        return 404, {}, '<html/>'


def handed(access, secret, token, seconds=3600, **more):
    """What a metadata service gives for a key that lasts so long from now on."""
    ends = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + seconds))
    return dict({'Code': 'Success', 'AccessKeyId': access, 'SecretAccessKey': secret, 'Token': token,
                 'Expiration': ends}, **more)
