"""Real Apache Kafka for the tests: one KRaft node, three of them, or an old broker with its ZooKeeper.

The jars are those that kafka.sh fetches. Topics are made, and what is stored is read back, by librdkafka
(confluent-kafka) and by Kafka's own tools: nothing here shares a line with the program.

    with KafkaBroker(tmp_path) as broker:
        broker.create_topic('t', 2)
        ...                                     # something writes to 127.0.0.1:broker.plaintext
        assert [record.value for record in broker.read_back('t')] == [...]
"""
import glob
import os
import re
import signal
import socket
import subprocess
import time
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor

from peer import Peer, accepts, command, lasting_ports, require

try:
    import confluent_kafka
    from confluent_kafka import admin
except ImportError:
    confluent_kafka = None

JARS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', '.venv', 'kafka')
USERS = {'alice': 'alice-secret', 'mallory': 'mallory-secret'}
LISTENERS = ['PLAINTEXT', 'SSL', 'SASL_PLAINTEXT', 'SASL_SSL', 'MTLS']
PATIENCE = 60                                   # seconds that anything but a process start may take
CLUSTER = 'c3RhdGJhZGdlci1wZWVyLg'
PASSWORD = 'changeit'
LOGIN = 'org.apache.kafka.common.security.%s required %s;'
PLAIN = LOGIN % ('plain.PlainLoginModule', 'username="admin" password="admin-secret" ' + ' '.join(
    'user_%s="%s"' % item for item in sorted(USERS.items())))
SCRAM = LOGIN % ('scram.ScramLoginModule', '')
LOG4J = """\
log4j.rootLogger=${level}, A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.target=System.err
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.conversionPattern=%d %p %m (%c)%n
"""
LOG4J2 = """\
status = error
appender.a.type = Console
appender.a.name = A
appender.a.target = SYSTEM_ERR
appender.a.layout.type = PatternLayout
appender.a.layout.pattern = %d %p %m (%c)%n%throwable
rootLogger.level = ${sys:level}
rootLogger.appenderRef.a.ref = A
"""
# Python 3.13 (VERIFY_X509_STRICT) wants every extension that RFC 5280 asks for.
OPENSSL = """\
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = %s
"""

Record = namedtuple('Record', 'partition offset timestamp key value headers')


