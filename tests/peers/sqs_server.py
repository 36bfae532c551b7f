"""Two real servers with the API of SQS: moto, which checks every signature with botocore's code, and ElasticMQ, which
is strict with messages and takes any signature; and what is read back from them, by boto3."""
import glob
import json
import os
import shutil
import sys
import urllib.request

from conftest import ROOT
from peer import Peer, accepts, command, free_port, lasting_ports, require

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError
except ImportError:
    boto3 = Config = ClientError = None

ALLOWED = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}]}
TRUST = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': 'sts:AssumeRole',
                                                 'Principal': {'AWS': '*'}}]}
ELASTICMQ = '''include classpath("application.conf")
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}
rest-stats {{ enabled = false }}
queues-storage {{ enabled = true, path = "{folder}/queues.conf" }}
messages-storage {{ enabled = true, uri = "jdbc:h2:{folder}/queues;WRITE_DELAY=0" }}
'''


class Queues(Peer):
    """A server and an administrator's client of it. region, key: what requests are signed with."""

    def client(self, service='sqs', key=None, region=None, ca=None):
        access, secret, token = tuple(key or self.key) + ('',) * (3 - len(key or self.key))
        return boto3.client(service, endpoint_url=self.url, region_name=region or self.region, aws_access_key_id=access,
                            aws_secret_access_key=secret, aws_session_token=token or None, verify=ca,
                            config=Config(retries={'max_attempts': 1}, connect_timeout=5, read_timeout=20))

    def create(self, name):
        """The URL of a new queue."""
        attributes = {'FifoQueue': 'true', 'ContentBasedDeduplication': 'false'} if name.endswith('.fifo') else {}
        return self.admin().create_queue(QueueName=name, Attributes=attributes)['QueueUrl']

    def admin(self):
        return self.client()

    def read(self, url, at_least=0):
        """The messages of a queue, as boto3 gives them, in the order they come; they are taken away."""
        client, found, empty = self.admin(), [], 0
        while len(found) < at_least or empty < 1:
            messages = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=['All'],
                                              WaitTimeSeconds=0).get('Messages', [])
            found += messages
            empty = empty + 1 if not messages else 0
            if empty > 100:
                raise AssertionError('%d messages, not %d' % (len(found), at_least))
            if messages:
                client.delete_message_batch(QueueUrl=url, Entries=[
                    {'Id': str(i), 'ReceiptHandle': one['ReceiptHandle']} for i, one in enumerate(messages)])
        return found


class Moto(Queues):
    """strict: whether signatures are checked from the start. tls: (certificate, key, CA) as paths."""
    region = 'us-east-1'

    def __init__(self, folder, strict=False, tls=None):
        require(boto3, 'moto', 'boto3 is not installed (tests/peers/requirements.txt)')
        program = os.path.join(os.path.dirname(sys.executable), 'moto_server')
        program = program if os.path.exists(program) else shutil.which('moto_server')
        require(program, 'moto', 'not installed (tests/peers/requirements.txt)')
        self.port, self.strict, self.tls, self.key = free_port(), strict, tls, ('first', 'first')
        self.url = 'http%s://127.0.0.1:%d' % ('s' * bool(tls), self.port)
        secure = ['-c', tls[0], '-k', tls[1]] if tls else []
        Peer.__init__(self, 'moto', [program, '-H', '127.0.0.1', '-p', str(self.port)] + secure, folder,
                      lambda: accepts(self.port), patience=60)

    def client(self, *words, **more):
        return Queues.client(self, *words, **dict({'ca': self.tls[2]} if self.tls else {}, **more))

    def start(self):
        Peer.start(self)
        if self.strict:
            self.key = self.user('admin', ALLOWED)
            # As a form it would be read before the server looks at it.
            urllib.request.urlopen(urllib.request.Request(
                self.url + '/moto-api/reset-auth', b'0', {'Content-Type': 'text/plain'}), timeout=10).read()
        return self

    def user(self, name, policy=None):
        """(access key, secret key) of a new user."""
        iam = self.client('iam')
        iam.create_user(UserName=name)
        if policy:
            iam.put_user_policy(UserName=name, PolicyName='all', PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)['AccessKey']
        return key['AccessKeyId'], key['SecretAccessKey']

    def session(self, role):
        """(access key, secret key, session token) of a session in a role, which is made when it is not there."""
        iam = self.client('iam')
        try:
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(TRUST))
            iam.put_role_policy(RoleName=role, PolicyName='all', PolicyDocument=json.dumps(ALLOWED))
        except ClientError as error:
            assert error.response['Error']['Code'] == 'EntityAlreadyExists', error
        given = self.client('sts').assume_role(RoleArn='arn:aws:iam::123456789012:role/' + role,
                                               RoleSessionName='badger')['Credentials']
        return given['AccessKeyId'], given['SecretAccessKey'], given['SessionToken']


class ElasticMQ(Queues):
    """Keeps its queues in a file, so that they outlive it."""
    region, key = 'elasticmq', ('any', 'any')

    def __init__(self, folder):
        require(boto3, 'elasticmq', 'boto3 is not installed (tests/peers/requirements.txt)')
        libs = require(glob.glob(os.path.join(ROOT, '.venv', 'elasticmq', 'libs')), 'elasticmq',
                       'not there (sh tests/peers/sqs.sh)')[0]
        java = require(command('java'), 'elasticmq', 'there is no java')
        self.port, = lasting_ports(1)
        self.url = 'http://127.0.0.1:%d' % self.port
        (folder / 'elasticmq.conf').write_text(ELASTICMQ.format(port=self.port, folder=folder))
        Peer.__init__(self, 'elasticmq', [java, '-Xmx256m', '-XX:TieredStopAtLevel=1', '-Dconfig.file=elasticmq.conf', '-cp',
                                          os.path.join(libs, '*'), 'org.elasticmq.server.Main'], folder, self.answers,
                      patience=90)

    def answers(self):
        try:
            self.admin().list_queues()
            return True
        except Exception as error:              # of botocore, as long as nobody listens
            assert 'Could not connect' in str(error) or 'Connection' in str(error), error
            return False
