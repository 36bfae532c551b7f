"""What a tick costs, beside collectd and node_exporter when they are installed (install.sh bench gets them).

    bench.py [--seconds N] [--quick] [--traffic] [--only PART] [--json FILE]

Everything that is compared runs at the same time, on the same host, each into a sink of its own: ratios are from one
run. Needs nothing but the standard library; the part with 200 interfaces needs root, `ip` and `unshare`.

Processor time is that of the process clock of each agent (clock_getcpuclockid(3)): all of its threads, kernel and
user, in nanoseconds, where the ticks of /proc/PID/stat are 10 ms. It is read twice, `--seconds` apart, after a
warm-up, so what starting costs is in none of the numbers.
"""
import argparse
import gzip
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(HERE)), 'statbadger.py')
MODULES = ['-m', 'cpu', '-m', 'load', '-m', 'disk', '-m', 'network,interfaces=*', '-m', 'memory']
PAIRS = 100                     # of veth: 200 interfaces
WARM_UP = 5                     # seconds; the re-exec, the first allocations, collectd's first values

PROMETHEUS = {'Accept': 'text/plain;version=0.0.4;q=1,*/*;q=0.1', 'Accept-Encoding': 'gzip'}
COLLECTD = """\
Hostname "bench"
FQDNLookup false
BaseDir "{folder}"
PIDFile "{folder}/collectd.pid"
TypesDB "{types}"
Interval 1
LoadPlugin cpu
LoadPlugin load
LoadPlugin disk
LoadPlugin interface
LoadPlugin memory
LoadPlugin write_graphite
<Plugin cpu>
  ReportByCpu false
  ValuesPercentage true
</Plugin>
<Plugin write_graphite>
  <Node "sink">
    Host "127.0.0.1"
    Port "{port}"
    Protocol "tcp"
  </Node>
</Plugin>
"""


# -- tools ---------------------------------------------------------------------------------------

def command(name):
    """The path of a program, or None: where install.sh puts what Debian has not, on PATH, among the system's."""
    root = os.path.dirname(os.path.dirname(HERE))
    return (shutil.which(name, path=os.path.join(root, '.venv', 'bin')) or shutil.which(name)
            or shutil.which(name, path='/usr/local/sbin:/usr/sbin:/sbin'))


def processor_time(pid):
    """Seconds that all threads of a process have used; the clock id is that of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid):
    """Bytes of memory, or None when the process is no more."""
    try:
        with open('/proc/%d/statm' % pid) as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, IndexError):
        return None


def end(process):
    """Ends a process of ours by its pid."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment():
    """Nothing in it that would change the agent's course."""
    return {k: v for k, v in os.environ.items() if not k.startswith('HOST_') and k != 'STATBADGER_NO_REEXEC'}


def say(text=''):
    print(text, flush=True)


class Sink:
    """Counts the lines that come in over TCP on a port of 127.0.0.1."""

    def __init__(self):
        self.server = socket.socket()
        self.server.bind(('127.0.0.1', 0))
        self.server.listen(20)
        self.port, self.lines = self.server.getsockname()[1], 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock = self.server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.read, args=(sock,), daemon=True).start()

    def read(self, sock):
        with sock:
            while True:
                try:
                    data = sock.recv(1 << 18)
                except OSError:
                    return
                if not data:
                    return
                self.lines += data.count(b'\n')

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


# -- the agents ----------------------------------------------------------------------------------

class Agent:
    """One that is measured: .process runs, .lines() counts what it has given away since its start."""
    name = ''

    def start(self, argv, folder):
        with open(os.path.join(folder, self.name + '.log'), 'wb') as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                                            env=environment())

    def close(self):
        end(self.process)


class Statbadger(Agent):
    name = 'statbadger'

    def __init__(self, folder):
        self.sink = Sink()
        self.start([sys.executable, PROGRAM, '-i', '1', '-e', 'graphite,port=%d' % self.sink.port] + MODULES, folder)

    def lines(self):
        return self.sink.lines

    def close(self):
        Agent.close(self)
        self.sink.close()