def until(condition, what, seconds=PATIENCE):
    """What condition() gives once it is true; fails when the time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, 'not within %g s: %s' % (seconds, what)
        time.sleep(0.05)


def write(folder, name, text):
    """The path of a new file of that text."""
    path = os.path.join(folder, name)
    with open(path, 'w') as file:
        file.write(text)
    return path


def key(name, out):
    """How openssl req is told to make a key, and what is to be signed for it."""
    return ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '30',
            '-subj', '/CN=' + name, '-keyout', name + '.key', '-out', out]


class Certificates:
    """A CA of its own in a new folder. ca: the path of its certificate; server, client: what leaf() gives."""

    def __init__(self, folder):
        self.openssl = require(command('openssl'), 'openssl', 'not installed')
        self.folder = str(folder)
        os.makedirs(self.folder)
        write(self.folder, 'ca.cnf', OPENSSL % 'DNS:localhost')
        self.run('req', '-x509', '-config', 'ca.cnf', '-extensions', 'ca', *key('ca', 'ca.pem'))
        self.ca = os.path.join(self.folder, 'ca.pem')
        self.server, self.client = self.leaf('server'), self.leaf('client')

    def run(self, *args):
        subprocess.check_output((self.openssl,) + args, cwd=self.folder, stderr=subprocess.STDOUT,
                                timeout=PATIENCE)

    def leaf(self, name, names='DNS:localhost,IP:127.0.0.1', days=30):
        """(certificate, key, PKCS #12 of both) for these alternative names, as paths."""
        write(self.folder, name + '.cnf', OPENSSL % names)
        self.run('req', '-config', name + '.cnf', *key(name, name + '.csr'))
        self.run('x509', '-req', '-in', name + '.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial',
                 '-extfile', name + '.cnf', '-extensions', 'leaf', '-days', str(days), '-out', name + '.pem')
        self.run('pkcs12', '-export', '-in', name + '.pem', '-inkey', name + '.key', '-certfile', 'ca.pem',
                 '-passout', 'pass:' + PASSWORD, '-out', name + '.p12')
        return tuple(os.path.join(self.folder, name + end) for end in ('.pem', '.key', '.p12'))


class Asked:
    """What a broker or a cluster is asked. brokers() gives those that can answer."""

    def servers(self, listener='PLAINTEXT'):
        return ','.join('127.0.0.1:%d' % broker.ports[listener] for broker in self.brokers())

    def client(self, listener='PLAINTEXT', mechanism='PLAIN', user='alice', password=None):
        """The settings with which librdkafka comes in by that listener."""
        config = {'bootstrap.servers': self.servers(listener), 'log_level': 0, 'reconnect.backoff.ms': 20,
                  'security.protocol': 'SSL' if listener == 'MTLS' else listener}
        if 'SASL' in listener:
            config.update({'sasl.mechanism': mechanism, 'sasl.username': user,
                           'sasl.password': USERS[user] if password is None else password})
        if not listener.endswith('PLAINTEXT'):
            config['ssl.ca.location'] = self.tls.ca
        if listener == 'MTLS':
            config.update(zip(('ssl.certificate.location', 'ssl.key.location'), self.tls.client))
        return config

    def admin(self):
        return admin.AdminClient(self.client())

    def ask(self, method, *args):
        """What a method of AdminClient gives in the end, for each thing asked; fails if it is refused."""
        client = self.admin()                   # held: its futures end with it
        futures = getattr(client, method)(*args)
        return [future.result(PATIENCE) for future in getattr(futures, 'values', lambda: [futures])()]

    def tool(self, name, *args):
        """What one of Kafka's own tools writes. name: its class."""
        return self.brokers()[0].java_tool(name, *args)

    def topics(self):
        """{topic: {partition: its leader, replicas and isrs}} as the first of the brokers knows it."""
        found = self.admin().list_topics(timeout=PATIENCE).topics
        return {name: topic.partitions for name, topic in found.items()}

    def leader_of(self, topic, partition=0):
        """The id of the node that leads it, -1 when none does."""
        return self.topics()[topic][partition].leader

    def create_topic(self, name, partitions=1, replication=None, config=None):
        """Makes a topic, and waits until every broker knows a leader of all its partitions."""
        new = admin.NewTopic(name, partitions, replication or self.replicas, config=texts(config or {}))
        self.ask('create_topics', [new])

        def led(broker):
            found = broker.topics().get(name, {})
            return len(found) == partitions and all(p.leader >= 0 for p in found.values())
        for broker in self.brokers():
            until(lambda: led(broker), 'a leader for every partition of %s' % name)
        return name

    def alter_config(self, name, config, kind='topic'):
        """Sets these; None is as before it was ever set. kind: topic, or broker, whose name is its id."""
        config = texts(config)
        if self.brokers()[0].number < (2, 3):
            return self.alter_by_tool(kind + 's', name, config)
        how, what = admin.AlterConfigOpType, (admin.ResourceType[kind.upper()], str(name))
        entries = [admin.ConfigEntry(
            word, value or '', incremental_operation=how.DELETE if value is None else how.SET)
            for word, value in config.items()]
        self.ask('incremental_alter_configs', [admin.ConfigResource(*what, incremental_configs=entries)])

        def known():
            found = self.ask('describe_configs', [admin.ConfigResource(*what)])[0]
            return all(value is None or found[word].value == value for word, value in config.items())
        until(known, '%s has %s' % (name, config))
        time.sleep(0.1)                         # it is shown a moment before the log obeys it

    def alter_client_quota(self, name, config, kind='clients'):
        """Sets these, such as producer_byte_rate, for a client id (or kind='users'); None lifts it."""
        self.alter_by_tool(kind, name, config)

    def alter_by_tool(self, kind, name, config):
        gone = ','.join(word for word, value in config.items() if value is None)
        there = ','.join('%s=%s' % item for item in config.items() if item[1] is not None)
        for flag, what in (('--delete-config', gone), ('--add-config', there)):
            if what:
                self.tool('kafka.admin.ConfigCommand', '--alter', '--entity-type', kind,
                          '--entity-name', name, flag, what, *self.brokers()[0].where())
        time.sleep(0.3)                         # the tool does not wait until it is obeyed

    def acl(self, permission, user, operation, name, kind='topic', remove=False):
        """acl('deny', 'mallory', 'write', 'a-topic') forbids that; remove=True takes it back.

        Once a topic has an ACL of any kind, everybody is shut out whom none of its ACLs allows.
        """
        what = (admin.ResourceType[kind.upper()], name, admin.ResourcePatternType.LITERAL, 'User:' + user,
                '*', admin.AclOperation[operation.upper()], admin.AclPermissionType[permission.upper()])
        like = admin.AclBindingFilter(*what)
        if remove:
            self.ask('delete_acls', [like])
        else:
            self.ask('create_acls', [admin.AclBinding(*what)])
        until(lambda: bool(self.ask('describe_acls', like)[0]) != remove, 'the ACL is known')

    def read_back(self, topic, partitions=None, timeout=20, at_least=0):
        """Every Record of these partitions (all, unless told), in order, as librdkafka finds it, CRC checked.

        It waits until at_least so many are there, and fails when the time is over.
        """
        consumer = confluent_kafka.Consumer(dict(self.client(), **{
            'group.id': 'reader', 'enable.auto.commit': False, 'enable.partition.eof': True,
            'check.crcs': True, 'isolation.level': 'read_uncommitted', 'auto.offset.reset': 'earliest',
            'fetch.wait.max.ms': 20, 'fetch.error.backoff.ms': 20}))
        try:
            known = consumer.list_topics(timeout=timeout).topics
            assert topic in known, 'no %s among %s' % (topic, sorted(known))
            partitions = list(known[topic].partitions) if partitions is None else partitions
            consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in partitions])
            records, ended, end = [], set(), time.monotonic() + timeout
            while len(ended) < len(partitions) or len(records) < at_least:
                assert time.monotonic() < end, 'within %g s only %d records of %s, the ends of %s' % (
                    timeout, len(records), topic, sorted(ended))
                message = consumer.poll(0.1)
                if message is None:
                    continue
                if message.error() is None:
                    records.append(Record(message.partition(), message.offset(), message.timestamp()[1],
                                          message.key(), message.value(), message.headers() or []))
                elif message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                else:
                    raise AssertionError('%s: %s' % (topic, message.error()))
            return sorted(records, key=lambda record: record[:2])
        finally:
            consumer.close()


