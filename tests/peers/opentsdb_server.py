"""Real OpenTSDB 2.4.1 for the tests, on an HBase of its own, from the jars that opentsdb.sh fetches.

    with HBase(tmp_path) as store, OpenTSDB(tmp_path, store) as server:
        ...                                     # something writes to server.port, by HTTP or telnet
        assert server.points('load.one') == {(1700000000000, (('host', 'n1'),)): 0.5}

What was written is there a moment after the answer, not with it: use until().
"""
import json
import os
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from peer import Peer, command, lasting_ports, require

BUILT = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..', '.venv', 'opentsdb'))
PATIENCE = 30                                   # seconds that any request may take
OPEN = ['java.lang', 'java.lang.reflect', 'java.nio', 'java.util.concurrent', 'sun.nio.ch', 'jdk.internal.ref']
EXPORT = ['jdk.internal.misc', 'jdk.internal.ref']
LOG4J = """\
log4j.rootLogger=INFO, A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d %p %m (%c)%n
"""
LOGBACK = """\
<configuration><appender name="A" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%d %level %msg %logger{0}%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="A"/></root></configuration>
"""


def write(folder, name, text):
    os.makedirs(str(folder), exist_ok=True)
    with open(os.path.join(str(folder), name), 'w') as file:
        file.write(text)


class HBase(Peer):
    """Master, region server and ZooKeeper in one process, files on disk, and the tables of OpenTSDB."""

    def __init__(self, folder):
        require(os.path.exists(os.path.join(BUILT, 'tables', 'OpenTsdbTables.class')), 'opentsdb',
                'no jars (tests/peers/opentsdb.sh)')
        java = require(command('java'), 'opentsdb', 'there is no java')
        folder = os.path.join(str(folder), 'hbase')
        self.zookeeper, = lasting_ports(1)
        settings = {
            'hbase.cluster.distributed': 'false', 'hbase.rootdir': 'file://%s/data' % folder,
            'hbase.tmp.dir': folder + '/tmp', 'hbase.zookeeper.property.dataDir': folder + '/zookeeper',
            'hbase.zookeeper.property.clientPort': self.zookeeper, 'hbase.zookeeper.quorum': '127.0.0.1',
            'hbase.zookeeper.property.clientPortAddress': '127.0.0.1', 'hbase.wal.provider': 'filesystem',
            'hbase.unsafe.stream.capability.enforce': 'false', 'hbase.regionserver.handler.count': 6}
        for role in ('master', 'regionserver'):
            settings.update({'hbase.%s.hostname' % role: 'localhost', 'hbase.%s.ipc.address' % role: '127.0.0.1',
                             'hbase.%s.port' % role: 0, 'hbase.%s.info.port' % role: -1})
        write(folder + '/conf', 'hbase-site.xml', '<configuration>%s</configuration>' % ''.join(
            '<property><name>%s</name><value>%s</value></property>' % item for item in settings.items()))
        write(folder + '/conf', 'log4j.properties', LOG4J)
        self.base = [java] + [word for package in OPEN for word in (
            '--add-opens', 'java.base/%s=ALL-UNNAMED' % package)] + [word for package in EXPORT for word in (
                '--add-exports', 'java.base/%s=ALL-UNNAMED' % package)]
        Peer.__init__(self, 'hbase', self.base + [
            '-Xmx400m', '-cp', 'conf:%s/hbase/*' % BUILT, 'org.apache.hadoop.hbase.master.HMaster', 'start'],
            folder, self.is_up, patience=180)

    def is_up(self):
        with open(self.log, 'rb') as log:
            return b'Master has completed initialization' in log.read()

    def start(self):
        Peer.start(self)
        try:
            subprocess.check_output(self.base + [
                '-Xmx200m', '-cp', '%s/tables:conf:%s/hbase/*' % (BUILT, BUILT), 'OpenTsdbTables'],
                cwd=self.folder, stderr=subprocess.STDOUT, timeout=120)
        except BaseException:
            self.stop()
            raise
        return self

    def freeze(self):
        """Takes connections and does nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self, number=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.thaw()
        Peer.stop(self, number)


class OpenTSDB(Peer):
    """One daemon on a port of its own, for HTTP and telnet. more: settings, in place of those below."""

    def __init__(self, folder, store, name='opentsdb', **more):
        java = require(command('java'), 'opentsdb', 'there is no java')
        folder = os.path.join(str(folder), name)
        self.port, = lasting_ports(1)
        settings = {'tsd.network.port': self.port, 'tsd.network.bind': '127.0.0.1',
                    'tsd.http.staticroot': folder + '/static', 'tsd.http.cachedir': folder + '/cache',
                    'tsd.core.auto_create_metrics': 'true', 'tsd.http.show_stack_trace': 'false',
                    'tsd.storage.hbase.zk_quorum': '127.0.0.1:%d' % store.zookeeper,
                    'hbase.rpcs.buffered_flush_interval': 50}   # as shipped, a write takes a second
        settings.update((key.replace('__', '.'), value) for key, value in more.items())
        for path in ('static', 'cache', 'conf'):
            os.makedirs(os.path.join(folder, path))
        write(folder, 'opentsdb.conf', ''.join('%s = %s\n' % item for item in settings.items()))
        write(folder + '/conf', 'logback.xml', LOGBACK)
        Peer.__init__(self, name, [java, '-Xmx256m', '-cp', 'conf:%s/tsd/*' % BUILT, 'net.opentsdb.tools.TSDMain',
                                   '--config=opentsdb.conf'], folder, self.answers, patience=60)

    def answers(self):
        try:
            self.request('/api/version')
        except OSError:
            return False
        return True

    def request(self, path, data=None):
        """The JSON of the answer to a GET, or to a POST of data as JSON."""
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen('http://127.0.0.1:%d%s' % (self.port, path), body, PATIENCE) as answer:
            return json.loads(answer.read().decode() or 'null')

    def metrics(self, start=''):
        """Names of all metrics that begin so, sorted."""
        query = urllib.parse.urlencode({'type': 'metrics', 'q': start, 'max': 100000})
        return sorted(self.request('/api/suggest?' + query))

    def points(self, metric, **tags):
        """{(ms, sorted tags): value} of those that have such tags."""
        return self.all_points([metric], **tags)[metric]

    def all_points(self, metrics, **tags):
        """{metric: points(metric)}, asked many at a time."""
        found = {metric: {} for metric in metrics}
        filters = [{'type': 'literal_or', 'tagk': key, 'filter': value, 'groupBy': False}
                   for key, value in tags.items()]
        for i in range(0, len(metrics), 50):
            try:
                results = self.request('/api/query', {'start': 1, 'msResolution': True, 'queries': [
                    {'aggregator': 'none', 'metric': metric, 'filters': filters} for metric in metrics[i:i + 50]]})
            except urllib.error.HTTPError as error:
                error.msg = error.read().decode('utf-8', 'replace')     # the server says there what is wrong
                raise
            for result in results:
                key = tuple(sorted(result['tags'].items()))
                for ms, value in result['dps'].items():
                    assert (int(ms), key) not in found[result['metric']]
                    found[result['metric']][int(ms), key] = value
        return found

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)