class Collectd(Statbadger):
    name = 'collectd'

    def __init__(self, folder):
        self.sink, base = Sink(), os.path.join(folder, 'collectd')
        os.makedirs(base)
        conf = os.path.join(base, 'collectd.conf')
        with open(conf, 'w') as file:
            file.write(COLLECTD.format(folder=base, types='/usr/share/collectd/types.db', port=self.sink.port))
        self.start([command('collectd'), '-f', '-C', conf], folder)


class NodeExporter(Agent):
    """The same five collectors, and its own figures, which it gives unless told not to; scraped by us once a second
    as Prometheus does it: over one connection, in the text format, gzipped."""
    name = 'node_exporter'

    def __init__(self, folder):
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            self.port = sock.getsockname()[1]
        collectors = ['--collector.' + word for word in ('disable-defaults', 'cpu', 'loadavg', 'diskstats', 'netdev',
                                                         'meminfo')]
        self.start([program_of_node_exporter(), '--web.listen-address=127.0.0.1:%d' % self.port] + collectors, folder)
        self.count, self.stopping = 0, threading.Event()
        self.thread = threading.Thread(target=self.scrape, daemon=True)
        self.thread.start()

    def scrape(self):
        connection, due = None, time.time()
        while not self.stopping.wait(max(0.0, due - time.time())):
            due += 1
            try:
                connection = connection or http.client.HTTPConnection('127.0.0.1', self.port, timeout=5)
                connection.request('GET', '/metrics', headers=PROMETHEUS)
                text = gzip.decompress(connection.getresponse().read())
                self.count += sum(1 for line in text.split(b'\n') if line and line[:1] != b'#')
            except (OSError, EOFError, http.client.HTTPException):
                connection = None               # it starts, or it ends

    def lines(self):
        return self.count

    def close(self):
        self.stopping.set()
        self.thread.join()
        Agent.close(self)


def program_of_node_exporter():
    return command('node_exporter') or command('prometheus-node-exporter')


def versions():
    """`collectd 5.12.0, node_exporter 1.12.1`: of what is here, as far as the programs say."""
    out = []
    for name, argv in (('collectd', [command('collectd'), '-h']), ('node_exporter', [program_of_node_exporter(), '--version'])):
        if argv[0]:
            text = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode(errors='replace')
            out.append(' '.join([name] + re.findall(r'[0-9]+\.[0-9]+(?:\.[0-9]+)?', text.replace('go1.', ''))[:1]))
    return ', '.join(out)


def installed():
    """[(class, whether it is here)]"""
    return [(Statbadger, True), (Collectd, bool(command('collectd'))), (NodeExporter, bool(program_of_node_exporter()))]


def compare(seconds):
    """{agent: {us, lines, rss}} of all agents that are here, measured side by side; None for those that are not."""
    out, agents = {}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind, here in installed():
                out[kind.name] = None
                if here:
                    agents.append(kind(folder))
            out.update(measured(agents, seconds, folder))
        finally:
            for agent in agents:
                agent.close()
    return out


def measured(agents, seconds, folder):
    """{agent: {us, lines, rss}} of agents that were just started, over so many seconds after a warm-up."""
    out = {}
    time.sleep(WARM_UP)
    for agent in agents:
        if agent.process.poll() is not None:
            raise SystemExit('%s ended:\n%s' % (agent.name, log_of(folder, agent)))
    before = [(processor_time(a.process.pid), a.lines(), time.monotonic()) for a in agents]
    time.sleep(seconds)
    for agent, (cpu, lines, when) in zip(agents, before):
        ticks = time.monotonic() - when
        out[agent.name] = {'us': (processor_time(agent.process.pid) - cpu) / ticks * 1e6,
                           'lines': (agent.lines() - lines) / ticks,
                           'rss': resident(agent.process.pid) / 1e6}
    return out


# -- kinds of emitters ---------------------------------------------------------------------------