def texts(config):
    """The same with values as Kafka writes them; None stays."""
    return {key: value if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in config.items()}


class Java(Peer):
    """A server in a JVM of its own, from the jars of one version of Kafka."""

    def __init__(self, name, folder, version, main, config, ready):
        self.version, self.number = version, tuple(int(word) for word in version.split('.'))
        require(confluent_kafka, 'confluent-kafka', 'not installed (pip install confluent-kafka)')
        java = require(command('java'), 'java', 'not installed (Debian: default-jre-headless)')
        jars = os.path.join(JARS, version, 'libs')
        require(os.path.isdir(jars), 'kafka ' + version, 'no jars (sh tests/peers/kafka.sh %s)' % version)
        folder = str(folder)
        os.makedirs(folder, exist_ok=True)
        self.java = [java, '-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', '-XX:-UsePerfData',
                     '-Dfile.encoding=UTF-8', '-Dstdout.encoding=UTF-8',
                     '-Dzookeeper.jmx.log4j.disable=true',
                     '-Dlog4j.configuration=file:' + write(folder, 'log4j.properties', LOG4J),
                     '-Dlog4j2.configurationFile=' + write(folder, 'log4j2.properties', LOG4J2)]
        self.classes = ['-cp', os.path.join(jars, '*')]
        argv = self.java + ['-Dlevel=INFO'] + self.classes + [main, config]
        Peer.__init__(self, name, argv, folder, ready, patience=PATIENCE)

    def java_tool(self, name, *args):
        """What a class of these jars writes to standard output; fails with all it said when it fails."""
        argv = self.java + ['-Dlevel=ERROR'] + self.classes + [name] + [str(arg) for arg in args]
        made = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=PATIENCE)
        out, err = made.stdout.decode('utf-8', 'replace'), made.stderr.decode('utf-8', 'replace')
        assert made.returncode == 0, '%s %s: %d\n%s\n%s' % (name, args, made.returncode, out, err)
        return out

    def stop(self, number=signal.SIGTERM):
        self.thaw()
        Peer.stop(self, number)

    def kill(self):
        """Ends it as a power cut does."""
        Peer.stop(self, signal.SIGKILL)

    def freeze(self):
        """It keeps its connections and answers nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)


class Broker(Java, Asked):
    """Any broker. ports: {listener: port}, and each as an attribute, such as plaintext.

    stop(), kill(), start() and restart() keep ports and data. extra: settings that win over those made here;
    one that is None is left out.
    """

    def __init__(self, folder, version, ports, extra, replicas=1):
        self.ports, self.extra, self.replicas, self.seen = ports, extra or {}, replicas, 0
        self.data = os.path.join(str(folder), 'data')
        self.settings = {
            'listeners': ','.join('%s://127.0.0.1:%d' % item for item in ports.items()),
            'log.dirs': self.data,
            'num.partitions': 3,
            'offsets.topic.num.partitions': 1,
            'offsets.topic.replication.factor': replicas,
            'transaction.state.log.num.partitions': 1,
            'transaction.state.log.replication.factor': replicas,
            'transaction.state.log.min.isr': (replicas + 1) // 2,
            'log.cleaner.enable': False,
        }
        self.config = os.path.join(str(folder), 'server.properties')
        for listener, port in ports.items():
            setattr(self, listener.lower(), port)
        Java.__init__(self, 'kafka', folder, version, 'kafka.Kafka', self.config, self.serves)

    def brokers(self):
        return [self]

    def where(self):
        """How a tool is told whom to ask."""
        return '--bootstrap-server', self.servers()

    def serves(self):
        """Whether it has said so since its start and, if it is alone, leads all partitions that it stores."""
        with open(self.log, 'rb') as log:
            log.seek(self.seen)
            if not re.search(br'Kafka ?Server (started|id=\d+\] started|\d+\], started)', log.read()):
                return False
        if self.replicas > 1:
            return True
        known, led = self.admin().list_topics(timeout=PATIENCE), set()
        for name, topic in known.topics.items():
            led.update('%s-%d' % (name, i) for i, p in topic.partitions.items() if p.leader >= 0)
        stored = [name for name in os.listdir(self.data) if re.match(r'(?!__cluster_metadata).*-\d+$', name)]
        return bool(known.brokers) and led.issuperset(stored)

    def start(self):
        self.configure()
        self.seen = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        return Peer.start(self)

    def configure(self):
        values = texts(dict(self.settings, **self.extra))
        write(self.folder, 'server.properties', ''.join(
            '%s=%s\n' % item for item in sorted(values.items()) if item[1] is not None))

    def restart(self, extra=None):
        """Ends it in order, if it runs, and starts it on the same ports and data.

        extra: settings that take the place of the extra ones so far; {} is none.
        """
        self.stop()
        self.extra = self.extra if extra is None else extra
        return self.start()

    def dump(self, topic, partition=0):
        """What Kafka's own DumpLogSegments finds of a partition on disk, a list as batches() says."""
        return self.dumps([(topic, partition)])[topic, partition]

    def dumps(self, parts):
        """{(topic, partition): its batches} of so many, for the price of one."""
        folders = {os.path.join(self.data, '%s-%d' % part): part for part in parts}
        files = [sorted(glob.glob(os.path.join(folder, '*.log'))) for folder in folders]
        assert all(files), 'not all of %s are in %s' % (parts, self.data)
        name = ('org.apache.' if self.number > (4,) else '') + 'kafka.tools.DumpLogSegments'
        files = '--files', ','.join(sum(files, []))
        deep = self.java_tool(name, '--deep-iteration', '--print-data-log', *files)
        out = {part: [] for part in parts}
        for batch in batches(self.java_tool(name, *files) if self.number < (2,) else deep, deep):
            out[folders[os.path.dirname(batch['file'])]].append(batch)
        return out


