"""Real Apache Druid for the tests: ZooKeeper, coordinator with overlord, indexer, historical, broker and router, six
JVMs with 1.2 GB in all, from the jars that druid.sh fetches.

It is asked over its own HTTP API with urllib, in SQL: nothing here shares a line with the program.

    with Druid(tmp_path) as druid:
        ...                                     # something posts tasks to druid.url
        druid.until_rows('statbadger', lambda rows: len(rows) == 7)

Rows are there a second or two after their task has ended, the first ones of a datasource after some more.
"""
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from peer import Peer, accepts, command, lasting_ports, require

VERSION = '33.0.0'
JARS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', '.venv', 'druid', VERSION, 'libs')
PATIENCE = 60                                   # seconds that any answer may take
START = 400                                     # and a start, on a machine that does other things besides
LOG4J2 = """\
<Configuration status="WARN"><Appenders><Console name="A" target="SYSTEM_OUT">
<PatternLayout pattern="%d{ISO8601} %p [%t] %c{1} - %m%n"/></Console></Appenders>
<Loggers><Root level="info"><AppenderRef ref="A"/></Root></Loggers></Configuration>
"""
ENDED = ('SUCCESS', 'FAILED')
# What the JVM hides since Java 16, and Druid uses.
OPENS = [word for package in ('java.nio', 'sun.nio.ch', 'jdk.internal.ref', 'java.io', 'java.lang')
         for word in ('--add-opens', 'java.base/%s=ALL-UNNAMED' % package)]
OPENS += ['--add-exports', 'java.base/jdk.internal.misc=ALL-UNNAMED', '--add-exports',
          'java.base/jdk.internal.ref=ALL-UNNAMED', '--add-opens',
          'jdk.management/com.sun.management.internal=ALL-UNNAMED']
# Everything below is waited for by some test: minutes by default, seconds here.
COMMON = {
    'druid.extensions.loadList': '[]',          # those on the class path are found
    'druid.startup.logging.logProperties': 'false',
    'druid.host': '127.0.0.1',
    'druid.server.http.numThreads': 12,
    'druid.zk.paths.base': '/druid',
    'druid.zk.service.sessionTimeoutMs': 5000,  # after so long a service that was killed is gone
    'druid.metadata.storage.type': 'derby',
    'druid.metadata.storage.connector.host': '127.0.0.1',
    'druid.storage.type': 'local',
    'druid.indexer.logs.type': 'file',
    'druid.selectors.indexing.serviceName': 'druid/overlord',
    'druid.selectors.coordinator.serviceName': 'druid/coordinator',
    'druid.monitoring.monitors': '[]',
    'druid.emitter': 'noop',
    'druid.processing.buffer.sizeBytes': '10MiB',
    'druid.processing.numThreads': 1,
    'druid.processing.numMergeBuffers': 2,
    'druid.lookup.enableLookupSyncOnStartup': 'false',
}
SERVICES = {                                    # name: (heap, direct memory, what it is told)
    'coordinator': ('256m', '64m', {
        'druid.coordinator.asOverlord.enabled': 'true',
        'druid.coordinator.asOverlord.overlordService': 'druid/overlord',
        'druid.coordinator.startDelay': 'PT1S',
        'druid.coordinator.period': 'PT1S',
        'druid.manager.segments.pollDuration': 'PT1S',
        'druid.indexer.queue.startDelay': 'PT1S',
        'druid.indexer.queue.maxTaskPayloadSize': '5MiB',
        'druid.indexer.runner.type': 'httpRemote',
        'druid.indexer.runner.taskCleanupTimeout': 'PT5S',      # of a worker that is gone
        'druid.indexer.runner.taskAssignmentTimeout': 'PT10S',  # of one that went before it began with its task
        'druid.indexer.storage.type': 'metadata'}),
    'historical': ('128m', '64m', {'druid.server.maxSize': 2000000000}),
    'indexer': ('320m', '96m', {
        'druid.worker.capacity': 4,
        'druid.segment.handoff.pollDuration': 'PT1S',
        'druid.worker.globalIngestionHeapLimitBytes': 120000000}),
    'broker': ('192m', '96m', {
        'druid.broker.http.numConnections': 5,
        'druid.server.http.numThreads': 20,
        'druid.sql.planner.metadataRefreshPeriod': 'PT1S',
        'druid.broker.segment.awaitInitializationOnStart': 'false'}),
    'router': ('128m', '64m', {
        'druid.router.managementProxy.enabled': 'true',
        'druid.router.http.numConnections': 5,
        'druid.router.http.numMaxThreads': 5}),
}
READY = {'coordinator': '/status/health', 'historical': '/druid/historical/v1/readiness',
         'indexer': '/status/health', 'broker': '/druid/broker/v1/readiness', 'router': '/status/health'}