def kinds_of_emitters(folder):
    """[(name, stand-in or None, emitter with %d for its port, what has come there so far)]"""
    sys.path.insert(0, os.path.dirname(HERE))
    import standins
    import standins_druid
    import standins_influxdb
    import standins_rabbitmq
    import standins_redis
    import standins_sqs
    import standins_stomp
    import standins_tsdb
    import standins_zeromq
    path = os.path.join(folder, 'points.avro')
    url, aws = 'url=http://127.0.0.1:%d', 'access_key=AKIA1,secret_key=s3cret,region=us-east-1'

    def requests(server):
        return len(server.requests)

    def bytes_of_file(server):
        return os.path.getsize(path) if os.path.exists(path) else 0
    return [
        ('kafka', standins.KafkaStandin(), 'kafka,brokers=127.0.0.1:%d', requests),
        ('kafka gzip', standins.KafkaStandin(), 'kafka,codec=gzip,brokers=127.0.0.1:%d', requests),
        ('kafka flat', standins.KafkaStandin(), 'kafka,format=flat,brokers=127.0.0.1:%d', requests),
        ('influxdb08', standins.InfluxStandin(), 'influxdb08,database=t,username=root,password=root,gzip=false,' + url, requests),
        ('influxdb08 gzip', standins.InfluxStandin(), 'influxdb08,database=t,username=root,password=root,' + url, requests),
        ('influxdb', standins_influxdb.InfluxdbStandin(), 'influxdb,database=t,' + url, requests),
        ('opentsdb', standins_tsdb.OpenTsdbStandin(), 'opentsdb,port=%d', requests),
        ('opentsdb telnet', standins_tsdb.OpenTsdbTelnet(), 'opentsdb,protocol=telnet,port=%d', lambda s: len(s.points)),
        ('kairosdb', standins_tsdb.KairosStandin(), 'kairosdb,port=%d', requests),
        ('druid', standins_druid.DruidStandin(), 'druid,flush=10,' + url, requests),
        ('redis', standins_redis.RedisStandin(), 'redis,port=%d', lambda s: len(s.commands)),
        ('rabbitmq', standins_rabbitmq.AmqpStandin(), 'rabbitmq,port=%d', lambda s: len(s.queues['statbadger'])),
        ('activemq', standins_stomp.StompStandin(), 'activemq,port=%d', lambda s: len(s.sent)),
        ('zeromq', standins_zeromq.ZmqStandin(), 'zeromq,endpoint=tcp://127.0.0.1:%d', lambda s: len(s.messages)),
        ('sqs', standins_sqs.SqsStandin(), 'sqs,%s,queue_url=http://127.0.0.1:%%d/1/stats' % aws, lambda s: len(s.queues['stats'])),
        ('avro', None, 'avro,path=' + path, bytes_of_file)]


class Talking(Agent):
    """statbadger with other emitters, each into a stand-in of its server. lines: what has come to the first of them."""

    def __init__(self, folder, name, kinds):
        self.name, self.kinds, arguments = name, kinds, []
        for _, stand_in, emitter, _ in kinds:
            if stand_in is not None:
                stand_in.__enter__()
                emitter = emitter % stand_in.port
            arguments += ['-e', emitter]
        if len(kinds) > 1:
            self.graphite = Sink()
            arguments += ['-e', 'stdout', '-e', 'stdout_pretty', '-e', 'graphite,port=%d' % self.graphite.port]
        self.start([sys.executable, PROGRAM, '-i', '1'] + arguments + MODULES, folder)

    def come(self):
        """What has come to each."""
        return [count(stand_in) for _, stand_in, _, count in self.kinds]

    def lines(self):
        return self.come()[0]

    def close(self):
        Agent.close(self)
        for _, stand_in, _, _ in self.kinds:
            if stand_in is not None:
                stand_in.__exit__(None, None, None)
        if len(self.kinds) > 1:
            self.graphite.close()


ALL_KINDS = 'all fifteen'
TWICE = ('kafka gzip', 'kafka flat', 'influxdb08 gzip', 'opentsdb telnet')