def batches(shallow, deep):
    """The batches in what DumpLogSegments wrote without and with --deep-iteration, in order.

    A batch is a dict with the names of the tool: baseOffset, lastOffset, count, baseSequence, producerId,
    producerEpoch, CreateTime or LogAppendTime, magic, compresscodec, crc, isvalid, file and more, numbers as
    int.
    Its 'records' are dicts too: offset, CreateTime, sequence, headerKeys, key, payload and more, the last two
    as text. An outer message from before there were batches is taken for one.
    """
    found, segment, position = OrderedDict(), None, None
    for text, deeply in ((shallow, False), (deep, True)):
        for chunk in chunks(text):
            if chunk.startswith('Dumping'):
                segment = chunk.split('\n')[0][len('Dumping '):]
                continue
            head, word, load = re.match(r'(.*?)(?: key: (.*?))?(?: payload: (.*))?$', chunk, re.S).groups()
            fields = {name: scalar(value) for name, value in re.findall(r'(\w+): (\[.*?\]|\S+)', head)}
            position = fields.get('position', position)
            if deeply and not chunk.startswith('baseOffset'):
                found[segment, position]['records'].append(dict(fields, key=word, payload=load))
            elif not deeply and not chunk.startswith('|'):
                found[segment, position] = dict(fields, records=[], file=segment)
    for batch in found.values():
        for name in ('baseSequence', 'producerId', 'producerEpoch'):
            batch.setdefault(name, -1)
        batch.setdefault('count', len(batch['records']))
        batch.setdefault('lastOffset', batch.get('offset'))
        batch.setdefault('baseOffset', batch['records'][0]['offset'])
        batch['compresscodec'] = batch['compresscodec'].lower()
    return list(found.values())