def write(folder, name, values):
    """A file of properties."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), 'w') as file:
        file.write(values if isinstance(values, str) else ''.join('%s=%s\n' % item for item in values.items()))


class Service(Peer):
    """One JVM of them all. It can be stopped, killed, frozen and started by itself; its port stays."""

    def __init__(self, name, folder, argv, port, ready, env=None):
        self.port = port
        Peer.__init__(self, name, argv, folder, ready, env, START)

    def begin(self):
        """Starts it and does not wait: all of them start at once."""
        ready, self.ready = self.ready, lambda: True
        try:
            return self.start()
        finally:
            self.ready = ready

    def wait(self):
        self.until(self.ready, self.patience, 'be ready')

    def kill(self):
        """Ends it as a power cut does."""
        Peer.stop(self, signal.SIGKILL)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)


class Druid:
    """All of it. url: the overlord, which is the coordinator too; services: {name: Service}, zookeeper included.

    tls: the Certificates of kafka_broker, with which the router serves the same API at https_url, to those who
    have a certificate too. env: what all of them find in their environment.
    """

    def __init__(self, folder, tls=None, env=None):
        self.java = require(command('java'), 'java', 'not installed (Debian: default-jre-headless)')
        require(os.path.isdir(JARS), 'druid ' + VERSION, 'no jars (sh tests/peers/druid.sh %s)' % VERSION)
        self.folder, self.tls, self.env = str(folder), tls, env
        names = ['zookeeper'] + list(SERVICES)
        ports = lasting_ports(len(names) + 2)
        self.ports = dict(zip(names, ports))
        self.url = 'http://127.0.0.1:%d' % self.ports['coordinator']
        self.https_port, self.https_url = ports[-2], 'https://127.0.0.1:%d' % ports[-2]
        os.makedirs(os.path.join(self.folder, 'data', 'tmp'), exist_ok=True)
        self.common(ports[-1])
        self.services = {name: self.service(name) for name in names}

    def common(self, derby):
        data = os.path.join(self.folder, 'data')
        write(os.path.join(self.folder, 'common'), 'log4j2.xml', LOG4J2)
        write(os.path.join(self.folder, 'common'), 'common.runtime.properties', dict(COMMON, **{
            'druid.zk.service.host': '127.0.0.1:%d' % self.ports['zookeeper'],
            'druid.metadata.storage.connector.port': derby,
            'druid.metadata.storage.connector.connectURI':
                'jdbc:derby://127.0.0.1:%d/%s/metadata.db;create=true' % (derby, data),
            'druid.storage.storageDirectory': data + '/segments',
            'druid.indexer.logs.directory': data + '/indexing-logs',
            'druid.processing.tmpDir': data + '/tmp'}))

    def service(self, name):
        port, data = self.ports[name], os.path.join(self.folder, 'data')
        own, classes = os.path.join(self.folder, name), os.path.join(self.folder, 'common')
        jars = os.path.join(os.path.abspath(JARS), '*')
        if name == 'zookeeper':
            write(own, 'zoo.cfg', {'tickTime': 1000, 'dataDir': data + '/zookeeper', 'clientPort': port,
                                   'clientPortAddress': '127.0.0.1', 'maxClientCnxns': 0,
                                   'admin.enableServer': 'false'})
            argv = [self.java, '-Xmx64m', '-cp', classes + ':' + jars,
                    'org.apache.zookeeper.server.quorum.QuorumPeerMain', os.path.join(own, 'zoo.cfg')]
            return Service(name, own, argv, port, lambda: accepts(port))
        heap, direct, more = SERVICES[name]
        more = dict(more, **{'druid.service': 'druid/' + name, 'druid.plaintextPort': port})
        if name == 'indexer':
            more['druid.indexer.task.baseTaskDir'] = data + '/task'
        if name == 'router' and self.tls:
            more.update(self.https())
        if name == 'historical':
            more['druid.segmentCache.locations'] = '[{"path":"%s/segment-cache","maxSize":"2g"}]' % data
        write(own, 'runtime.properties', more)
        argv = [self.java, '-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC', '-XX:-UsePerfData', '-Xms32m', '-Xmx' + heap,
                '-XX:MaxDirectMemorySize=' + direct, '-XX:+ExitOnOutOfMemoryError', '-Duser.timezone=UTC',
                '-Dfile.encoding=UTF-8', '-Djava.io.tmpdir=%s/tmp' % data,
                '-Djava.util.logging.manager=org.apache.logging.log4j.jul.LogManager'] + OPENS
        argv += ['-cp', ':'.join([classes, own, jars]), 'org.apache.druid.cli.Main', 'server', name]
        return Service(name, own, argv, port, lambda: self.status(name, READY[name]) == 200, self.env)

    def https(self):
        """Settings of a service that speaks TLS on one more port. What other services come to cannot: they would need
        an extension that is on no central repository."""
        store, password = self.tls.server[2], 'changeit'
        trusted = os.path.join(self.folder, 'ca.p12')
        keytool = require(command('keytool'), 'keytool', 'not installed (Debian: default-jre-headless)')
        subprocess.check_output([keytool, '-importcert', '-noprompt', '-file', self.tls.ca, '-keystore', trusted,
                                 '-storetype', 'PKCS12', '-storepass', password], stderr=subprocess.STDOUT)
        return {'druid.enableTlsPort': 'true', 'druid.tlsPort': self.https_port,
                'druid.server.https.keyStorePath': store, 'druid.server.https.keyStoreType': 'PKCS12',
                'druid.server.https.keyStorePassword': password, 'druid.server.https.certAlias': '1',
                'druid.server.https.requireClientCertificate': 'true',
                'druid.server.https.trustStorePath': trusted, 'druid.server.https.trustStoreType': 'PKCS12',
                'druid.server.https.trustStorePassword': password}

    # start and end

    def start(self):
        try:
            self.services['zookeeper'].start()
            for name in SERVICES:
                self.services[name].begin()
            for name in SERVICES:
                self.services[name].wait()
            self.services['coordinator'].until(self.workers, START, 'find its indexer')
            return self
        except BaseException:
            self.stop()
            raise

    def workers(self):
        """What the overlord knows of those that run tasks; [] too while it does not answer."""
        try:
            return self.ask('/druid/indexer/v1/workers')
        except OSError:
            return []

    def stop(self):
        """Ends all of them at once, by their pids: one after the other waits for what is gone already."""
        alive = [s for s in self.services.values() if s.process is not None and s.process.poll() is None]
        for service in alive:
            service.thaw()
            service.process.kill()              # there is nothing that anybody wants to keep
        for service in alive:
            service.process.wait()

    __enter__ = start

    def __exit__(self, *error):
        self.stop()

    def repair(self):
        """Starts what a test has left dead or frozen."""
        for name, service in self.services.items():
            service.thaw()
            if service.process is None or service.process.poll() is not None:
                service.start()
        self.until(self.workers, 'find its indexer')
        return self

    # questions

    def status(self, name, path):
        """The status of a GET, 0 when nobody answers."""
        try:
            with urllib.request.urlopen('http://127.0.0.1:%d%s' % (self.ports[name], path), timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def ask(self, path, data=None, service='coordinator'):
        """The JSON of a GET, or of a POST of data as JSON."""
        request = urllib.request.Request('http://127.0.0.1:%d%s' % (self.ports[service], path),
                                         None if data is None else json.dumps(data).encode(),
                                         {'Content-Type': 'application/json'})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read().decode() or 'null')
        except urllib.error.HTTPError as error:
            error.msg = error.read().decode('utf-8', 'replace')         # it says there what is wrong
            raise

    def sql(self, query, *parameters):
        """Rows as dicts."""
        parameters = [{'type': 'VARCHAR', 'value': value} for value in parameters]
        return self.ask('/druid/v2/sql', {'query': query, 'parameters': parameters}, 'broker')

    def rows(self, datasource):
        """All rows of a datasource, as dicts without the columns that they do not have; [] when there is none."""
        try:
            found = self.sql('SELECT * FROM "%s" LIMIT 1000000' % datasource.replace('"', '""'))
        except urllib.error.HTTPError as error:
            if error.code == 400 and 'not found' in error.msg:
                return []
            raise
        return [{key: value for key, value in row.items() if value is not None} for row in found]

    def columns(self, datasource):
        """{column: type} as SQL sees them."""
        return {row['COLUMN_NAME']: row['DATA_TYPE'] for row in self.sql(
            'SELECT COLUMN_NAME, DATA_TYPE FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_NAME = ?', datasource)}

    def until_rows(self, datasource, condition, seconds=PATIENCE):
        """The rows once condition(rows) is true."""
        end = time.monotonic() + seconds
        while True:
            rows = self.rows(datasource)
            if condition(rows):
                return rows
            assert time.monotonic() < end, '%d rows of %s: %s, tasks %s' % (
                len(rows), datasource, rows[:3], self.tasks(datasource))
            time.sleep(0.2)

    def tasks(self, datasource=None):
        """[{'id', 'type', 'statusCode', 'errorMsg', ...}] of those that are known, newest first."""
        found = self.ask('/druid/indexer/v1/tasks')
        return [task for task in found if task['dataSource'] == datasource or datasource is None]

    def until(self, condition, what, seconds=PATIENCE):
        """What condition() gives once it is true."""
        return self.services['coordinator'].until(condition, seconds, what)