def compare_emitters(seconds):
    """{emitter: {us, lines, rss}} side by side, each into a stand-in of its own in this process; and all at once."""
    with tempfile.TemporaryDirectory() as folder:
        agents = []
        try:
            agents.append(Statbadger(folder))
            agents[0].name = 'graphite'
            for kind in kinds_of_emitters(folder):
                agents.append(Talking(folder, kind[0], [kind]))
            out = measured(agents, seconds, folder)
            check_delivered(folder, agents[1:])
        finally:
            for agent in agents:
                agent.close()
    with tempfile.TemporaryDirectory() as folder:
        agent = Talking(folder, ALL_KINDS, [kind for kind in kinds_of_emitters(folder) if kind[0] not in TWICE])
        try:
            out.update(measured([agent], seconds, folder))
            check_delivered(folder, [agent])
        finally:
            agent.close()
    return out


def check_delivered(folder, agents):
    for agent in agents:
        text = log_of(folder, agent)
        if not all(agent.come()) or ' warning: ' in text:
            raise SystemExit('%s did not deliver:\n%s' % (agent.name, text))


def show_emitters(found):
    say('\nThe same ticks by other emitters, side by side')
    say('  %-16s %12s %9s %20s' % ('emitter', 'us a tick', 'RSS MB', 'CPU, graphite is 1'))
    for name, one in found.items():
        say('  %-16s %12.0f %9.1f %20.2f' % (name, one['us'], one['rss'], one['us'] / found['graphite']['us']))


def per_kilobyte():
    """{what: us per 1,000 bytes of payload} of the CRC and of gzip."""
    sb = load_program()
    data = b''.join(b'{"disk.reads.sda%d": {"value": %d, "units": ""}}, ' % (i, i * i) for i in range(300))
    out = {}
    for name, function in (('crc32c', sb.crc32c), ('gzip', sb.gzipped)):
        took = []
        for _ in range(50):
            began = time.perf_counter()
            function(data)
            took.append(time.perf_counter() - began)
        out[name] = statistics.median(took) * 1e9 / len(data)
    return out


def backlog(ticks=10000):
    """Ticks a second at which a real broker gets what has piled up, or a word why that was not measured."""
    sys.path[:0] = [os.path.join(os.path.dirname(HERE), 'peers'), os.path.dirname(HERE)]
    try:
        import kafka_broker
        broker = kafka_broker.KafkaBroker(tempfile.mkdtemp())
    except BaseException as error:              # a skip of pytest is none of Exception
        return 'needs a Kafka broker: %s' % error
    try:
        with broker:
            return drain(load_program(), broker.servers(), ticks)
    finally:
        shutil.rmtree(broker.folder, True)


def drain(sb, servers, ticks):
    arguments = sb.parse(MODULES + ['-e', 'kafka,brokers=%s' % servers])
    settings = sb.Config(arguments).settings()
    agent = sb.Agent(lambda: settings, sb.host_tree(None, {}, sb.Clock.seconds), sb.Clock(), sb.Log('error'))
    agent.read(None)
    time.sleep(0.2)
    found = agent.read(0)
    values = array('d', [v for series, numbers in found for v in numbers])
    layout, identity, sender = agent.layout(found), agent.who(), agent.senders[0][1]
    agent.spool.most = 1 << 30
    agent.spool.cursors = [sender.cursor]
    start = int(time.time()) - ticks
    for i in range(ticks):
        agent.spool.accept(sb.Frame((start + i) * 1000, i, identity, layout, values))
    began = time.monotonic()
    sender.start()
    sender.close(began + 120)
    while not sender.ended and time.monotonic() < began + 120:
        time.sleep(0.01)
    took = time.monotonic() - began
    if sender.cursor.count['acknowledged'] != ticks:
        return 'only %d of %d ticks got there: %s' % (sender.cursor.count['acknowledged'], ticks, sender.failure)
    return {'ticks': ticks, 'points': len(values), 'rate': ticks / took}


def log_of(folder, agent):
    with open(os.path.join(folder, agent.name + '.log'), errors='replace') as file:
        return file.read()[-2000:]


# -- 200 interfaces ------------------------------------------------------------------------------

def in_namespace(seconds, traffic):
    """The same comparison in a network namespace with 200 more interfaces; a word why not, when that cannot be.

    The namespace belongs to the process that measures and to nothing else: it has no name, and is gone with all of
    its interfaces when that process and what it started are gone, however that came about.
    """
    if os.geteuid():
        return 'needs root'
    if not command('ip') or not command('unshare'):
        return 'needs ip and unshare'
    argv = [command('unshare'), '-n', sys.executable, os.path.abspath(__file__), '--inside',
            '--seconds', str(seconds)] + ['--traffic'] * traffic
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate()
    finally:
        end(process)
    if process.returncode:
        return 'failed: %s' % (err.decode(errors='replace').strip().split('\n')[-1])
    return json.loads(out.decode())