def chunks(text):
    """Every line with those that only go on with its payload."""
    found = []
    for line in text.split('\n')[:-1]:
        assert not re.match(r'Found \d+ invalid bytes', line), line
        if re.match(r'Dumping |(\| )?(baseOffset|offset): \d', line):
            found.append([])
        if found:
            found[-1].append(line)
    return ['\n'.join(lines) for lines in found]


def scalar(text):
    """'-1' -> -1, 'true' -> True, '[a,b]' -> ['a', 'b'], anything else as it is."""
    if re.match(r'-?\d+$', text):
        return int(text)
    if text.startswith('['):
        return [word for word in text[1:-1].split(',') if word]
    return {'true': True, 'false': False}.get(text, text)


class KafkaBroker(Broker):
    """One KRaft node, broker and controller in one, with a port for every way in.

    These are plaintext, ssl, sasl_plaintext, sasl_ssl, and mtls, which lets in only who shows a certificate
    such as tls.client. The USERS log in by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512; tls.ca is what they may
    trust. Who comes in by plaintext or ssl may do everything, the others what no ACL says.
    """

    def __init__(self, folder, version='4.3.1', extra=None, tls=None, node=1, nodes=None):
        nodes = nodes or kraft_ports(1)
        ports, replicas = nodes[node], len(nodes)
        Broker.__init__(self, folder, version, ports, extra, replicas)
        self.tls = tls or Certificates(os.path.join(self.folder, 'tls'))
        self.settings.update({
            'process.roles': 'broker,controller',
            'node.id': node,
            'controller.quorum.voters': ','.join(
                '%d@127.0.0.1:%d' % (i, nodes[i]['CONTROLLER']) for i in nodes),
            'advertised.listeners': ','.join('%s://127.0.0.1:%d' % (name, ports[name]) for name in LISTENERS),
            'listener.security.protocol.map': ','.join('%s:%s' % (
                name, {'MTLS': 'SSL', 'CONTROLLER': 'PLAINTEXT'}.get(name, name)) for name in ports),
            'controller.listener.names': 'CONTROLLER',
            'inter.broker.listener.name': 'PLAINTEXT',
            'ssl.keystore.type': 'PKCS12',
            'ssl.keystore.location': self.tls.server[2],
            'ssl.keystore.password': PASSWORD,
            'ssl.truststore.type': 'PEM',
            'ssl.truststore.location': self.tls.ca,
            'listener.name.mtls.ssl.client.auth': 'required',
            'sasl.enabled.mechanisms': 'PLAIN,SCRAM-SHA-256,SCRAM-SHA-512',
            'authorizer.class.name': 'org.apache.kafka.metadata.authorizer.StandardAuthorizer',
            'super.users': 'User:ANONYMOUS',
            'allow.everyone.if.no.acl.found': True,
            'min.insync.replicas': (replicas + 1) // 2,
            'default.replication.factor': replicas,
            'share.coordinator.state.topic.replication.factor': replicas,
            'share.coordinator.state.topic.min.isr': (replicas + 1) // 2,
            'num.network.threads': 2,
            'num.io.threads': 2,
            'background.threads': 2,
            'broker.session.timeout.ms': 6000,
            'broker.heartbeat.interval.ms': 1000,
        })
        for name in ('sasl_plaintext', 'sasl_ssl'):
            for mechanism, login in (('plain', PLAIN), ('scram-sha-256', SCRAM), ('scram-sha-512', SCRAM)):
                self.settings['listener.name.%s.%s.sasl.jaas.config' % (name, mechanism)] = login

    def configure(self):
        Broker.configure(self)
        if not os.path.exists(os.path.join(self.data, 'meta.properties')):
            scram = ['--add-scram=%s=[name=%s,password=%s]' % (mechanism, user, USERS[user])
                     for mechanism in ('SCRAM-SHA-256', 'SCRAM-SHA-512') for user in sorted(USERS)]
            self.java_tool('kafka.tools.StorageTool', 'format', '-t', CLUSTER, '-c', self.config, *scram)


def kraft_ports(n):
    """{node: {listener: port}} of the nodes 1 to n."""
    names = LISTENERS + ['CONTROLLER']
    ports = lasting_ports(n * len(names))
    return {i + 1: dict(zip(names, ports[i::n])) for i in range(n)}


class KafkaCluster(Asked):
    """Nodes 1 to n, with every topic on all of them unless told, where acks=all needs most of them.

    nodes: {i: KafkaBroker}. What is asked goes to those that run and are not frozen.
    """

    def __init__(self, folder, n=3, version='4.3.1', extra=None):
        self.replicas, self.frozen, self.tls, self.nodes = n, set(), None, {}
        nodes = kraft_ports(n)
        for i in nodes:
            where = os.path.join(str(folder), 'node%d' % i)
            self.nodes[i] = KafkaBroker(where, version, extra, self.tls, i, nodes)
            self.tls = self.nodes[i].tls

    def brokers(self):
        return [node for i, node in sorted(self.nodes.items())
                if i not in self.frozen and node.process is not None and node.process.poll() is None]

    def start(self):
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:   # none is ready before most are there
                list(pool.map(lambda node: node.start(), self.nodes.values()))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self):
        """Kills all of them: the last ones cannot end in order, there being no quorum left to leave."""
        for i in self.nodes:
            self.kill(i)

    def __enter__(self):
        return self if self.brokers() else self.start()

    def __exit__(self, *error):
        self.stop()

    def kill(self, i):
        """SIGKILL: the others lead what it led after six seconds, the session timeout."""
        self.nodes[i].kill()
        self.frozen.discard(i)

    def stop_gracefully(self, i):
        """SIGTERM: its leaders have moved before it is gone."""
        self.thaw(i)
        self.nodes[i].stop()

    def freeze(self, i):
        """SIGSTOP: its connections stay and nothing is answered; after six seconds the others go on.

        If it was the controller, a new topic may take 30 s more: the others wait for its answer so long.
        """
        self.frozen.add(i)
        self.nodes[i].freeze()

    def thaw(self, i):
        self.nodes[i].thaw()
        self.frozen.discard(i)

    def restart(self, i, extra=None):
        """Ends node i in order, if it runs, and starts it on the same ports and data. See until_in_sync()."""
        self.stop_gracefully(i)
        self.nodes[i].restart(extra)

    def until_in_sync(self, n=None):
        """Waits until every partition has so many replicas in sync: as many as nodes run, unless told."""
        n = len(self.brokers()) if n is None else n

        def in_sync():
            return all(len(p.isrs) >= min(n, len(p.replicas)) for topic in self.topics().values()
                       for p in topic.values())
        until(in_sync, '%d replicas in sync' % n)

    def elect_preferred(self):
        """Makes the first replica of every partition lead it, for which all nodes must run.

        Without it leaders that have moved do not come back soon.
        """
        def elected():
            self.ask('elect_leaders', confluent_kafka.ElectionType.PREFERRED)
            return all(p.leader == p.replicas[0] for node in self.brokers()
                       for topic in node.topics().values() for p in topic.values())
        until(elected, 'the first replicas lead')

    def dump(self, topic, partition=0, i=None):
        """As KafkaBroker.dump(), of node i or the leader."""
        return self.nodes[self.leader_of(topic, partition) if i is None else i].dump(topic, partition)