def inside(seconds, traffic):
    """Runs within the namespace: makes the interfaces, measures, prints JSON."""
    def terminated(number, frame):
        raise SystemExit(1)                     # so that `finally` ends what was started
    signal.signal(signal.SIGTERM, terminated)
    # An address, for without one collectd's getaddrinfo(AI_ADDRCONFIG) finds no way to 127.0.0.1 and it sends nothing.
    lines = ['link set lo up', 'link add va type veth peer name vb', 'link set va up', 'link set vb up',
             'addr add 192.0.2.1/32 dev va']
    for i in range(PAIRS):
        lines += ['link add va%d type veth peer name vb%d' % (i, i), 'link set va%d up' % i, 'link set vb%d up' % i]
    subprocess.run([command('ip'), '-batch', '-'], input='\n'.join(lines).encode(), check=True,
                   stdout=subprocess.DEVNULL)
    if traffic:
        threading.Thread(target=send_frames, daemon=True).start()
    json.dump(compare(seconds), sys.stdout)


def send_frames():
    """A few frames of odd sizes through every interface each second, so that every rate is a number with digits."""
    socks = []
    for i in range(PAIRS):
        for side in 'ab':
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind(('v%s%d' % (side, i), 0))
            socks.append(sock)
    header = b'\x02' * 12 + b'\x88\xb5'         # to nobody; 88b5 is for experiments
    turn = 0
    while True:
        turn += 1
        for i, sock in enumerate(socks):
            sock.send(header + b'x' * (60 + (i * 7 + turn * 13) % 1300))
        time.sleep(0.3)


# -- a recording of 3,000 interfaces; memory over an hour ----------------------------------------

HEADING = ('Inter-|   Receive                                                |  Transmit\n'
           ' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls '
           'carrier compressed\n')


def host_files(interfaces, second):
    """{path: text} of a host: what it has counted after so many seconds."""
    net = [HEADING]
    for i in range(interfaces):
        step = 1000 + i * 37 + second * second % 91
        net.append('%6s: %d %d 0 0 0 0 0 0 %d %d 0 0 0 0 0 0\n' % (
            'if%d' % i, second * step * 7, second * step // 100, second * step * 3, second * step // 210))
    n = second * 100
    return {
        'proc/net/dev': ''.join(net),
        'proc/stat': 'cpu  %d 3 %d %d 17 0 5 0 0 0\ncpu0 %d 3 %d %d 17 0 5 0 0 0\nintr %d 0 0\nctxt %d\nbtime 1700000000\n'
                     'processes %d\nprocs_running 1\nprocs_blocked 0\n' % (n, n // 2, n * 3, n, n // 2, n * 3, n * 11,
                                                                          n * 23, n // 20),
        'proc/loadavg': '0.%02d 0.04 0.05 2/321 %d\n' % (second % 100, 4000 + second),
        'proc/diskstats': ''.join('   8   %2d sd%s %s\n' % (d * 16, 'abcd'[d], ' '.join(
            str(second * (k + 3) * (d + 1)) for k in range(17))) for d in range(4)),
        'proc/meminfo': 'MemTotal: 8000000 kB\nMemFree: %d kB\nMemAvailable: %d kB\nBuffers: 1000 kB\nCached: 5000 kB\n'
                        'VmallocTotal: 34359738367 kB\n' % (100000 + second * 4, 300000 + second * 4),
        'proc/sys/kernel/hostname': 'bench\n',
    }


def write_files(folder, files):
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text)


def replay_argv(folder, port, more=()):
    return [sys.executable, PROGRAM, '--replay', folder, '-e', 'graphite,port=%d' % port] + MODULES + list(more)


def timed_replay(folder, ticks):
    """(seconds of a whole run of so many ticks, lines that arrived)"""
    sink = Sink()
    started = time.monotonic()
    subprocess.run(replay_argv(folder, sink.port, ['-n', str(ticks)]), check=True, env=environment())
    took = time.monotonic() - started
    time.sleep(0.2)                             # the sink's thread reads the rest
    sink.close()
    return took, sink.lines


def many_interfaces(interfaces=3000, ticks=50):
    """What a tick takes on the wall, its delivery included; what starting takes is the run of one tick, taken off."""
    with tempfile.TemporaryDirectory() as folder:
        for second in range(ticks + 1):
            write_files(os.path.join(folder, '%d.000' % (1700000000 + second)), host_files(interfaces, second))
        one = statistics.median(timed_replay(folder, 1)[0] for _ in range(3))
        whole, lines = min(timed_replay(folder, ticks) for _ in range(3))
    return {'interfaces': interfaces, 'ticks': ticks, 'lines': lines / ticks, 'ms': (whole - one) / (ticks - 1) * 1e3}


def first_output(times=5):
    """Median of seconds from the start of the process to its first byte of output."""
    took = []
    for _ in range(times):
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, PROGRAM, '-e', 'stdout', '-n', '1', '-i', '0.2'],
                                   stdout=subprocess.PIPE, env=environment())
        if process.stdout.read(1):
            took.append(time.monotonic() - started)
        process.stdout.read()
        process.stdout.close()
        process.wait()
    return statistics.median(took)