class OldBroker(Broker):
    """A broker from before KRaft, 2.8.2, 1.1.1, 0.11.0.3 or 0.10.2.2, and the ZooKeeper it needs.

    Its port is plaintext, and with sasl=True sasl_plaintext too, where the USERS log in by PLAIN,
    SCRAM-SHA-256 and SCRAM-SHA-512.
    """

    def __init__(self, folder, version, extra=None, sasl=False):
        names = ['PLAINTEXT'] + (['SASL_PLAINTEXT'] if sasl else [])
        found = lasting_ports(len(names) + 1)
        self.port, ports = found.pop(), dict(zip(names, found))
        Broker.__init__(self, folder, version, ports, extra)
        self.settings.update({
            'broker.id': 0,
            'zookeeper.connect': '127.0.0.1:%d' % self.port,
            'zookeeper.session.timeout.ms': 4000,
            'controlled.shutdown.enable': False,
        })
        config = write(self.folder, 'zookeeper.properties', ''.join('%s=%s\n' % item for item in (
            ('tickTime', 1000), ('dataDir', os.path.join(self.folder, 'zookeeper')), ('maxClientCnxns', 0),
            ('clientPort', self.port), ('clientPortAddress', '127.0.0.1'), ('admin.enableServer', 'false'),
            ('4lw.commands.whitelist', 'dump'))))
        main = 'org.apache.zookeeper.server.quorum.QuorumPeerMain'
        self.zookeeper = Java('zookeeper', self.folder, version, main, config, lambda: accepts(self.port))
        self.newcomers = dict(USERS) if sasl else {}
        if sasl:
            self.settings['sasl.enabled.mechanisms'] = 'PLAIN,SCRAM-SHA-256,SCRAM-SHA-512'
            login = write(self.folder, 'login.conf', 'KafkaServer {\n%s\n%s\n};\n' % (PLAIN, SCRAM))
            self.argv.insert(1, '-Djava.security.auth.login.config=' + login)

    def where(self):
        return ('--zookeeper', '127.0.0.1:%d' % self.port) if self.number < (2, 6) else Broker.where(self)

    def start(self):
        try:
            if self.zookeeper.process is None or self.zookeeper.process.poll() is not None:
                self.zookeeper.start()
            self.zookeeper.until(self.is_forgotten, PATIENCE, 'forget the broker that was killed')
            Broker.start(self)
            while self.newcomers:
                user, password = self.newcomers.popitem()
                self.alter_by_tool('users', user, {name: '[iterations=4096,password=%s]' % password
                                                   for name in ('SCRAM-SHA-256', 'SCRAM-SHA-512')})
            return self
        except BaseException:
            self.stop()
            raise

    def stop(self, number=signal.SIGTERM):
        Broker.stop(self, number)
        self.zookeeper.stop()

    def is_forgotten(self):
        """Whether ZooKeeper has no session of this broker; it would not start while its id is taken."""
        try:
            with socket.create_connection(('127.0.0.1', self.port), 1) as sock:
                sock.sendall(b'dump')
                answer = b''.join(iter(lambda: sock.recv(65536), b''))
        except OSError:                         # just started, some leave the first question open
            return False
        return b'phemeral' in answer and b'/brokers/ids/0' not in answer