HOUR = 3600


def an_hour(pool=90):
    """Resident memory over 3,600 replayed ticks of a host whose interfaces come and go.

    The snapshots are links to a few real ones, which repeat: at each turn all counters fall, as after a reboot. The
    spool is small, for a replay fills it as far as it may and that would look like growth.
    """
    with tempfile.TemporaryDirectory() as folder:
        recording, samples, sink = os.path.join(folder, 'recording'), [], Sink()
        os.mkdir(recording)
        for i in range(pool):
            write_files(os.path.join(folder, str(i)), host_files(40 + i // 30 * 5, i))
        for second in range(HOUR + 1):
            os.symlink(os.path.join(folder, str(second % pool)),
                       os.path.join(recording, '%d.000' % (1700000000 + second)))
        conf = os.path.join(folder, 'conf')
        with open(conf, 'w') as file:
            file.write('{"spool": {"memory_bytes": 65536}}')
        process = subprocess.Popen(replay_argv(recording, sink.port, ['-f', conf]), env=environment())
        started = time.monotonic()
        try:
            while process.poll() is None:
                now = resident(process.pid)
                if now:
                    samples.append((sink.lines, now / 1e6))
                time.sleep(0.01)
        finally:
            end(process)
            sink.close()
    return {'code': process.returncode, 'seconds': time.monotonic() - started, 'lines': sink.lines,
            'rss': [at_share(samples, sink.lines, share) for share in (0.1, 0.25, 0.5, 0.75, 0.99)]}


def at_share(samples, total, share):
    """The memory when that share of the lines had arrived."""
    return next((rss for lines, rss in samples if lines >= total * share), samples[-1][1] if samples else None)


# -- where the time of a tick goes ---------------------------------------------------------------

def load_program():
    """statbadger.py as a module."""
    spec = importlib.util.spec_from_file_location('statbadger', PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stages(ticks=300):
    """{stage: us a tick} of this host, median: kernel, parse, rates, encode, send.

    The only part that knows the program's inner names. The stages are those of Agent.tick and of the graphite
    dialogue, one after the other: what the agent adds between them (scheduling, the spool, waking the thread) is not
    in here, so the sum is less than what the process clock says of a tick.
    """
    sb = load_program()
    arguments = sb.parse(MODULES + ['-e', 'graphite'])
    settings = sb.Config(arguments).settings()
    tree = sb.host_tree(None, {}, sb.Clock.seconds)
    parts = [(part, chosen.options, {}, sb.Rates()) for chosen in settings.modules
             for part in sb.MODULES[chosen.kind].parts]
    lines = sb.graphite_lines(settings.emitters[0].options)
    identity = sb.host_identity(tree, {key: '' for key in sb.IDENTITY_KEYS})
    sink, took, layout, names = Sink(), [], None, ()
    sock = socket.create_connection(('127.0.0.1', sink.port))
    for tick in range(ticks):
        tree.fresh.clear()
        clock = [time.perf_counter()]
        for name in names:                      # kernel: what the modules will find in tree.fresh
            tree.read(name)
        clock.append(time.perf_counter())
        found = []
        for part, options, memory, rates in parts:
            try:
                found.append((rates, list(part(tree, options, memory)), tree.when))
            except sb.Absent:
                pass
        clock.append(time.perf_counter())
        fed = [rates.feed(rows, when) for rates, rows, when in found if rows]
        values = array('d', [v for series, numbers in fed for v in numbers])
        if layout is None or len(layout.series) != len(values):
            layout = sb.Layout(tuple(s for series, numbers in fed for s in series))
        frame = sb.Frame(1700000000000 + tick * 1000, tick, identity, layout, values)
        clock.append(time.perf_counter())
        data = lines.text(frame).replace(sb.TIME, sb.time_text(frame.time_ms)).encode()
        clock.append(time.perf_counter())
        sock.sendall(data)
        clock.append(time.perf_counter())
        took.append([after - before for before, after in zip(clock, clock[1:])])
        names = names or [name for name in tree.fresh if name.startswith(('proc/', 'sys/'))]
        time.sleep(0.005)                       # caches as cold as a host that does other things keeps them
    sock.close()
    sink.close()
    tree.close()
    rows = took[10:]
    out = {name: statistics.median(row[i] for row in rows) * 1e6
           for i, name in enumerate(('kernel', 'parse', 'rates', 'encode', 'send'))}
    out['lines'] = data.count(b'\n')
    return out


# -- the report ----------------------------------------------------------------------------------

def show_comparison(title, found):
    say(title)
    if isinstance(found, str):
        say('  not measured: %s' % found)
        return
    ours = found['statbadger']
    say('  %-14s %12s %12s %9s %16s' % ('agent', 'us a tick', 'lines a tick', 'RSS MB', 'CPU, ours is 1'))
    for name, one in found.items():
        if one is None:
            say('  %-14s not installed' % name)
        else:
            say('  %-14s %12.0f %12.1f %9.1f %16.2f' % (name, one['us'], one['lines'], one['rss'],
                                                        one['us'] / ours['us']))


def added_series(small, large):
    """{agent: us per line more}"""
    if isinstance(large, str) or isinstance(small, str):
        return {}
    return {name: (large[name]['us'] - small[name]['us']) / (large[name]['lines'] - small[name]['lines'])
            for name in small if small[name] and large[name] and large[name]['lines'] > small[name]['lines']}


def verdict(what, value, limit, aim, unit=''):
    say('  %-52s %9.2f%s   target < %g%s, aim %s: %s' % (
        what, value, unit, limit, unit, aim, 'met' if value < limit else 'MISSED'))


def targets(result):
    """The targets beside what was measured."""
    say('Targets')
    for title, key in (('small host', 'small'), ('200 interfaces', 'large')):
        found = result.get(key)
        if not isinstance(found, dict):
            continue
        ours = found['statbadger']
        for other, limit, aim in (('collectd', 1, '0.5'), ('node_exporter', 1 / 3.0, 'less')):
            if found.get(other):
                verdict('CPU of %s, %s' % (other, title), ours['us'] / found[other]['us'], limit, aim)
        verdict('RSS, %s' % title, ours['rss'], 14, '12', ' MB')
    if 'statbadger' in result.get('added', {}):
        verdict('an added series', result['added']['statbadger'], 1.5, '1', ' us')
    if 'emitters' in result:
        found = result['emitters']
        verdict('CPU of graphite, kafka', found['kafka']['us'] / found['graphite']['us'], 2, 'less')
        verdict('RSS, kafka without TLS and SASL', found['kafka']['rss'], 15, 'less', ' MB')
    if isinstance(result.get('backlog'), dict):
        verdict('ms per tick of a backlog, to a broker here', 1000 / result['backlog']['rate'], 0.5, 'less', ' ms')
    if 'many' in result:
        verdict('a tick of %(interfaces)d interfaces' % result['many'], result['many']['ms'], 60, 'less', ' ms')
    if 'first' in result:
        verdict('time to first output', result['first'], 0.6, 'less', ' s')
    if 'hour' in result and result['hour']['rss'][0]:
        rss = result['hour']['rss']
        verdict('growth from a tenth of an hour to its end', rss[-1] - rss[0], 1, '0', ' MB')


def measure(args):
    result = {'python': sys.version.split()[0], 'kernel': os.uname().release, 'cores': os.cpu_count(),
              'seconds': args.seconds}
    say('Python %(python)s, Linux %(kernel)s, %(cores)d cores, %(seconds)d s after %%d s of warm-up' % result % WARM_UP)
    wanted = [args.only] if args.only else PARTS
    if 'agents' in wanted:
        result['versions'] = versions()
        say('beside ' + (result['versions'] or 'nothing: install.sh bench installs collectd and node_exporter'))
        result['small'] = compare(args.seconds)
        show_comparison('\nThis host as it is', result['small'])
        result['large'] = in_namespace(args.seconds, args.traffic)
        show_comparison('\n200 veth interfaces, %s' % ('with traffic' if args.traffic else 'idle'), result['large'])
        result['added'] = added_series(result['small'], result['large'])
        for name, value in result['added'].items():
            say('  %-14s %12.2f us per added series' % (name, value))
    if 'emitters' in wanted:
        result['emitters'] = compare_emitters(args.seconds)
        show_emitters(result['emitters'])
        result['per_kilobyte'] = per_kilobyte()
        say('  per kB: ' + ', '.join('%s %.1f us' % item for item in result['per_kilobyte'].items()))
        result['backlog'] = backlog()
        say('  a backlog to Apache Kafka on this host: ' + (
            result['backlog'] if isinstance(result['backlog'], str) else
            '%(ticks)d ticks of %(points)d points, %(rate).0f ticks a second' % result['backlog']))
    if 'stages' in wanted:
        result['stages'] = stages()
        say('\nWhere the time of a tick goes, us:  ' + '  '.join('%s %.0f' % item for item in result['stages'].items()))
    if 'many' in wanted:
        result['many'] = many_interfaces()
        say('\n%(interfaces)d interfaces, %(ticks)d ticks: %(ms).1f ms a tick of %(lines).0f lines' % result['many'])
    if 'first' in wanted:
        result['first'] = first_output()
        say('\nFirst output of -n 1 -i 0.2 after %.2f s' % result['first'])
    if 'modules' in wanted:
        result['modules'] = {name: modules_cost(name) for name in ('processes', 'flows', 'containers')}
    if 'hour' in wanted:
        result['hour'] = an_hour()
        say('\nAn hour of ticks in %.1f s, exit code %d; RSS at 10, 25, 50, 75, 99 %%: %s MB' % (
            result['hour']['seconds'], result['hour']['code'],
            ' '.join('%.1f' % rss for rss in result['hour']['rss'] if rss)))
    say()
    targets(result)
    return result


def modules_cost(name):
    """What the program of that name in this folder prints: the cost of the modules that read much."""
    say('\nModules: ' + name)
    done = subprocess.run([sys.executable, os.path.join(HERE, name + '.py')], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode('utf-8', 'replace')
    say('  ' + text.rstrip().replace('\n', '\n  '))
    return text


PARTS = ['agents', 'emitters', 'stages', 'many', 'first', 'modules', 'hour']


def main():
    parser = argparse.ArgumentParser(description='What a tick of statbadger costs, beside other agents.')
    parser.add_argument('--seconds', type=int, default=60, help='how long to measure (60)')
    parser.add_argument('--quick', action='store_true', help='12 seconds')
    parser.add_argument('--traffic', action='store_true', help='frames through all of the 200 interfaces')
    parser.add_argument('--only', choices=PARTS, help='one part alone')
    parser.add_argument('--json', metavar='FILE', help='write all numbers there too')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seconds = 12
    if args.inside:
        inside(args.seconds, args.traffic)
        return
    result = measure(args)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(result, file, indent=1)


if __name__ == '__main__':
    main()
